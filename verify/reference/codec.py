"""codec: a whole tiny codec (codec_model.Codec), outputs and the gradient of every parameter.

loss = 15 mel + 1 l1 + commitment (ema), or 15 mel + 1 l1 + 0.25 commitment + 1 codebook (factorised); mel is the
multi-scale loss over the windows that fit T, l1 the mean absolute difference of the waves. A symmetric decoder with an
odd stride is shorter than its input, whose end is then left out of both.

Tensors: `input` [B,1,T]; every parameter under its module name (weight norm kept: weight_g, weight_v, bias; Euclidean
codebooks as embedding_sum, cluster_usage); `z`, `codes` [B,K,T/hop], `margin` (see quantise.py), `z_q`, `wave`;
`loss`, `loss.mel`, `loss.l1`, `loss.commitment`, `loss.codebook`; `grad.<parameter>`, `grad.wave`, `grad.z_q`, `grad.z`;
`closest`: the least |log mel difference| above 0 (the loss has a kink at 0); `wave.<k>`: decoded from the first k codebooks alone. `config` in the case is codec_model.CodecConfig.
"""

from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F

from codec_model import Codec, CodecConfig
from dump import Draw, leaf, save
from signals import speech
from spectral import SCALES, log_mel, multi_scale_mel_loss

TINY = dict(encoder_widths=[4, 6, 8], decoder_widths=[8, 6, 4], latent=8, codebook_dim=4, codebook_sizes=[32, 16, 16])
CASES = {
    "ema_causal": CodecConfig(**TINY, strides=[2, 4], quantizer="ema"),
    "ema_causal_odd_stride": CodecConfig(**TINY, strides=[2, 5], dilations=[1, 3], quantizer="ema"),
    "factorised_causal": CodecConfig(**TINY, strides=[2, 4], quantizer="factorised"),
    "factorised_symmetric": CodecConfig(**TINY, strides=[2, 4], quantizer="factorised", causal=False),
    "ema_symmetric_odd_stride": CodecConfig(**TINY, strides=[2, 5], quantizer="ema", causal=False),
    "hybrid": CodecConfig(**TINY, strides=[2, 4], quantizer="ema", transformer=dict(layers=2, heads=2, hidden=12, window=7)),
}
SAMPLES = 320


def gain(name):
    """Keeps the residual sums near 1 and the output out of tanh's flat ends."""
    if "encoder.conv1" in name:
        return 6.0
    return 0.15 if "decoder.conv2" in name else 0.5 if "res_unit" in name else 1.2


def randomise(model, draw):
    """Values of the size that a trained codec has, so that no layer is nearly silent or nearly linear."""
    for name, tensor in list(model.named_parameters()) + list(model.named_buffers()):
        shape, kind = tensor.shape, name.rsplit(".", 1)[1]
        if kind == "alpha":
            value = draw.uniform(0.3, 2.5, *shape)
        elif kind == "bias":
            value = draw.normal(*shape, scale=0.1)
        elif kind == "scale" or "norm" in name and kind == "weight":
            value = draw.uniform(0.5, 1.5, *shape)
        elif kind == "weight_g":
            value = draw.uniform(0.7 * gain(name), 1.3 * gain(name), *shape)
        elif kind == "cluster_usage":
            value = draw.uniform(0.2, 6.0, *shape)
        elif "codebook" in name:
            value = draw.normal(*shape, scale=0.8)
        else:
            value = draw.normal(*shape, scale=shape[1:].numel() ** -0.5)
        tensor.data = value
    for layer in getattr(model.quantizer, "layers", []):
        book = layer.codebook
        book.embedding_sum = leaf((book.embedding_sum * book.cluster_usage[:, None]).numpy())


def total_loss(config, wave, target, losses):
    """(loss, parts); wave, target [B,1,T], losses those of the quantiser."""
    target = target[..., : wave.shape[-1]]
    parts = {"mel": multi_scale_mel_loss(wave[:, 0], target[:, 0], config.sample_rate),
             "l1": F.l1_loss(wave, target), **losses}
    weights = {"mel": 15.0, "l1": 1.0, "commitment": 1.0 if config.quantizer == "ema" else 0.25, "codebook": 1.0}
    return sum(weights[name] * part for name, part in parts.items()), parts


def closest(config, wave, target, scales):
    target = target[..., : wave.shape[-1]]
    gaps = [(log_mel(wave[:, 0], config.sample_rate, *s) - log_mel(target[:, 0], config.sample_rate, *s)).abs()
            for s in scales]
    return min(gap[gap > 0].min() for gap in gaps)


def make():
    for case, config in CASES.items():
        draw = Draw("codec", case)
        model = Codec(config).double().eval()
        randomise(model, draw)
        source = leaf(np.stack([speech(draw.rng, SAMPLES, config.sample_rate)[None] for _ in range(2)]))
        margin = []
        z = model.latent(source)
        z_q, codes, losses = model.quantizer(z, margin)
        wave = model.wave(z_q)
        loss, parts = total_loss(config, wave, source, losses)
        for tensor in (z, z_q, wave):
            tensor.retain_grad()
        loss.backward()
        scales = [s for s in SCALES if s[1] <= wave.shape[-1]]
        tensors = {"closest": closest(config, wave, source, scales), "input": source, "z": z, "codes": codes, "margin": torch.stack(margin, 1), "z_q": z_q, "wave": wave,
                   "grad.z": z.grad, "grad.z_q": z_q.grad, "grad.wave": wave.grad, "loss": loss,
                   **{f"loss.{name}": part for name, part in parts.items()}, **dict(model.named_buffers())}
        for name, parameter in model.named_parameters():
            tensors |= {name: parameter, f"grad.{name}": parameter.grad}
        with torch.no_grad():
            for k in range(1, codes.shape[1] + 1):
                tensors[f"wave.{k}"] = model.decode(codes[:, :k])
        given = {name: value for name, value in asdict(config).items() if value is not None}
        save("codec", case, tensors, config=given, hop=config.hop,
             mel_scales=[list(s) for s in scales])

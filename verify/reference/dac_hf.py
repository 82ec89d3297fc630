"""dac_hf: transformers' DacModel, random weights, under its published tensor names (weight norm folded).

`input` [B,1,T], `z` the encoder's output, `codes`, `z_q`, `margin` of the cosine, `audio` [B,T'] decoded from the
codes; `config` in the case holds the fields of the published config.json. Odd strides make T' shorter than T. The
same weights in codec_model.Codec must give the same tensors, which ties the two references together; a mismatch is
an error.
"""

import numpy as np
import torch
from transformers import DacConfig, DacModel

from codec import gain
from codec_model import Codec, CodecConfig
from dump import Draw, leaf, save
from signals import speech

PUBLISHED = dict(encoder_hidden_size=4, downsampling_ratios=[2, 5, 3], decoder_hidden_size=24, n_codebooks=3,
                 codebook_size=16, codebook_dim=4, quantizer_dropout=0, commitment_loss_weight=0.25,
                 codebook_loss_weight=1.0, sampling_rate=16000)


def same_codec(model):
    """The plain codec with DacModel's weights: weight_g = the rows' norms."""
    c = model.config
    strides = c.downsampling_ratios
    plain = Codec(CodecConfig(
        sample_rate=c.sampling_rate, strides=strides, latent=c.hidden_size, causal=False, quantizer="factorised",
        encoder_widths=[c.encoder_hidden_size * 2**i for i in range(len(strides) + 1)],
        decoder_widths=[c.decoder_hidden_size // 2**i for i in range(len(strides) + 1)],
        codebook_dim=c.codebook_dim, codebook_sizes=[c.codebook_size] * c.n_codebooks)).double()
    state = {}
    for name, tensor in model.state_dict().items():
        if name.endswith(".weight") and "codebook" not in name:
            state[f"{name}_g"] = tensor.flatten(1).norm(dim=1)[:, None, None]
            state[f"{name}_v"] = tensor
        else:
            state[name] = tensor
    plain.load_state_dict(state)
    return plain.eval()


@torch.no_grad()
def make():
    draw = Draw("dac_hf", "tiny")
    model = DacModel(DacConfig(**PUBLISHED)).double().eval()
    for name, parameter in model.named_parameters():
        shape = parameter.shape
        if name.endswith("alpha"):
            parameter.copy_(draw.uniform(0.3, 2.5, *shape))
        elif name.endswith("bias"):
            parameter.copy_(draw.normal(*shape, scale=0.1))
        elif "codebook" in name:
            parameter.copy_(draw.normal(*shape))
        else:
            parameter.copy_(draw.normal(*shape, scale=gain(name) * shape[1:].numel() ** -0.5))
    samples = 11 * model.config.hop_length
    source = leaf(np.stack([speech(draw.rng, samples, PUBLISHED["sampling_rate"])[None] for _ in range(2)]))
    z = model.encoder(source)
    encoded = model.encode(source)
    audio = model.decode(audio_codes=encoded.audio_codes).audio_values

    plain, margin = same_codec(model), []
    z_q, codes, _ = plain.quantizer(plain.encoder(source), margin)
    assert torch.equal(codes, encoded.audio_codes)
    torch.testing.assert_close(z_q, encoded.quantized_representation, rtol=0, atol=1e-12)
    torch.testing.assert_close(plain.decode(codes)[:, 0], audio, rtol=0, atol=1e-12)

    save("dac_hf", "tiny", {**model.state_dict(), "input": source, "z": z, "codes": codes, "z_q": z_q,
                            "margin": torch.stack(margin, 1), "audio": audio},
         config={**PUBLISHED, "upsampling_ratios": PUBLISHED["downsampling_ratios"][::-1],
                 "hidden_size": model.config.hidden_size, "hop_length": model.config.hop_length})

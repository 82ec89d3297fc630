"""encodec: transformers' EncodecModel, random weights in the layout of facebook/encodec_24khz and encodec_48khz, real speech.

encodec/weights/CASE/    config.json and model.safetensors; 24khz with weight_g and weight_v, as published
encodec/CASE.safetensors `input` [B,C,T], `codes` [B,K,F], `margin` [B,K,F], `wave` [B,C,T'] decoded from the codes, `wave.<k>` from
                         the first k codebooks, `given.codes`, `given.wave`; layers as in mimi.py
48khz                    two channels, not causal, and in chunks: codes and margins [N,B,K,F], `scales` [N,B] (the loudness by which a
                         chunk was divided); the last chunk's codes are filled up with `last_frame_pad_length` (in the case) zeros, margins
                         with 1; layers are those of the first chunk

A margin is d2 / d1 - 1 of the Euclidean distances. Float64; what transformers gives in float32 is compared with that, and printed.
"""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import EncodecConfig, EncodecModel

import published
from dump import GOLDEN, Draw, save
from published import Outputs, Scales, euclidean_margins, near, randomise, rounded
from signals import recorded

SMALL = dict(hidden_size=16, num_filters=2, num_residual_layers=1, kernel_size=7, last_kernel_size=7, residual_kernel_size=3,
             dilation_growth_rate=2, compress=2, num_lstm_layers=2, trim_right_ratio=1.0, codebook_size=16, codebook_dim=16,
             use_conv_shortcut=True, pad_mode="reflect", upsampling_ratios=[4, 5, 2])
CASES = {
    "24khz": dict(sampling_rate=24000, audio_channels=1, normalize=False, chunk_length_s=None, overlap=None, norm_type="weight_norm",
                  use_causal_conv=True, target_bandwidths=[2.4, 4.8, 9.6, 19.2]),
    "48khz": dict(sampling_rate=48000, audio_channels=2, normalize=True, chunk_length_s=0.005, overlap=0.05,
                  norm_type="time_group_norm", use_causal_conv=False, target_bandwidths=[4.8, 9.6, 28.8]),
}
# Whole hops or not; the 48 kHz input is two chunks and a part of one.
SAMPLES = {"24khz": 7 * 40 + 13, "48khz": 2 * 228 + 150}


def fill(book, residual, draw):
    rows = near(residual, book.codebook_size, 0.5, draw)
    book.embed.data = rounded(rows * draw.uniform(0.4, 1.2, len(rows), 1))
    book.cluster_size.data = draw.uniform(0.5, 20, len(rows))
    # What training divides by the sizes; the published embed is what counts.
    book.embed_avg.data = rounded(book.embed * book.cluster_size[:, None])
    return residual - book.decode(book.encode(residual))


def weight_norm_names(state):
    """The names that torch used when the checkpoint was published."""
    return {n.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): t
            for n, t in state.items()}


def write(case, own):
    draw = Draw("encodec", case)
    config = EncodecConfig(**SMALL, **own)
    model = EncodecModel(config).double().eval()
    rate, best = config.sampling_rate, config.target_bandwidths[-1]
    randomise(model, draw)

    def sound(samples, seconds):
        start = int(seconds * rate)
        return np.stack([recorded(samples, rate, start=start + 700 * c) * (1 - 0.3 * c) for c in range(config.audio_channels)])

    # GroupNorm sets the scale where there is one.
    last = f"decoder.layers.{len(model.decoder.layers) - 1}.conv"
    scales = Scales(model, lambda name: 0.1 if name == last else 0.5 if ".block.3." in name else 1.0)
    x = torch.from_numpy(np.stack([sound(SAMPLES[case], s) for s in (1.01, 3.62)])).float().double()
    length = config.chunk_length or 400 * config.hop_length
    fitting = torch.from_numpy(np.stack([sound(length, 1 + 0.01 * i) for i in range(1 if config.chunk_length is None else 40)]))
    if config.normalize:
        fitting = fitting / fitting.mean(1, keepdim=True).square().mean(-1, keepdim=True).sqrt()
    residual = model.encoder(fitting).transpose(1, 2).flatten(0, 1)
    for layer in model.quantizer.layers:
        residual = fill(layer.codebook, residual, draw)
    encode = lambda m, x: m.encode(x, bandwidth=best)
    encoded = encode(model, x)
    more = dict(last_frame_pad_length=encoded.last_frame_pad_length)
    model.decode(encoded.audio_codes, encoded.audio_scales, **more)
    scales.stop()

    folder = GOLDEN / "encodec" / "weights" / case
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.float().contiguous() for n, t in weight_norm_names(model.state_dict()).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {"architectures": ["EncodecModel"], "model_type": "encodec", **SMALL, **own}
    (folder / "config.json").write_text(json.dumps(fields, indent=1) + "\n")

    outputs, searched = Outputs(model, r"(en|de)coder\.layers\.\d+"), []
    hook = model.encoder.register_forward_hook(lambda _, __, z: searched.append(z))
    encoded = encode(model, x)
    hook.remove()
    codes = encoded.audio_codes
    decode = lambda m, codes: m.decode(codes, [None if s is None else s.to(m.dtype) for s in encoded.audio_scales], **more).audio_values
    wave = decode(model, codes)
    outputs.stop()
    margin = torch.ones(codes.shape, dtype=torch.float64)
    for n, z in enumerate(searched):
        residual = z.transpose(1, 2)
        for k, layer in enumerate(model.quantizer.layers):
            found = euclidean_margins(residual.flatten(0, 1), layer.codebook.embed).view(residual.shape[:2])
            margin[n, :, k, : found.shape[-1]] = found
            residual = residual - layer.codebook.decode(layer.codebook.encode(residual))
    given = draw.integers(0, config.codebook_size, *codes.shape)
    tensors = {"input": x, "codes": codes, "margin": margin, "wave": wave, "given.codes": given, "given.wave": decode(model, given)}
    for k in (1, config.num_quantizers // 2):
        tensors[f"wave.{k}"] = decode(model, codes[:, :, :k])
    if config.normalize:
        tensors["scales"] = torch.stack([s[:, 0] for s in encoded.audio_scales])
    else:
        tensors |= {name: tensors[name][0] for name in ("codes", "margin", "given.codes")}
    save("encodec", case, {**tensors, **outputs.found}, layers=list(outputs.found), weights=f"weights/{case}", **more)

    theirs = EncodecModel.from_pretrained(folder).eval()
    found = encode(theirs, x.float()).audio_codes, decode(theirs, codes)
    clear, error = published.compare(f"{case}: transformers in float32", found, (codes, margin, wave))
    assert clear == 0 and error < 1e-4


@torch.no_grad()
def make():
    for case, own in CASES.items():
        write(case, own)

"""snac: the snac package's SNAC, random weights in the layout of hubertsiuzdak/snac_24khz (3 levels, no attention) and snac_32khz, real speech.

snac/weights/CASE/    config.json and pytorch_model.bin (a zip with a pickle), as published: weight norm as parametrizations
snac/CASE.safetensors `input` [B,1,T], to which zeros are appended up to a whole number of windows; `codes_<i>`, `margin_<i>` [B,T_i] of level i,
                      the slowest first; `wave` [B,1,T'] decoded from all levels without noise, `wave.<k>` from the first k levels;
                      `noise.<n>` [B,1,T_n] and `wave.noise`: with that noise in the decoder's n-th block; `given.codes_<i>`,
                      `given.wave`; layers as in mimi.py, without noise

SNAC decodes with fresh normal noise every time: comparable are 0, and noise that is given. A margin is the best cosine less the
second. Float64; what the package gives in float32 is compared with that, and printed.
"""

import json
import re
from functools import partial

import numpy as np
import torch
from snac import SNAC

import published
from dump import GOLDEN, Draw, save
from published import Outputs, Scales, cosine_margins, fit_cosine, randomise
from signals import recorded

CASES = {
    "24khz": dict(sampling_rate=24000, encoder_dim=4, encoder_rates=[2, 4, 3], latent_dim=None, decoder_dim=32, decoder_rates=[3, 4, 2],
                  attn_window_size=None, codebook_size=16, codebook_dim=4, vq_strides=[4, 2, 1], noise=True, depthwise=True),
    # A head of the attention is 64 wide.
    "32khz": dict(sampling_rate=32000, encoder_dim=16, encoder_rates=[3, 2], latent_dim=None, decoder_dim=64, decoder_rates=[2, 3],
                  attn_window_size=8, codebook_size=16, codebook_dim=4, vq_strides=[8, 4, 2, 1], noise=True, depthwise=True),
}


class Noise:
    """What torch.randn gives to the decoder's blocks in turn: zeros, or what was drawn."""

    def __init__(self, given=None):
        self.given, self.shapes = given, []

    def __enter__(self):
        self.published, torch.randn = torch.randn, self.next
        return self

    def __exit__(self, *_):
        torch.randn = self.published

    def next(self, shape, device=None, dtype=None):
        self.shapes.append(shape)
        return torch.zeros(shape, dtype=dtype) if self.given is None else self.given[len(self.shapes) - 1].to(dtype)


def decode(model, codes, noise=None, levels=None):
    """Levels that are left out add nothing, not even their projection's bias."""
    z = 0
    for quantizer, level in list(zip(model.quantizer.quantizers, codes))[:levels]:
        z = z + quantizer.out_proj(quantizer.decode_code(level)).repeat_interleave(quantizer.stride, -1)
    with Noise(noise) as used:
        wave = model.decoder(z)
    return wave, used.shapes


def wanted(name, last):
    if name.endswith("out_proj"):
        return None
    # The last convolution is followed by tanh.
    return 0.3 if name == last or name.endswith("linear") else 0.5 if re.search(r"\.block\.\d+\.block\.3$", name) else 1.0


def write(case, config):
    draw = Draw("snac", case)
    torch.manual_seed(0)
    model = SNAC(**config).double().eval()
    rate, hop = config["sampling_rate"], int(model.hop_length)
    randomise(model, draw)
    scales = Scales(model, partial(wanted, last=f"decoder.model.{len(model.decoder.model) - 2}"))
    window = 8 * hop
    residual = model.encoder(model.preprocess(torch.from_numpy(recorded(60 * window, rate, start=rate))[None, None]))
    for quantizer in model.quantizer.quantizers:
        pooled = torch.nn.functional.avg_pool1d(residual, quantizer.stride)
        fit_cosine(quantizer, pooled, draw)
        residual = residual - quantizer(residual)[0]
    x = np.stack([recorded(2 * window - 2 * hop - hop // 3, rate, start=int(s * rate))[None] for s in (1.01, 3.62)])
    x = torch.from_numpy(x).float().double()
    decode(model, model.encode(x))
    scales.stop()

    folder = GOLDEN / "snac" / "weights" / case
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({n: t.float().contiguous() for n, t in model.state_dict().items()}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    outputs = Outputs(model, r"encoder\.block\.\d+|decoder\.model\.\d+")
    latents = []
    hooks = [q.in_proj.register_forward_hook(lambda _, __, z: latents.append(z)) for q in model.quantizer.quantizers]
    codes = model.encode(x)
    for hook in hooks:
        hook.remove()
    wave, shapes = decode(model, codes)
    outputs.stop()
    margins = [cosine_margins(z, q.codebook.weight) for z, q in zip(latents, model.quantizer.quantizers)]
    noise = [draw.normal(*shape) for shape in shapes]
    given = [draw.integers(0, config["codebook_size"], *level.shape) for level in codes]
    tensors = {"input": x, "wave": wave, "wave.noise": decode(model, codes, noise)[0], "given.wave": decode(model, given)[0]}
    for i, level in enumerate(codes):
        tensors |= {f"codes_{i}": level, f"margin_{i}": margins[i], f"given.codes_{i}": given[i]}
    for n, values in enumerate(noise):
        tensors[f"noise.{n}"] = values
    for k in range(1, len(codes)):
        tensors[f"wave.{k}"] = decode(model, codes, levels=k)[0]
    save("snac", case, {**tensors, **outputs.found}, layers=list(outputs.found), weights=f"weights/{case}")

    theirs = SNAC.from_pretrained(str(folder))
    found = theirs.encode(x.float())
    with Noise(noise):
        noisy = theirs.decode(codes)
    spread = lambda levels: torch.stack([level.repeat_interleave(levels[-1].shape[-1] // level.shape[-1], -1) for level in levels], 1)
    clear, error = published.compare(f"{case}: snac in float32", (spread(found), noisy), (spread(codes), spread(margins), tensors["wave.noise"]))
    assert clear == 0 and error < 1e-4


@torch.no_grad()
def make():
    for case, config in CASES.items():
        write(case, config)

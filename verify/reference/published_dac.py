"""dac: transformers' DacModel, random weights in the layout of descript/dac_16khz, dac_24khz and dac_44khz, real speech.

dac/weights/CASE/    config.json and model.safetensors, weight norm folded as published
dac/CASE.safetensors `input` [B,1,T], T no whole number of frames: zeros are appended up to one, as DacFeatureExtractor does; `codes`,
                     `margin` [B,K,F], `wave` [B,1,T'] decoded from the codes (shorter than T where a stride is odd),
                     `wave.<k>` from the first k codebooks, `given.codes`, `given.wave`; layers as in mimi.py

A margin is the best cosine less the second. Float64; what transformers gives in float32 is compared with that, and printed.
"""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import DacConfig, DacModel

from dump import GOLDEN, Draw, save
from published import Outputs, Scales, compare, cosine_margins, fit_cosine, randomise
from signals import recorded

SMALL = dict(encoder_hidden_size=2, decoder_hidden_size=16, codebook_size=16, codebook_dim=4, quantizer_dropout=0.0,
             commitment_loss_weight=0.25, codebook_loss_weight=1.0)
CASES = {
    "16khz": dict(sampling_rate=16000, downsampling_ratios=[2, 4, 5, 3], n_codebooks=12),
    "24khz": dict(sampling_rate=24000, downsampling_ratios=[2, 3, 5, 2], n_codebooks=32),
    "44khz": dict(sampling_rate=44100, downsampling_ratios=[2, 4, 4, 4], n_codebooks=9),
}


def wanted(name):
    if name.endswith("out_proj"):
        return None
    return 0.3 if name == "decoder.conv2" else 0.5 if "res_unit" in name and name.endswith("conv2") else 1.0


def write(case, own):
    draw = Draw("dac", case)
    config = DacConfig(**SMALL, **own)
    model = DacModel(config).double().eval()
    hop, rate = config.hop_length, config.sampling_rate
    randomise(model, draw)
    scales = Scales(model, wanted)
    residual = model.encoder(torch.from_numpy(recorded(400 * hop, rate, start=rate))[None, None])
    for quantizer in model.quantizer.quantizers:
        fit_cosine(quantizer, residual, draw)
        residual = residual - quantizer(residual)[0]
    x = np.stack([recorded(6 * hop - hop // 3, rate, start=int(s * rate))[None] for s in (1.01, 3.62)])
    x = torch.from_numpy(x).float().double()
    whole = torch.nn.functional.pad(x, (0, 6 * hop - x.shape[-1]))
    model.decode(audio_codes=model.encode(whole).audio_codes)
    scales.stop()

    folder = GOLDEN / "dac" / "weights" / case
    folder.mkdir(parents=True, exist_ok=True)
    save_file({n: t.float().contiguous() for n, t in model.state_dict().items()}, folder / "model.safetensors", metadata={"format": "pt"})
    fields = {**SMALL, **own, "upsampling_ratios": config.upsampling_ratios, "hidden_size": config.hidden_size, "hop_length": hop}
    (folder / "config.json").write_text(json.dumps({"architectures": ["DacModel"], "model_type": "dac", **fields}, indent=1) + "\n")

    outputs = Outputs(model, r"(en|de)coder\.(conv\d|block\.\d+)")
    encoded = model.encode(whole)
    codes = encoded.audio_codes
    wave = model.decode(audio_codes=codes).audio_values
    outputs.stop()
    latents = encoded.projected_latents.split(config.codebook_dim, 1)
    margin = torch.stack([cosine_margins(z, q.codebook.weight) for z, q in zip(latents, model.quantizer.quantizers)], 1)
    given = draw.integers(0, config.codebook_size, *codes.shape)
    tensors = {"input": x, "codes": codes, "margin": margin, "wave": wave[:, None], "given.codes": given,
               "given.wave": model.decode(audio_codes=given).audio_values[:, None]}
    for k in (1, config.n_codebooks // 2):
        tensors[f"wave.{k}"] = model.decode(audio_codes=codes[:, :k]).audio_values[:, None]
    save("dac", case, {**tensors, **outputs.found}, layers=list(outputs.found), weights=f"weights/{case}")

    theirs = DacModel.from_pretrained(folder).eval()
    found = theirs.encode(whole.float()).audio_codes, theirs.decode(audio_codes=codes).audio_values
    clear, error = compare(f"{case}: transformers in float32", found, (codes, margin, wave))
    assert clear == 0 and error < 1e-4


@torch.no_grad()
def make():
    for case, own in CASES.items():
        write(case, own)

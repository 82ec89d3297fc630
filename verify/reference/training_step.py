"""gradients/{encodec,snac}_step: one training step of a small EnCodec and a small SNAC, all of it float64 and stored so.

The models start as in encodec/weights/24khz and snac/weights/CASE, gains and directions as they are there.

gradients/encodec_step     `encodec`'s own residual quantiser between `transformers`' encoder and decoder; the straight-through gradient taken
                           once, around the sum, as audiocraft has it (facebookresearch/encodec#25): `input`, `wave` [B,1,T], `codes` [B,K,F] of the
                           stages of one bandwidth, `loss.l1`, `loss.msspec`, `loss.commitment` (mean over those stages), `grad.NAME` of
                           10 l1 + 2 msspec + 0.5 commitment, `after.NAME` of the averages and of the codewords after this batch
gradients/snac_step.CASE   the `snac` package, its noise given, positions turned by double frequencies: `input`, `noise.<n>`, `wave`, `codes_<i>`; `loss.commitment`, `loss.codebook`: DAC's,
                           summed over the stages, of latents that the stage has pooled; `grad.NAME` of 10 l1 + 2 msspec + 0.25 commitment + codebook; of
                           32khz that of its attention and of its first layer

msspec is audiocraft's MultiScaleMelSpectrogramLoss (range 6 to 10, 64 mels from 64 Hz, normalised, no alphas, floor 1e-5) written out in
float64; where torchaudio is there, its MelSpectrogram must agree.
"""

import json
import re

import numpy as np
import torch
import torch.nn.functional as F
from encodec.quantization.core_vq import ResidualVectorQuantization, laplace_smoothing
from safetensors.numpy import save_file
from safetensors.torch import load_file
from snac import SNAC
from transformers import EncodecModel

from dump import GOLDEN, Draw
from published_snac import Noise
from signals import recorded

WINDOWS, MELS, LOWEST, FLOOR = [64, 128, 256, 512, 1024], 64, 64.0, 1e-5


def filters(rate, window):
    mel = lambda hz: 2595 * np.log10(1 + hz / 700)
    edges = 700 * (10 ** (np.linspace(mel(LOWEST), mel(rate // 2), MELS + 2) / 2595) - 1)
    hz = np.linspace(0, rate // 2, window // 2 + 1)[:, None]
    up, down = (hz - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - hz) / np.diff(edges)[1:]
    return torch.from_numpy(np.maximum(0, np.minimum(up, down)))


def padded(x, window, hop):
    ends = (window - hop) // 2
    x = F.pad(x[:, None], (ends, ends), "reflect")[:, 0]
    frames = -(-(x.shape[-1] - window) // hop) + 1
    return F.pad(x, (0, (frames - 1) * hop + window - x.shape[-1]))


def power_mel(x, rate, window):
    hop, w = window // 4, torch.hann_window(window, dtype=x.dtype)
    spectrum = torch.stft(padded(x, window, hop), window, hop, window=w, center=False, return_complex=True)
    power = (spectrum / w.pow(2).sum().sqrt()).abs().pow(2)
    return power.transpose(1, 2) @ filters(rate, window)


def msspec(y, x, rate):
    total = 0
    for window in WINDOWS:
        a, b = power_mel(y[:, 0], rate, window), power_mel(x[:, 0], rate, window)
        total = total + F.l1_loss(a, b) + F.mse_loss((a + FLOOR).log10(), (b + FLOOR).log10())
    return total / (2 * len(WINDOWS))


def compare(x, rate):
    """With torchaudio's own transform, in float32."""
    try:
        from torchaudio.transforms import MelSpectrogram
    except ImportError:
        return
    for window in WINDOWS:
        theirs = MelSpectrogram(n_mels=MELS, sample_rate=rate, n_fft=window, hop_length=window // 4, win_length=window, f_min=LOWEST,
                                normalized=True, window_fn=torch.hann_window, center=False)
        ours, theirs = power_mel(x[:, 0], rate, window), theirs(padded(x[:, 0], window, window // 4).float()).transpose(1, 2).double()
        error = ((ours - theirs).norm() / ours.norm()).item()
        assert error < 1e-5, (window, error)
        print(f"  torchaudio, window {window}: {error:.1e}")


def write(case, tensors):
    arrays = {}
    for name, tensor in tensors.items():
        array = tensor.detach().numpy()
        integer = np.issubdtype(array.dtype, np.integer)
        arrays[name] = np.ascontiguousarray(array.astype(np.int32 if integer else np.float64))
        assert np.isfinite(arrays[name]).all(), name
    save_file(arrays, GOLDEN / "gradients" / f"{case}.safetensors")


def sound(samples, rate):
    x = np.stack([recorded(samples, rate, start=int(s * rate))[None] for s in (1.01, 3.62)])
    return torch.from_numpy(x).float().double()


def old_names(name):
    return name.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v")


def encodec(case="encodec_step", stages=4, frames=64):
    folder = GOLDEN / "encodec" / "weights" / "24khz"
    config, stored = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    model = EncodecModel.from_pretrained(folder).double().train()
    for name, p in model.named_parameters():
        assert torch.equal(p.float(), stored[old_names(name)]), name
    size, dim = config["codebook_size"], config["hidden_size"]
    layers = len(model.quantizer.layers)
    vq = ResidualVectorQuantization(num_quantizers=layers, dim=dim, codebook_size=size, decay=0.99, kmeans_init=False,
                                    threshold_ema_dead_code=0).double().train()
    for layer, ours in zip(vq.layers, model.quantizer.layers):
        book, usage = layer._codebook, ours.codebook.cluster_size
        smoothed = laplace_smoothing(usage, size, book.epsilon) * usage.sum()
        book.embed.copy_(ours.codebook.embed)
        book.cluster_size.copy_(usage)
        # Codewords stay what they are: published sums are their multiples.
        book.embed_avg.copy_(ours.codebook.embed * smoothed[:, None])
    x = sound(frames * 40, config["sampling_rate"])
    compare(x, config["sampling_rate"])
    latent = model.encoder(x)
    residual, total, losses, codes = latent, 0, [], []
    for layer in vq.layers[:stages]:
        quantised, index, loss = layer(residual)
        residual = residual - quantised.detach()
        total = total + quantised.detach()
        losses.append(loss)
        codes.append(index)
    commitment = torch.cat(losses).mean()
    wave = model.decoder(latent + (total - latent).detach())
    distance, spectra = F.l1_loss(wave, x), msspec(wave, x, config["sampling_rate"])
    (10 * distance + 2 * spectra + 0.5 * commitment).backward()
    found = {f"grad.{old_names(name)}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    after = {f"after.quantizer.layers.{k}.codebook.{name}": getattr(layer._codebook, name)
             for k, layer in enumerate(vq.layers) for name in ("cluster_size", "embed_avg", "embed")}
    write(case, {"input": x, "wave": wave, "codes": torch.stack(codes, 1), "loss.l1": distance[None], "loss.msspec": spectra[None],
                 "loss.commitment": commitment[None], **found, **after})


def snac(case, windows, kept=""):
    folder = GOLDEN / "snac" / "weights" / case
    config = json.loads((folder / "config.json").read_text())
    model = SNAC.from_pretrained(str(folder)).double().train()
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            # Not those of float32.
            module.inv_freq = 10000.0 ** -(torch.arange(0, 64, 2).double() / 64)
    draw, rate = Draw("gradients", f"snac_step_{case}"), config["sampling_rate"]
    slowest = config["vq_strides"][0]
    x = sound(windows * model.hop_length * max(slowest, config["attn_window_size"] or 1), rate)
    residual, total, commitment, book, codes = model.encoder(x), 0, 0, 0, []
    for quantizer in model.quantizer.quantizers:
        pooled = F.avg_pool1d(residual, quantizer.stride, quantizer.stride) if quantizer.stride > 1 else residual
        encoded = quantizer.in_proj(pooled)
        words, index = quantizer.decode_latents(encoded)
        commitment = commitment + F.mse_loss(encoded, words.detach())
        book = book + F.mse_loss(words, encoded.detach())
        found, theirs = quantizer(residual)
        assert torch.equal(theirs, index)
        total, residual = total + found, residual - found
        codes.append(index)
    with Noise() as used, torch.no_grad():
        model.decoder(total)
    noise = [draw.normal(*shape) for shape in used.shapes]
    with Noise(noise):
        wave = model.decoder(total)
    distance, spectra = F.l1_loss(wave, x), msspec(wave, x, rate)
    (10 * distance + 2 * spectra + 0.25 * commitment + book).backward()
    gradients = {f"grad.{old_names(name)}": p.grad for name, p in model.named_parameters() if re.search(kept, name)}
    write(f"snac_step.{case}", {"input": x, "wave": wave, "loss.l1": distance[None], "loss.msspec": spectra[None],
                                "loss.commitment": commitment[None], "loss.codebook": book[None], **gradients,
                                **{f"noise.{n}": values for n, values in enumerate(noise)},
                                **{f"codes_{i}": level for i, level in enumerate(codes)}})


def make():
    encodec()
    snac("24khz", 14)
    snac("32khz", 24, r"norm|to_qkv|to_out|encoder\.block\.0")

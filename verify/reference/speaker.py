"""speaker: resemblyzer's VoiceEncoder with random weights and 16 in place of 256 channels, in float64.

speaker/encoder.safetensors   its weights, by their own names; of each case `x` and `y` [B,T], `embedding` of x [B partials,E],
                              `loss`, the mean of 1 - cos(E(y), E(x)), and its `gradient` with respect to y

Waves are brought to 16 kHz by torchaudio's formula (a sinc with a Hann window, 6 zero crossings, cutoff 0.99), their mel spectra are
librosa's `melspectrogram` (25 ms, 10 ms, 40 bands, power, centred, zeros beyond the ends); 160 frames are a partial utterance.
"""

import math
import sys
import tempfile
from unittest.mock import MagicMock

import torch

from dump import Draw, save
from spectral import filterbank

# case, rate, batch, samples
CASES = [("own", 16000, 2, 3200), ("resampled", 24000, 1, 4801), ("partials", 2000, 1, 6500)]
CHANNELS, WIDTH = 16, 12


def encoder(draw):
    # What reads and trims files is not needed here, nor what it needs.
    sys.modules.setdefault("resemblyzer.audio", MagicMock())
    from resemblyzer import voice_encoder

    voice_encoder.model_hidden_size, voice_encoder.model_embedding_size = CHANNELS, WIDTH
    shapes = {}
    for k in range(3):
        inputs = 40 if k == 0 else CHANNELS
        shapes |= {f"lstm.weight_ih_l{k}": (4 * CHANNELS, inputs), f"lstm.weight_hh_l{k}": (4 * CHANNELS, CHANNELS)}
        shapes |= {f"lstm.bias_ih_l{k}": (4 * CHANNELS,), f"lstm.bias_hh_l{k}": (4 * CHANNELS,)}
    shapes |= {"linear.weight": (WIDTH, CHANNELS), "linear.bias": (WIDTH,)}
    weights = {name: draw.normal(*shape, scale=0.5) for name, shape in shapes.items()}
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save({"model_state": weights}, file.name)
        model = voice_encoder.VoiceEncoder("cpu", verbose=False, weights_fpath=file.name)
    model = model.double()
    model.load_state_dict(weights)
    return model.requires_grad_(False), weights


def resample(x, rate):
    if rate == 16000:
        return x
    common = math.gcd(rate, 16000)
    down, up = rate // common, 16000 // common
    base = 0.99 * min(down, up)
    width = math.ceil(6 * down / base)
    offsets = torch.arange(-width, width + down, dtype=torch.float64)[None] / down
    t = ((offsets - torch.arange(up, dtype=torch.float64)[:, None] / up) * base).clamp(-6, 6)
    kernel = torch.cos(t * math.pi / 12) ** 2 * torch.sinc(t) * base / down
    padded = torch.nn.functional.pad(x[:, None], (width, width + down))
    out = torch.nn.functional.conv1d(padded, kernel[:, None], stride=down).transpose(1, 2).flatten(1)
    return out[:, : math.ceil(x.shape[1] * up / down)]


def embed(model, wave, rate):
    x = resample(wave, rate)
    window = torch.hann_window(400, dtype=torch.float64)
    spectrum = torch.stft(x, 400, 160, window=window, center=True, pad_mode="constant", return_complex=True)
    mel = torch.as_tensor(filterbank(16000, 400, 40)).double() @ (spectrum.real**2 + spectrum.imag**2)
    frames = mel.shape[2]
    partials, length = max(1, frames // 160), min(160, frames)
    mel = mel.transpose(1, 2)[:, : partials * length].reshape(-1, length, 40)
    return model(mel)


def make():
    draw = Draw("speaker", "encoder")
    model, tensors = encoder(draw)
    for case, rate, batch, samples in CASES:
        x = draw.normal(batch, samples, scale=0.3)
        y = (0.5 * x + draw.normal(batch, samples, scale=0.2)).float().double().requires_grad_(True)
        found, expected = embed(model, y, rate), embed(model, x, rate)
        loss = (1 - torch.cosine_similarity(found, expected, dim=1)).mean()
        (gradient,) = torch.autograd.grad(loss, y)
        values = {"x": x, "y": y, "embedding": expected, "loss": loss[None], "gradient": gradient}
        tensors |= {f"{case}.{name}": value for name, value in values.items()}
    save("speaker", "encoder", tensors)

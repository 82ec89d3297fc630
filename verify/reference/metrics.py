"""metrics: clean and degraded speech-like clips [T] with the values of the usual measures.

stoi       pystoi, classic; clips not at 10 kHz are resampled by it first (`clean.10k`, `degraded.10k`)
snr        10 log10(sum x^2 / sum (x-y)^2)
rho        <x,y> / (|x| |y|)
amplitude  100 rms(y) / rms(x)
si_sdr     10 log10(r^2 / (1 - r^2)), r the rho of the clips less their means
mel        multi-scale mel distance, sum over the 7 scales (spectral.multi_scale_mel_loss)
stft       multi-scale STFT distance, sum over 2 windows (spectral.multi_scale_stft_loss)
The clean clip is x, the degraded one y. Values are one-element tensors, and in full precision in the case.
"""

import numpy as np
import torch
from pystoi import stoi
from pystoi.utils import resample_oct
from scipy.signal import butter, lfilter

from dump import Draw, leaf, save
from spectral import multi_scale_mel_loss, multi_scale_stft_loss
from signals import speech


def noisy(x, rng, rate):
    return x + rng.standard_normal(len(x)) * np.sqrt(np.mean(x**2) / 10**0.5)


def muffled(x, rng, rate):
    return 0.6 * lfilter(*butter(4, 1200 / (rate / 2)), x) + 0.005 * rng.standard_normal(len(x)) + 0.01


def vocoded(x, rng, rate):
    """Random phases in short frames: the spectrum survives, the waveform does not."""
    spectrum = torch.stft(torch.from_numpy(x), 256, 64, window=torch.hann_window(256).double(), return_complex=True)
    turn = torch.from_numpy(rng.uniform(-np.pi, np.pi, tuple(spectrum.shape)))
    return torch.istft(spectrum * torch.exp(1j * turn), 256, 64, window=torch.hann_window(256).double(), length=len(x)).numpy()


# case, rate, seconds, fraction of pauses, degradation
CASES = [
    ("noisy_10k", 10000, 1.5, 0.0, noisy),
    ("muffled_16k", 16000, 1.5, 0.0, muffled),
    ("pauses_vocoded_16k", 16000, 1.5, 0.3, vocoded),
]


def rho(x, y):
    return (x @ y) / np.sqrt((x @ x) * (y @ y))


def make():
    for case, rate, seconds, pause, degrade in CASES:
        draw = Draw("metrics", case)
        clean = leaf(speech(draw.rng, int(seconds * rate), rate, pause))
        degraded = leaf(degrade(clean.numpy(), draw.rng, rate))
        x, y = clean.numpy(), degraded.numpy()
        centred = rho(x - x.mean(), y - y.mean())
        values = {
            "stoi": stoi(x, y, rate),
            "snr": 10 * np.log10((x @ x) / ((x - y) @ (x - y))),
            "rho": rho(x, y),
            "amplitude": 100 * np.sqrt((y @ y) / (x @ x)),
            "si_sdr": 10 * np.log10(centred**2 / (1 - centred**2)),
            "mel": multi_scale_mel_loss(degraded[None], clean[None], rate).item(),
            "stft": multi_scale_stft_loss(degraded[None], clean[None]).item(),
        }
        tensors = {"clean": clean, "degraded": degraded} | {name: [value] for name, value in values.items()}
        if rate != 10000:
            tensors |= {"clean.10k": resample_oct(x, 10000, rate), "degraded.10k": resample_oct(y, 10000, rate)}
        save("metrics", case, tensors, sample_rate=rate, **{name: float(value) for name, value in values.items()})

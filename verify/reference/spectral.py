"""The spectral transforms of the references: STFT, Slaney mel filterbank, multi-scale mel loss."""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

# (mel bands, window) of DAC's MelSpectrogramLoss; hop = window / 4.
SCALES = [(5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048)]
CLAMP = 1e-5


def stft(wave, window):
    """[..., T] -> complex [..., window/2+1, 1 + T/hop]: periodic Hann, hop window/4, centred, reflected ends, no scaling."""
    return torch.stft(wave, window, window // 4, window=hann(window, wave.dtype), center=True, pad_mode="reflect",
                      return_complex=True)


def hz_to_mel(hz):
    """Slaney's Auditory Toolbox scale: 3 mel per 200 Hz up to 1 kHz, then 27 mel per factor 6.4."""
    hz = np.asarray(hz, dtype=np.float64)
    return np.where(hz < 1000.0, hz * 3.0 / 200.0, 15.0 + 27.0 * np.log(np.maximum(hz, 1.0) / 1000.0) / np.log(6.4))


def mel_to_hz(mel):
    mel = np.asarray(mel, dtype=np.float64)
    return np.where(mel < 15.0, mel * 200.0 / 3.0, 1000.0 * np.exp((mel - 15.0) * np.log(6.4) / 27.0))


@lru_cache
def filterbank(sample_rate, window, bands):
    """[bands, window/2+1] triangles over 0 .. sample_rate/2, each of unit area in hertz (librosa's `norm="slaney"`)."""
    bins = np.arange(window // 2 + 1) * (sample_rate / window)
    edges = mel_to_hz(np.linspace(0.0, hz_to_mel(sample_rate / 2), bands + 2))
    low, centre, high = (edges[i : i + bands, None] for i in range(3))
    rise = (bins - low) / (centre - low)
    fall = (high - bins) / (high - centre)
    return np.maximum(0.0, np.minimum(rise, fall)) * 2.0 / (high - low)


@lru_cache
def weights(sample_rate, window, bands, dtype):
    return torch.from_numpy(filterbank(sample_rate, window, bands)).to(dtype)


@lru_cache
def hann(window, dtype):
    return torch.hann_window(window, periodic=True, dtype=dtype)


def log_mel(wave, sample_rate, bands, window):
    """[..., T] -> [..., bands, frames]: log10 of the clamped mel magnitude."""
    mel = weights(sample_rate, window, bands, wave.dtype) @ stft(wave, window).abs()
    return mel.clamp(CLAMP).log10()


def mel_loss(x, y, sample_rate, bands, window):
    """Mean absolute difference of the log mels of one scale; x, y [B,T]."""
    return F.l1_loss(log_mel(x, sample_rate, bands, window), log_mel(y, sample_rate, bands, window))


def multi_scale_mel_loss(x, y, sample_rate):
    """Sum of mel_loss over the scales whose window is at most T."""
    return sum(mel_loss(x, y, sample_rate, bands, window) for bands, window in SCALES if window <= x.shape[-1])


def multi_scale_stft_loss(x, y):
    """DAC's MultiScaleSTFTLoss with its defaults: log10 powers and magnitudes, of windows that are at most T."""
    loss = 0.0
    for window in (2048, 512):
        if window <= x.shape[-1]:
            a, b = stft(x, window).abs(), stft(y, window).abs()
            loss += F.l1_loss(a.clamp(CLAMP).pow(2).log10(), b.clamp(CLAMP).pow(2).log10()) + F.l1_loss(a, b)
    return loss

"""Test signals: made ones with the shape of speech (gliding voiced harmonics, formants, syllables, fricative noise, pauses), and recorded speech."""

from pathlib import Path

import numpy as np
from scipy.signal import lfilter

CLIP = Path(__file__).resolve().parents[2] / "bins" / "data" / "clip.flac"
FORMANTS = [(700, 1200, 2500), (300, 2200, 3000), (400, 800, 2400), (550, 1800, 2500)]


def speech(rng, samples, sample_rate, pause=0.0):
    """float64 [samples] of peak 0.3; a fraction `pause` of the syllables is silent."""
    time = np.arange(samples) / sample_rate
    pitch = rng.uniform(90, 200) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 1.5) * time + rng.uniform(0, 6)))
    phase = 2 * np.pi * np.cumsum(pitch) / sample_rate
    voiced = sum(np.sin(h * phase) / h * (h * pitch < sample_rate / 2) for h in range(1, 31))
    noise = rng.standard_normal(samples)
    out = np.zeros(samples)
    start = 0
    while start < samples:
        end = min(samples, start + int(rng.uniform(0.08, 0.22) * sample_rate) + 1)
        part = slice(start, end)
        if rng.random() >= pause:
            source = voiced[part] + 0.03 * noise[part] if rng.random() < 0.8 else 0.5 * np.diff(noise[part], prepend=0)
            for hz in FORMANTS[rng.integers(len(FORMANTS))]:
                r = np.exp(-np.pi * 90 / sample_rate)
                source = source + lfilter([1 - r], [1, -2 * r * np.cos(2 * np.pi * hz / sample_rate), r * r], source)
            out[part] = source * np.sin(np.linspace(0, np.pi, end - start)) ** 0.5 * rng.uniform(0.3, 1.0)
        start = end
    out += 1e-4 * rng.standard_normal(samples)
    return out * (0.3 / np.abs(out).max())


def recorded(samples, sample_rate, start=0):
    """float64 [samples] (at most 22 s) of the bundled clip, said three times: as it is, slower and faster."""
    import sphn

    clip, rate = sphn.read(str(CLIP))
    speeds = [1.0, 0.87, 1.15]
    said = [sphn.resample(clip[0], src_sample_rate=rate, dst_sample_rate=round(sample_rate / s)) for s in speeds]
    return np.concatenate(said).astype(np.float64)[start:][:samples]

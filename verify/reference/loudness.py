"""loudness: integrated loudness by pyloudnorm (BS.1770), as audiotools uses it: less than 0.5 s padded, never below -70.

loudness/signals.safetensors   16-bit signals, by name; in the case, their names, rates and values in LUFS
"""

import json

import numpy as np
import pyloudnorm
from safetensors.numpy import save_file

from dump import GOLDEN, Draw
from signals import speech

# name, rate, seconds, fraction of pauses, peak
CASES = [
    ("speech_8k", 8000, 2.0, 0.4, 0.3),
    ("speech_11k", 11025, 1.03, 0.0, 0.9),
    ("speech_16k", 16000, 1.1, 0.2, 0.05),
    ("speech_24k", 24000, 0.77, 0.0, 0.3),
    ("speech_44k", 44100, 0.52, 0.0, 0.3),
    ("speech_48k", 48000, 0.51, 0.0, 0.5),
    ("noise_16k", 16000, 0.5, None, 0.2),
    ("short_16k", 16000, 0.31, 0.0, 0.3),
    ("faint_8k", 8000, 0.7, 0.0, 0.0004),
    ("loud_then_faint_8k", 8000, 1.6, "fading", 0.5),
    ("silence_8k", 8000, 0.6, 1.0, 0.0),
]


def signal(name, rate, seconds, pause, peak):
    draw, samples = Draw("loudness", name), int(seconds * rate)
    if pause is None:
        x = draw.rng.standard_normal(samples)
    elif pause == "fading":
        x = speech(draw.rng, samples, rate) * 10 ** (-np.arange(samples) / rate * 25 / 20)
    else:
        x = speech(draw.rng, samples, rate, pause)
    return np.round(x * (32767 * peak / np.abs(x).max())).astype(np.int16)


def lufs(x, rate):
    x = x.astype(np.float64) / 32768
    x = np.pad(x, (0, max(0, int(0.5 * rate) - len(x))))
    return max(-70.0, float(pyloudnorm.Meter(rate).integrated_loudness(x)))


def make():
    signals = {case[0]: signal(*case) for case in CASES}
    values = [{"name": name, "sample_rate": rate, "lufs": lufs(signals[name], rate)} for name, rate, *_ in CASES]
    path = GOLDEN / "loudness" / "signals.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"family": "loudness", "name": "signals", "cases": values}
    save_file(signals, path, metadata={"case": json.dumps(facts, sort_keys=True)})

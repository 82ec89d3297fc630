"""pesq: the bundled clip [T] and what a codec makes of it, with the wideband PESQ (P.862.2) of what else may happen to it.

clean   the clip's first 2.2 s, 16 kHz
codec   the same, encoded and decoded by the codec that was bundled first
The case has the scores of PyPI's `pesq`, which runs the recommendation's own program, by name: `codec` and what `degraded` does.
`verify/src/golden/spectral.rs` does the same to `clean`, sample by sample.
"""

import sys

import numpy as np
from pesq import pesq

from dump import save

RATE = 16000
SAMPLES = 35200


def noise(n):
    """Uniform in -1..1, from a generator that takes one line anywhere."""
    state, out = 1, np.empty(n)
    for i in range(n):
        state = (state * 1664525 + 1013904223) % 2**32
        out[i] = state / 2**31 - 1
    return out


def degraded(x):
    """Name -> (reference, test), as float32."""
    zeros = np.zeros
    pause = zeros(8000)
    average = sum(np.concatenate([zeros(k), x[: len(x) - k]]) for k in range(8)) / 8
    hiss = x + 0.01 * noise(len(x))
    lost = x.copy()
    lost[14000:17000] = 0
    pairs = {
        "copy": (x, x),
        "noisy": (x, hiss),
        "loud_noise": (x, x + 0.1 * noise(len(x))),
        "quiet": (x, 0.25 * hiss),
        "late": (x, np.concatenate([zeros(1234), hiss])),
        "early": (x, hiss[777:]),
        "clipped": (x, np.clip(x, -0.05, 0.05)),
        "low_pass": (x, average),
        "lost": (x, lost),
        "cut": (x, np.concatenate([hiss[:16000], hiss[16700:]])),
        "stretched": (np.concatenate([x, pause, x]), np.concatenate([hiss, zeros(8800), hiss])),
        "long": (np.concatenate([x, pause] * 8), np.concatenate([hiss, pause] * 8)),
        "short": (x[8000:13000], hiss[8000:13000]),
    }
    return {name: tuple(wave.astype(np.float32) for wave in pair) for name, pair in pairs.items()}


def make(codec=None):
    """`codec`: a WAV of what the codec made of the clip; without it the stored one is kept."""
    from safetensors.numpy import load_file
    from dump import GOLDEN
    from signals import CLIP

    if codec:
        import sphn

        clean, decoded = (sphn.read(str(path))[0][0][:SAMPLES] for path in (CLIP, codec))
    else:
        stored = load_file(GOLDEN / "pesq" / "clip.safetensors")
        clean, decoded = stored["clean"], stored["codec"]
    scores = {name: float(pesq(RATE, *pair, "wb")) for name, pair in degraded(clean.astype(np.float64)).items()}
    scores["codec"] = float(pesq(RATE, clean, decoded, "wb"))
    save("pesq", "clip", {"clean": clean, "codec": decoded}, sample_rate=RATE, scores=scores)
    for name, score in scores.items():
        print(f"  {name:12}{score:.4f}")


if __name__ == "__main__":
    make(*sys.argv[1:])

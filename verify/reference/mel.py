"""mel: DAC's multi-scale mel loss. mel = filterbank . |stft|, log10(max(mel, 1e-5)), mean |difference|, summed over scales.

x [B,T] is the prediction, y [B,T] the target. Per scale w (the window): `log_mel_x.<w>`, `log_mel_y.<w>`
[B,bands,frames], `loss.<w>`, `dx.<w>` = d loss.<w> / dx; `loss` and `dx` are their sums; `filterbank.<w>`
[bands, w/2+1] for one scale. `closest.<w>`: the smallest |log mel difference| above 0 (the loss has a kink at 0).
"""

import numpy as np

from dump import Draw, grads, leaf, save
from signals import speech
from spectral import SCALES, filterbank, log_mel, mel_loss

# case, sample rate, T, scales, scale whose filterbank is stored
CASES = [
    ("speech_16k", 16000, 3001, SCALES, (40, 256)),
    ("speech_24k", 24000, 1111, SCALES[:6], (5, 32)),
    ("quiet_16k", 16000, 640, SCALES[:4], (10, 64)),
]


def make():
    for case, rate, samples, scales, shown in CASES:
        draw = Draw("mel", case)
        level = 3e-3 if case.startswith("quiet") else 1.0
        y = leaf(level * np.stack([speech(draw.rng, samples, rate) for _ in range(2)]))
        x = leaf(y * 0.7 + draw.normal(*y.shape, scale=0.02 * level), grad=True)
        tensors = {"x": x, "y": y}
        losses, gradients = [], []
        for bands, window in scales:
            loss = mel_loss(x, y, rate, bands, window)
            gradient = grads(loss, x=x)["dx"]
            mel_x, mel_y = log_mel(x, rate, bands, window), log_mel(y, rate, bands, window)
            gap = (mel_x - mel_y).abs()
            tensors |= {f"log_mel_x.{window}": mel_x, f"log_mel_y.{window}": mel_y, f"loss.{window}": loss,
                        f"dx.{window}": gradient, f"closest.{window}": gap[gap > 0].min()}
            losses.append(loss)
            gradients.append(gradient)
        bands, window = shown
        tensors |= {"loss": sum(losses), "dx": sum(gradients),
                    f"filterbank.{window}": filterbank(rate, window, bands)}
        save("mel", case, tensors, sample_rate=rate, scales=[list(s) for s in scales])

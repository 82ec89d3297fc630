"""prosody/film.safetensors: the modulation of a codec's latents by prosody that is predicted from them, by PyTorch's autograd.

`input` [B,C,T] through causal convolutions to `features` [B,4,T] (pitch, energy, logits of voiceless and voiced), on to gamma and beta, and
`output` (1 + 0.1 gamma) input + 0.01 beta, of 10 input; `voiced` (-1 for unknown), `pitch` and `energy` [B,T]; the losses of 3; `grad.NAME` of
mean(probe output) + 0.5 f0 + 0.1 voicing + 0.1 energy with respect to every parameter and the input.
"""

import torch
from torch import nn
from torch.nn import functional as F

from dump import Draw, save

LATENT, WIDTH, UNITS, FEATURES = 6, 5, 2, 4


class Causal(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Unit(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.conv1, self.conv2 = Causal(WIDTH, WIDTH, 3, dilation=2 << n), Causal(WIDTH, WIDTH, 1)

    def forward(self, x):
        return x + self.conv2(F.elu(self.conv1(F.elu(x))))


class Stack(nn.Module):
    def __init__(self, inputs):
        super().__init__()
        self.conv = Causal(inputs, WIDTH, 3)
        self.units = nn.ModuleList(Unit(n) for n in range(UNITS))

    def forward(self, x):
        x = self.conv(x)
        for unit in self.units:
            x = unit(x)
        return x


class Film(nn.Module):
    def __init__(self):
        super().__init__()
        self.predict, self.encode = Stack(LATENT), Stack(FEATURES)
        self.predict.features = Causal(WIDTH, FEATURES, 1)
        self.gamma, self.beta = Causal(WIDTH, LATENT, 1), Causal(WIDTH, LATENT, 1)

    def forward(self, x):
        features = self.predict.features(F.elu(self.predict(10 * x)))
        e = F.elu(self.encode(features))
        return features, (1 + 0.1 * self.gamma(e)) * x + 0.01 * self.beta(e)


def make():
    draw, model = Draw("prosody", "film"), Film().double()
    for p in model.parameters():
        p.data = draw.normal(*p.shape, scale=0.4)
    x = draw.normal(2, LATENT, 9, grad=True)
    features, y = model(x)
    probe, voiced = draw.normal(*y.shape), draw.integers(-1, 2, 2, 9)
    energy, pitch = draw.normal(2, 9), draw.normal(2, 9)
    heard = voiced == 1
    f0 = (features[:, 0] - pitch)[heard].abs().mean()
    level = (features[:, 1] - energy).abs().mean()
    known = voiced >= 0
    logit = features[:, 3] - features[:, 2]
    voicing = F.binary_cross_entropy_with_logits(logit[known], heard[known].double())
    ((probe * y).mean() + 0.5 * f0 + 0.1 * voicing + 0.1 * level).backward()
    name = lambda n: f"decoder.prosody.{n}"
    weights = {name(n): p for n, p in model.named_parameters()}
    gradients = {f"grad.{name(n)}": p.grad for n, p in model.named_parameters()}
    save("prosody", "film", {"input": x, "features": features, "output": y, "probe": probe, "voiced": voiced.double(), "pitch": pitch,
                             "energy": energy, "losses": torch.stack([f0, voicing, level]), "grad.input": x.grad, **weights, **gradients})

"""activation: x [B,C,T] -> y, with dx (and dalpha, dbeta [1,C,1]) of sum(y * dy).

snake       y = x + sin^2(alpha x) / (alpha + 1e-9)            alpha free (Ziyin et al. 2020; DAC)
snake_wide  the same with alpha zero, tiny, negative and large, and |x| up to ~100
snake_beta  y = x + sin^2(e^alpha x) / (e^beta + 1e-9)         log-scale parameters (BigVGAN)
elu         x if x > 0 else e^x - 1
silu        x sigmoid(x)
gelu_erf    x (1 + erf(x / sqrt 2)) / 2
gelu_tanh   x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2
tanh
"""

import torch
import torch.nn.functional as F

from dump import Draw, grads, leaf, save

SHAPE = (2, 17, 33)

POINTWISE = {
    "elu": F.elu,
    "silu": F.silu,
    "gelu_erf": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "tanh": torch.tanh,
}


def snake(x, alpha):
    return x + (alpha + 1e-9).reciprocal() * torch.sin(alpha * x).pow(2)


def snake_beta(x, alpha, beta):
    return x + (beta.exp() + 1e-9).reciprocal() * torch.sin(alpha.exp() * x).pow(2)


def dump(case, draw, f, **leaves):
    y = f(*leaves.values())
    dy = draw.normal(*y.shape)
    save("activation", case, {**leaves, "y": y, "dy": dy, **grads((y * dy).sum(), **leaves)})


def make():
    draw = Draw("activation", "snake")
    dump("snake", draw, snake, x=draw.normal(*SHAPE, scale=2.0, grad=True),
         alpha=draw.uniform(0.1, 5.0, 1, SHAPE[1], 1, grad=True))

    draw = Draw("activation", "snake_wide")
    alpha = [0.0, 1e-6, 1e-3, -0.5, -3.0, 0.02, 1.0, 9.0, 20.0, 40.0]
    dump("snake_wide", draw, snake, x=draw.normal(2, len(alpha), 33, scale=30.0, grad=True),
         alpha=leaf([[[a] for a in alpha]], grad=True))

    draw = Draw("activation", "snake_beta")
    dump("snake_beta", draw, snake_beta, x=draw.normal(*SHAPE, scale=2.0, grad=True),
         alpha=draw.uniform(-2.0, 1.5, 1, SHAPE[1], 1, grad=True),
         beta=draw.uniform(-2.0, 1.5, 1, SHAPE[1], 1, grad=True))

    for case, f in POINTWISE.items():
        draw = Draw("activation", case)
        dump(case, draw, f, x=draw.normal(*SHAPE, scale=3.0, grad=True))

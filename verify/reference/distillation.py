"""distillation: losses of what a first stage predicts of a teacher (Mimi, SpeechTokenizer), and their gradients.

case      `teacher` as the engine has it; `pool`, frames of q to a prediction
q         [B,T,C]; weight [D,C], bias [D]
features  [B,T/pool,D], or labels [B,T], -1 where there is none
value, dq, dweight, dbias, each as the sum of two float32: NAME and NAME.low

SpeechTokenizer's `d_axis_distill_loss` and `t_axis_distill_loss` are restated from ZhangXInFD/SpeechTokenizer, trainer/loss.py.
"""

import numpy as np
import torch
import torch.nn.functional as F

from dump import Draw, grads, save

FAMILY = "distillation"


def d_axis(p, g):
    return -torch.log(torch.sigmoid(F.cosine_similarity(p, g, dim=1))).mean()


def t_axis(p, g, weight):
    return F.l1_loss(p, g) - weight * torch.log(torch.sigmoid(F.cosine_similarity(p, g, dim=-1))).mean()


def loss(teacher, p, target):
    kind = teacher["loss"]
    if kind == "cosine":
        return (1 - F.cosine_similarity(p, target, dim=-1)).mean()
    if kind == "mse":
        return F.mse_loss(p, target)
    if kind == "speechtokenizer-d":
        return d_axis(p, target)
    if kind == "speechtokenizer-t":
        return t_axis(p, target, teacher["cosine_weight"])
    return F.cross_entropy(p.flatten(0, 1), target.flatten(), ignore_index=-1)


def case(name, *, batch=3, frames=12, width=7, outputs=9, pool=1, **teacher):
    draw = Draw(FAMILY, name)
    q = draw.normal(batch, frames, width, grad=True)
    weight, bias = draw.normal(outputs, width, scale=0.4, grad=True), draw.normal(outputs, scale=0.1, grad=True)
    mean = q[:, : frames // pool * pool].unflatten(1, (-1, pool)).mean(2)
    p = F.linear(mean, weight, bias)
    if teacher["loss"] == "clusters":
        target, key = draw.integers(-1, outputs, batch, frames), "labels"
        teacher["classes"] = outputs
    else:
        target, key = draw.normal(*p.shape, scale=1.5), "features"
        teacher["dim"] = outputs
    value = loss(teacher, p, target)
    found = {"value": value.reshape(1), **grads(value, q=q, weight=weight, bias=bias)}
    pairs = {}
    for name_of, tensor in found.items():
        exact = tensor.detach().numpy()
        high = exact.astype(np.float32)
        pairs |= {name_of: high, f"{name_of}.low": exact - high}
    save(FAMILY, name, {"q": q, "weight": weight, "bias": bias, key: target, **pairs}, teacher={**teacher, "rate": 50.0}, pool=pool)


def make():
    case("cosine", loss="cosine")
    case("cosine_pooled", loss="cosine", frames=13, pool=4)
    case("mse", loss="mse")
    case("speechtokenizer_d", loss="speechtokenizer-d")
    case("speechtokenizer_t", loss="speechtokenizer-t", cosine_weight=0.7)
    case("clusters", loss="clusters", batch=2, frames=31)

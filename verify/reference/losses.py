"""losses: scalar loss and its gradient dx; x the prediction, y the target, both [B,C,T].

l1             mean |x - y|, derivative 0 where x = y
l2             mean (x - y)^2
log_magnitude  mean |log10 max(x, eps) - log10 max(y, eps)|, derivative 0 where x < eps
"""

import torch
import torch.nn.functional as F

from dump import Draw, grads, leaf, save

EPS = 1e-5


def log_magnitude(x, y):
    return F.l1_loss(x.clamp(EPS).log10(), y.clamp(EPS).log10())


def make():
    for case, loss in [("l1", F.l1_loss), ("l2", F.mse_loss)]:
        draw = Draw("losses", case)
        y = draw.normal(2, 3, 127)
        x = draw.normal(2, 3, 127)
        x[0, 1, :5] = y[0, 1, :5]
        x.requires_grad_()
        value = loss(x, y)
        save("losses", case, {"x": x, "y": y, "loss": value, **grads(value, x=x)})

    draw = Draw("losses", "log_magnitude")
    y = leaf(torch.pow(10.0, draw.uniform(-7.0, 1.0, 2, 17, 31)))
    x = leaf(torch.pow(10.0, draw.uniform(-7.0, 1.0, 2, 17, 31)), grad=True)
    value = log_magnitude(x, y)
    save("losses", "log_magnitude", {"x": x, "y": y, "loss": value, **grads(value, x=x)}, eps=EPS)

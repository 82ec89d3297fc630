"""cross_entropy: weighted mean of cross-entropies and its gradient dx; x [N,V] logits, targets [N] i32 (-1: none), weights [N].

loss  sum_n w_n cross_entropy(x_n, t_n) / sum_n w_n over the rows that have a target; dx its gradient, zero in the other rows
"""

import torch.nn.functional as F

from dump import Draw, grads, save


def make():
    for case, scale in [("small", 1.0), ("sharp", 8.0)]:
        draw = Draw("cross_entropy", case)
        x = draw.normal(31, 33, scale=scale, grad=True)
        weights = draw.uniform(0.5, 4.0, 31)
        weights[::6] = 0.0
        targets = draw.integers(0, 33, 31)
        targets[::5] = -1
        terms = F.cross_entropy(x, targets, ignore_index=-1, reduction="none")
        value = (weights * terms).sum() / weights[targets >= 0].sum()
        save("cross_entropy", case, {"x": x, "targets": targets, "weights": weights, "loss": value, **grads(value, x=x)})

"""weight_norm: w = g v / ||v||, the norm over every dimension but the first.

The first dimension is Cout for conv1d (v [Cout,Cin,K]) and Cin for conv_transpose1d (v [Cin,Cout,K]); g [dim0,1,1].
dg, dv are the gradients for the cotangent dw.
"""

import torch

from dump import Draw, grads, save


def make():
    for case, shape in [("conv1d", (17, 8, 7)), ("conv1d_one_row", (1, 17, 3)), ("conv_transpose1d", (8, 3, 10)),
                        ("one_weight_per_row", (5, 1, 1))]:
        draw = Draw("weight_norm", case)
        g = draw.uniform(-2.0, 2.0, shape[0], 1, 1, grad=True)
        v = draw.normal(*shape, scale=0.3, grad=True)
        w = torch._weight_norm(v, g, 0)
        dw = draw.normal(*shape)
        save("weight_norm", case, {"g": g, "v": v, "w": w, "dw": dw, **grads((w * dw).sum(), g=g, v=v)})

"""conv1d: y[b,o,t] = bias[o] + sum_{i,k} w[o,i,k] x[b,i,t*stride + k*dilation - pad_left], zeros outside x.

x [B,Cin,T], w [Cout,Cin/groups,K], bias [Cout], y [B,Cout,T'], T' = (T + left + right - (K-1)*dilation - 1)/stride + 1.
dx, dw, dbias are the gradients of sum(y * dy).
"""

import torch.nn.functional as F

from dump import Draw, grads, save

# name, B, Cin, Cout, T, K, stride, dilation, groups, left, right, bias
CASES = [
    ("one_sample", 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, True),
    ("one_sample_causal_k7", 2, 3, 8, 1, 7, 1, 1, 1, 6, 0, True),
    ("first_layer_k7", 2, 1, 17, 127, 7, 1, 1, 1, 6, 0, True),
    ("last_layer_k7_symmetric", 1, 17, 1, 127, 7, 1, 1, 1, 3, 3, True),
    ("pointwise", 2, 17, 8, 33, 1, 1, 1, 1, 0, 0, True),
    ("k3_no_bias", 2, 8, 17, 31, 3, 1, 1, 1, 2, 0, False),
    ("dilation3", 2, 8, 8, 33, 7, 1, 3, 1, 18, 0, True),
    ("dilation9_symmetric", 1, 3, 8, 127, 7, 1, 9, 1, 27, 27, True),
    ("dilation9_longer_than_input", 2, 8, 3, 31, 7, 1, 9, 1, 54, 0, True),
    ("stride2_k4", 2, 8, 17, 33, 4, 2, 1, 1, 2, 0, True),
    ("stride3_k7_valid", 2, 3, 8, 127, 7, 3, 1, 1, 0, 0, True),
    ("stride5_k10_uneven_padding", 1, 17, 8, 127, 10, 5, 1, 1, 5, 3, True),
    ("stride5_k3_skips_samples", 2, 3, 3, 33, 3, 5, 1, 1, 0, 1, True),
    ("depthwise_k7", 2, 17, 17, 33, 7, 1, 1, 17, 6, 0, True),
    ("groups2_stride2_dilation3", 2, 8, 6, 31, 3, 2, 3, 2, 5, 1, True),
]


def make():
    for name, b, cin, cout, t, k, stride, dilation, groups, left, right, has_bias in CASES:
        draw = Draw("conv1d", name)
        x = draw.normal(b, cin, t, grad=True)
        w = draw.normal(cout, cin // groups, k, scale=(cin // groups * k) ** -0.5, grad=True)
        leaves = {"x": x, "w": w}
        if has_bias:
            leaves["bias"] = draw.normal(cout, grad=True)
        y = F.conv1d(F.pad(x, (left, right)), w, leaves.get("bias"), stride, 0, dilation, groups)
        dy = draw.normal(*y.shape)
        save("conv1d", name, {**leaves, "y": y, "dy": dy, **grads((y * dy).sum(), **leaves)},
             stride=stride, dilation=dilation, groups=groups, pad_left=left, pad_right=right, bias=has_bias)

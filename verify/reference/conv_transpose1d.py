"""conv_transpose1d: y[b,o, t*stride + k - padding] += x[b,i,t] w[i,o,k], plus bias.

x [B,Cin,T], w [Cin,Cout/groups,K], bias [Cout], y [B,Cout,T'], T' = (T-1)*stride + K - trim_left - trim_right.
In PyTorch's terms trim_left = padding and trim_right = padding - output_padding; a causal layer has trim_left 0
and trim_right K - stride. A negative trim_right appends that many samples of the bias alone (or of the last taps).
dx, dw, dbias are the gradients of sum(y * dy).
"""

import torch.nn.functional as F

from dump import Draw, grads, save

# name, B, Cin, Cout, T, K, stride, groups, padding, output_padding, causal, bias
CASES = [
    ("one_sample_stride2", 1, 3, 1, 1, 4, 2, 1, 0, 0, False, True),
    ("stride2_k4_same", 2, 8, 3, 31, 4, 2, 1, 1, 0, False, True),
    ("stride2_k4_causal", 2, 17, 8, 33, 4, 2, 1, 0, 0, True, True),
    ("stride3_k6_loses_one_sample", 2, 3, 8, 31, 6, 3, 1, 2, 0, False, True),
    ("stride5_k10_output_padding", 2, 8, 3, 31, 10, 5, 1, 3, 1, False, True),
    ("stride5_k10_causal", 1, 8, 17, 33, 10, 5, 1, 0, 0, True, False),
    ("stride8_k16_causal", 2, 3, 8, 7, 16, 8, 1, 0, 0, True, True),
    ("stride5_k5_no_overlap", 2, 8, 3, 31, 5, 5, 1, 0, 0, False, True),
    ("stride3_k7_odd_kernel", 2, 3, 3, 33, 7, 3, 1, 2, 0, False, True),
    ("stride2_k5_causal_three_taps", 1, 17, 1, 127, 5, 2, 1, 0, 0, True, True),
    ("stride2_k4_groups2", 2, 8, 6, 31, 4, 2, 2, 1, 0, False, True),
    ("stride2_k4_depthwise", 2, 8, 8, 31, 4, 2, 8, 0, 0, True, False),
    ("stride8_k3_gaps", 1, 3, 3, 5, 3, 8, 1, 0, 2, False, True),
]


def make():
    for name, b, cin, cout, t, k, stride, groups, padding, output_padding, causal, has_bias in CASES:
        draw = Draw("conv_transpose1d", name)
        x = draw.normal(b, cin, t, grad=True)
        w = draw.normal(cin, cout // groups, k, scale=(cin // groups * k / stride) ** -0.5, grad=True)
        leaves = {"x": x, "w": w}
        if has_bias:
            leaves["bias"] = draw.normal(cout, grad=True)
        y = F.conv_transpose1d(x, w, leaves.get("bias"), stride, padding, output_padding, groups)
        trim_left, trim_right = padding, padding - output_padding
        if causal:
            trim_right = k - stride
            y = y[..., : t * stride]
        dy = draw.normal(*y.shape)
        save("conv_transpose1d", name, {**leaves, "y": y, "dy": dy, **grads((y * dy).sum(), **leaves)},
             stride=stride, groups=groups, padding=padding, output_padding=output_padding, causal=causal,
             trim_left=trim_left, trim_right=trim_right, bias=has_bias)

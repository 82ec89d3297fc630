"""A reference of your own: one causal convolution, as any framework or notebook may have computed it.

    python verify/reference/your_own.py DIR && swara verify conv1d --golden DIR
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(1)
x, w, bias = (rng.standard_normal(shape).astype(np.float32) for shape in [(2, 3, 40), (5, 3, 7), (5,)])
padded = np.pad(x, [(0, 0), (0, 0), (6, 0)]).astype(np.float64)
windows = np.lib.stride_tricks.sliding_window_view(padded, 7, axis=2)  # [B, Cin, T, K]
y = np.einsum("bitk,oik->bot", windows, w) + bias[:, None]

facts = {"stride": 1, "dilation": 1, "groups": 1, "pad_left": 6, "pad_right": 0}
folder = Path(sys.argv[1]) / "conv1d"
folder.mkdir(parents=True, exist_ok=True)
tensors = {"x": x, "w": w, "bias": bias, "y": y.astype(np.float32)}
save_file(tensors, folder / "causal.safetensors", metadata={"case": json.dumps(facts)})

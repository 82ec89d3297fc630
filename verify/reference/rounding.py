"""rounding: GPTQ and AWQ in float64 by their published formulas, on small matrices `w` [rows,columns] with inputs `x` [n,columns].

four, eight    `gptq`, the codes of 4 bits in groups of 32 and of 8 bits with a scale a row, and the scales of the former in f16
awq            `factors` that columns are multiplied by, the `codes` of the clipped groups then, and their scales in f16
What is rounded is rounded in float32, as swara does. Codes of 4 bits are stored as 0 to 15, the value furthest from 0 having 0.
"""

import numpy as np

from dump import Draw, save

GROUP = 32


def make():
    draw = Draw("rounding", "inputs")
    rows, columns, n, few = 24, 96, 300, 20
    large = np.exp(draw.rng.standard_normal(columns))
    x = (draw.rng.standard_normal((n, few)) @ draw.rng.standard_normal((few, columns)) + 0.3 * draw.rng.standard_normal((n, columns))) * large
    x[:, 7] = 0
    x, w = x.astype(np.float32), draw.rng.standard_normal((rows, columns)).astype(np.float32)
    h = 2 / n * x.astype(np.float64).T @ x.astype(np.float64)
    four, scales = gptq(w, h, GROUP, four_bits)
    eight, _ = gptq(w, h, columns, eight_bits)
    s = search(w, h, np.abs(x).astype(np.float64).mean(0))
    codes, clipped = clip((w * s).astype(np.float32), h / np.outer(s, s).astype(np.float64))
    tensors = {"w": w, "x": x, "four": four, "four_scales": scales, "eight": eight, "factors": s, "awq": codes, "awq_scales": clipped}
    save("rounding", "small", tensors, group=GROUP)


def four_bits(values, shrink=1.0):
    """values [rows,group] -> (scale [rows,1] as f16 keeps it, codes of a column, values of codes)."""
    values = np.asarray(values, dtype=np.float32)
    furthest = np.take_along_axis(values, np.abs(values).argmax(-1, keepdims=True), -1) * np.float32(shrink)
    scale = furthest / np.float32(-8)
    inverse = np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
    kept = scale.astype(np.float16).astype(np.float32)
    code = lambda v: np.clip(np.trunc(v.astype(np.float32) * inverse + np.float32(8.5)), 0, 15)
    return kept, code, lambda q: kept * (q - 8).astype(np.float32)


def eight_bits(values):
    absmax = np.abs(np.asarray(values, dtype=np.float32)).max(-1, keepdims=True)
    scale, inverse = absmax * np.float32(1 / 127), np.float32(127) / absmax
    code = lambda v: np.clip(np.rint(v.astype(np.float32) * inverse), -127, 127)
    return scale, code, lambda q: scale * q.astype(np.float32)


def gptq(w, h, group, scale_of):
    """Frantar et al. 2022, algorithm 1, without its blocks; a column that has no inputs is on its own."""
    w, h = w.astype(np.float64), h.copy()
    diagonal = np.diag(h)
    mean = diagonal[diagonal > 0].mean()
    np.fill_diagonal(h, np.where(diagonal > 0, diagonal, mean) + 0.01 * mean)
    # The upper triangular factor of the inverse: U^T U = H^-1.
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    codes, scales = np.zeros(w.shape, np.int32), []
    for i in range(w.shape[1]):
        if i % group == 0:
            scale, code, value = scale_of(w[:, i : i + group])
            scales.append(scale)
        q = code(w[:, i : i + 1])
        codes[:, i : i + 1] = q
        error = (w[:, i : i + 1] - value(q)) / u[i, i]
        w[:, i + 1 :] -= error * u[i : i + 1, i + 1 :]
    return codes, np.concatenate(scales, 1)


def nearest(w):
    out = np.empty_like(w)
    for i in range(0, w.shape[1], GROUP):
        _, code, value = four_bits(w[:, i : i + GROUP])
        out[:, i : i + GROUP] = value(code(w[:, i : i + GROUP]))
    return out


def search(w, h, magnitude):
    """Lin et al. 2023, section 3.2: the ratio of least output error."""
    best = None
    for step in range(20):
        s = np.maximum(magnitude, 1e-4) ** (step / 20)
        s = (s / np.sqrt(s.max() * s.min())).astype(np.float32)
        e = (nearest(w * s) / s - w).astype(np.float64)
        error = np.trace(e @ h @ e.T)
        if best is None or error < best[0]:
            best = error, s
    return best[1]


def clip(w, h):
    """Each group of each row shrunk as is best for what it alone adds to the outputs."""
    codes, scales = [], []
    for i in range(0, w.shape[1], GROUP):
        values, part = w[:, i : i + GROUP], h[i : i + GROUP, i : i + GROUP]
        tried = []
        for step in range(10):
            scale, code, value = four_bits(values, 1 - step / 20)
            q = code(values).astype(np.int32)
            e = (value(q) - values).astype(np.float64)
            tried.append(((e @ part * e).sum(-1), q, scale))
        best = np.argmin([error for error, *_ in tried], 0)
        codes.append(np.stack([tried[b][1][r] for r, b in enumerate(best)]))
        scales.append(np.stack([tried[b][2][r] for r, b in enumerate(best)]))
    return np.concatenate(codes, 1), np.concatenate(scales, 1)

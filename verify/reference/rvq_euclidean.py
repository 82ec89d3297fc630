"""rvq_euclidean: Mimi's residual quantiser (quantise.residual_euclidean) and its codebook updates.

projected            z = input_proj x; y = output_proj(straight-through sum). x [B,C,T], input_proj [D,C,1],
                     output_proj [C,D,1], `<k>.embedding_sum` [K,D], `<k>.cluster_usage` [K]; outputs z, codes, q (the
                     sum), y, commitment, margin. Gradients of sum(y dy) + commitment.
no_projection        the same with q for y: gradients of sum(q dy) + commitment
straight_through     the same without the commitment: dz = dy
usage_floor_and_ties usage 0 (embedding = sum / 1e-5) and duplicated rows (the lowest index wins)
ema_update           rows [N,D], codes [N]; sum and usage before and after, decay .99
expire               one training step in Mimi's order: expired codes replaced by rows[sample_indices[k]], then the EMA
kmeans               rows [N,D], first [K], resample [iterations,K] -> means, counts, embedding_sum = means counts
"""

import torch
import torch.nn.functional as F

import quantise
from dump import Draw, grads, save

SIZES = [32, 16, 16]
DIM = 6


def codebooks(draw, sizes):
    """Stage k's rows shrink as the residuals do; usage is uneven."""
    sums, usages = [], []
    for k, size in enumerate(sizes):
        usage = draw.uniform(0.2, 9.0, size)
        rows = draw.normal(size, DIM, scale=0.6**k)
        sums.append((rows * usage[:, None]).float().double())
        usages.append(usage)
    return sums, usages


def named(sums, usages):
    stored = {f"{k}.embedding_sum": s for k, s in enumerate(sums)}
    return stored | {f"{k}.cluster_usage": u for k, u in enumerate(usages)}


def unprojected(case, draw, sums, usages, commitment_weight):
    z = draw.normal(2, DIM, 33, grad=True)
    margin = []
    tables = [quantise.embedding(s, u) for s, u in zip(sums, usages)]
    q, codes, commitment = quantise.residual_euclidean(z, tables, margin)
    dy = draw.normal(*q.shape)
    save("rvq_euclidean", case,
         {"z": z, **named(sums, usages), "codes": codes, "q": q, "commitment": commitment, "dy": dy,
          "margin": torch.stack(margin, 1), **grads((q * dy).sum() + commitment_weight * commitment, z=z)},
         codebook_sizes=[len(u) for u in usages], commitment_weight=commitment_weight)


def make():
    draw = Draw("rvq_euclidean", "projected")
    x = draw.normal(2, 9, 31, grad=True)
    input_proj = draw.normal(DIM, 9, 1, scale=1 / 3, grad=True)
    output_proj = draw.normal(9, DIM, 1, scale=DIM**-0.5, grad=True)
    sums, usages = codebooks(draw, SIZES)
    z = F.conv1d(x, input_proj)
    margin = []
    tables = [quantise.embedding(s, u) for s, u in zip(sums, usages)]
    q, codes, commitment = quantise.residual_euclidean(z, tables, margin)
    y = F.conv1d(q, output_proj)
    dy = draw.normal(*y.shape)
    leaves = {"x": x, "input_proj": input_proj, "output_proj": output_proj}
    save("rvq_euclidean", "projected",
         {**leaves, **named(sums, usages), "z": z, "codes": codes, "q": q, "y": y, "commitment": commitment, "dy": dy,
          "margin": torch.stack(margin, 1), **grads((y * dy).sum() + commitment, **leaves)},
         codebook_sizes=SIZES, commitment_weight=1.0)

    for case, weight in [("no_projection", 1.0), ("straight_through", 0.0)]:
        draw = Draw("rvq_euclidean", case)
        unprojected(case, draw, *codebooks(draw, SIZES), weight)

    draw = Draw("rvq_euclidean", "usage_floor_and_ties")
    sums, usages = codebooks(draw, [17, 16])
    sums[0][3], usages[0][3] = (sums[0][3] * 1e-5 / usages[0][3]).float().double(), 0.0
    sums[0][5], usages[0][5] = 0.0, 0.0
    for first, copy in [(2, 9), (8, 16)]:
        sums[0][copy], usages[0][copy] = sums[0][first], usages[0][first]
    unprojected("usage_floor_and_ties", draw, sums, usages, 1.0)

    draw = Draw("rvq_euclidean", "ema_update")
    (before_sum,), (before_usage,) = codebooks(draw, [16])
    rows, codes = draw.normal(127, DIM), draw.integers(0, 15, 127)
    after_sum, after_usage = quantise.ema_update(before_sum, before_usage, rows, codes, 0.99)
    save("rvq_euclidean", "ema_update",
         {"rows": rows, "codes": codes, "embedding_sum": before_sum, "cluster_usage": before_usage,
          "embedding_sum.after": after_sum, "cluster_usage.after": after_usage}, decay=0.99)

    draw = Draw("rvq_euclidean", "expire")
    (before_sum,), (before_usage,) = codebooks(draw, [16])
    for k in (0, 7, 15):
        before_usage[k] = 0.05 * k
    rows = draw.normal(127, DIM)
    codes = quantise.nearest(rows[None], quantise.embedding(before_sum, before_usage))[0]
    picks = draw.integers(0, 127, 16)
    replaced_sum, replaced_usage, expired = quantise.replace_expired(before_sum, before_usage, rows[picks])
    after_sum, after_usage = quantise.ema_update(replaced_sum, replaced_usage, rows, codes, 0.99)
    save("rvq_euclidean", "expire",
         {"rows": rows, "codes": codes, "sample_indices": picks, "expired": expired,
          "embedding_sum": before_sum, "cluster_usage": before_usage,
          "embedding_sum.replaced": replaced_sum, "cluster_usage.replaced": replaced_usage,
          "embedding_sum.after": after_sum, "cluster_usage.after": after_usage}, decay=0.99, threshold=0.1)

    draw = Draw("rvq_euclidean", "kmeans")
    rows = draw.normal(127, DIM)
    first = draw.integers(0, 127, 17)
    first[4] = first[1]  # an empty cluster in the first step
    resample = draw.integers(0, 127, 5, 17)
    means, counts, margin = quantise.kmeans(rows, first, resample)
    save("rvq_euclidean", "kmeans",
         {"rows": rows, "first": first, "resample": resample, "means": means, "counts": counts,
          "embedding_sum": means * counts[:, None], "margin": margin}, iterations=5)

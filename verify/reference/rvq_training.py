"""Training of residual codebooks by moving averages: moshi's own modules, their draws recorded.

Every step stores its input, which items stay unquantised, codes, output, penalty, the gradient of `penalty + <output, weights>`, and
usage and sums of all codebooks after it. `draws` are the row numbers of every sample of vectors, in the order they were taken.
"""

import torch
from moshi.quantization import core_vq
from moshi.quantization.vq import ResidualVectorQuantizer

from dump import Draw, save

FAMILY = "rvq_training"
ITERATIONS = 6


def recorded(draw, draws):
    """The law of core_vq._sample_vectors."""

    def sample(samples, num):
        n = samples.shape[0]
        picks = draw.rng.permutation(n)[:num] if n >= num else draw.rng.integers(0, n, num)
        draws.append(torch.from_numpy(picks))
        return samples[torch.from_numpy(picks)]

    return sample


def case(name, *, batch, frames, dim, bins, stages, steps, threshold):
    draw, draws, raw = Draw(FAMILY, name), [], []
    core_vq._sample_vectors = recorded(draw, draws)
    core_vq._run_kmeans.__defaults__ = (ITERATIONS,)
    quantizer = ResidualVectorQuantizer(
        dimension=dim, n_q=stages, bins=bins, no_quantization_rate=0.5, threshold_usage_ratio=threshold
    ).double().train()
    uniform = torch.rand

    def rand(*shape, device=None):
        values = torch.from_numpy(draw.rng.uniform(size=shape))
        raw.append((values.flatten() <= 0.5).int())
        return values

    weights = draw.normal(batch, dim, frames)
    found = {key: [] for key in ["x", "codes", "output", "penalty", "gradient", "usage", "sum"]}
    centres = draw.normal(bins, dim, scale=2.0).detach()
    for step in range(steps):
        # Clusters of which fewer and fewer are visited, so that codewords expire.
        alive = max(2, bins - step // 2)
        near = centres[draw.integers(0, alive, batch, frames)].transpose(1, 2)
        x = (near + draw.normal(batch, dim, frames, scale=0.3)).float().double().requires_grad_(True)
        torch.rand = rand
        result = quantizer(x, 12)
        torch.rand = uniform
        (gradient,) = torch.autograd.grad(result.penalty + (result.x * weights).sum(), x)
        books = [layer._codebook for layer in quantizer.vq.layers]
        for key, value in {
            "x": x.transpose(1, 2),
            "codes": result.codes,
            "output": result.x.transpose(1, 2),
            "penalty": result.penalty,
            "gradient": gradient.transpose(1, 2),
            "usage": torch.stack([book.cluster_usage for book in books]),
            "sum": torch.stack([book.embedding_sum for book in books]),
        }.items():
            found[key].append(value.detach().clone())
    tensors = {key: torch.stack(values) for key, values in found.items()}
    tensors |= {"draws": torch.stack(draws), "raw": torch.stack(raw), "weights": weights.transpose(1, 2)}
    save(FAMILY, name, tensors, stages=stages, bins=bins, threshold=threshold, iterations=ITERATIONS)


def make():
    case("mimi", batch=3, frames=11, dim=4, bins=7, stages=3, steps=16, threshold=0.5)
    case("mimi_few_rows", batch=2, frames=3, dim=3, bins=9, stages=2, steps=12, threshold=0.3)


"""Residual vector quantisation: Mimi's Euclidean EMA codebooks and DAC's factorised cosine codebooks.

Latents are [B,D,T], codes [B,K,T]. Ties go to the lowest index. `trace`, where given, collects per stage a
[B,T] margin: how much worse (squared distance, or cosine) the best row differing from the chosen one is.
"""

import torch
import torch.nn.functional as F

EPSILON = 1e-5


def embedding(embedding_sum, cluster_usage):
    return embedding_sum / cluster_usage.clamp(min=EPSILON)[:, None]


def nearest(rows, table, trace=None):
    """rows [B,T,D], table [K,D] -> codes [B,T] of the least Euclidean distance."""
    # In float64 duplicate table rows must give equal distances, which a matrix product does not promise.
    mode = "donot_use_mm_for_euclid_dist" if rows.dtype == torch.float64 else "use_mm_for_euclid_dist"
    distance = torch.cdist(rows, table.expand(rows.shape[0], -1, -1), compute_mode=mode)
    codes = distance.argmin(-1)
    if trace is not None:
        squared = distance.square()
        trace.append(second(squared) - squared.amin(-1))
    return codes


def most_aligned(rows, table, trace=None):
    """rows [B,T,D], table [K,D] -> codes [B,T] of the greatest cosine."""
    cosine = F.normalize(rows, dim=-1) @ F.normalize(table, dim=-1).T
    if trace is not None:
        trace.append(cosine.amax(-1) + second(-cosine))
    return cosine.argmax(-1)


def second(cost):
    """The least cost above the minimum along the last dimension; 1e30 where all are equal."""
    best = cost.amin(-1, keepdim=True)
    return torch.where(cost > best, cost, 1e30).amin(-1)


def residual_euclidean(z, tables, trace=None):
    """z [B,D,T] -> (straight-through sum, codes, commitment = mean over stages of mse(residual, sg q)).

    The residual subtracts detached rows and one straight-through spans the whole sum (moshi core_vq.py).
    """
    residual, total = z, torch.zeros_like(z)
    codes, commitment = [], 0.0
    for table in tables:
        codes.append(nearest(residual.detach().transpose(1, 2), table, trace))
        rows = table[codes[-1]].transpose(1, 2).detach()
        commitment = commitment + F.mse_loss(residual, rows)
        residual = residual - rows
        total = total + rows
    return z + (total - z).detach(), torch.stack(codes, 1), commitment / len(tables)


def residual_cosine(z, stages, keep=None, trace=None):
    """z [B,C,T], stages of (in_proj, out_proj, codebook [K,D]) -> (sum, codes, commitment, codebook loss).

    Item b adds stage i to its sum and losses only if i < keep[b] (quantiser dropout); every stage still runs.
    Nothing is detached between stages (dac/nn/quantize.py).
    """
    residual, total = z, torch.zeros_like(z)
    codes, commitment, codebook_loss = [], 0.0, 0.0
    for i, (in_proj, out_proj, codebook) in enumerate(stages):
        mask = torch.ones_like(z[:, 0, 0]) if keep is None else (i < keep).to(z.dtype)
        latent = in_proj(residual)
        codes.append(most_aligned(latent.detach().transpose(1, 2), codebook.detach(), trace))
        rows = F.embedding(codes[-1], codebook).transpose(1, 2)
        commitment = commitment + ((latent - rows.detach()).square().mean((1, 2)) * mask).mean()
        codebook_loss = codebook_loss + ((rows - latent.detach()).square().mean((1, 2)) * mask).mean()
        quantised = out_proj(latent + (rows - latent).detach())
        total = total + quantised * mask[:, None, None]
        residual = residual - quantised
    return total, torch.stack(codes, 1), commitment, codebook_loss


def ema_update(embedding_sum, cluster_usage, rows, codes, decay):
    """One step for the rows [N,D] that were given codes [N]; returns the new (sum, usage)."""
    sums = torch.zeros_like(embedding_sum).index_add_(0, codes, rows)
    counts = torch.zeros_like(cluster_usage).index_add_(0, codes, torch.ones_like(rows[:, 0]))
    return decay * embedding_sum + (1 - decay) * sums, decay * cluster_usage + (1 - decay) * counts


def replace_expired(embedding_sum, cluster_usage, samples, ratio=0.1):
    """Code k with usage below ratio * mean usage becomes samples[k] with the mean usage."""
    mean = cluster_usage.mean()
    expired = cluster_usage < ratio * mean
    return (torch.where(expired[:, None], mean * samples, embedding_sum),
            torch.where(expired, mean, cluster_usage), expired)


def kmeans(rows, first, resample):
    """Lloyd steps from rows[first]; in step i an empty cluster k restarts at rows[resample[i, k]].

    Returns (means [K,D], counts [K] of the last assignment with empty clusters counted as 1, least margin).
    """
    means, margins = rows[first], []
    for restart in resample:
        codes = nearest(rows[None], means, margins)[0]
        counts = torch.bincount(codes, minlength=len(means))
        sums = torch.zeros_like(means).index_add_(0, codes, rows)
        means = torch.where((counts == 0)[:, None], rows[restart], sums / counts.clamp(min=1)[:, None])
    return means, counts.clamp(min=1), torch.cat(margins).min()

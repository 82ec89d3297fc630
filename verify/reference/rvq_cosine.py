"""rvq_cosine: DAC's factorised residual quantiser (quantise.residual_cosine).

x [B,C,T]; per stage k `<k>.in_proj.weight` [D,C,1], `<k>.in_proj.bias`, `<k>.out_proj.weight` [C,D,1],
`<k>.out_proj.bias`, `<k>.codebook` [K,D]. Outputs codes, z_q, commitment, codebook_loss, margin (of the cosine).
Gradients `d<name>` of sum(z_q dy) + 0.25 commitment + 1.0 codebook_loss. In `dropout`, `keep` [B] stages count per item.
"""

import torch
import torch.nn.functional as F

import quantise
from dump import Draw, grads, save

SIZES, CHANNELS, DIM = [32, 16, 17], 9, 4


def make():
    for case, keep in [("all_stages", None), ("dropout", [1, 3, 2])]:
        draw = Draw("rvq_cosine", case)
        leaves = {"x": draw.normal(2 if keep is None else len(keep), CHANNELS, 31, grad=True)}
        stages = []
        for k, size in enumerate(SIZES):
            stage = {
                "in_proj.weight": draw.normal(DIM, CHANNELS, 1, scale=CHANNELS**-0.5, grad=True),
                "in_proj.bias": draw.normal(DIM, scale=0.1, grad=True),
                "out_proj.weight": draw.normal(CHANNELS, DIM, 1, scale=0.5 * DIM**-0.5, grad=True),
                "out_proj.bias": draw.normal(CHANNELS, scale=0.1, grad=True),
                "codebook": draw.normal(size, DIM, grad=True),
            }
            leaves |= {f"{k}.{name}": tensor for name, tensor in stage.items()}
            stages.append((
                lambda r, s=stage: F.conv1d(r, s["in_proj.weight"], s["in_proj.bias"]),
                lambda r, s=stage: F.conv1d(r, s["out_proj.weight"], s["out_proj.bias"]),
                stage["codebook"],
            ))
        margin = []
        kept = None if keep is None else torch.tensor(keep)
        z_q, codes, commitment, codebook_loss = quantise.residual_cosine(leaves["x"], stages, kept, margin)
        dy = draw.normal(*z_q.shape)
        total = (z_q * dy).sum() + 0.25 * commitment + codebook_loss
        tensors = {**leaves, "codes": codes, "z_q": z_q, "commitment": commitment, "codebook_loss": codebook_loss,
                   "margin": torch.stack(margin, 1), "dy": dy, **grads(total, **leaves)}
        if keep is not None:
            tensors["keep"] = kept
        save("rvq_cosine", case, tensors, codebook_sizes=SIZES, commitment_weight=0.25, codebook_weight=1.0)

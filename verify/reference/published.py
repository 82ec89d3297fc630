"""Shared by the generators of published models: random weights of useful sizes, outputs of layers, comparison."""

import re

import torch
import torch.nn.functional as F


def rounded(x):
    return x.float().double()


def set_weight(module, weight, draw):
    """Gives a layer a weight; where it has weight norm, a direction of any length and a norm."""
    if not hasattr(module, "parametrizations"):
        module.weight.data = rounded(weight)
        return
    parts = module.parametrizations.weight
    parts.original0.data = rounded(weight.flatten(1).norm(dim=1)[:, None, None])
    parts.original1.data = rounded(weight * draw.uniform(0.5, 2, len(weight), 1, 1))


def randomise(model, draw):
    """Convolutions, norms, Snake, LSTM, linear layers; the scale of convolutions comes later, from data."""
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, (torch.nn.Conv1d, torch.nn.ConvTranspose1d)):
            shape = module.weight.shape
            set_weight(module, draw.normal(*shape, scale=shape[1:].numel() ** -0.5), draw)
            own = {"bias": module.bias} if module.bias is not None else {}
        for kind, p in own.items():
            if kind == "alpha":
                p.data = draw.uniform(0.3, 2.5, *p.shape)
            elif isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm)) and kind == "weight":
                p.data = draw.uniform(0.7, 1.3, *p.shape)
            elif p.dim() == 1:
                p.data = draw.normal(*p.shape, scale=0.1)
            elif not kind.startswith("original"):
                p.data = draw.normal(*p.shape, scale=p.shape[-1] ** -0.5)


class Scales:
    """Sets the scale of every convolution when data first reach it, to `wanted(name)` (None: as it is), so that no layer is nearly
    silent or nearly linear.
    """

    def __init__(self, model, wanted):
        kinds = (torch.nn.Conv1d, torch.nn.ConvTranspose1d)
        self.hooks = [module.register_forward_hook(self.hook(wanted(name)))
                      for name, module in model.named_modules() if isinstance(module, kinds) and wanted(name) is not None]

    def hook(self, wanted):
        seen = []

        def scale(module, _, y):
            if seen:
                return y
            seen.append(True)
            bias = 0 if module.bias is None else module.bias[:, None]
            factor = wanted / (y - bias).std()
            weight = module.parametrizations.weight.original0 if hasattr(module, "parametrizations") else module.weight
            weight.data = rounded(weight.data * factor)
            return (y - bias) * factor + bias

        return scale

    def stop(self):
        for hook in self.hooks:
            hook.remove()


class Outputs:
    """What every module whose name matches gave when first called; ELUs, which have no parameters, are left out."""

    def __init__(self, model, pattern):
        self.found = {}
        self.hooks = [module.register_forward_hook(self.hook(name)) for name, module in model.named_modules()
                      if name and re.fullmatch(pattern, name) and not isinstance(module, torch.nn.ELU)]

    def hook(self, name):
        def keep(module, _, y):
            self.found.setdefault(name, y.clone())

        return keep

    def stop(self):
        for hook in self.hooks:
            hook.remove()


def near(latents, size, noise, draw):
    """size rows near some of latents [N,D]."""
    some = latents[torch.from_numpy(draw.rng.integers(0, len(latents), size))]
    return some + noise * latents.std() * draw.normal(size, latents.shape[1])


def fit_cosine(quantizer, residual, draw):
    """DAC's and SNAC's quantiser: rows near the latents of residual [B,C,T], whose share of the residual out_proj gives back."""
    latent = quantizer.in_proj(residual).transpose(1, 2).flatten(0, 1)
    rows = near(latent, quantizer.codebook.num_embeddings, 0.5, draw)
    quantizer.codebook.weight.data = rounded(rows * draw.uniform(0.5, 1.5, len(rows), 1))
    back = quantizer.in_proj.weight[..., 0].pinverse()
    set_weight(quantizer.out_proj, (back + 0.1 * back.std() * draw.normal(*back.shape))[..., None], draw)


def cosine_margins(latents, codebook):
    """latents [B,D,T] -> [B,T]: the best cosine less the second."""
    cosine = F.normalize(latents.transpose(1, 2), dim=-1) @ F.normalize(codebook, dim=-1).T
    best = cosine.topk(2).values
    return best[..., 0] - best[..., 1]


def euclidean_margins(rows, codebook):
    """rows [N,D] -> [N]: d2 / d1 - 1 of the two nearest."""
    distance = torch.cdist(rows[None], codebook[None], compute_mode="donot_use_mm_for_euclid_dist")[0]
    best = distance.topk(2, largest=False).values
    return best[:, 1] / best[:, 0] - 1


def compare(what, found, expected, frames=None, chains=((0, None),)):
    """Prints how many codes [.., K, F] differ, how many of them before any near-tie has, and the wave's error relative to its peak.

    Found is (codes, wave decoded from the expected codes); expected has margins in between. Chains of codebooks search
    residuals of their own. Returns (codes that clearly differ, error).
    """
    (codes, wave), (expected_codes, margin, expected_wave) = found, expected
    frames = frames or codes.shape[-1]
    differs = (codes != expected_codes)[..., :frames]
    nth = torch.cat([differs[..., a:b, :].cumsum(-2) for a, b in chains], -2)
    clear = (differs & (nth == 1) & (margin[..., :frames] > 1e-4)).sum()
    samples = wave.shape[-1] * frames // codes.shape[-1]
    error = (wave.double() - expected_wave)[..., :samples].abs().max() / expected_wave.abs().max()
    print(f"  {what:52} {differs.sum():5} of {differs.numel()} codes differ, {clear} clearly; wave {error:.1e} of peak", flush=True)
    return int(clear), float(error)

"""adamw: five steps of torch.optim.AdamW on parameters `a` [8,3,7] and `b` [17], gradients given.

Step s (from 1): g is clipped (if clip is set) by min(1, clip / (norm + 1e-6)), norm the L2 norm over both parameters;
p *= 1 - lr wd; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
p -= lr / (1 - b1^s) * m / (sqrt(v) / sqrt(1 - b2^s) + eps); ema = decay ema + (1 - decay) p, ema starting at the first p.
Stored: `<p>.start`, `<p>.grad.<s>` (before clipping), `<p>.step.<s>`, and after the last step `<p>.m`, `<p>.v`,
`<p>.ema`; `norm` [5] the gradient norm before clipping. `lr` in the case has one value per step.
"""

import torch

from dump import Draw, save

STEPS = 5
CASES = {
    "plain": dict(betas=[0.9, 0.999], eps=1e-8, weight_decay=0.0, clip=None, gamma=1.0),
    "decay": dict(betas=[0.8, 0.99], eps=1e-8, weight_decay=0.05, clip=None, gamma=0.9),
    "clipped": dict(betas=[0.8, 0.99], eps=1e-6, weight_decay=0.01, clip=10.0, gamma=1.0),
}


def make():
    for case, c in CASES.items():
        draw = Draw("adamw", case)
        params = {"a": draw.normal(8, 3, 7, grad=True), "b": draw.normal(17, grad=True)}
        optimiser = torch.optim.AdamW(params.values(), lr=0.01, betas=c["betas"], eps=c["eps"],
                                      weight_decay=c["weight_decay"], foreach=False)
        decay = 0.9
        ema = {name: p.detach().clone() for name, p in params.items()}
        tensors = {f"{name}.start": p.detach().clone() for name, p in params.items()}
        norms, rates = [], []
        for step in range(1, STEPS + 1):
            for name, p in params.items():
                # The sizes straddle the clip: steps 1 and 2 stay below it.
                p.grad = draw.normal(*p.shape, scale=0.3 * step)
                tensors[f"{name}.grad.{step}"] = p.grad.clone()
            limit = c["clip"] if c["clip"] is not None else float("inf")
            norms.append(torch.nn.utils.clip_grad_norm_(params.values(), limit).item())
            rates.append(0.01 * c["gamma"] ** (step - 1))
            optimiser.param_groups[0]["lr"] = rates[-1]
            optimiser.step()
            for name, p in params.items():
                ema[name] = decay * ema[name] + (1 - decay) * p.detach()
                tensors[f"{name}.step.{step}"] = p.detach().clone()
        for name, p in params.items():
            tensors[f"{name}.m"] = optimiser.state[p]["exp_avg"]
            tensors[f"{name}.v"] = optimiser.state[p]["exp_avg_sq"]
            tensors[f"{name}.ema"] = ema[name]
        tensors["norm"] = torch.tensor(norms, dtype=torch.float64)
        save("adamw", case, tensors, steps=STEPS, lr=rates, ema_decay=decay,
             betas=c["betas"], eps=c["eps"], weight_decay=c["weight_decay"], clip=c["clip"])

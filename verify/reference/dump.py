"""Shared by every generator: seeded inputs, float64 evaluation, deterministic files.

An input is drawn in float64, rounded to float32 and computed with in float64; a result is rounded to float32
once. So the only error of a stored tensor is half an ulp.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parent.parent / "golden"


class Draw:
    """Random inputs that depend on the case's name alone."""

    def __init__(self, family, case):
        self.rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{family}/{case}".encode())))

    def normal(self, *shape, scale=1.0, grad=False):
        return leaf(self.rng.standard_normal(shape) * scale, grad)

    def uniform(self, low, high, *shape, grad=False):
        return leaf(self.rng.uniform(low, high, shape), grad)

    def integers(self, low, high, *shape):
        return torch.from_numpy(self.rng.integers(low, high, shape))


def leaf(values, grad=False):
    rounded = np.asarray(values, dtype=np.float64).astype(np.float32).astype(np.float64)
    return torch.from_numpy(rounded).requires_grad_(grad)


def save(family, case, tensors, root=GOLDEN, **facts):
    """Writes <root>/<family>/<case>.safetensors; `facts` become the JSON under metadata key `case`."""
    arrays = {}
    for name, tensor in tensors.items():
        array = tensor.detach().numpy() if isinstance(tensor, torch.Tensor) else np.asarray(tensor)
        integer = np.issubdtype(array.dtype, np.integer) or array.dtype == bool
        array = np.ascontiguousarray(array.astype(np.int32 if integer else np.float32))
        if not np.isfinite(array).all():
            raise ValueError(f"{family}/{case}: {name} is not finite")
        arrays[name] = array
    path = root / family / f"{case}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"family": family, "name": case, **facts}
    save_file(arrays, path, metadata={"case": json.dumps(facts, sort_keys=True)})


def grads(scalar, **leaves):
    """{"d<name>": d scalar / d leaf}; zeros where the scalar does not depend on the leaf."""
    found = torch.autograd.grad(scalar, list(leaves.values()), allow_unused=True)
    return {
        f"d{name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), found)
    }

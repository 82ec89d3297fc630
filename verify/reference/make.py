"""Regenerates verify/golden: `python verify/reference/make.py [FAMILY ...]`. Byte-identical on every run."""

import importlib
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

FAMILIES = [
    "conv1d",
    "conv_transpose1d",
    "activation",
    "weight_norm",
    "rvq_euclidean",
    "rvq_cosine",
    "stft",
    "mel",
    "adamw",
    "losses",
    "codec",
    "dac_hf",
    "metrics",
]


def main():
    families = sys.argv[1:] or FAMILIES
    unknown = [family for family in families if family not in FAMILIES]
    if unknown:
        sys.exit(f"unknown family {', '.join(unknown)}; known: {', '.join(FAMILIES)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for family in families:
        importlib.import_module(family).make()
        print(family)


if __name__ == "__main__":
    main()

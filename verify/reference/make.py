"""Regenerates verify/golden: `python verify/reference/make.py [FAMILY ...]`. Byte-identical on every run.

Without names: every family that needs no more than requirements.txt. Those of published models are made when named, with
requirements-published.txt, whose packages want an older PyTorch.
"""

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
    "cross_entropy",
    "codec",
    "dac_hf",
    "metrics",
    "pesq_clip",
    "rounding",
    "distillation",
    "training_loop",
    "prosody",
]
PUBLISHED = [
    "autocast", "bundled", "csm", "discriminators", "gradients", "loudness", "mimi", "moshi_hf", "moshi_lm", "moshi_sinks", "personaplex", "published_dac",
    "published_encodec", "published_snac", "quantized", "rvq_training", "sentencepiece_models", "speaker", "teachers", "training_step",
]


def main():
    families = sys.argv[1:] or FAMILIES
    known = FAMILIES + PUBLISHED
    unknown = [family for family in families if family not in known]
    if unknown:
        sys.exit(f"unknown family {', '.join(unknown)}; known: {', '.join(known)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for family in families:
        importlib.import_module(family).make()
        print(family)


if __name__ == "__main__":
    main()

"""bundled: the bundled codec as `transformers` runs it, from what `swara convert` wrote.

clean   the bundled clip's second second [T], 16 kHz: as much as its attention sees, since transformers 4.57 sees all there is
codes   [12, 50] of it; decoded [T] from them

The binary is the environment's SWARA, or cargo's. The clip is that of the family pesq_clip.
"""

import os
import subprocess
import tempfile
from pathlib import Path

import torch

from dump import GOLDEN, save
from signals import CLIP

PART = slice(16000, 32000)


def make():
    from safetensors.numpy import load_file
    from transformers import MimiModel

    bundled = CLIP.with_name("swara-te50.safetensors")
    swara = os.environ.get("SWARA", "").split() or ["cargo", "run", "--release", "--quiet", "--"]
    with tempfile.TemporaryDirectory() as folder:
        hf = Path(folder) / "hf"
        subprocess.run([*swara, "convert", bundled, hf, "--layout", "hf"], check=True, cwd=CLIP.parent, stdout=subprocess.DEVNULL)
        model, info = MimiModel.from_pretrained(hf, output_loading_info=True)
    left = {what: names for what, names in info.items() if names}
    if left:
        raise ValueError(f"transformers does not find what it wants: {left}")
    clean = load_file(GOLDEN / "pesq" / "clip.safetensors")["clean"][PART]
    with torch.no_grad():
        codes = model.eval().encode(torch.from_numpy(clean)[None, None]).audio_codes
        decoded = model.decode(codes).audio_values
    save("bundled", "transformers", {"clean": clean, "codes": codes[0], "decoded": decoded[0, 0]})

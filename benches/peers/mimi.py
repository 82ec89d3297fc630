"""Mimi in swara, in PyTorch (moshi) and in candle (rustymimi), from one file, in turns on two CPU threads: one table.

    python verify/reference/mimi.py DIR
    python benches/peers/mimi.py DIR/mimi/weights/kyutai.safetensors [--rounds 3] [--threads 2] [--codebooks 8] [--frames 100] [--dtype f32]

Streaming: one stream, a frame of 80 ms a call, encoded and decoded again; offline: 10 s at once. Each runs in a process of its own,
after frames and calls that are not timed. Read bandwidth and sgemm are measured before and after every round. Needs cargo, or
`--swara PROGRAM`, and verify/reference/requirements-published.txt. Run it with nothing else running.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "verify" / "reference"))

from run import build, output
from signals import recorded

RATE, HOP, SECONDS = 24000, 1920, 10
WARMUP = 20


def clocked(work):
    start = time.perf_counter()
    result = work()
    return result, (time.perf_counter() - start) * 1e3


def torch_moshi(args):
    """-> (encode, decode, reset) on arrays."""
    import torch
    from moshi.models.loaders import get_mimi

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model = get_mimi(args.model, num_codebooks=args.codebooks)
    encode = lambda pcm: model.encode(torch.from_numpy(pcm)).numpy()
    decode = lambda codes: model.decode(torch.from_numpy(codes)).numpy()
    return model, encode, decode


def moshi_streaming(args, pcm):
    model, encode, decode = torch_moshi(args)
    with model.streaming(1):
        return frames(args, pcm, encode, decode)


def moshi_offline(args, pcm):
    return whole(pcm, *torch_moshi(args)[1:])


def candle(args):
    import rustymimi

    return rustymimi.Tokenizer(str(args.model), num_codebooks=args.codebooks)


def rustymimi_streaming(args, pcm):
    model = candle(args)
    return frames(args, pcm, model.encode_step, model.decode_step)


def rustymimi_offline(args, pcm):
    model = candle(args)
    return whole(pcm, model.encode, model.decode)


def frames(args, pcm, encode, decode):
    """Milliseconds of each frame, there and back."""
    found = []
    for i in range(WARMUP + args.frames):
        place = i * HOP % (pcm.shape[-1] // HOP * HOP)
        frame = np.ascontiguousarray(pcm[..., place : place + HOP])
        codes, encoded = clocked(lambda: encode(frame))
        _, decoded = clocked(lambda: decode(codes))
        found.append((encoded, decoded, encoded + decoded))
    timed = np.array(found[WARMUP:])
    return {f"{name} {share}": float(np.percentile(timed[:, i], q)) for i, name in enumerate(["encode", "decode", "both"])
            for share, q in [("p50", 50), ("p99", 99)]}


def whole(pcm, encode, decode):
    """The faster of two calls each; the first may still be preparing."""
    codes, first = clocked(lambda: encode(pcm))
    encoded = min(first, clocked(lambda: encode(pcm))[1])
    decoded = min(clocked(lambda: decode(codes))[1] for _ in range(2))
    return {"encode": encoded, "decode": decoded, "both": encoded + decoded}


def ceilings(args, _):
    """GB/s of reading 1 GiB and GFLOP/s of a product of 2048 x 2048 f32, the best of several."""
    import torch

    torch.set_num_threads(args.threads)
    x, a = torch.ones(1 << 28), torch.randn(2048, 2048)
    reading = min(clocked(lambda: torch.sum(x))[1] for _ in range(8))
    product = min(clocked(lambda: a @ a)[1] for _ in range(8))
    return {"read GB/s": 4 * x.numel() / reading * 1e-6, "sgemm GFLOP/s": 2 * 2048**3 / product * 1e-6}


MEASURES = {"ceilings": ceilings, "moshi streaming": moshi_streaming, "moshi offline": moshi_offline,
            "rustymimi streaming": rustymimi_streaming, "rustymimi offline": rustymimi_offline}


def environment(threads):
    """RAYON_NUM_THREADS is what candle obeys, the others are for PyTorch's libraries."""
    return os.environ | dict.fromkeys(["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"], str(threads))


def measure(args, name):
    """One measure in a process of its own."""
    own = ["--threads", args.threads, "--codebooks", args.codebooks, "--frames", args.frames, "--measure", name]
    return json.loads(output([sys.executable, __file__, args.model, *own], env=environment(args.threads)).splitlines()[-1])


class Swara:
    def __init__(self, args):
        self.args, self.skipped = args, {}
        self.program = args.swara or build() / "swara"

    def run(self, what, *command):
        if what in self.skipped:
            return None
        common = ["--device", "cpu", "--dtype", self.args.dtype, "--threads", self.args.threads]
        full = [str(part) for part in [self.program, *command, *common]]
        done = subprocess.run(full, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[0]
            self.skipped[what] = f"{' '.join(full)}: {reason}"
            print(f"SKIPPED: swara {what}: {self.skipped[what]}", file=sys.stderr, flush=True)
            return None
        return json.loads(done.stdout)

    def streaming(self):
        rows = self.run("streaming", "bench", "codec", self.args.model, "--codebooks", self.args.codebooks,
                        "--frames", self.args.frames, "--json", "-")
        names = {"encode": "encode_ms", "decode": "decode_ms", "both": "total_ms"}
        return rows and {f"{name} {share}": rows[0][f"{key}_{share}"] for name, key in names.items() for share in ("p50", "p99")}

    def offline(self, clip):
        with tempfile.TemporaryDirectory() as folder:
            report = self.run("offline", "roundtrip", clip, Path(folder) / "out.wav", "--model", self.args.model,
                              "--codebooks", self.args.codebooks, "--json")
        return report and {"both": 1e3 * report["seconds"] / report["real_time_factor"]}


def cell(value):
    return "-" if value is None else f"{value:.1f}"


def print_ceiling(what, values):
    print(f"{what:28}{statistics.median(values):10.1f}   ({min(values):.1f} to {max(values):.1f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--codebooks", type=int, default=8)
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--dtype", default="f32", help="of swara; the peers compute in f32")
    parser.add_argument("--swara", type=Path, help="a built program; by default, cargo builds one")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.model.is_file():
        sys.exit(f"error: no such file ({args.model})")
    pcm = recorded(RATE * SECONDS, RATE).astype(np.float32)[None, None]
    if args.measure:
        print(json.dumps(MEASURES[args.measure](args, pcm)))
        return

    import sphn

    swara, found = Swara(args), {}
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "speech.wav"
        sphn.write_wav(str(clip), pcm[0, 0], RATE)
        turns = [("ceilings", "", lambda: measure(args, "ceilings"))]
        turns += [(how, who, lambda name=f"{who} {how}": measure(args, name))
                  for how in ("streaming", "offline") for who in ("moshi", "rustymimi")]
        turns += [("streaming", "swara", swara.streaming), ("offline", "swara", lambda: swara.offline(clip)), turns[0]]
        for _ in range(max(args.rounds, 1)):
            for how, who, take in turns:
                for what, value in (take() or {}).items():
                    found.setdefault((how, what), {}).setdefault(who, []).append(value)

    print(f"medians of {args.rounds} rounds in turns, {args.threads} threads, {args.codebooks} codebooks, {args.model.name}")
    for what in ("read GB/s", "sgemm GFLOP/s"):
        print_ceiling(what, found["ceilings", what][""])
    print(f"{'ms':28}{'swara':>10}{'moshi':>10}{'rustymimi':>10}{'better peer / swara':>22}")
    for (how, what), peers in found.items():
        if how == "ceilings":
            continue
        medians = {who: statistics.median(values) for who, values in peers.items()}
        ours, theirs = medians.get("swara"), min(value for who, value in medians.items() if who != "swara")
        ratio = "-" if ours is None else f"{theirs / ours:.2f} x"
        what = f"{how}, {what}" + (f" of {SECONDS} s" if how == "offline" else "")
        print(f"{what:28}" + "".join(f"{cell(medians.get(who)):>10}" for who in ("swara", "moshi", "rustymimi")) + f"{ratio:>22}")
    if swara.skipped:
        sys.exit("error: swara has no times for " + ", ".join(swara.skipped))


if __name__ == "__main__":
    main()

"""The bundled codec's model in swara and in PyTorch, in turns on one device: streaming, offline, a training step; one table.

    python benches/peers/run.py [--device cpu|cuda] [--rounds 3] [--threads 2] [--batch 5]

Needs cargo, and torch and numpy in the Python that runs it. Run it with nothing else running. On cuda it has never run.
candle and rustymimi have Mimi and no codec of this family: mimi.py compares those.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def output(command, **more):
    return subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True, **more).stdout


def cargo(folder, *what):
    """Builds, -> where the programs are."""
    output(["cargo", "build", "--release", "--quiet", *what], cwd=folder)
    metadata = output(["cargo", "metadata", "--format-version", "1", "--no-deps"], cwd=folder)
    return Path(json.loads(metadata)["target_directory"]) / "release"


def build():
    return cargo(ROOT, "-p", "swara", "-p", "swara-benches", "--bin", "swara", "--bin", "codec_train")


class Round:
    """Milliseconds of each measure, of swara and of PyTorch."""

    def __init__(self, programs, args):
        self.programs, self.args = programs, args

    def swara(self, *command):
        with tempfile.TemporaryDirectory() as scratch:
            common = ["--device", self.args.device, "--threads", self.args.threads]
            return json.loads(output([self.programs / "swara", *command, *common], cwd=scratch))

    def torch(self, script, *more):
        common = ["--device", self.args.device, "--threads", self.args.threads]
        lines = output([sys.executable, HERE / script, *common, *more]).splitlines()
        return {row["bench"]: row for row in map(json.loads, lines)}

    def streaming(self):
        frame = self.swara("bench", "codec", "--frames", 200, "--json", "-")[0]
        peer = self.torch("codec_stream.py")["codec_stream"]
        yield "streaming, one frame, median", frame["total_ms_p50"], peer["ms_median"]
        yield "streaming, one frame, 99 of 100 within", frame["total_ms_p99"], peer["ms_p99"]

    def offline(self):
        report = self.swara("roundtrip", "--json")
        seconds = report["seconds"]
        peer = self.torch("codec_infer.py", "--seconds", seconds)["codec_roundtrip"]
        yield f"offline, the bundled clip of {seconds:.1f} s", 1e3 * seconds / report["real_time_factor"], peer["ms_median"]

    def training(self):
        batch, threads = self.args.batch, self.args.threads
        step = json.loads(output([self.programs / "codec_train", batch, 1, 10, threads, self.args.device]))
        peer = self.torch("codec_train.py", "--batch", batch)["codec_train_step"]
        yield f"training step, {batch} x 1 s", step["ms_median"], peer["ms_median"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=5, help="of the training step")
    args = parser.parse_args()
    current = Round(build(), args)
    found = {}
    for _ in range(max(args.rounds, 1)):
        for measure in (current.streaming, current.offline, current.training):
            for what, ours, theirs in measure():
                found.setdefault(what, []).append((ours, theirs))
    print(f"ms, medians of {args.rounds} rounds in turns, {args.device}, {args.threads} threads")
    print(f"{'':42}{'swara':>10}{'PyTorch':>10}{'ratio':>8}")
    for what, pairs in found.items():
        ours, theirs = (statistics.median(column) for column in zip(*pairs))
        print(f"{what:42}{ours:10.2f}{theirs:10.2f}{theirs / ours:7.1f}x")


if __name__ == "__main__":
    main()

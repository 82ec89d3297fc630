"""The codec `te50-small`, untrained, in swara and in PyTorch, in turns on one device: streaming, offline, a training step; one table.

    python benches/peers/run.py [--device cpu|cuda] [--rounds 3] [--threads 2] [--batch 5] [--adversarial]

With --adversarial a training step against discriminators alone, and the memory of both processes. Both start a training step from the same
weights and sound; where their first losses differ by more than 1e-3 of themselves, nothing is compared.
Needs cargo, and torch, numpy and safetensors in the Python that runs it. Run it with nothing else running. On cuda it has never run.
candle and rustymimi have Mimi and no codec of this family: mimi.py compares those.
"""

import argparse
import json
import math
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

    def __init__(self, programs, args, model):
        self.programs, self.args, self.model = programs, args, model
        output([programs / "codec_train", 1, 1, 1, args.threads, args.device, "--release", model])

    def swara(self, *command):
        with tempfile.TemporaryDirectory() as scratch:
            common = ["--device", self.args.device, "--threads", self.args.threads]
            return json.loads(output([self.programs / "swara", *command, *common], cwd=scratch))

    def torch(self, script, *more):
        common = ["--device", self.args.device, "--threads", self.args.threads]
        lines = output([sys.executable, HERE / script, *common, *more]).splitlines()
        return {row["bench"]: row for row in map(json.loads, lines)}

    def streaming(self):
        frame = self.swara("bench", "codec", self.model, "--frames", 200, "--json", "-")[0]
        peer = self.torch("codec_stream.py")["codec_stream"]
        yield "streaming, one frame, median", frame["total_ms_p50"], peer["ms_median"]
        yield "streaming, one frame, 99 of 100 within", frame["total_ms_p99"], peer["ms_p99"]

    def offline(self):
        report = self.swara("roundtrip", "--model", self.model, "--json")
        seconds = report["seconds"]
        peer = self.torch("codec_infer.py", "--seconds", seconds)["codec_roundtrip"]
        yield f"offline, the bundled clip of {seconds:.1f} s", 1e3 * seconds / report["real_time_factor"], peer["ms_median"]

    def step(self, *flags):
        """A training step of both."""
        batch, threads = self.args.batch, self.args.threads
        with tempfile.TemporaryDirectory() as scratch:
            begin = Path(scratch) / "checkpoint.safetensors"
            program = [self.programs / "codec_train", batch, 1, 10, threads, self.args.device]
            ours = json.loads(output([*program, "--checkpoint", begin, *flags]))
            theirs = self.torch("codec_train.py", "--batch", batch, "--checkpoint", begin, *flags)[ours["bench"]]
        for name, loss in theirs["first"].items():
            if not abs(ours["first"][name] - loss) <= 1e-3 * max(abs(loss), 1e-3):
                raise SystemExit(f"{ours['bench']}: first losses differ: {name} {ours['first'][name]}, PyTorch's {loss}")
        return ours, theirs

    def training(self):
        ours, theirs = self.step()
        yield f"training step, {self.args.batch} x 1 s", ours["ms_median"], theirs["ms_median"]

    def adversarial(self):
        ours, theirs = self.step("--adversarial")
        for what, key in (
            (f"adversarial step, {self.args.batch} x 1 s", "ms_median"),
            ("memory at rest, MiB", "memory_at_rest_mib"),
            ("memory at peak, MiB", "memory_peak_mib"),
        ):
            # Where the system does not say: no number.
            yield what, *(math.nan if side[key] is None else side[key] for side in (ours, theirs))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch", type=int, default=5, help="of the training step")
    parser.add_argument("--adversarial", action="store_true", help="a training step against discriminators, and nothing else")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds: at least 1")
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        current = Round(build(), args, Path(scratch) / "model.safetensors")
        for _ in range(args.rounds):
            for measure in (current.adversarial,) if args.adversarial else (current.streaming, current.offline, current.training):
                for what, ours, theirs in measure():
                    found.setdefault(what, []).append((ours, theirs))
    print(f"ms unless said, medians of {args.rounds} rounds in turns, {args.device}, {args.threads} threads")
    print(f"{'':42}{'swara':>10}{'PyTorch':>10}{'PyTorch / swara':>17}")
    for what, pairs in found.items():
        ours, theirs = (statistics.median(column) for column in zip(*pairs))
        print(f"{what:42}{ours:10.2f}{theirs:10.2f}{theirs / ours:16.2f}x")


if __name__ == "__main__":
    main()

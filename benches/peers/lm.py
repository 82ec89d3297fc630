"""A step of a language model of Moshi's shape in swara, in PyTorch (moshi) and in candle (the crate moshi), in turns on two CPU threads: one table.

    python benches/peers/lm.py [--rounds 3] [--threads 2] [--steps 50] [--context 3000]

moshi-1b of `swara bench lm`, with random weights: the published model, but 24 temporal layers of 1024. One stream, from codes to codes
with every draw; each model in a process of its own, after steps that are not timed. Read bandwidth and sgemm are measured before and
after every round. PyTorch reads the whole ring of CONTEXT steps from the first step on, the others what is in it so far: a ring that
the steps fill (--context 64) has all three attend to about as much. NO_TORCH_COMPILE=1 is obeyed. candle multiplies no bf16 on the CPU;
its q8_0 has a scale for every 32 weights, int8 of swara one for a row.

Needs cargo, which builds benches/peers/candle for this processor, or `--candle PROGRAM`; the same for `--swara PROGRAM`; and
verify/reference/requirements-published.txt. Run it with nothing else running: it takes up to 7 GB of memory and some minutes a round.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from mimi import HERE, ceilings, clocked, environment, print_ceiling
from run import build, cargo, output

# Of `swara bench lm`.
WARMUP = 5
# By what swara calls their class.
ROWS = {"f32": [("swara", "f32"), ("PyTorch", "f32"), ("candle", "f32")], "bf16": [("swara", "bf16"), ("PyTorch", "bf16")],
        "int8": [("swara", "int8"), ("candle", "q8_0")], "int4": [("swara", "int4")]}


def torch_steps(args, weights):
    """Milliseconds of each step."""
    import torch
    from moshi.models import LMGen
    from moshi.models.loaders import get_moshi_lm

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[weights]
    shape = {"dim": 1024, "num_heads": 16, "num_layers": 24, "context": args.context}
    model = get_moshi_lm(None, dtype=dtype, lm_kwargs_overrides=shape)
    generator, codes = LMGen(model), torch.randint(model.card, (WARMUP + args.steps, 1, model.n_q - model.dep_q, 1))
    with torch.no_grad(), generator.streaming(1):
        return [clocked(lambda: generator.step(heard))[1] for heard in codes][WARMUP:]


def own(args, name):
    """One measure in a process of its own."""
    options = ["--threads", args.threads, "--steps", args.steps, "--context", args.context, "--measure", name]
    return json.loads(output([sys.executable, __file__, *options], env=environment(args.threads)).splitlines()[-1])


def pytorch(args, weights):
    return quantiles(own(args, weights))


def candle(args, weights):
    lines = output([args.candle, weights, args.context, args.steps, WARMUP], env=environment(args.threads)).splitlines()
    return quantiles([json.loads(line)["ms"] for line in lines])


def swara(args, weights):
    model = ["--random", "--config", "moshi-1b", "--format", weights, "--context", args.context, "--steps", args.steps]
    row, = json.loads(output([args.swara, "bench", "lm", *model, "--device", "cpu", "--threads", args.threads, "--json", "-"]))
    return {"p50": row["step_ms_p50"], "p99": row["step_ms_p99"]}


def quantiles(steps):
    return {"p50": float(np.percentile(steps, 50)), "p99": float(np.percentile(steps, 99))}


TAKES = {"swara": swara, "PyTorch": pytorch, "candle": candle}


def rounds(args):
    """-> the values of each row, of the ceilings, and why rows have none."""
    found, limits, skipped = {}, {}, {}

    def see_ceilings():
        for what, value in own(args, "ceilings").items():
            limits.setdefault(what, []).append(value)

    for _ in range(max(args.rounds, 1)):
        see_ceilings()
        for row in [row for rows in ROWS.values() for row in rows if row not in skipped]:
            who, weights = row
            try:
                found.setdefault(row, []).append(TAKES[who](args, weights))
            except (OSError, subprocess.CalledProcessError) as error:
                skipped[row] = error
                print(f"SKIPPED: {who} {weights}: {error}", file=sys.stderr, flush=True)
        see_ceilings()
    return found, limits, skipped


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50, help="to time")
    parser.add_argument("--context", type=int, default=3000, help="steps that attention sees")
    parser.add_argument("--swara", type=Path, help="a built program; by default, cargo builds one")
    parser.add_argument("--candle", type=Path, help="the same, of benches/peers/candle")
    parser.add_argument("--measure", choices=["ceilings", "f32", "bf16"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(ceilings(args, None) if args.measure == "ceilings" else torch_steps(args, args.measure)))
        return

    args.swara = args.swara or build() / "swara"
    args.candle = args.candle or cargo(HERE / "candle", "--locked") / "swara-peer-candle"
    found, limits, skipped = rounds(args)
    print(f"medians of {args.rounds} rounds in turns, {args.threads} threads, {args.steps} steps of one stream, a context of {args.context}")
    for what, values in limits.items():
        print_ceiling(what, values)
    medians = {row: {what: statistics.median(each[what] for each in taken) for what in ("p50", "p99")} for row, taken in found.items() if taken}
    print(f"{'ms a step':10}{'weights':8}{'p50':>10}{'p99':>10}{'p50 / swara':>14}")
    for like, rows in ROWS.items():
        ours = medians.get(("swara", like))
        for who, weights in rows:
            if taken := medians.get((who, weights)):
                ratio = f"{taken['p50'] / ours['p50']:.2f} x" if ours and who != "swara" else "-"
                print(f"{who:10}{weights:8}{taken['p50']:10.1f}{taken['p99']:10.1f}{ratio:>14}")
    if skipped:
        sys.exit("error: no times for " + ", ".join(" ".join(row) for row in skipped))


if __name__ == "__main__":
    main()

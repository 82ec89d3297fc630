"""Shared by the PyTorch peers: arguments, the model, test speech, timing."""

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "verify" / "reference"))

from codec_model import Codec, CodecConfig
from signals import speech


def numbers(text):
    return [int(part) for part in text.split(",")]


def arguments(description):
    """A codec config as JSON, or its fields one by one (lists as 1,2,3), and how to time it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--config", help="codec config, JSON; the options below override its fields")
    default = CodecConfig()
    for f in fields(CodecConfig):
        value = getattr(default, f.name)
        kind = numbers if isinstance(value, list) else (lambda t: t == "true") if isinstance(value, bool) else type(value)
        parser.add_argument(f"--{f.name.replace('_', '-')}", type=kind)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0, help="audio per item, rounded down to whole frames")
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    return parser


def noise(count):
    """What `swara_kernels::case::SplitMix(0)` draws, less a half."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53 - 0.5


def memory(key):
    """What the process holds (VmRSS) or held at most (VmHWM), MiB; None where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":")), None)


def prepare(args):
    """-> (config, codec, wave [B,1,T] f32 in speech's likeness)."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    config = CodecConfig.load(args.config) if args.config else CodecConfig()
    for f in fields(CodecConfig):
        value = getattr(args, f.name)
        if value is not None:
            setattr(config, f.name, value)
    samples = int(args.seconds * config.sample_rate) // config.hop * config.hop
    rng = np.random.Generator(np.random.PCG64(0))
    wave = np.stack([speech(rng, samples, config.sample_rate)[None] for _ in range(args.batch)])
    return config, Codec(config).to(args.device), torch.from_numpy(wave).float().to(args.device)


def timed(step, warmup, steps, device):
    """Seconds of each of `steps` calls after `warmup` untimed ones; on a GPU until its work is done."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    seconds = []
    for i in range(warmup + steps):
        wait()
        start = time.perf_counter()
        step()
        wait()
        if i >= warmup:
            seconds.append(time.perf_counter() - start)
    return seconds


def report(bench, config, model, wave, seconds, **more):
    """One JSON line: median, p10, p90, p99 in milliseconds and audio seconds per second at the median."""
    p10, median, p90, p99 = np.percentile(seconds, [10, 50, 90, 99])
    audio = wave.shape[0] * wave.shape[-1] / config.sample_rate
    print(json.dumps({
        "bench": bench, "peer": f"torch {torch.__version__}", "device": wave.device.type, "cpu": platform.machine(),
        "threads": torch.get_num_threads(), "dtype": "f32", "parameters": sum(p.numel() for p in model.parameters()),
        "batch": wave.shape[0], "samples": wave.shape[-1], "runs": len(seconds), "ms_median": median * 1e3,
        "ms_p10": p10 * 1e3, "ms_p90": p90 * 1e3, "ms_p99": p99 * 1e3, "audio_seconds_per_second": audio / median, **more,
        "config": asdict(config)}), flush=True)

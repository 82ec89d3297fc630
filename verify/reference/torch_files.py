"""Files of `torch.save` in each form that projects publish, and the tensors in them as safetensors: loader/tests/data.

`python verify/reference/torch_files.py`. Older files keep their storages in the order of their addresses, which changes from run
to run; all others come out as they were."""

import argparse
import collections
import io
import os
import pathlib
import pickle
import re
import struct
import zipfile

import numpy
import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parents[2] / "loader" / "tests" / "data"


def make():
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    codec()
    layouts()
    refused()


def codec():
    """A codec's state dict, bare and as each project wraps it."""
    model = torch.nn.Sequential(
        torch.nn.utils.weight_norm(torch.nn.Conv1d(2, 3, 3)),
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 2, 1)),
        torch.nn.LSTM(2, 2),
        torch.nn.BatchNorm1d(2),
    )
    state = model.state_dict()
    assert isinstance(state, collections.OrderedDict) and state._metadata
    expect("codec", state)
    save("codec.th", state)
    kwargs = {"encoder_dim": 64, "encoder_rates": [2, 4, 8, 8], "latent_dim": None, "quantizer_dropout": 0.5, "causal": False}
    save("codec.pth", {"state_dict": state, "metadata": {"logs": {"loss": [0.5] * 2000}, "kwargs": kwargs}})
    save("codec.bin", {"best_state": state, "xp.cfg": "sample_rate: 24000\n", "version": "1.3.0", "exported": True})
    carried = {
        "args": argparse.Namespace(lr=0.1),
        "out": pathlib.PurePosixPath("/tmp"),
        "best": numpy.float64(0.5),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "seen": {1, 2},
        "shape": torch.Size([1, 2]),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "big": 1 << 80,
        "nan": float("nan"),
        "epoch": 7,
    }
    save("codec.ckpt", {"model": {"state_dict": model.state_dict(keep_vars=True)}, **carried})
    halves = {"encoder": {}, "decoder": {}}
    for i, (name, tensor) in enumerate(state.items()):
        halves["decoder" if i % 2 else "encoder"][name] = tensor
    expect("halves", {f"{half}.{name}": tensor for half, part in halves.items() for name, tensor in part.items()})
    save("halves.pt", halves)


def layouts():
    """Every dtype, and tensors that do not lie row by row in storages of their own."""
    base = torch.arange(60, dtype=torch.float32)
    cube = base.reshape(3, 4, 5)
    state = {
        "base": base,
        "cube": cube,
        "transposed": cube[1].t(),
        "permuted": cube.permute(2, 0, 1),
        "slice": base[7:20],
        "steps": base[3::4],
        "columns": cube[:, 1:3, 2:],
        "corner": cube[2:, 3:, 4:],
        "scalar": base[11],
        "empty": torch.zeros(0, 4),
        "tail": base[60:],
        "channels_last": torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last),
        "one": torch.ones(1).expand(1, 1, 1),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    state["attribute"] = torch.nn.Parameter(torch.randn(2))
    state["attribute"].note = "carried along"
    numbers = torch.arange(6).reshape(2, 3)
    for dtype in ["float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]:
        state[dtype] = numbers.to(getattr(torch, dtype))
        state[dtype + ".t"] = state[dtype].t()
    expect("layouts", state)
    save("layouts.pt", state)
    save("layouts4.pt", state, pickle_protocol=4)
    legacy("layouts-legacy.pt", state)
    repack("layouts.pt", "layouts-deflated.pt", compression=zipfile.ZIP_DEFLATED)
    limit, zipfile.ZIP64_LIMIT = zipfile.ZIP64_LIMIT, -1
    repack("layouts.pt", "layouts-zip64.pt")
    zipfile.ZIP64_LIMIT = limit
    # Only zip files hold these.
    untyped = ["uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2"]
    state = {dtype: torch.tensor([1.0, 2.0, 3.0]).to(getattr(torch, dtype)) for dtype in untyped}
    expect("untyped", state)
    save("untyped.pt", state)


class Command:
    def __reduce__(self):
        return os.system, ("touch executed",)


def refused():
    state = {"w": torch.ones(2)}
    save("command.pt", {**state, "run": Command()})
    legacy("command-legacy.pt", {**state, "run": Command()})
    save("command4.pt", {**state, "run": Command()}, pickle_protocol=4)
    save("module.pt", torch.nn.Linear(1, 1))
    save("complex.pt", {"w": torch.ones(2, dtype=torch.complex64)})
    save("nothing.pt", {"epoch": 3, "losses": [0.5, 0.25]})
    save("tensor.pt", torch.ones(2))
    save("small.pt", state)
    legacy("small-legacy.pt", state)
    repack("small.pt", "small-deflated.pt", compression=zipfile.ZIP_DEFLATED)
    repack("small.pt", "big-endian.pt", edit=lambda name, data: b"big" if name.endswith("byteorder") else data)


def save(name, value, **options):
    torch.save(value, OUT / name, **options)


def legacy(name, value):
    """With storages called by numbers of four digits, not by their addresses."""
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    data = file.getvalue()
    # BINUNICODE, its length, digits.
    names = dict.fromkeys(re.findall(rb"X[\x0a-\x14]\0\0\0(\d{10,20})", data))
    for i, key in enumerate(names):
        data = data.replace(struct.pack("<I", len(key)) + key, struct.pack("<I", 4) + b"%04d" % i)
    (OUT / name).write_bytes(data)


def repack(source, name, edit=lambda name, data: data, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(OUT / source) as read, zipfile.ZipFile(OUT / name, "w", compression) as write:
        for entry in read.infolist():
            info = zipfile.ZipInfo(entry.filename)
            info.compress_type = compression
            write.writestr(info, edit(entry.filename, read.read(entry)))


def expect(name, state):
    save_file({key: tensor.detach().clone().contiguous() for key, tensor in state.items()}, OUT / f"{name}.safetensors")


if __name__ == "__main__":
    make()

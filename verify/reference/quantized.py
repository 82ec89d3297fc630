"""quantized: matrices as ggml, bitsandbytes, AutoGPTQ and AutoAWQ store them, with the values that each gives them.

blocks.gguf, aligned.gguf  tensors of every type that is read, by `gguf`'s writer; the second of version 2, with an alignment of 128
blocks.safetensors         the tensors of both, dequantised by `gguf` (numpy)
ggml.safetensors           matrices `x`, and what `gguf` packs them into as `q8_0` and `q4_0`
bitsandbytes.safetensors   `weight` and `weight_scb` of the f16 matrix `x` by bitsandbytes, named as moshi names them; `values` by the
                           formula of its gradient and `dequantised` by int8_vectorwise_dequant
gptq.safetensors           AutoGPTQ's tensors of a layer with zero points and of a `symmetric` one, with the `values`
awq.safetensors            likewise AutoAWQ's
The packages of the last two do not install beside this PyTorch: `gptq` and `awq` pack by the published layouts, QuantLinear.pack and
WQLinear_GEMM.from_linear, and unpack nothing, so the values owe nothing to the packing.
"""

import struct

import gguf
import numpy as np
import torch
from bitsandbytes import functional as bnb
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

from dump import GOLDEN, Draw

OUT = GOLDEN / "quantized"


def make():
    OUT.mkdir(parents=True, exist_ok=True)
    blocks()
    ggml()
    bitsandbytes()
    for method in [gptq, awq]:
        layers(method)


def store(name, arrays):
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, OUT / f"{name}.safetensors")


def normal(draw, *shape):
    return draw.rng.standard_normal(shape).astype(np.float32)


def halves(draw, *shape):
    return (draw.rng.standard_normal(shape) * 0.01).astype(np.float16)


def raw(draw, rows, count, dtype):
    """Blocks with any codes there may be."""
    size = gguf.GGML_QUANT_SIZES[dtype][1]
    data = draw.rng.integers(0, 256, (rows * count, size), dtype=np.uint8)
    scales = 2 if dtype == Type.Q4_K else 1
    data[:, : 2 * scales] = halves(draw, rows * count, scales).view(np.uint8)
    return data.reshape(rows, count * size)


def blocks():
    draw = Draw("quantized", "blocks")
    first = {
        "f32": (normal(draw, 3, 5), Type.F32),
        "f16": (halves(draw, 2, 3, 7), Type.F16),
        "bf16": (gguf.quantize(normal(draw, 4, 6), Type.BF16), Type.BF16),
        "scalar": (normal(draw, 1), Type.F32),
        "q8_0": (raw(draw, 3, 2, Type.Q8_0), Type.Q8_0),
        "q4_0": (raw(draw, 5, 3, Type.Q4_0), Type.Q4_0),
        "q4_k": (raw(draw, 3, 2, Type.Q4_K), Type.Q4_K),
        "stacked": (raw(draw, 6, 2, Type.Q8_0).reshape(2, 3, -1), Type.Q8_0),
    }
    second = {
        "rounded.q8_0": (gguf.quantize(normal(draw, 3, 96), Type.Q8_0), Type.Q8_0),
        "rounded.q4_0": (gguf.quantize(normal(draw, 3, 32), Type.Q4_0), Type.Q4_0),
        "odd": (normal(draw, 7), Type.F32),
    }
    write("blocks.gguf", first, 32)
    write("aligned.gguf", second, 128)
    version2 = bytearray((OUT / "aligned.gguf").read_bytes())
    version2[4:8] = struct.pack("<I", 2)
    (OUT / "aligned.gguf").write_bytes(version2)
    store("blocks", {name: gguf.dequantize(data, dtype) for name, (data, dtype) in {**first, **second}.items()})


def write(name, tensors, alignment):
    writer = gguf.GGUFWriter(OUT / name, "swara")
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    writer.add_string("a.text", 'a "text"\n')
    writer.add_bool("a.bool", True)
    writer.add_int8("a.i8", -3)
    writer.add_uint64("a.u64", 1 << 63)
    writer.add_float32("a.f32", 0.1)
    writer.add_float64("a.f64", 1e-300)
    writer.add_float32("a.nan", float("nan"))
    writer.add_array("an.array", [1, -2, 3])
    writer.add_array("a.vocabulary", ["<s>", "\u2581sw\u00e4ra", '"'])
    for tensor, (data, dtype) in tensors.items():
        writer.add_tensor(tensor, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ggml():
    draw = Draw("quantized", "ggml")
    x = normal(draw, 24, 64)
    x[0] = 0
    x[1, :32] = np.linspace(-127, 127, 32)
    x[2] = np.tile([8, -8, 0.5, -0.5, 1.5, -1.5, 2.5, -7.5], 8)
    x[3] *= 1e-7
    x[4] *= 1e4
    x[5] = np.arange(64) - 127
    x[6, 1:] = 0
    store("ggml", {"x": x, "q8_0": gguf.quantize(x, Type.Q8_0), "q4_0": gguf.quantize(x, Type.Q4_0)})


def bitsandbytes():
    x = halves(Draw("quantized", "bitsandbytes"), 12, 40)
    codes, absmax, _ = bnb.int8_vectorwise_quant(torch.from_numpy(x))
    values = codes.float() * absmax.unsqueeze(1).mul(1.0 / 127.0)
    tensors = {
        "x": x.astype(np.float32),
        "layer.weight": codes.numpy(),
        "layer.weight_scb": absmax.numpy(),
        "values": values.numpy(),
        "dequantised": bnb.int8_vectorwise_dequant(codes, absmax).numpy(),
    }
    store("bitsandbytes", tensors)


def layers(method):
    """q [columns, rows], zeros and scales [groups, rows]; values [rows, columns] = scale (q - zero), exact in f32."""
    draw = Draw("quantized", method.__name__)
    tensors = {}
    for name, columns, rows, group, symmetric in [("layer", 96, 24, 32, False), ("symmetric", 64, 16, 64, True)]:
        groups = columns // group
        q = draw.rng.integers(0, 16, (columns, rows))
        zeros = np.full((groups, rows), 8) if symmetric else draw.rng.integers(1, 16, (groups, rows))
        scales = np.abs(halves(draw, groups, rows))
        of = np.arange(columns) // group
        values = scales.astype(np.float32)[of] * (q - zeros[of]).astype(np.float32)
        assert (values.astype(np.float16) == scales[of] * (q - zeros[of]).astype(np.float16)).all()
        packed = {"scales": scales, **method(q, zeros, of)}
        tensors |= {f"{name}.{part}": array for part, array in packed.items()}
        tensors[f"{name}.values"] = values.T
    store(method.__name__, tensors)


def gptq(q, zeros, of):
    return {
        "qweight": pack(q.reshape(-1, 8, q.shape[1]).transpose(0, 2, 1)),
        "qzeros": pack((zeros - 1).reshape(len(zeros), -1, 8)),
        "g_idx": of.astype(np.int32),
    }


def awq(q, zeros, of):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {name: pack(codes.reshape(len(codes), -1, 8)[..., order]) for name, codes in [("qweight", q), ("qzeros", zeros)]}


def pack(codes):
    """[..., 8] -> [...], the first of 8 lowest."""
    words = (codes.astype(np.uint32) << np.arange(0, 32, 4, dtype=np.uint32)).sum(-1, dtype=np.uint32)
    return words.view(np.int32)

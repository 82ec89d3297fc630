"""autocast: training steps whose products take bf16, of a small codec with transformers and of a small Mimi.

hybrid   the codec and the input of codec/hybrid: 10 l1 + 1 commitment
mimi     the Mimi and the input of gradients/mimi: 10 l1 + 0.5 commitment

`loss.l1`, `loss.commitment`, `codes` [B,K,F], `grad.NAME` of parameters of at most 800 numbers, in float64 with these roundings and no
others: a product (a convolution or a linear layer of one group, neither from nor to a single channel) takes operands rounded to bf16, its
result and the gradient of its input are rounded, the gradient of its output is rounded before the products of which it is an operand.
Gradients of weights and biases are not; queries, keys and values are three products. `autocast.NAME` and `f32.NAME`: how far the
gradient of torch.autocast("cpu", bfloat16) and that without any rounding are from `grad.NAME`, relative to its norm.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.overrides import TorchFunctionMode

import gradients
from codec_model import Codec, CodecConfig
from dump import GOLDEN, save

LARGEST = 800


def rounded(x):
    return x.float().bfloat16().to(x.dtype)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, op, x, weight, bias, sums):
        ctx.op, ctx.sums, ctx.biased = op, sums, bias is not None
        operands = rounded(x), rounded(weight)
        ctx.save_for_backward(*operands)
        y = op(*operands)
        return rounded(y if bias is None else y + (rounded(bias) if y.dim() - 1 == sums else rounded(bias)[:, None]))

    @staticmethod
    def backward(ctx, dy):
        x, weight = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            dx, dw = torch.autograd.grad(ctx.op(x, weight), (x, weight), rounded(dy))
        return None, rounded(dx), dw, dy.sum([d for d in range(dy.dim()) if d != ctx.sums]) if ctx.biased else None, None


class Rounded(TorchFunctionMode):
    """Of every product, the operands and the result."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function not in (F.conv1d, F.conv_transpose1d, F.linear):
            return function(*args, **kwargs)
        names = ["input", "weight", "bias", "stride", "padding"] + {
            F.conv1d: ["dilation", "groups"], F.conv_transpose1d: ["output_padding", "groups", "dilation"], F.linear: []}[function]
        given = dict(zip(names, args)) | kwargs
        x, weight, bias = given.pop("input"), given.pop("weight"), given.pop("bias", None)
        if given.get("groups", 1) > 1 or 1 in weight.shape[:2]:
            return function(x, weight, bias, **given)
        parts = weight.chunk(3) if function is F.linear and len(weight) == 3 * weight.shape[1] else [weight]
        channels = x.dim() - 1 if function is F.linear else 1
        op = lambda x, weight: function(x, weight, **given)
        return torch.cat([Product.apply(op, x, part, bias, channels) for part in parts], channels)


def hybrid():
    dump = load_file(GOLDEN / "codec" / "hybrid.safetensors")
    config = CodecConfig(encoder_widths=[4, 6, 8], decoder_widths=[8, 6, 4], latent=8, codebook_dim=4, codebook_sizes=[32, 16, 16],
                         strides=[2, 4], quantizer="ema", transformer=dict(layers=2, heads=2, hidden=12, window=7))
    model = Codec(config)
    state = model.state_dict()
    model.load_state_dict({name: dump[name] for name in state})

    def run(model, source):
        wave, codes, losses = model(source)
        return wave, codes, losses["commitment"], 1.0

    return model.eval(), dump["input"], run, dict


def small_mimi():
    model, source = gradients.trained_mimi()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    for name, module in model.named_modules():
        if name.endswith("_codebook"):
            module.register_forward_pre_hook(lambda module, args: (args[0].to(module.embedding_sum.dtype), *args[1:]))

    def run(model, source):
        model.load_state_dict(state)  # codebooks follow what they see
        latent = model._to_framerate(model.encoder_transformer(model.encoder(source))[0])
        found = model.quantizer(latent, model.frame_rate)
        wave = model.decoder(model.decoder_transformer(model._to_encoder_framerate(found.x))[0])
        return wave, found.codes, found.penalty, 0.5

    return model, source, run, gradients.mimi.original


def step(model, source, run, dtype, context):
    model = model.to(dtype)
    model.zero_grad(set_to_none=True)
    with context:
        wave, codes, commitment, weight = run(model, source.to(dtype))
        l1 = F.l1_loss(wave.to(dtype), source.to(dtype))
    (10 * l1 + weight * commitment.to(dtype)).backward()
    found = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    return codes, l1.detach(), commitment.detach(), found


def make():
    for case, (model, source, run, names) in {"hybrid": hybrid(), "mimi": small_mimi()}.items():
        codes, l1, commitment, found = step(model, source, run, torch.float64, Rounded())
        cast = step(model, source, run, torch.float32, torch.autocast("cpu", dtype=torch.bfloat16))[3]
        full = step(model, source, run, torch.float64, torch.enable_grad())[3]
        distance = lambda other: {name: (other[name] - g).norm() / g.norm().clamp(min=1e-12) for name, g in found.items()}
        kept = {name: g for name, g in found.items() if g.numel() <= LARGEST}
        tensors = {f"grad.{name}": g for name, g in names(kept).items()}
        for kind, other in [("autocast", cast), ("f32", full)]:
            far = distance(other)
            tensors |= {f"{kind}.{name}": value[None] for name, value in names(far).items()}
            norms = torch.stack(list(far.values()))
            print(f"{case}: {kind} off by {norms.median():.1e} in the median, {norms.max():.1e} at most")
        save("autocast", case, {"codes": codes, "loss.l1": l1, "loss.commitment": commitment, **tensors})

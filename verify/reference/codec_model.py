"""The DAC-style codec as a plain PyTorch module; parameter names are the tensor names of the dumps.

Wave [B,1,T] -> z [B,latent,T/hop] -> codes [B,K,T/hop] and z_q -> wave; transformers of Mimi's kind may stand between the
convolutions and the quantiser. A stride-s layer has kernel 2s. Causal layers
pad (K-1) dilation - (s-1) zeros on the left, and transposed ones drop their last s samples; symmetric layers pad as
DAC does ((K-1) dilation / 2, or ceil(s/2) where strided), so an odd stride loses a sample per decoder stage.
"""

import json
import math
from dataclasses import dataclass, field, fields

import torch
import torch.nn.functional as F
from torch import nn

import quantise


@dataclass
class CodecConfig:
    """The fields of swara's codec config; the defaults are the preset te50-small."""

    sample_rate: int = 16000
    encoder_widths: list = field(default_factory=lambda: [16, 48, 96, 160, 224])
    decoder_widths: list = field(default_factory=lambda: [224, 192, 96, 64, 24])
    strides: list = field(default_factory=lambda: [8, 5, 4, 2])
    dilations: list = field(default_factory=lambda: [1, 3, 9])
    latent: int = 192
    causal: bool = True
    quantizer: str = "ema"
    codebook_dim: int = 32
    codebook_sizes: list = field(default_factory=lambda: [2048] + [1024] * 7)
    transformer: dict | None = None

    @property
    def hop(self):
        return math.prod(self.strides)

    @classmethod
    def load(cls, path):
        """Reads the JSON form of this class; an unknown or missing field is an error."""
        with open(path) as file:
            read = json.load(file)
        names = {f.name for f in fields(cls)}
        if set(read) != names:
            raise ValueError(f"{path}: unknown {sorted(set(read) - names)}, missing {sorted(names - set(read))}")
        return cls(**read)


class Snake(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x):
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class WeightNorm(nn.Module):
    """weight = weight_g * weight_v / ||weight_v||, the norm over all dimensions but the first."""

    def __init__(self, weight, outputs):
        super().__init__()
        self.weight_g = nn.Parameter(weight.flatten(1).norm(dim=1)[:, None, None])
        self.weight_v = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.folded = None

    @property
    def weight(self):
        return torch._weight_norm(self.weight_v, self.weight_g, 0) if self.folded is None else self.folded


class Conv(WeightNorm):
    def __init__(self, cin, cout, kernel, stride=1, dilation=1, causal=True):
        super().__init__(nn.init.trunc_normal_(torch.empty(cout, cin, kernel), std=0.02), cout)
        self.stride, self.dilation = stride, dilation
        if causal:
            self.padding = ((kernel - 1) * dilation - (stride - 1), 0)
        else:
            each = (kernel - 1) * dilation // 2 if stride == 1 else math.ceil(stride / 2)
            self.padding = (each, each)

    def forward(self, x):
        return F.conv1d(F.pad(x, self.padding), self.weight, self.bias, self.stride, 0, self.dilation)


class ConvTranspose(WeightNorm):
    def __init__(self, cin, cout, stride, causal=True):
        super().__init__(nn.ConvTranspose1d(cin, cout, 2 * stride).weight.detach().clone(), cout)
        self.stride, self.causal = stride, causal

    def forward(self, x):
        if self.causal:
            return F.conv_transpose1d(x, self.weight, self.bias, self.stride)[..., : -self.stride]
        return F.conv_transpose1d(x, self.weight, self.bias, self.stride, math.ceil(self.stride / 2))


class ResidualUnit(nn.Module):
    def __init__(self, channels, dilation, causal):
        super().__init__()
        self.snake1 = Snake(channels)
        self.conv1 = Conv(channels, channels, 7, dilation=dilation, causal=causal)
        self.snake2 = Snake(channels)
        self.conv2 = Conv(channels, channels, 1, causal=causal)

    def forward(self, x):
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x))))


class Block(nn.Module):
    """Residual units res_unit1.. at the block's full rate; encoders stride after them, decoders before."""

    def __init__(self, channels, dilations, causal):
        super().__init__()
        self.count = len(dilations)
        for n, dilation in enumerate(dilations, 1):
            self.add_module(f"res_unit{n}", ResidualUnit(channels, dilation, causal))

    def residual(self, x):
        for n in range(1, self.count + 1):
            x = getattr(self, f"res_unit{n}")(x)
        return x


class EncoderBlock(Block):
    def __init__(self, cin, cout, stride, dilations, causal):
        super().__init__(cin, dilations, causal)
        self.snake1 = Snake(cin)
        self.conv1 = Conv(cin, cout, 2 * stride, stride, causal=causal)

    def forward(self, x):
        return self.conv1(self.snake1(self.residual(x)))


class DecoderBlock(Block):
    def __init__(self, cin, cout, stride, dilations, causal):
        super().__init__(cout, dilations, causal)
        self.snake1 = Snake(cin)
        self.conv_t1 = ConvTranspose(cin, cout, stride, causal)

    def forward(self, x):
        return self.residual(self.conv_t1(self.snake1(x)))


class LayerScale(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.01))

    def forward(self, x):
        return self.scale * x


class Attention(nn.Module):
    """Causal, of so many keys at most, pairs of neighbours turned by their position."""

    def __init__(self, width, heads, window):
        super().__init__()
        self.heads, self.window = heads, window
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) / math.sqrt(3 * width))
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(self, x):
        length, size = x.shape[1], x.shape[2] // self.heads
        q, k, v = F.linear(x, self.in_proj_weight).unflatten(2, (3, self.heads, size)).permute(2, 0, 3, 1, 4)
        at = torch.arange(length)
        angles = at[:, None] * 10_000.0 ** (-torch.arange(0, size, 2) / size).to(x)

        def turned(x):
            turn = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones_like(angles), angles)
            return torch.view_as_real(turn).flatten(-2)

        distance = at[:, None] - at
        seen = F.scaled_dot_product_attention(turned(q), turned(k), v, (distance >= 0) & (distance < self.window))
        return self.out_proj(seen.transpose(1, 2).flatten(2))


class TransformerLayer(nn.Module):
    def __init__(self, width, heads, hidden, window):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = Attention(width, heads, window)
        self.linear1 = nn.Linear(width, hidden, bias=False)
        self.linear2 = nn.Linear(hidden, width, bias=False)
        self.layer_scale_1, self.layer_scale_2 = LayerScale(width), LayerScale(width)

    def forward(self, x):
        x = x + self.layer_scale_1(self.self_attn(self.norm1(x)))
        return x + self.layer_scale_2(self.linear2(F.gelu(self.linear1(self.norm2(x)))))


class Transformer(nn.Module):
    """Of features [B,C,T]; the identity without layers."""

    def __init__(self, c):
        super().__init__()
        t = dict(c.transformer or {"layers": 0})
        self.layers = nn.ModuleList(TransformerLayer(c.latent, **t) for _ in range(t.pop("layers")))

    def forward(self, z):
        x = z.transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return x.transpose(1, 2)


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        w = c.encoder_widths
        self.conv1 = Conv(1, w[0], 7, causal=c.causal)
        self.block = nn.Sequential(
            *(EncoderBlock(*io, s, c.dilations, c.causal) for *io, s in zip(w, w[1:], c.strides)))
        self.snake1 = Snake(w[-1])
        self.conv2 = Conv(w[-1], c.latent, 3, causal=c.causal)

    def forward(self, wave):
        return self.conv2(self.snake1(self.block(self.conv1(wave))))


class Decoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        w = c.decoder_widths
        self.conv1 = Conv(c.latent, w[0], 7, causal=c.causal)
        self.block = nn.Sequential(
            *(DecoderBlock(*io, s, c.dilations, c.causal) for *io, s in zip(w, w[1:], reversed(c.strides))))
        self.snake1 = Snake(w[-1])
        self.conv2 = Conv(w[-1], 1, 7, causal=c.causal)

    def forward(self, z):
        return torch.tanh(self.conv2(self.snake1(self.block(self.conv1(z)))))


class Codebook(nn.Module):
    def __init__(self, size, dim):
        super().__init__()
        self.register_buffer("embedding_sum", torch.randn(size, dim))
        self.register_buffer("cluster_usage", torch.ones(size))


class EmaLayer(nn.Module):
    def __init__(self, size, dim):
        super().__init__()
        self.codebook = Codebook(size, dim)

    @property
    def table(self):
        return quantise.embedding(self.codebook.embedding_sum, self.codebook.cluster_usage)


class EmaQuantizer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.input_proj = nn.Conv1d(c.latent, c.codebook_dim, 1, bias=False)
        self.output_proj = nn.Conv1d(c.codebook_dim, c.latent, 1, bias=False)
        self.layers = nn.ModuleList(EmaLayer(size, c.codebook_dim) for size in c.codebook_sizes)

    def forward(self, z, trace=None):
        latent = self.input_proj(z)
        tables = [layer.table for layer in self.layers]
        q, codes, commitment = quantise.residual_euclidean(latent, tables, trace)
        if self.training:
            self.update(latent.detach(), tables, codes)
        return self.output_proj(q), codes, {"commitment": commitment}

    @torch.no_grad()
    def update(self, residual, tables, codes, decay=0.99):
        for k, (layer, table) in enumerate(zip(self.layers, tables)):
            book, chosen = layer.codebook, codes[:, k].flatten()
            rows = residual.transpose(1, 2).flatten(0, 1)
            new_sum, new_usage = quantise.ema_update(book.embedding_sum, book.cluster_usage, rows, chosen, decay)
            book.embedding_sum.copy_(new_sum)
            book.cluster_usage.copy_(new_usage)
            residual = residual - table[codes[:, k]].transpose(1, 2)

    def decode(self, codes):
        q = sum(layer.table[codes[:, k]] for k, layer in enumerate(self.layers[: codes.shape[1]]))
        return self.output_proj(q.transpose(1, 2))


class CosineLayer(nn.Module):
    def __init__(self, size, dim, latent):
        super().__init__()
        self.in_proj = Conv(latent, dim, 1)
        self.out_proj = Conv(dim, latent, 1)
        self.codebook = nn.Embedding(size, dim)


class FactorisedQuantizer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.quantizers = nn.ModuleList(CosineLayer(size, c.codebook_dim, c.latent) for size in c.codebook_sizes)

    def forward(self, z, trace=None):
        stages = [(q.in_proj, q.out_proj, q.codebook.weight) for q in self.quantizers]
        z_q, codes, commitment, codebook = quantise.residual_cosine(z, stages, None, trace)
        return z_q, codes, {"commitment": commitment, "codebook": codebook}

    def decode(self, codes):
        stages = self.quantizers[: codes.shape[1]]
        return sum(q.out_proj(q.codebook(codes[:, k]).transpose(1, 2)) for k, q in enumerate(stages))


class Codec(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.encoder_transformer, self.decoder_transformer = Transformer(config), Transformer(config)
        self.quantizer = {"ema": EmaQuantizer, "factorised": FactorisedQuantizer}[config.quantizer](config)
        self.decoder = Decoder(config)

    def forward(self, wave):
        """Wave [B,1,T], T a multiple of hop -> (wave, codes, losses of the quantiser)."""
        z_q, codes, losses = self.quantizer(self.latent(wave))
        return self.wave(z_q), codes, losses

    def latent(self, wave):
        return self.encoder_transformer(self.encoder(wave))

    def wave(self, z_q):
        return self.decoder(self.decoder_transformer(z_q))

    def fold(self):
        """Computes every normalised weight once, for inference."""
        for module in self.modules():
            if isinstance(module, WeightNorm):
                module.folded = module.weight.detach()
        return self.eval()

    def encode(self, wave):
        return self.quantizer(self.latent(wave))[1]

    def decode(self, codes):
        return self.wave(self.quantizer.decode(codes))

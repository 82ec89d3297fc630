"""mimi: moshi's MimiModel, random weights under the published names, real speech; and the same in transformers.

    python verify/reference/make.py mimi                         the small model that is stored
    python verify/reference/mimi.py DIR [--seconds 10,15]        Mimi of the published size, 1 GB; then `swara verify mimi --golden DIR`
                [--layers] [--layouts]                           with the outputs of every layer; with the weights in every layout

mimi/weights/kyutai.safetensors   the original names. Mimi's configuration is implicit in them; the small model has its own as the JSON of a
                                  Hugging Face config.json under the metadata key `config`
mimi/weights/hf/                  config.json and model.safetensors: rows of q and k permuted for rotate-half
with --layouts                    resaved (self_attn.in_projs.0.weight), weight_norm (weight_g, weight_v), prefixed (model.): see `layouts`
mimi/CASE.safetensors             `input` [B,1,T], `codes` [B,K,F], `margin` [B,K,F], `wave` [B,1,T] decoded from codes, `wave.<k>` from the first k
                                  codebooks, `given.codes`, `given.wave` of random codes. With layers: the output of every layer of the
                                  encoding and of the decoding under its module's name, [B,C,T], transformer layers [B,T,C], listed in
                                  order in the case's `layers`

A margin is how much farther the second nearest row is, relative to the nearest: d2 / d1 - 1 of the Euclidean distances.

All is computed in float64 with exact rotary phases, offline: an attention sees `sliding_window` keys. What the packages give in
float32 is compared with that, and printed. Within the window all agree. Past it moshi, streaming, sees one key less in the first
token of a frame (its ring holds no more than the window), rustymimi one more, and transformers 4.57 sees all keys there are.
"""

import argparse
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import moshi.modules.rope
from moshi.models.loaders import get_mimi
from transformers import MimiConfig
from transformers import MimiModel as HuggingFaceMimi

import published
from dump import GOLDEN, Draw, save
from published import Outputs, Scales, euclidean_margins, rounded
from signals import recorded

LAYERS = r"(en|de)coder\.model\.\d+|(en|de)coder_transformer\.transformer\.layers\.\d+|(down|up)sample|quantizer\.rvq_\w+\.\w+_proj"

# The semantic codebook and the others quantise the same latent.
CHAINS = ((0, 1), (1, None))

FULL = {}
TINY = dict(hidden_size=32, num_filters=3, upsampling_ratios=[4, 3, 2, 2], codebook_size=32, codebook_dim=16, num_quantizers=6,
            vector_quantization_hidden_dimension=16, upsample_groups=32, num_hidden_layers=2, intermediate_size=64,
            num_attention_heads=2, num_key_value_heads=2, sliding_window=9, frame_rate=250.0)


def kyutai_config(c):
    """moshi's names of a Hugging Face configuration."""
    seanet = dict(channels=c.audio_channels, dimension=c.hidden_size, causal=True, n_filters=c.num_filters,
                  n_residual_layers=c.num_residual_layers, activation="ELU", compress=c.compress, norm="none",
                  dilation_base=c.dilation_growth_rate, kernel_size=c.kernel_size, pad_mode=c.pad_mode,
                  residual_kernel_size=c.residual_kernel_size, last_kernel_size=c.last_kernel_size,
                  ratios=list(c.upsampling_ratios), true_skip=True)
    quantizer = dict(dimension=c.codebook_dim, n_q=c.num_quantizers, bins=c.codebook_size, input_dimension=c.hidden_size,
                     output_dimension=c.hidden_size)
    transformer = dict(d_model=c.hidden_size, num_heads=c.num_attention_heads, num_layers=c.num_hidden_layers, causal=True,
                       layer_scale=c.layer_scale_initial_scale, context=c.sliding_window, conv_layout=True,
                       max_period=c.rope_theta, gating="none", norm="layer_norm", positional_embedding="rope",
                       dim_feedforward=c.intermediate_size, input_dimension=c.hidden_size, output_dimensions=[c.hidden_size])
    return dict(sample_rate=c.sampling_rate, channels=c.audio_channels, frame_rate=c.frame_rate, seanet=seanet,
                quantizer=quantizer, transformer=transformer)


def kyutai(config, filename=None, norm="none"):
    read = kyutai_config(config)
    read["seanet"]["norm"] = norm
    return get_mimi(filename, read, num_codebooks=config.num_quantizers)


published_rope = moshi.modules.rope.apply_rope


def exact_rope(q, k, offset, max_period=10_000, interleave=True, time_before_heads=False):
    """apply_rope without its rounding of phases to float32, which is 1e-5 of a turn after 10 s; q, k [B,H,T,D] in float64."""
    if q.dtype != torch.float64:
        return published_rope(q, k, offset, max_period, interleave, time_before_heads)
    assert not time_before_heads
    steps, dim = q.shape[-2:]
    position = offset.double()[:, None] + torch.arange(steps)
    phase = position[..., None] * max_period ** (-torch.arange(0, dim, 2).double() / dim)
    turn = torch.polar(torch.ones_like(phase), phase)[:, None]
    pairs = (-1, 2) if interleave else (2, -1)
    first = (lambda x: x) if interleave else (lambda x: x.transpose(-1, -2))
    turned = lambda x: torch.view_as_real(torch.view_as_complex(first(x.unflatten(-1, pairs)).contiguous()) * turn)
    return [first(turned(x)).flatten(-2) for x in (q, k)]


moshi.modules.rope.apply_rope = exact_rope


def fill(book, residual, draw):
    """Rows near residuals [N,D] of speech, in numbers such that the next stage's are a little smaller; returns those.

    One row has no usage at all, so that the floor of 1e-5 shows.
    """
    size, dim = book.embedding_sum.shape
    noise = 0.12 * dim**0.5
    near = residual[torch.from_numpy(draw.rng.integers(0, len(residual), size))]
    rows = near + noise * residual.std() * draw.normal(size, dim)
    rows = rows * draw.uniform(0.5, 1.3, size)[:, None] / (1 + noise**2)
    usage = draw.uniform(0.5, 20, size)
    usage[size // 3] = 0
    book.cluster_usage.data, book._embedding = usage, None
    book.embedding_sum.data = rounded(rows * usage.clamp(min=book.epsilon)[:, None])
    book._initialized.fill_(1)
    return residual - book.decode(book.encode(residual))


def randomise(model, draw, speech):
    """Values of the size that a trained Mimi has, except layer scales (0.1 to 0.5), which training leaves smaller."""
    for name, p in model.named_parameters():
        if "layer_scale" in name:
            p.data = draw.uniform(0.1, 0.5, *p.shape)
        elif "norm" in name and name.endswith("weight"):
            p.data = draw.uniform(0.7, 1.3, *p.shape)
        elif p.dim() == 1:
            p.data = draw.normal(*p.shape, scale=0.1)
        elif name.startswith("upsample"):
            p.data = draw.uniform(0.3, 1.0, *p.shape)
        else:
            p.data = draw.normal(*p.shape, scale=p.shape[1:].numel() ** -0.5)
    scales = Scales(model, lambda name: 0.5 if ".block.3." in name else 0.1 if name.startswith("decoder.model.14") else 1.0)
    z = model.encode_to_latent(speech, quantize=False)
    codes = []
    for branch in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        residual = branch.input_proj(z)[0].T
        for layer in branch.vq.layers:
            before = residual
            residual = fill(layer._codebook, residual, draw)
            codes.append(layer._codebook.encode(before))
    model.decode(torch.stack(codes)[None])
    scales.stop()


def margins(model, x):
    """[B,K,F]: d2 / d1 - 1 of every search that encoding x does."""
    found = []

    def search(module, rows):
        found.append(euclidean_margins(rows, module.embedding).view(len(x), -1))
        return search.published(module, rows)

    kind = type(model.quantizer.rvq_first.vq.layers[0]._codebook)
    search.published, kind._quantize = kind._quantize, search
    codes = model.encode(x)
    kind._quantize = search.published
    return codes, torch.stack(found, 1)


def reference(model, case, x, draw, root, layers):
    outputs = Outputs(model, LAYERS if layers else "")
    codes, margin = margins(model, x)
    wave = model.decode(codes)
    outputs.stop()
    given = draw.integers(0, model.cardinality, *codes.shape)
    tensors = {"input": x, "codes": codes, "margin": margin, "wave": wave, "given.codes": given, "given.wave": model.decode(given)}
    for k in sorted({1, 2, codes.shape[1] // 2}):
        tensors[f"wave.{k}"] = model.decode(codes[:, :k])
    save("mimi", case, {**tensors, **outputs.found}, root=root, layers=list(outputs.found), weights="weights")
    return codes, margin, wave


RENAMES = [("in_projs.0.weight", "in_proj_weight"), ("out_projs.0.weight", "out_proj.weight")]


def original(state):
    """The names of the published checkpoint."""
    out = {}
    for name, tensor in state.items():
        for new, old in RENAMES:
            name = name.replace(new, old)
        out[name] = tensor.float().contiguous()
    return out


def layouts(original):
    """The same weights as other tools save them."""
    rng = np.random.Generator(np.random.PCG64(7))
    resaved = {n.replace("in_proj_weight", "in_projs.0.weight").replace("out_proj.weight", "out_projs.0.weight"): t
               for n, t in original.items()}
    normed = {}
    for name, tensor in original.items():
        if re.match(r"(en|de)coder\.model\..*weight$", name):
            # torch keeps v as it was drawn: any length will do.
            length = torch.from_numpy(rng.uniform(0.5, 2, (len(tensor), 1, 1))).float()
            normed[f"{name}_g"], normed[f"{name}_v"] = tensor.flatten(1).norm(dim=1)[:, None, None], tensor * length
        else:
            normed[name] = tensor
    return {"resaved": resaved, "weight_norm": normed, "prefixed": {f"model.{n}": t for n, t in original.items()}}


def hugging_face(original, heads):
    """Names of transformers' MimiModel; the rows of q and k go from pairs to halves."""
    renames = [(r"coder\.model\.", "coder.layers."), (r"\.transformer\.layers", ".layers"), (r"(\.conv){2,}\.", ".conv."),
               (r"(\.convtr){2,}\.", ".conv."), (r"\.out_proj\.", ".o_proj."), (r"norm1", "input_layernorm"),
               (r"norm2", "post_attention_layernorm"), (r"linear(\d)", r"mlp.fc\1"), (r"layer_scale_1", "self_attn_layer_scale"),
               (r"layer_scale_2", "mlp_layer_scale"), (r"rvq_first", "semantic_residual_vector_quantizer"),
               (r"rvq_rest", "acoustic_residual_vector_quantizer"), (r"vq\.layers", "layers"), (r"_codebook\._?", "codebook."),
               (r"embedding_sum", "embed_sum")]
    out = {}
    for name, tensor in original.items():
        for pattern, new in renames:
            name = re.sub(pattern, new, name)
        if "in_proj_weight" in name:
            for part, w in zip("qkv", tensor.chunk(3)):
                if part != "v":
                    w = w.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
                out[name.replace("in_proj_weight", f"{part}_proj.weight")] = w.contiguous()
        else:
            out[name] = tensor
    return out


def write_weights(folder, state, config, implicit, more):
    (folder / "hf").mkdir(parents=True, exist_ok=True)
    text = json.dumps({"model_type": "mimi", "architectures": ["MimiModel"], "sampling_rate": config.sampling_rate,
                       "frame_rate": config.frame_rate, "audio_channels": config.audio_channels} | {
        name: getattr(config, name) for name in [
            "hidden_size", "num_filters", "num_residual_layers", "upsampling_ratios", "kernel_size", "last_kernel_size",
            "residual_kernel_size", "dilation_growth_rate", "use_causal_conv", "pad_mode", "compress", "trim_right_ratio",
            "codebook_size", "codebook_dim", "num_quantizers", "use_conv_shortcut", "vector_quantization_hidden_dimension",
            "num_semantic_quantizers", "upsample_groups", "num_hidden_layers", "intermediate_size", "num_attention_heads",
            "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "norm_eps", "rope_theta",
            "sliding_window", "layer_scale_initial_scale", "attention_bias"]}, indent=1)
    metadata = None if implicit else {"config": text}
    save_file(state, folder / "kyutai.safetensors", metadata=metadata)
    (folder / "hf" / "config.json").write_text(text + "\n")
    save_file(hugging_face(state, config.num_attention_heads), folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    for layout, tensors in layouts(state).items() if more else ():
        save_file({n: t.contiguous() for n, t in tensors.items()}, folder / f"{layout}.safetensors", metadata=metadata)


def see(model, keys):
    """Sets how many keys an attention sees; None: all."""
    for module in model.modules():
        if hasattr(module, "context"):
            module.context = keys


def streamed(frame, x, codes, encode, decode, streaming):
    """Codes of x and the wave of codes, a frame at a time, each from the start."""
    with streaming():
        found = [encode(x[..., i : i + frame].float()) for i in range(0, x.shape[-1], frame)]
    with streaming():
        wave = [decode(codes[..., i : i + 1]) for i in range(codes.shape[-1])]
    return torch.cat(found, -1), torch.cat(wave, -1)


def peers(config, weights, model, x, expected, layouts_too):
    """What the packages give in float32, each from its own file. Where they must agree, a difference is an error."""
    codes, _, wave = expected
    window = config.sliding_window // 2  # frames of two tokens that see all before them

    def compare(what, found, expected=expected, frames=None, exact=False):
        clear, error = published.compare(what, found, expected, frames, CHAINS)
        assert not exact or (clear == 0 and error < 1e-4)

    moshis = {"kyutai": "none"} | ({"resaved": "none", "weight_norm": "weight_norm"} if layouts_too else {})
    for layout, norm in moshis.items():
        peer = kyutai(config, weights / f"{layout}.safetensors", norm)
        compare(f"moshi, {layout}, offline", (peer.encode(x.float()), peer.decode(codes)), exact=True)
    found = streamed(peer.frame_size, x, codes, peer.encode, peer.decode, lambda: peer.streaming(len(x)))
    compare("moshi, streaming, frames within the window", found, frames=window, exact=True)
    compare("moshi, streaming, all frames", found)

    peer = HuggingFaceMimi.from_pretrained(weights / "hf", attn_implementation="eager").eval()
    found = peer.encode(x.float(), num_quantizers=config.num_quantizers).audio_codes, peer.decode(codes).audio_values
    compare("transformers, frames within the window", found, frames=window, exact=True)
    compare("transformers, all frames", found)
    see(model, None)
    compare("transformers against moshi without a window", found, (*margins(model, x), model.decode(codes)), exact=True)
    see(model, config.sliding_window)

    if config.num_filters == MimiConfig().num_filters:
        # rustymimi knows the published size alone.
        import rustymimi

        candle = rustymimi.Tokenizer(str(weights / "kyutai.safetensors"), num_codebooks=config.num_quantizers)
        call = lambda f, t: lambda a: torch.from_numpy(f(a.numpy().astype(t)).astype(np.float32))
        encode, decode = call(candle.encode, np.float32), call(candle.decode, np.uint32)
        found = encode(x).long(), decode(codes)
        compare("rustymimi, frames within the window", found, frames=window, exact=True)
        compare("rustymimi, all frames", found)


@torch.no_grad()
def write(size, root, cases, layers=False, more=False):
    config = MimiConfig(**size)
    draw = Draw("mimi", "tiny" if size else "full")
    rate = config.sampling_rate
    model = kyutai(config).double()
    hop = model.frame_size
    fitting = recorded(rate * 15 // hop * hop if not size else 1500 * hop, rate)
    randomise(model, draw, torch.from_numpy(fitting[None, None]))
    state = original(model.state_dict())
    write_weights(root / "mimi" / "weights", state, config, implicit=not size, more=more)
    for case, (starts, frames, wanted) in cases.items():
        x = np.stack([recorded(frames * hop, rate, start=int(start * rate))[None] for start in starts])
        x = torch.from_numpy(x).float().double()
        print(f"  {case}: {tuple(x.shape)}")
        expected = reference(model, case, x, draw, root, wanted or layers)
        peers(config, root / "mimi" / "weights", model, x, expected, more)


def make():
    write(TINY, GOLDEN, {"one": ([1.41], 12, True), "batch": ([0.4, 1.5, 3.1], 30, False)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", default="10,15")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--layouts", action="store_true")
    args = parser.parse_args()
    cases = {f"full_{s}s": ([0.0], int(float(s) * 12.5), False) for s in args.seconds.split(",")}
    write(FULL, args.folder, cases, args.layers, args.layouts)


if __name__ == "__main__":
    main()

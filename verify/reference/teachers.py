"""teachers: transformers' WavLMModel and HubertModel, random weights, in the two shapes that were published of each.

    python verify/reference/make.py teachers

teachers/weights/CASE/      config.json, preprocessor_config.json and model.safetensors; hubert_base: pytorch_model.bin of a
                            HubertForCTC, its names with `hubert.` before them and weight norm by its older names
teachers/CASE.safetensors   `input` [2,N] and `short` [1,N'], `input.<n>` and `short.<n>` the hidden states, `features` the last one
                            of the first input as its feature extractor gives it to the model
teachers/buckets.safetensors  `published` and `small`: rows of WavLM's table of biases for the distances -D..D

*_base: a norm of each channel over time behind the first convolution, norms behind layers; *_large: norms of rows behind all convolutions,
which have biases, norms before layers, normalised inputs. Float64; what transformers gives in float32 is compared with that, and printed.
"""

import json

import torch
from safetensors.torch import save_file
from transformers import HubertConfig, HubertForCTC, HubertModel, WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from dump import GOLDEN, Draw, save
from signals import recorded

SMALL = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=40, conv_dim=[8, 8, 10, 10, 12, 12, 14],
             num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, vocab_size=5)
BASE = dict(feat_extract_norm="group", do_stable_layer_norm=False, conv_bias=False)
LARGE = dict(feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True)
BUCKETS = dict(num_buckets=24, max_bucket_distance=30)
CASES = {
    "wavlm_base": (WavLMModel, WavLMConfig, {**SMALL, **BASE, **BUCKETS}, False),
    "wavlm_large": (WavLMModel, WavLMConfig, {**SMALL, **LARGE, **BUCKETS, "hidden_size": 32, "num_conv_pos_embeddings": 9}, True),
    "hubert_base": (HubertForCTC, HubertConfig, {**SMALL, **BASE, "feat_proj_layer_norm": False}, False),
    "hubert_large": (HubertModel, HubertConfig, {**SMALL, **LARGE}, True),
}
SAMPLES, SHORT = 400 + 320 * 40 + 7, 400 + 320 * 10


def randomise(model, draw):
    """Weights of useful sizes: no layer is nearly silent, or nearly linear."""
    for name, p in model.named_parameters():
        if name.endswith("original0"):
            p.data = draw.uniform(1.0, 2.0, *p.shape)
        elif "gru_rel_pos_const" in name:
            p.data = draw.uniform(0.5, 2.0, *p.shape)
        elif "rel_attn_embed" in name:
            p.data = draw.normal(*p.shape)
        elif "layer_norm.weight" in name:
            p.data = draw.uniform(0.7, 1.3, *p.shape)
        elif p.dim() == 1:
            p.data = draw.normal(*p.shape, scale=0.1)
        else:
            gain = 1.6 if "conv_layers" in name else 1.0
            p.data = draw.normal(*p.shape, scale=gain * p.shape[1:].numel() ** -0.5)


def older(state):
    """The names that torch used for weight norm when the checkpoint was published."""
    return {n.replace("parametrizations.weight.original0", "weight_g").replace("parametrizations.weight.original1", "weight_v"): t
            for n, t in state.items()}


def write(case, kind, configuration, fields, normalise):
    draw = Draw("teachers", case)
    config = configuration(**fields, attn_implementation="eager", apply_spec_augment=False)
    model = kind(config).double().eval()
    randomise(model, draw)
    folder = GOLDEN / "teachers" / "weights" / case
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.float().contiguous() for n, t in model.state_dict().items()}
    if kind is HubertForCTC:
        torch.save(older(state), folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    json_of = lambda fields: json.dumps(fields, indent=1) + "\n"
    (folder / "config.json").write_text(json_of({"architectures": [kind.__name__], "model_type": config.model_type, **fields}))
    (folder / "preprocessor_config.json").write_text(json_of({"do_normalize": normalise, "sampling_rate": 16000}))

    body = model.hubert if kind is HubertForCTC else model
    sound = lambda samples, seconds: torch.from_numpy(recorded(samples, 16000, start=int(seconds * 16000))).float().double()
    inputs = {"input": torch.stack([sound(SAMPLES, s) for s in (1.01, 3.62)]), "short": sound(SHORT, 2.2)[None]}
    tensors = dict(inputs)
    with torch.no_grad():
        for name, x in inputs.items():
            states = body(x, output_hidden_states=True).hidden_states
            tensors |= {f"{name}.{n}": state for n, state in enumerate(states)}
            single = body.float()(x.float(), output_hidden_states=True).hidden_states
            error = max((f.double() - s).abs().max() / s.std() for f, s in zip(single, states))
            body.double()
            print(f"  {case:14} {name:6} {states[0].shape[1]} rows; in float32 within {error:.1e} of its spread", flush=True)
        x = inputs["input"][:1]
        if normalise:
            x = (x - x.mean()) / (x.var(correction=0) + 1e-7).sqrt()
        tensors["features"] = body(x).last_hidden_state
    save("teachers", case, tensors)


def buckets(num_buckets, max_distance, most):
    attention = WavLMAttention(8, 2, num_buckets=num_buckets, max_distance=max_distance)
    return attention._relative_positions_bucket(torch.arange(-most, most + 1))


def make():
    for case, facts in CASES.items():
        write(case, *facts)
    save("teachers", "buckets", {"published": buckets(320, 800, 1600), "small": buckets(24, 30, 60)})

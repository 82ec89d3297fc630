"""moshi_lm: small LMModels of moshi, random weights under the published names, greedy LMGen.

    python verify/reference/make.py moshi_lm

moshi_lm/weights/CASE/            config.json and model.safetensors, in the names that moshi published its weights under
moshi_lm/CASE.safetensors         `user` [B,S,U] codes of the user, `said` [B,S,1+dep_q] what is generated at each step, `out` [B,S,1+dep_q]
                                  what is complete then (-2: nothing yet), `text_logits` [B,S,V]; `heads` [B,S,H,6] where there are extra heads;
                                  `margin` [B,S,1+dep_q], how far the second best logit is below the best, over the spread of all;
                                  `codes` [B,1+n_q,S], `logits` [B,dep_q,S,V], `mask` of LMModel.forward, teacher-forced; `given` [B,S,1+dep_q]
                                  what is said without being drawn (-2: drawn). Where the model has conditioners, the facts have the words of
                                  each stream (`conditions`), and, where it is led away from others, theirs (`against`) and `cfg_coef`;
                                  `condition.NAME.B` [T,D] and `condition.NAME.B.mask` [T] are stream B's own, others have none
moshi_lm/lora/lora.safetensors    a LoRA of the case moshi, of rank 2 and scaling 1.5, in the names of LoRALinear
moshi_lm/lora/said.safetensors    as CASE.safetensors, of the case moshi with that LoRA merged by moshi's own code

All is computed in float64, with exact rotary phases. moshi computes some norms in float32 whatever the model's type; here they are in
float64 as well.
"""

import copy
import json

import torch
from safetensors.torch import save_file

from moshi.conditioners import ConditionAttributes, TensorCondition
from moshi.conditioners.base import dropout_tensor
from moshi.models import loaders
from moshi.models.lm import LMGen, LMModel
from moshi.modules import transformer
from moshi.modules.lora import replace_all_linear_with_lora, replace_lora_with_linear

from dump import GOLDEN, Draw, save
import mimi  # whose rotary phases are exact

STEPS = 80
SHORT = 40

COMMON = dict(card=32, text_card=40, existing_text_padding_id=3, causal=True, num_heads=4, num_layers=2, depformer_num_heads=2,
              depformer_num_layers=2, depformer_weights_per_step=True, depformer_multi_linear=True)

# As moshi's own, small: the context wraps.
MOSHI = dict(COMMON, dim=32, n_q=8, dep_q=4, delays=[0, 0, 1, 1, 1, 0, 1, 1, 1], hidden_scale=4.125, norm="rms_norm_f32", gating="silu",
             positional_embedding="rope", max_period=10000, context=24, layer_scale=None, depformer_dim=16,
             depformer_dim_feedforward=66, depformer_pos_emb="none", depformer_gating="silu", depformer_layer_scale=None)

CASES = {
    "moshi": MOSHI,
    # Other delays, weights shared by steps, embeddings of low rank, norms behind embeddings, grouped queries, layer scales.
    "shared": dict(MOSHI, n_q=6, dep_q=5, delays=[1, 0, 2, 3, 2, 0, 3], kv_repeat=2, layer_scale=0.3, depformer_layer_scale=0.2,
                   depformer_weights_per_step_schedule=[0, 1, 1, 2, 1], depformer_low_rank_embeddings=6, norm_emb=True,
                   depformer_norm="layer_norm", bias_proj=True, max_period=500, hidden_scale=4, depformer_dim_feedforward=64),
    # Other norms, positions, feed-forward layers; steps of different widths.
    "plain": dict(MOSHI, norm="layer_norm", gating="none", positional_embedding="rope_concat", hidden_scale=2,
                  depformer_dim_feedforward=[48, 66, 30, 24], depformer_pos_emb="rope", context=9, text_card_out=33),
    # Sines added to rotary positions, and alone between the codes.
    "sines": dict(MOSHI, n_q=4, dep_q=2, delays=[0, 0, 2, 0, 2], norm="rms_norm", positional_embedding="sin_rope", positional_scale=0.7,
                  max_period=300, depformer_pos_emb="sin", depformer_dim_feedforward=[48, 66]),
    # Conditions that are added up, one of them led away from.
    "conditioned": dict(MOSHI, n_q=4, dep_q=2, delays=[0, 0, 1, 0, 1], positional_embedding="sin", model_type="hibiki",
                        conditioners={"description": dict(type="lut", lut=dict(n_bins=5, dim=6, tokenizer="noop", possible_values=["very_bad", "good", "very_good"])),
                                      "speed": dict(type="lut", lut=dict(n_bins=2, dim=32, tokenizer="noop", possible_values=["slow", "fast"], force_linear=False, learn_padding=False))},
                        fuser={"sum": ["description", "speed"], "cross": [], "prepend": []}),
    # Listens alone.
    "listener": dict(MOSHI, n_q=5, dep_q=0, delays=[0] * 6, norm="layer_norm_f32", extra_heads_num_heads=2, extra_heads_dim=6,
                     depformer_weights_per_step=False, depformer_multi_linear=False),
    # As moshi's models that read text aloud: a voice for cross attention, words that are added up, led away from none.
    "voice": dict(MOSHI, n_q=4, dep_q=4, delays=[0, 0, 2, 2, 2], cross_attention=True,
                  conditioners={"speaker": dict(type="tensor", tensor=dict(dim=6)),
                                "cfg": dict(type="lut", lut=dict(n_bins=7, dim=5, tokenizer="noop", possible_values=["1.0", "1.5", "2.0"])),
                                "control": dict(type="lut", lut=dict(n_bins=1, dim=32, tokenizer="noop", possible_values=["ok"]))},
                  fuser={"sum": ["control", "cfg"], "cross": ["speaker"], "prepend": [], "cross_attention_pos_emb": False,
                         "cross_attention_pos_emb_scale": 1}),
    # Several conditions one behind the other, in another order and with positions; words that are numbered by a hash.
    "crossed": dict(MOSHI, n_q=4, dep_q=2, delays=[0, 0, 1, 0, 1], cross_attention=True, norm="layer_norm", layer_scale=0.3,
                    conditioners={"genre": dict(type="lut", lut=dict(n_bins=7, dim=5, tokenizer="noop")),
                                  "melody": dict(type="tensor", tensor=dict(dim=32, force_linear=False)),
                                  "speaker": dict(type="tensor", tensor=dict(dim=6, learn_padding=False)),
                                  "mood": dict(type="tensor", tensor=dict(dim=3))},
                    fuser={"sum": ["mood", "genre"], "cross": ["speaker", "genre", "melody"], "cross_attention_pos_emb": True,
                           "cross_attention_pos_emb_scale": 0.5}),
    # Two texts in one.
    "muxed": dict(MOSHI, n_q=4, dep_q=2, delays=[0, 0, 1, 0, 1], demux_second_text_stream=True, text_card_out=41 * 5,
                  depformer_low_rank_embeddings=6, depformer_pos_emb="sin"),
    # Sines in rows wider than a head can be; the weights in bf16.
    "wide": dict(MOSHI, dim=136, num_heads=4, num_layers=1, n_q=3, dep_q=2, delays=[0, 0, 1, 0], text_card=20, card=16, positional_embedding="sin",
                 max_period=200, gating="none", hidden_scale=0.25, norm="layer_norm", depformer_num_layers=1, depformer_dim_feedforward=24),
}
# Every other gate.
GATES = [("relu", "leaky_relu"), ("elu", "tanh"), ("gelu", "sigmoid"), ("mish", "softsign"), ("identity", "mish")]
CASES |= {temporal: dict(MOSHI, dim=16, num_heads=2, num_layers=1, n_q=3, dep_q=2, delays=[0, 0, 1, 0], text_card=20, card=16, gating=temporal,
                         depformer_dim=12, depformer_dim_feedforward=30, depformer_num_layers=1, depformer_gating=depth)
          for temporal, depth in GATES}
HALVES = {"wide"}


# Of the streams of a case, and what they are led away from.
CONDITIONS = {"conditioned": dict(cfg_coef=2.5, conditions=[dict(description="very_good", speed=None), dict(description="good", speed="fast")],
                                  against=[dict(description="very_bad", speed=None), dict(description=None, speed="slow")]),
              "voice": dict(cfg_coef=1.8, conditions=[dict(cfg="1.5", control="ok"), dict(cfg=None, control="ok")],
                            against=[dict(cfg=None, control=None), dict(cfg="2.0", control=None)]),
              "crossed": dict(conditions=[dict(genre="Jeff Buckley"), dict(genre=None)])}

# Lengths and widths of the streams' own.
TENSORS = {"voice": dict(speaker=[(5, 6), (9, 6)]),
           "crossed": dict(speaker=[(4, 6), (3, 6)], melody=[(5, 32), (7, 32)], mood=[(1, 3), (1, 3)])}

# In which some is given.
GIVEN = {"voice", "muxed"}


def lm(config):
    config = dict(config)
    kind = config.pop("model_type", "moshi")
    if "conditioners" in config:
        conditioners = config.pop("conditioners")
        config |= dict(condition_provider=loaders.get_conditioner_provider(config["dim"], "cpu", copy.deepcopy(dict(conditioners=conditioners))),
                       fuser=loaders.get_condition_fuser(config))
    model = LMModel(dtype=torch.float64, **config).eval().double()
    model.kind = kind
    return model


def randomise(model, draw):
    for name, p in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind == "alpha" or "norm" in name and kind == "weight":
            p.data = draw.uniform(0.6, 1.4, *p.shape)
        elif kind == "scale":
            p.data = draw.uniform(0.2, 0.8, *p.shape)
        elif p.dim() == 1:
            p.data = draw.normal(*p.shape, scale=0.2)
        elif "emb" in name and "low_rank" not in name and ".out" not in name:
            p.data = draw.normal(*p.shape)
        else:
            # Layers that say what comes next are sharp.
            p.data = draw.normal(*p.shape, scale=(2 if "linear" in name else 1) * p.shape[-1] ** -0.5)


def in_float64(model):
    for module in model.modules():
        if isinstance(module, transformer.RMSNorm):
            module.dtype = None
        if isinstance(module, transformer.LayerNormF32):
            module.forward = lambda x, norm=module: torch.nn.LayerNorm.forward(norm, x)


def published(state, dtype):
    """The names under which weights were first published: steps of attention stacked."""
    stacked = {}
    for name, tensor in state.items():
        for part, first in [("in_projs", "in_proj_weight"), ("out_projs", "out_proj.weight")]:
            if f".{part}." in name:
                name = f"{name.split(f'.{part}.')[0]}.{first}"
        stacked.setdefault(name, []).append(tensor)
    return {name: torch.cat(parts).to(dtype).contiguous() for name, parts in stacked.items()}


def margins(logits):
    best = logits.topk(2).values
    return (best[..., 0] - best[..., 1]) / logits.std(-1)


def tensor_conditions(case):
    """Of the streams, by name: rows, and which of them are there."""
    draw = Draw("moshi_lm", f"{case}/conditions")
    own = {name: [(draw.normal(*shape), draw.integers(0, 4, shape[0]) > 0) for shape in shapes] for name, shapes in TENSORS.get(case, {}).items()}
    return {name: [(rows, mask | (mask.sum() == 0)) for rows, mask in streams] for name, streams in own.items()}


def conditioned(model, facts, tensors):
    """Arguments of LMGen."""
    if not facts:
        return {}
    own = [{name: TensorCondition(streams[b][0][None], streams[b][1][None]) for name, streams in tensors.items()} for b in range(2)]
    attributes = [ConditionAttributes(text=text, tensor=tensor) for text, tensor in zip(facts["conditions"], own)]
    for text, tensor in zip(facts.get("against", []), own):
        attributes.append(ConditionAttributes(text=text, tensor={name: dropout_tensor(x) for name, x in tensor.items()}))
    return dict(cfg_coef=facts.get("cfg_coef", 1.0), condition_tensors=model.condition_provider.prepare_and_provide(attributes))


def given_tokens(config, draw, batch, steps):
    """A text in every third step, all codes in every fourth; -2 is drawn."""
    given = torch.full((batch, steps, 1 + config["dep_q"]), -2)
    texts = (config["text_card"] + 1) ** (2 if config.get("demux_second_text_stream") else 1)
    given[:, ::3, 0] = draw.integers(0, texts, batch, len(range(0, steps, 3)))
    given[:, 1::4, 1:] = draw.integers(0, config["card"], batch, len(range(1, steps, 4)), config["dep_q"])
    # Nothing, which LMGen knows as its zero token.
    given[1, 6, 0] = given[0, 5, 2] = -1
    return given


def generate(model, config, draw, batch=2, facts=None, steps=STEPS, tensors=None, given=False):
    card, heard, facts = config["card"], config["n_q"] - config["dep_q"], facts or {}
    user = draw.integers(0, card, batch, steps, heard)
    given = given_tokens(config, draw, batch, steps) if given else None
    seen = dict(text=[], audio=[], logits=[], margin=[], heads=[], out=[])

    def text_hook(text):
        if given is not None:
            now = given[:, len(seen["text"]), 0]
            text[:] = torch.where(now == -2, text, now)
        seen["text"].append(text.clone())

    gen = LMGen(model, use_sampling=False, check=not config.get("demux_second_text_stream"), on_text_hook=text_hook,
                on_audio_hook=seen["audio"].append, on_text_logits_hook=seen["logits"].append, support_out_of_sync=True,
                **conditioned(model, facts, tensors or {}))
    depth = model.forward_depformer

    def watched(k, *args):
        logits = depth(k, *args)
        parts = logits.chunk(2) if "cfg_coef" in facts else [logits, logits]
        seen["margin"].append(margins((parts[1] + (parts[0] - parts[1]) * facts.get("cfg_coef", 1.0))[:, 0, 0]))
        return logits

    model.forward_depformer = watched
    with torch.no_grad(), gen.streaming(batch):
        for step in range(steps):
            codes = None if given is None or (given[:, step, 1:] == -2).any() else given[:, step, 1:, None]
            out, h = gen._step(user[:, step, :, None], codes)
            if codes is not None:
                seen["margin"] += [torch.ones(batch)] * config["dep_q"]
            seen["out"].append(out[..., 0])
            seen["heads"].append(torch.stack([head(h)[:, 0] for head in model.extra_heads], 1) if model.extra_heads else None)
    model.forward_depformer = depth
    logits = torch.stack([x[:, 0, 0] for x in seen["logits"]], 1)
    said = torch.stack(seen["text"], 1)[..., None]
    margin = margins(logits)[..., None]
    if config["dep_q"]:
        said = torch.cat([said, torch.stack(seen["audio"], 1)], -1)
        depth = torch.stack(seen["margin"]).reshape(steps, config["dep_q"], batch).permute(2, 0, 1)
        margin = torch.cat([margin, depth], -1)
    found = dict(user=user, said=said, out=torch.stack(seen["out"], 1), text_logits=logits, margin=margin)
    if model.extra_heads:
        found["heads"] = torch.stack(seen["heads"], 1)
    if given is not None:
        found["given"] = given
    for name, streams in (tensors or {}).items():
        for b, (rows, mask) in enumerate(streams):
            found |= {f"condition.{name}.{b}": rows, f"condition.{name}.{b}.mask": mask}
    return found


def teacher_forced(model, config, draw, batch=2, steps=13, **conditions):
    text = draw.integers(0, config["text_card"], batch, 1, steps)
    codes = torch.cat([text, draw.integers(0, config["card"], batch, config["n_q"], steps)], 1)
    with torch.no_grad():
        found = model(codes, **conditions)
    zero = lambda x: torch.nan_to_num(x, nan=0.0)
    return {"codes": codes, "forced.logits": zero(found.logits), "forced.mask": found.mask,
            "forced.text_logits": zero(found.text_logits), "forced.text_mask": found.text_mask}


def make_lora(model, config, root):
    """The model of `make` before it, with a LoRA in all its linear layers."""
    draw = Draw("moshi_lm", "lora")
    replace_all_linear_with_lora(model, 2, 1.5, dtype=torch.float64)
    factors = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    for p in factors.values():
        p.data = draw.normal(*p.shape, scale=0.5 * p.shape[-1] ** -0.5)
    folder = root / "moshi_lm" / "lora"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: p.detach().float().contiguous() for name, p in factors.items()}, folder / "lora.safetensors", metadata={})
    replace_lora_with_linear(model)
    found = generate(model, config, draw)
    print("lora least margin", float(found["margin"].min()), "tokens", found["said"].unique().numel())
    save("moshi_lm/lora", "said", found, root)


def make(root=GOLDEN):
    for case, config in CASES.items():
        draw = Draw("moshi_lm", case)
        model, facts = lm(config), CONDITIONS.get(case, {})
        randomise(model, draw)
        dtype = torch.bfloat16 if case in HALVES else torch.float32
        for p in model.parameters():
            p.data = p.data.to(dtype).double()
        folder = root / "moshi_lm" / "weights" / case
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(published(model.state_dict(), dtype), folder / "model.safetensors", metadata={})
        in_float64(model)
        if model.kind == "hibiki":
            # As CheckpointInfo.get_moshi has it.
            model.text_emb.weight.data[2] = model.text_emb.weight.data[3]
        tensors, new = tensor_conditions(case), list(CASES).index(case) > list(CASES).index("listener")
        found = generate(model, config, draw, facts=facts, steps=SHORT if new else STEPS, tensors=tensors, given=case in GIVEN)
        if config["dep_q"] and "cfg_coef" not in facts:
            conditions = {k: x for k, x in conditioned(model, facts, tensors).items() if k == "condition_tensors"}
            found |= teacher_forced(model, config, draw, **conditions)
        print(case, "least margin", float(found["margin"].min()), "tokens", found["said"].unique().numel())
        save("moshi_lm", case, found, root, **facts)
        if case == "moshi":
            make_lora(model, config, root)

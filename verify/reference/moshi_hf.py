"""moshi_hf: the models of moshi_lm under the names of transformers, and MoshiForConditionalGeneration's own numbers.

    python verify/reference/make.py moshi_hf

moshi_hf/config.json, model.safetensors   moshi_lm/weights/moshi with its delays but the names and the configuration of transformers, and the
                                          Mimi of mimi/weights/hf within, without its weights
moshi_hf/forced.safetensors   `text` [B,S], `codes` [B,n_q,S] what the decoders are given at every step, `text_logits` [B,S,V] of the main decoder,
                              `said` [B,S,1+dep_q] what is then given to the depth decoder, `logits` [B,S,dep_q,V] of it
"""

import json

import torch
from safetensors.torch import load_file, save_file
from transformers import MoshiConfig, MoshiForConditionalGeneration

from dump import GOLDEN, Draw, save
from moshi_lm import MOSHI as OURS

STEPS = 40


def halves(rows, heads):
    """Rows of queries or keys from pairs to halves."""
    columns = rows.shape[1]
    return rows.view(heads, -1, 2, columns).transpose(1, 2).reshape(-1, columns)


def renamed(ours, config):
    """Tensors by the names of transformers, from those that moshi published first."""
    dep, heads = config["dep_q"], config["num_heads"]
    out = {"decoder.model.embed_tokens.weight": ours["text_emb.weight"], "decoder.lm_head.weight": ours["text_linear.weight"],
           "decoder.model.norm.weight": ours["out_norm.alpha"].flatten(), "depth_decoder.text_embed_tokens.weight": ours["depformer_text_emb.weight"]}
    out |= {f"embed_tokens.{k}.weight": ours[f"emb.{k}.weight"] for k in range(config["n_q"])}
    out |= {f"depth_decoder.embed_tokens.{k}.weight": ours[f"depformer_emb.{k}.weight"] for k in range(dep - 1)}
    out["depth_decoder.input_projections.weight"] = torch.stack([ours[f"depformer_in.{k}.weight"] for k in range(dep)])
    out["depth_decoder.lm_heads.weight"] = torch.stack([ours[f"linears.{k}.weight"] for k in range(dep)])
    for layer in range(config["num_layers"]):
        at, to = f"transformer.layers.{layer}.", f"decoder.model.layers.{layer}."
        q, k, v = ours[at + "self_attn.in_proj_weight"].chunk(3)
        for part, rows in [("q", halves(q, heads)), ("k", halves(k, heads)), ("v", v), ("o", ours[at + "self_attn.out_proj.weight"])]:
            out[f"{to}self_attn.{part}_proj.linear.weight"] = rows
        out |= {to + "mlp.fc1.weight": ours[at + "gating.linear_in.weight"], to + "mlp.fc2.weight": ours[at + "gating.linear_out.weight"]}
        out |= norms(ours, at, to)
    for layer in range(config["depformer_num_layers"]):
        at, to = f"depformer.layers.{layer}.", f"depth_decoder.layers.{layer}."
        q, k, v = torch.stack(ours[at + "self_attn.in_proj_weight"].chunk(dep)).chunk(3, 1)
        o = torch.stack(ours[at + "self_attn.out_proj.weight"].chunk(dep))
        out |= {f"{to}self_attn.{part}_proj.linear.weight": rows for part, rows in [("q", q), ("k", k), ("v", v), ("o", o)]}
        for theirs, part in [("fc1", "linear_in"), ("fc2", "linear_out")]:
            out[f"{to}mlp.{theirs}.weight"] = torch.stack([ours[f"{at}gating.{k}.{part}.weight"] for k in range(dep)])
        out |= norms(ours, at, to)
    return {name: tensor.contiguous() for name, tensor in out.items()}


def norms(ours, at, to):
    return {f"{to}{theirs}.weight": ours[f"{at}{part}.alpha"].flatten() for part, theirs in [("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")]}


def configured(config, codec):
    gated = lambda wide: 2 * (2 * wide // 3)
    depth = dict(hidden_size=config["depformer_dim"], num_hidden_layers=config["depformer_num_layers"], num_attention_heads=config["depformer_num_heads"],
                 ffn_dim=gated(config["depformer_dim_feedforward"]), max_position_embeddings=config["dep_q"] + 1)
    return MoshiConfig(vocab_size=config["text_card"], hidden_size=config["dim"], num_hidden_layers=config["num_layers"],
                       num_attention_heads=config["num_heads"], audio_vocab_size=config["card"], max_position_embeddings=64,
                       sliding_window=config["context"], ffn_dim=gated(int(config["hidden_scale"] * config["dim"])),
                       num_codebooks=config["dep_q"], depth_decoder_config=depth, audio_encoder_config=codec, attn_implementation="eager")


def make(root=GOLDEN):
    folder = root / "moshi_hf"
    folder.mkdir(parents=True, exist_ok=True)
    codec = json.loads((root / "mimi" / "weights" / "hf" / "config.json").read_text())
    config = configured(OURS, codec)
    written = config.to_dict()
    written.pop("transformers_version", None), written["audio_encoder_config"].pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")
    tensors = renamed(load_file(root / "moshi_lm" / "weights" / "moshi" / "model.safetensors"), OURS)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    model = MoshiForConditionalGeneration(config).double().eval()
    found = model.load_state_dict({name: tensor.double() for name, tensor in tensors.items()}, strict=False)
    assert not found.unexpected_keys and all(name.startswith("audio_encoder.") for name in found.missing_keys), found
    draw = Draw("moshi_hf", "forced")
    batch, steps, dep = 2, STEPS, OURS["dep_q"]
    text = draw.integers(0, OURS["text_card"], batch, steps)
    codes = draw.integers(0, OURS["card"], batch, OURS["n_q"], steps)
    # What begins each column, and stays as long as it is late.
    text[:, 0] = OURS["text_card"]
    for k, delay in enumerate(OURS["delays"][1:]):
        codes[:, k, :delay + 1] = OURS["card"]
    said = torch.cat([draw.integers(0, OURS["text_card"], batch, steps, 1), draw.integers(0, OURS["card"], batch, steps, dep)], -1)
    with torch.no_grad():
        main = model(input_ids=text, moshi_audio_codes=codes[:, :dep], user_audio_codes=codes[:, dep:], attention_mask=torch.ones_like(text))
        hidden = main.last_hidden_state.reshape(batch * steps, 1, -1)
        ids = said[..., :dep].reshape(batch * steps, dep)
        depth = model.depth_decoder(input_ids=ids, last_hidden_state=hidden, attention_mask=torch.ones_like(ids))
    save("moshi_hf", "forced", dict(text=text, codes=codes, said=said, text_logits=main.logits, logits=depth.logits.reshape(batch, steps, dep, -1)), root)

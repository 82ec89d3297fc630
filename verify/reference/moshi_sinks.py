"""moshi_sinks: the models of moshi_lm with StreamingLLM's attention (arXiv 2309.17453), greedy LMGen, past thrice the context.

    python verify/reference/make.py moshi_sinks

moshi_lm/sinks/CASE.safetensors   as moshi_lm/CASE.safetensors, of its weights; `sinks` steps stay of the `context` of the case

Keys are kept before they are turned. What is neither among the first `sinks` steps nor among the last of the context is dropped, and what is
left is turned by its place in the cache. Plain python: `SinkCache` of transformers, which did this, is not part of it any longer.
"""

import torch
from einops import rearrange

from dump import GOLDEN, Draw, save
import moshi_lm

SINKS = {"moshi": 4, "plain": 1, "shared": 20}


def attend(attention, context, sinks):
    """What replaces `attention.forward`, of one step at a time."""
    rope, repeat = attention.rope, attention.kv_repeat
    kept = []

    def turned(x, first):
        return rope(x, x, torch.full((x.shape[0],), first), time_before_heads=False)[0]

    def forward(query, key, value):
        projected = torch.nn.functional.linear(query, attention.in_projs[0].weight)
        heads = rearrange(projected, "b t (h d) -> b h t d", d=attention.embed_dim // attention.num_heads)
        q, k, v = heads.split([attention.num_heads, attention.num_heads // repeat, attention.num_heads // repeat], 1)
        kept.append((k, v))
        if len(kept) > context:
            del kept[sinks]
        keys, values = (torch.cat(parts, 2).repeat_interleave(repeat, 1) for parts in zip(*kept))
        weights = torch.softmax(turned(q, len(kept) - 1) @ turned(keys, 0).transpose(2, 3) * q.shape[-1] ** -0.5, -1)
        return torch.nn.functional.linear(rearrange(weights @ values, "b h t d -> b t (h d)"), attention.out_projs[0].weight)

    return forward


def make(root=GOLDEN):
    for case, sinks in SINKS.items():
        config = moshi_lm.CASES[case]
        model = moshi_lm.lm(config)
        moshi_lm.randomise(model, Draw("moshi_lm", case))
        moshi_lm.in_float64(model)
        plain = moshi_lm.generate(model, config, Draw("moshi_lm/sinks", case))
        for layer in model.transformer.layers:
            layer.self_attn.forward = attend(layer.self_attn, config["context"], sinks)
        found = moshi_lm.generate(model, config, Draw("moshi_lm/sinks", case))
        apart = (found["text_logits"] - plain["text_logits"]).abs().amax((0, 2))
        assert apart[: config["context"]].max() < 1e-9 < apart[config["context"] :].min(), apart
        print(case, "least margin", float(found["margin"].min()), "tokens", found["said"].unique().numel())
        save("moshi_lm/sinks", case, found, root, sinks=sinks)

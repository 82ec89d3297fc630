"""personaplex: a small PersonaPlex, random weights under the published names, and what NVIDIA's LMGen makes of it after a prompt.

    PERSONAPLEX=/path/to/personaplex/moshi python verify/reference/make.py personaplex

PERSONAPLEX: the folder `moshi` of a checkout of github.com/NVIDIA/personaplex, whose package takes the place of moshi's own.

personaplex/weights/              config.json and model.safetensors, with weights for 16 steps of the depth transformer
personaplex/prompted.safetensors  `voice` [V,8] codes and `text` [N] tokens of the prompt, `user` [S,8] codes that are heard after it;
                                  `said` [S-1,9] text and codes that answer them, the most probable ones; `margin` [S-1,9], how far the
                                  second best logit is below the best, over the spread of all; `silence` and `sine` [8], the codes of pauses

LMGen there runs a step behind: what it is given in a call is heard in the next, and its first answer is the prompt's last frame. Its ring of
keys, as moshi's once did, takes the oldest for one to come when it is full: of a context of 24 steps 23 are seen.
"""

import json
import os
import sys

sys.path.insert(0, os.environ.get("PERSONAPLEX", "PERSONAPLEX is not set"))

import torch
from safetensors.torch import save_file

from moshi.models import lm as personaplex

from dump import GOLDEN, Draw, save

FRAMES = dict(voice=9, text=7, user=81)

CONFIG = dict(dim=32, text_card=40, existing_text_padding_id=3, n_q=16, dep_q=16, card=32, num_heads=4, num_layers=2, hidden_scale=4.125,
              causal=True, layer_scale=None, context=24, max_period=10000, gating="silu", norm="rms_norm_f32", positional_embedding="rope",
              depformer_dim=8, depformer_dim_feedforward=33, depformer_num_heads=2, depformer_num_layers=2, depformer_causal=True,
              depformer_layer_scale=None, depformer_multi_linear=True, depformer_context=8, depformer_max_period=10000,
              depformer_gating="silu", depformer_pos_emb="none", depformer_weights_per_step=True, delays=([0] + [1] * 7) * 2)
CONFIG["delays"] = [0] + CONFIG["delays"]


def margins(logits):
    best = logits.topk(2).values
    return (best[..., 0] - best[..., 1]) / logits.std(-1)


def build(draw):
    model = personaplex.LMModel(device="cpu", dtype=torch.float64, **CONFIG).eval().double()
    for name, p in model.named_parameters():
        if name.rsplit(".", 1)[-1] == "alpha":
            p.data = draw.uniform(0.6, 1.4, *p.shape)
        elif "emb" in name:
            p.data = draw.normal(*p.shape)
        else:
            # Layers that say what comes next are sharp.
            p.data = draw.normal(*p.shape, scale=(2 if "linear" in name else 1) * p.shape[-1] ** -0.5)
    return model


def make(root=GOLDEN):
    if "PERSONAPLEX" not in os.environ:
        sys.exit("personaplex: PERSONAPLEX is to be the folder moshi of a checkout of NVIDIA's personaplex")
    draw = Draw("personaplex", "prompted")
    model = build(draw)
    folder = root / "personaplex" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(CONFIG, model_type="personaplex"), indent=1) + "\n")
    save_file({name: p.detach().float().contiguous() for name, p in model.state_dict().items()}, folder / "model.safetensors", metadata={})

    # Codes of the published vocabulary, in this one.
    personaplex.SILENCE_TOKENS, personaplex.SINE_TOKENS = personaplex.SILENCE_TOKENS % CONFIG["card"], personaplex.SINE_TOKENS % CONFIG["card"]
    voice, user = (draw.integers(0, CONFIG["card"], FRAMES[name], 8) for name in ("voice", "user"))
    text = draw.integers(0, CONFIG["text_card"], FRAMES["text"])
    gen = personaplex.LMGen(model, device="cpu", use_sampling=False, check=True, return_logits=True, audio_silence_frame_cnt=int(0.5 * 12.5),
                            text_prompt_tokens=text.tolist(), sample_rate=24000, frame_rate=12.5)
    # In place of a recording and Mimi.
    gen.voice_prompt_audio = voice
    gen._encode_voice_prompt_frames = lambda mimi: (frame.view(1, 8, 1) for frame in voice)
    gen.streaming_forever(1)
    said, margin = [], []
    with torch.no_grad():
        gen.step_system_prompts(None)
        for frame in user:
            out, (text_logits, audio_logits) = gen.step(frame.view(1, 8, 1))
            said.append(out[0, :9, 0])
            margin.append(torch.cat([margins(text_logits[0, 0]), margins(audio_logits[0, :8])]))
    last = torch.tensor([3, *personaplex.SILENCE_TOKENS])
    assert (said[0] == last).all(), "the first answer is not the prompt's last frame"
    said, margin = torch.stack(said[1:]), torch.stack(margin)
    print("personaplex least margin", float(margin.min()), "tokens", said.unique().numel(), "frames", len(said.unique(dim=0)))
    save("personaplex", "prompted", dict(voice=voice, text=text, user=user, said=said, margin=margin[1:], silence=personaplex.SILENCE_TOKENS,
                                         sine=personaplex.SINE_TOKENS), root)

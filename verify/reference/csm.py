"""csm: a small CsmForConditionalGeneration of transformers, random weights, greedy; and a small Llama-3 tokenizer.

    python verify/reference/make.py csm

csm/weights/               config.json and model.safetensors as save_pretrained has them, without the codec, which is mimi/weights/hf;
                           tokenizer.json of 400 tokens with Llama 3's pre-tokenizer
csm/frames.safetensors     `wave` [T] a context segment, `context` [F,K] its codes; the prompt as rows: `ids` [R,K+1] (codes, then text),
                           `mask` [R,K+1]; `codes` [N,K] what generate says, `logits` [N,K,V], `margin` [N,K] how far the second best
                           logit is below the best, over the spread of all
csm/texts.json             texts and the ids that PreTrainedTokenizerFast gives them, without special tokens

The model runs in float64, but for what transformers computes in float32 whatever the type: norms and rotary phases. `generate` is given
text and samples, and merges them itself; the rows are what the original takes for the same.
"""

import json

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CsmConfig, CsmForConditionalGeneration, PreTrainedTokenizerFast

from dump import GOLDEN, Draw, save

FRAMES = 40
# No more than the window of the codec's attention, which transformers 4.57 does not keep (see mimi.py).
CONTEXT_FRAMES = 4

# At the positions that are used here, every branch of the scaling shows: periods of 6, 20 to 63, and 200 on. The numbers are written
# as transformers writes Sesame's: only original / low and original / high count.
SCALING = dict(rope_type="llama3", factor=8.0, low_freq_factor=0.25, high_freq_factor=1.0, original_max_position_embeddings=16)
DEPTH_SCALING = dict(rope_type="llama3", factor=4.0, low_freq_factor=0.5, high_freq_factor=1.0, original_max_position_embeddings=8)

DEPTH = dict(num_codebooks=6, vocab_size=35, backbone_hidden_size=48, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
             num_attention_heads=2, num_key_value_heads=1, rope_theta=50.0, rope_scaling=DEPTH_SCALING, max_position_embeddings=33)
BACKBONE = dict(num_codebooks=6, vocab_size=35, text_vocab_size=400, hidden_size=48, intermediate_size=72, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, rope_theta=1000.0, rope_scaling=SCALING, max_position_embeddings=128,
                codebook_pad_token_id=34)

SPECIALS = ["<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>"]

# Llama 3's.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

CORPUS = ["the quick brown fox jumps over the lazy dog", "It's what they'd said: we'll see, won't we?", "1 22 333 4444 55555",
          "తెలుగు భాషలో మాట్లాడుతున్నాను", "నమస్కారం, మీరు ఎలా ఉన్నారు?", "नमस्ते दुनिया, आप कैसे हैं?", "[0]Hello, how are you? [1]I am fine."]

TEXTS = ["", "Hello, how are you?", "[0]Hello from Sesame.", "it'S IT'LL we'd o'clock", "  leading and trailing  ", "a\n\n b\r\n\tc \n",
         "12345 1,234.5 ½ ²", "నమస్కారం! మీరు ఎలా ఉన్నారు?", "[1]తెలుగు మాట్లాడండి, క్షమించండి ౧౨౩౪", "क्षत्रिय ज्ञान हिन्दी", "e\u0301 é \u200b\u200d x\u00a0y",
         "👩‍👩‍👧 🇮🇳 ☃", "\ufeffbom \u202eright to left\u202c", "日本語とEnglishの混在", "ﬁ ǅ ß İ ı ſ", "a<|end_of_text|>b", "\u0000\u0001\x7f", "'" * 9 + "\u2028x",
         " \u3000 \u2003 ", "𝔘𝔫𝔦 \U0010fffd"]


def tokenizer():
    """Bytes, merges of a few sentences, and names of special tokens behind them, as Llama 3 has them."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=BACKBONE["text_vocab_size"] - len(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator(CORPUS * 3, trainer)
    bpe.add_special_tokens(SPECIALS)
    return bpe


def randomise(model, draw):
    for name, p in model.named_parameters():
        if name.startswith("codec_model."):
            continue
        if p.dim() == 1:
            p.data = draw.uniform(0.6, 1.4, *p.shape)
        elif "embed" in name and "projector" not in name:
            p.data = draw.normal(*p.shape, scale=0.5)
        elif "codebooks_head" in name:
            p.data = draw.normal(*p.shape, scale=2 * p.shape[1] ** -0.5)
        else:
            # Queries and keys such that positions matter, and sharp logits.
            sharp = any(part in name for part in ("q_proj", "k_proj", "lm_head"))
            p.data = draw.normal(*p.shape, scale=(2 if sharp else 1) * p.shape[-1] ** -0.5)
    model.tie_weights()


def published(root, draw):
    """The model in float64; its codec is the one that is stored already."""
    codec = root / "mimi" / "weights" / "hf"
    config = CsmConfig(depth_decoder_config=DEPTH, codec_config=json.loads((codec / "config.json").read_text()), **BACKBONE)
    model = CsmForConditionalGeneration(config).double().eval()
    randomise(model, draw)
    missing = model.codec_model.load_state_dict({k: v.double() for k, v in load_file(codec / "model.safetensors").items()}, strict=False)
    assert not missing.missing_keys, missing
    return model


def rows(segments, width):
    """Rows of ids and mask: text in the last column, codes in the others."""
    ids, mask = [], []
    for kind, values in segments:
        for value in values:
            ids.append([0] * (width - 1) + [value] if kind == "text" else list(value) + [0])
            mask.append([0] * (width - 1) + [1] if kind == "text" else [1] * (width - 1) + [0])
    return torch.tensor(ids), torch.tensor(mask)


def margins(logits):
    best = logits.topk(2).values
    return (best[..., 0] - best[..., 1]) / logits.std(-1)


def make(root=GOLDEN):
    draw = Draw("csm", "frames")
    folder = root / "csm" / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    bpe = tokenizer()
    bpe.save(str(folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe)
    encode = lambda text: fast(text, add_special_tokens=False)["input_ids"]
    texts = [json.dumps(dict(text=text, ids=encode(text))) for text in TEXTS]
    (root / "csm" / "texts.json").write_text("[\n" + ",\n".join(texts) + "\n]\n")

    model = published(root, draw)
    bos, eos, audio, audio_eos = (fast.convert_tokens_to_ids(name) for name in SPECIALS)
    config = model.config
    config.bos_token_id, config.eos_token_id, config.audio_token_id, config.audio_eos_token_id = bos, None, audio, audio_eos
    config.pad_token_id = audio
    saved = {name: tensor.float().contiguous() for name, tensor in model.state_dict().items()
             if not name.startswith("codec_model.") and name != "depth_decoder.model.embed_tokens.weight"}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict()
    written.pop("transformers_version", None), written["codec_config"].pop("transformers_version", None)
    (folder / "config.json").write_text(json.dumps(written, indent=1, sort_keys=True) + "\n")

    # Samples of 16 bits, so that a WAV holds them exactly.
    hop = int(config.codec_config.sampling_rate / config.codec_config.frame_rate)
    wave = torch.round(draw.normal(CONTEXT_FRAMES * hop, scale=0.1) * 32768) / 32768
    said = lambda text: [bos] + encode(text) + [eos]
    first, second = said("[0]Hello, తెలుగు."), said("[1]What they said.")
    ids = torch.tensor([first + [audio] * CONTEXT_FRAMES + [audio_eos] + second])
    seen = dict(first=[], rest=[])
    hooks = [model.lm_head.register_forward_hook(lambda m, i, o: seen["first"].append(o[:, -1])),
             model.depth_decoder.codebooks_head.register_forward_hook(lambda m, i, o: seen["rest"].append(o[:, -1]))]
    with torch.no_grad():
        context = model.codec_model.encode(wave[None, None], num_quantizers=config.num_codebooks).audio_codes[0].T
        assert context.shape[0] == CONTEXT_FRAMES, context.shape
        codes = model.generate(input_ids=ids, input_values=wave[None, None], input_values_cutoffs=torch.tensor([[len(wave)]]), do_sample=False,
                               max_new_tokens=FRAMES, depth_decoder_do_sample=False)[0]
    [hook.remove() for hook in hooks]
    rest = torch.stack(seen["rest"], 1).reshape(1, FRAMES, config.num_codebooks - 1, -1)
    logits = torch.cat([torch.stack(seen["first"], 1)[:, :, None], rest], 2)[0]
    assert (logits.argmax(-1) == codes).all()
    silence = [[config.codebook_eos_token_id] * config.num_codebooks]
    ids, mask = rows([("text", first), ("audio", context.tolist()), ("audio", silence), ("text", second)], config.num_codebooks + 1)
    margin = margins(logits)
    print("csm least margin", float(margin.min()), "codes", codes.unique().numel(), "frames", len(codes.unique(dim=0)))
    save("csm", "frames", dict(wave=wave, context=context, ids=ids, mask=mask, codes=codes, logits=logits, margin=margin), root)

"""sentencepiece: small models of the package, and the ids that it makes of texts.

    python verify/reference/make.py sentencepiece_models

sentencepiece/MODEL.model         a model trained on the sentences here
sentencepiece/texts.json          the texts; of each model the ids of every one
"""

import io
import itertools
import json

import sentencepiece

from dump import GOLDEN, Draw

SENTENCES = """You are a wise and friendly teacher. Answer questions or provide advice in a clear and engaging way.
You enjoy having a good conversation. Have a casual discussion about eating at home versus dining out.
You work for a drone rental company, and your name is Tomaz. The price is $65 for 4 hours, $110 for 8 hours.
Verify the customer's name first. Deposit required: $150 for standard models, $300 for premium.
What did they say? They said that the weather would be fine, and that nobody should worry.
The quick brown fox jumps over the lazy dog; pack my box with five dozen liquor jugs.
నమస్కారం, మీరు ఎలా ఉన్నారు? నేను బాగున్నాను.
తెలుగు ఒక ద్రావిడ భాష. ఈ రోజు వాతావరణం చాలా బాగుంది.
మీ పేరు ఏమిటి? నా పేరు స్వర. మనం మాట్లాడుకుందాం.
Où est la bibliothèque? Elle est à côté de l'église, près du café.
Straße, Größe, Übung: schöne Wörter für alle, die gern reden.""".splitlines()

# Normalised, cut or unknown in ways of their own.
ODD = ["", " ", "   ", "\t\n", "a", " a ", "a  b", "\u2581", "\u2581a\u2581", "a\u3000b", "ｆｕｌｌ ｗｉｄｔｈ", "ﬁne ﬂow", "Ⅷ ½ ①", "cafe\u0301", "café",
       "\u212b\u00c5A\u030a", "ﷺ", "가각힣", "가", "日本語のテキスト", "مرحبا", "😀", "👩‍👩‍👧‍👦 family 🇮🇳", "a\u200bb", "a\u00adb", "\ufeffx", "x\u0000y", "\u0001\u0002",
       "<s>", "</s>", "<unk>", "<pad>", "<0x41>", "<system>", "<system> You enjoy having a good conversation. <system>", "x<system>y", "<system><system>",
       "< system >", "<syst", "naïve<sep>word", "<sep> <sep>", "two words", "two  words", "aaa", "aaaaaaaaaaaaa", "The the THE", "1234567890", "$1,234.56", "...", "?!?!",
       "క", "క్షే", "నమస్కారం<system>తెలుగు", "\u0c4d\u0c4d", "e\u0301e\u0301", "\U0010ffff", "\ud7ff\ue000", "line\nbreak\r\nand\ttab", "trailing   ", "   leading",
       "a\u00a0b\u2003c", "zero\u200dwidth", "ÀÁÂÃÄÅ", "İstanbul ıI", "ǅ ß ẞ", "①②③", "㍿ ㌔", "ﾊﾝｶｸ", "～", "“quotes” ‘single’ – dash — em", "\\ / | ` ~ ^"]

SYMBOLS = ["<system>", "<sep>", "two words"]

MODELS = {
    # As the vocabularies of moshi: nothing is normalised but spaces; unknown characters are bytes.
    "unigram": dict(model_type="unigram", vocab_size=520, normalization_rule_name="identity", byte_fallback=True, user_defined_symbols=SYMBOLS[:1]),
    # NFKC by a compiled table; what is unknown is so.
    "nmt_nfkc": dict(model_type="unigram", vocab_size=230, normalization_rule_name="nmt_nfkc", user_defined_symbols=SYMBOLS, control_symbols=["<pad>"]),
    # Spaces as they are, none before.
    "spaces": dict(model_type="unigram", vocab_size=230, normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=False,
                   split_by_whitespace=False),
    "bpe": dict(model_type="bpe", vocab_size=600, normalization_rule_name="identity", byte_fallback=True, user_defined_symbols=SYMBOLS),
    "suffix": dict(model_type="bpe", vocab_size=300, normalization_rule_name="identity", treat_whitespace_as_suffix=True),
}

# Of whose pieces one in so many is not used.
UNUSED = {"spaces": 4, "suffix": 3}


def texts():
    draw = Draw("sentencepiece", "texts")
    words = [word for sentence in SENTENCES for word in sentence.split()] + [text for text in ODD if text.strip()]
    gaps = [" ", " ", " ", "  ", "", "\t", "\u3000", "\u2581"]
    pick = lambda of: of[int(draw.integers(0, len(of), 1)[0])]
    mixed = ["".join(itertools.chain.from_iterable((pick(words), pick(gaps)) for _ in range(int(draw.integers(1, 12, 1)[0])))) for _ in range(160)]
    characters = [chr(int(c)) for c in draw.integers(0x20, 0x3000, 40 * 20)]
    noise = ["".join(characters[20 * i:20 * (i + 1)]) for i in range(40)]
    return SENTENCES + ODD + mixed + noise


def unused(model, every):
    """A model in which that part of the pieces of several characters is not used: of the message, field 3 of entries of field 1."""
    found, at, count = bytearray(), 0, 0
    while model[at] == 0x0A:
        entry = model[at + 2:at + 2 + model[at + 1]]
        text, kind = entry[2:2 + entry[1]].decode(), entry[2 + entry[1] + 5:]
        count += not kind and len(text) > 1
        entry += b"\x18\x05" if not kind and len(text) > 1 and count % every == 0 else b""
        found += bytes([0x0A, len(entry)]) + entry
        at += 2 + model[at + 1]
    return bytes(found + model[at:])


def make(root=GOLDEN):
    folder = root / "sentencepiece"
    folder.mkdir(parents=True, exist_ok=True)
    cases, ids = texts(), {}
    for name, options in MODELS.items():
        written = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES * 3), model_writer=written, hard_vocab_limit=False, num_threads=1,
                                                 character_coverage=0.98, minloglevel=2, **options)
        written = unused(written.getvalue(), unused_every) if (unused_every := UNUSED.get(name)) else written.getvalue()
        (folder / f"{name}.model").write_bytes(written)
        model = sentencepiece.SentencePieceProcessor(model_proto=written)
        ids[name] = [model.encode(text) for text in cases]
        unknown = sum(model.unk_id() in found for found in ids[name])
        print(name, "pieces", model.vocab_size(), "bytes", len(written), "not used", sum(map(model.is_unused, range(model.vocab_size()))), "texts", len(cases), "with unknown pieces", unknown)
    lines = [json.dumps(dict(text=text, ids={name: found[i] for name, found in ids.items()})) for i, text in enumerate(cases)]
    (folder / "texts.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")

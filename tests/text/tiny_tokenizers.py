"""Small tokenizers of the two kinds that models use, trained on the spot."""

import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

BYTE_LEVEL_TOKENS, SENTENCEPIECE_TOKENS = 320, 360
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)",
    "un été à Paris, 東京の夏, 😀 emoji and more words and more words",
] * 4


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3 and Qwen: every byte is a token, the post-processor adds `<s>` (id 0); `</s>` is id 1."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BYTE_LEVEL_TOKENS,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def sentencepiece() -> tokenizers.Tokenizer:
    """As Llama 2 and Mistral: words begin with ▁, unknown characters are bytes, a first space is dropped."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=SENTENCEPIECE_TOKENS,
        special_tokens=specials + [f"<0x{byte:02X}>" for byte in range(256)],
        limit_alphabet=40,
        show_progress=False,
    )
    trained.train_from_iterator(CORPUS, trainer)
    description = json.loads(trained.to_str())
    # byte tokens are ordinary tokens of such models, not special ones
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] in specials]
    backend = tokenizers.Tokenizer.from_str(json.dumps(description))
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend

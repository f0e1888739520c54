"""A WordPiece vocabulary of the marketplace's training texts, for encoders trained from scratch.

Whole words come first, then the commonest pieces of two and three letters, so that a word that training never saw is
spelled in few pieces. It depends on the texts alone, not on their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_VOCABULARY = 4096
_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
_PIECE_LENGTHS = (2, 3)


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Give a lower-casing BERT-style tokenizer whose vocabulary is that of the texts, of at most 4,096 entries."""
    normaliser = normalizers.BertNormalizer(lowercase=True)
    splitter = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(normaliser.normalize_str(text)))
    letters = sorted({letter for word in counts for letter in word} | set(_ALPHABET))
    entries = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters)]
    entries = list(dict.fromkeys([*entries, *_by_count(counts), *_by_count(_pieces(counts))]))[:MAX_VOCABULARY]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))  # noqa: S106 - no password
    tokenizer.normalizer = normaliser
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _pieces(counts: Counter[str]) -> Counter[str]:
    pieces: Counter[str] = Counter()
    for word in counts:
        for length in _PIECE_LENGTHS:
            for start in range(len(word) - length + 1):
                pieces[("##" if start else "") + word[start : start + length]] += 1
    return pieces


def _by_count(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda entry: (-counts[entry], entry))

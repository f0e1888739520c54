"""Words of shopping texts in any script: what the leak check and the annotator compare."""

from __future__ import annotations

import hashlib
import re
import unicodedata

from relevance.text import clean

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
_CHUNK = re.compile(rf"[{_CJK}]+|\d+(?:[.,]\d+)?|(?:(?![{_CJK}])[^\W\d_])+")
_CJK_CHUNK = re.compile(rf"[{_CJK}]+")
_SIBILANT = ("ches", "shes", "sses", "xes", "zes")


def normalise_query(query: str) -> str:
    """Give the form in which two queries are one: as the model reads it (`relevance.text.clean`), in lower case."""
    return clean(query, len(query)).lower()


def same_words_key(query: str) -> str:
    """Give a key that a query shares with the same words in another order."""
    return " ".join(sorted(normalise_query(query).split()))


def query_unit(query: str, salt: str = "") -> float:
    """Give a query's place in [0, 1): the first 52 bits of SHA-256 of salt and normalised query."""
    digest = hashlib.sha256((salt + normalise_query(query)).encode("utf-8", "replace")).hexdigest()
    return float(int(digest[:13], 16) / 16**13)


def chunks(text: str) -> list[str]:
    """Split a text into lower-case words, numbers and unbroken runs of Japanese or Chinese characters."""
    return _CHUNK.findall(unicodedata.normalize("NFKC", text).lower())


def is_cjk(chunk: str) -> bool:
    """Say whether a chunk is a run of Japanese or Chinese characters, which is not one word."""
    return _CJK_CHUNK.fullmatch(chunk) is not None


def stem(word: str) -> str:
    """Cut accents and the commonest English and Spanish endings, the same way for query and item.

    The result is a key to compare by, not a dictionary form; numbers and Japanese pass unchanged.
    """
    if word[0].isdigit() or is_cjk(word):
        return word
    if not word.isascii():
        word = "".join(c for c in unicodedata.normalize("NFKD", word) if not unicodedata.combining(c))
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 4 and word.endswith(_SIBILANT):
        word = word[:-2]
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending, least in (("ing", 7), ("ed", 6)):
        if len(word) >= least and word.endswith(ending):
            word = word[: -len(ending)]
            if word[-1] == word[-2]:
                word = word[:-1]
            break
    return word[:-1] if len(word) > 4 and word.endswith("e") else word


def stems_of_chunk(chunk: str) -> list[str]:
    """Give the keys of one chunk: the stem of a word, the character pairs of a Japanese or Chinese run."""
    if is_cjk(chunk) and len(chunk) > 1:
        return [chunk[i : i + 2] for i in range(len(chunk) - 1)]
    return [stem(chunk)]


def stems(text: str) -> list[str]:
    """Give the keys of all words of a text, in order."""
    return [key for chunk in chunks(text) for key in stems_of_chunk(chunk)]

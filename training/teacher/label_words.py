"""Class names out of a text: a rationale that names its class would hand the student the label, not the reasoning."""

from __future__ import annotations

import re
from functools import lru_cache

from relevance.labels import LabelScheme

MASK = "…"
_STEMS = ("exact", "substitut", "sustitut", "complement", "irrelevan")
_CUE = re.compile(
    r"\b(?:verdict|label|class|classified|categori[sz]ed|judg(?:e?ment|ed)|rating|rated|answer|conclusion)\b",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+|(?<=[。！？])")


@lru_cache(maxsize=16)
def label_pattern(scheme: LabelScheme) -> re.Pattern[str]:
    """Give the pattern of a scheme's class names: ESCI's by stem in any scheme, and the scheme's own titles."""
    titles = sorted((re.escape(title) for title in scheme.titles), key=len, reverse=True)
    return re.compile(rf"\b(?:(?:{'|'.join(_STEMS)})\w*|(?:{'|'.join(titles)})\b)", re.IGNORECASE)


def mask_label_words(text: str, scheme: LabelScheme) -> str:
    """Put an ellipsis in place of every class name."""
    return label_pattern(scheme).sub(MASK, text)


def strip_verdict(text: str, scheme: LabelScheme) -> str:
    """Remove the last sentence if it concludes a class, then every class name left.

    A last sentence concludes if it holds a class name or a word such as verdict, label, rating or answer.
    """
    text = text.strip()
    sentences = [s for s in _SENTENCE_END.split(text) if s.strip()]
    if len(sentences) > 1 and (label_pattern(scheme).search(sentences[-1]) or _CUE.search(sentences[-1])):
        text = text[: text.rindex(sentences[-1])].rstrip()
    return mask_label_words(text, scheme)

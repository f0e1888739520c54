"""Whether what a rationale points at is there: spans of evidence in the query and item, and evidence beside the label.

A span is there when its words stand in a text as whole words after NFKC and case folding, or when rapidfuzz's ratio
with some run of as many words of the text is at least 90; of a list (`black, grey`) every piece must be there. Only
what the prompt shows of an item counts: a span from a field that the teacher never saw is a guess. Rationales without
an evidence list are held to the words they quote, on either side.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rapidfuzz import fuzz

from relevance.labels import LabelScheme
from relevance.pairs import Item, Pair
from training.rationale_rows import Evidence
from training.words import is_cjk

LEAST_RATIO = 90.0
LEAST_FUZZY_CHARS = 4
"""Shorter spans must be found letter for letter: one wrong letter of three is another word."""
_ATTRIBUTES = "attributes"
_LIST = re.compile(r"[,;](?!\d)")
_QUOTED = re.compile(r"[“\"«「]([^“”\"«»「」]{1,80})[”\"»」]")


@dataclass(frozen=True, slots=True)
class SpanCount:
    """Spans that a rationale points at, and how many of them are there."""

    found: int
    total: int

    @property
    def share(self) -> float:
        """Share of the spans that are there, nan where there are none."""
        return self.found / self.total if self.total else float("nan")


def shown_fields(item: Item, fields: Sequence[str]) -> dict[str, str]:
    """Give the item's texts that a prompt shows: the title, then the other fields that are not blank.

    Args: fields: as `teacher.prompt.fields`; `attributes` stands for all of them.
    Returns: field name (`brand`, `attributes.size`, …) → text, the title always first.
    """
    shown = {"title": item.title}
    for name in fields:
        names = [f"{_ATTRIBUTES}.{own}" for own in item.attributes] if name == _ATTRIBUTES else [name]
        for one in names:
            text = item.field(one)
            if text and text.strip():
                shown[one] = text
    return shown


def spans_found(evidence: Sequence[Evidence], rationale: str, pair: Pair, fields: Sequence[str]) -> SpanCount:
    """Count the spans that a rationale points at and those that are there.

    Args: evidence: query spans are looked for in the query, item spans in the item's shown fields, "" not at all;
        rationale: its quoted words are looked for in both where there is no evidence; fields: as `shown_fields`.
    """
    query, item = [pair.query.text], list(shown_fields(pair.item, fields).values())
    if evidence:
        spans = [(row.query_span, query) for row in evidence] + [(row.item_span, item) for row in evidence]
    else:
        spans = [(words, query + item) for words in _QUOTED.findall(rationale)]
    asked = [(span, texts) for span, texts in spans if span.strip()]
    return SpanCount(sum(is_there(span, texts) for span, texts in asked), len(asked))


def is_there(span: str, texts: Sequence[str]) -> bool:
    """Say whether a span's words stand in one of the texts, letter for letter or nearly so; of a list, every piece."""
    folded = [fold(text) for text in texts]
    words = fold(span)
    if any(_stands_in(words, text) for text in folded):
        return True
    pieces = list_pieces(words)
    return len(pieces) > 1 and all(any(_stands_in(piece, text) for text in folded) for piece in pieces)


def consistent(label: str, evidence: Sequence[Evidence], scheme: LabelScheme) -> bool | None:
    """Say whether a label follows from its evidence: the most relevant class wants no mismatch, any other wants one.

    What the evidence calls missing fits either: it says nothing about the item.

    Returns: None without evidence.
    Raises: LabelError: if the scheme has no such label.
    """
    if not evidence:
        return None
    verdicts = {row.verdict for row in evidence}
    if scheme.index(label) == scheme.exact:
        return "mismatch" not in verdicts
    return bool(verdicts & {"mismatch", "missing"})


def list_pieces(text: str) -> list[str]:
    """Split a list at its commas and semicolons; a comma inside a number is none."""
    return [piece.strip() for piece in _LIST.split(text) if piece.strip()]


def fold(text: str) -> str:
    """Give the form in which spans are compared: NFKC, case folded, runs of white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def word_places(words: str, text: str) -> Iterator[tuple[int, int]]:
    """Give where some words stand in a text as whole words; both are taken as they are."""
    start = text.find(words) if words else -1
    while start >= 0:
        end = start + len(words)
        if _is_border(text, start) and _is_border(text, end):
            yield start, end
        start = text.find(words, start + 1)


def _stands_in(words: str, text: str) -> bool:
    if next(word_places(words, text), None) is not None:
        return True
    if len(words) < LEAST_FUZZY_CHARS:
        return False
    own, others = words.split(), text.split()
    windows = (" ".join(others[i : i + len(own)]) for i in range(len(others) - len(own) + 1))
    return any(fuzz.ratio(words, window, score_cutoff=LEAST_RATIO) > 0 for window in windows)


def _is_border(text: str, place: int) -> bool:
    """Say whether a word may start or end here; letters end where digits start, as in `14oz`.

    Japanese and Chinese are written without blanks, so a word may end between any two of their characters.
    """
    if place in (0, len(text)):
        return True
    before, after = text[place - 1], text[place]
    if not (before.isalnum() and after.isalnum()):
        return True
    return before.isdigit() != after.isdigit() or is_cjk(before) or is_cjk(after)

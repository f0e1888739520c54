"""A teacher's evidence as BIO tags on the student's tokens (MKD, arXiv:2411.13045), for a CRF to learn.

A span of evidence is looked for in the text that the student reads: letter for letter between word borders after NFKC
and case folding, else by rapidfuzz's partial ratio from a word's start; a list (`black, grey`) and scattered terms are
looked for piece by piece. Of overlapping spans the longest wins; general terms, which often cover a whole query, only
take the tokens that no other span has. What the evidence calls missing is tagged a mismatch: the item does not show
what is asked for.

Suffix: L tokens.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import fuzz

from training.rationale_rows import Evidence
from training.words import is_cjk

TERMS = "terms"
TAGGED_DIMS = ("type", "brand", "attribute", "accessory", TERMS)
TAGGED_VERDICTS = ("match", "mismatch")
OUTSIDE = 0
"""The tag O; the tags B and I of kind k (dim and verdict) are 1 + 2 k and 2 + 2 k."""
N_TAGS = 1 + 2 * len(TAGGED_DIMS) * len(TAGGED_VERDICTS)
LEAST_RATIO = 90.0
LEAST_FUZZY_CHARS = 4
"""Shorter spans must be found letter for letter: one wrong letter of three is another word."""
_SAME_DIM = {"category": "type", "compatible_with": "accessory"}
_LIST = re.compile(r",(?!\d) *")
_WORDS = re.compile(r"(?:,(?!\d)| )+")
_SCATTERED = {TERMS: _WORDS, "negation": _WORDS, "accessory": _WORDS, "size": _WORDS}
"""Dims whose words may stand apart: several terms, `without …`, or a number whose unit is abbreviated."""
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class TaggedSpan:
    """Places start … end − 1 of a text (characters or tokens), what they are evidence of, and whether it agrees."""

    start: int
    end: int
    dim: str
    verdict: str


@dataclass(slots=True)
class Alignment:
    """How many spans of evidence there are and how many were found, by part (`query` or `item`)."""

    spans: dict[str, int] = field(default_factory=lambda: {"query": 0, "item": 0})
    found: dict[str, int] = field(default_factory=lambda: {"query": 0, "item": 0})

    @property
    def share(self) -> float:
        """Share of the spans that were found, nan where there are none."""
        spans = sum(self.spans.values())
        return sum(self.found.values()) / spans if spans else float("nan")


def tagged_dim(dim: str) -> str:
    """Give the dim that a tag names: colour, size, what a query rules out and any other property are attributes."""
    dim = _SAME_DIM.get(dim, dim)
    return dim if dim in TAGGED_DIMS else "attribute"


def spans_in_text(text: str, evidence: Sequence[tuple[Evidence, str]]) -> list[list[TaggedSpan]]:
    """Look for each span of evidence in a text.

    Args: evidence: rows, each with the words to look for.
    Returns: for each row the CHARACTER ranges found, none where the words are not in the text.
    """
    folded, origin = _fold(text)
    found = []
    for row, words in evidence:
        dim = tagged_dim(row.dim)
        verdict = "match" if row.verdict == "match" else "mismatch"
        ranges = list(_find_pieces(" ".join(_fold(words)[0].split()), folded, _SCATTERED.get(row.dim, _LIST)))
        found.append([TaggedSpan(origin[start], origin[end - 1] + 1, dim, verdict) for start, end in ranges])
    return found


def tags_of_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[TaggedSpan]) -> NDArray[np.int8]:
    """Give each token's BIO tag.

    The longest span wins where several overlap, then the first; spans of terms fill what is left, each run of tokens
    as a span of its own.

    Args: offsets: character range of each token; spans: character ranges, as `spans_in_text` gives them.
    """
    tags = np.full(len(offsets), OUTSIDE, dtype=np.int8)
    start_L, end_L = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    for span in sorted(spans, key=lambda span: (span.dim == TERMS, span.start - span.end)):
        inside = np.flatnonzero((start_L < span.end) & (end_L > span.start))
        free = inside[tags[inside] == OUTSIDE]
        if len(free) == len(inside) or span.dim == TERMS:
            kind = TAGGED_DIMS.index(span.dim) * len(TAGGED_VERDICTS) + TAGGED_VERDICTS.index(span.verdict)
            tags[free] = 2 + 2 * kind
            tags[free[np.diff(free, prepend=-2) != 1]] = 1 + 2 * kind
    return tags


def spans_of_tags(tags: Sequence[int]) -> list[TaggedSpan]:
    """Give the spans of TOKENS that BIO tags stand for; an I that continues nothing of its kind is left out."""
    spans: list[TaggedSpan] = []
    for place, tag in enumerate(tags):
        dim, verdict = divmod((tag - 1) // 2, len(TAGGED_VERDICTS))
        if tag == OUTSIDE:
            continue
        begins, last = tag % 2 == 1, spans[-1] if spans else None
        if begins:
            spans.append(TaggedSpan(place, place + 1, TAGGED_DIMS[dim], TAGGED_VERDICTS[verdict]))
        elif last is not None and (last.end, last.dim, last.verdict) == (
            place,
            TAGGED_DIMS[dim],
            TAGGED_VERDICTS[verdict],
        ):
            spans[-1] = TaggedSpan(last.start, place + 1, last.dim, last.verdict)
    return spans


def _fold(text: str) -> tuple[str, list[int]]:
    """Give the text NFKC-normalised and case-folded, and each of its letters' place in the text given."""
    folded = [unicodedata.normalize("NFKC", letter).casefold() for letter in text]
    return "".join(folded), [place for place, letters in enumerate(folded) for _ in letters]


def _find_pieces(words: str, text: str, border: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    whole = _find(words, text)
    if whole is not None:
        yield whole
        return
    pieces = border.split(words)
    if len(pieces) > 1:
        yield from (found for piece in pieces if piece and (found := _find(piece, text)) is not None)


def _find(words: str, text: str) -> tuple[int, int] | None:
    start = text.find(words) if words else -1
    while start >= 0:
        if _starts_word(text, start) and _starts_word(text, start + len(words)):
            return start, start + len(words)
        start = text.find(words, start + 1)
    if not LEAST_FUZZY_CHARS <= len(words) <= len(text):
        return None
    best = fuzz.partial_ratio_alignment(words, text, score_cutoff=LEAST_RATIO)
    if best is None or not _starts_word(text, best.dest_start):
        return None
    start, end = best.dest_start, best.dest_end
    if not _starts_word(text, end) and (rest := _WORD.match(text, end)) is not None:
        end = rest.end()
    found = text[start:end]
    return start + len(found) - len(found.lstrip()), end - len(found) + len(found.rstrip())


def _starts_word(text: str, place: int) -> bool:
    """Say whether a word may start, or have ended, here: words are those of `training.words.chunks`.

    Letters end where digits start (`14oz`, `ps4`), and a word may end between any two Japanese or Chinese characters.
    """
    if place in (0, len(text)):
        return True
    before, after = text[place - 1], text[place]
    if not (before.isalnum() and after.isalnum()):
        return True
    return before.isdigit() != after.isdigit() or is_cjk(before) or is_cjk(after)

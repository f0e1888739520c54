"""How much of the rationales a sentence encoder reads, and a pair's rationales as one text with an equal part each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.rationale_rows import joined, shared_room
from training.recipe import VIEWS

_AT_ONCE = 2048


class TokenReader(Protocol):
    """An encoder that reads the first tokens of a text."""

    @property
    def room(self) -> int:
        """Tokens of a text that are read, special ones not counted."""
        ...

    def token_ends(self, texts: Sequence[str]) -> list[list[int]]:
        """Give where each token of each text ends, in characters; no text is cut."""
        ...


@dataclass(frozen=True, slots=True)
class JoinedTexts:
    """Pairs' rationales as one text each.

    Args: share_read: of the tokens of all parts, those that are in the joined texts.
    """

    texts: list[str]
    share_read: float


def share_read(texts: Sequence[str], perspectives: Sequence[str], encoder: TokenReader) -> dict[str, float]:
    """Give the share of tokens that an encoder reads of each perspective's texts.

    Args: perspectives: of the texts, one each.
    """
    read: defaultdict[str, int] = defaultdict(int)
    whole: defaultdict[str, int] = defaultdict(int)
    for start in range(0, len(texts), _AT_ONCE):
        ends = encoder.token_ends(texts[start : start + _AT_ONCE])
        for perspective, own in zip(perspectives[start : start + _AT_ONCE], ends, strict=True):
            read[perspective] += min(len(own), encoder.room)
            whole[perspective] += len(own)
    return {name: _share(read[name], total) for name, total in whole.items()}


def joined_within(pairs: Sequence[Mapping[str, str]], encoder: TokenReader) -> JoinedTexts:
    """Join each pair's texts so that all of the joined text is read: the perspectives share the encoder's room fairly.

    Cutting the joined text at its end would take from the last perspective alone.

    Args: pairs: perspective → text, one mapping a pair.
    """
    texts, read, whole = [], 0, 0
    for start in range(0, len(pairs), _AT_ONCE):
        group = pairs[start : start + _AT_ONCE]
        ends = iter(encoder.token_ends([own[p] for own in group for p in VIEWS if p in own]))
        for own in group:
            ends_of: dict[str, list[int]] = {p: next(ends) for p in VIEWS if p in own}
            lengths = [len(each) for each in ends_of.values()]
            cuts = shared_room(lengths, encoder.room)
            parts = {p: own[p][: each[cut - 1]] for (p, each), cut in zip(ends_of.items(), cuts, strict=True) if cut}
            texts.append(joined(parts))
            read, whole = read + sum(cuts), whole + sum(lengths)
    return JoinedTexts(texts, _share(read, whole))


def joined_whole(pairs: Sequence[Mapping[str, str]]) -> JoinedTexts:
    """Join each pair's texts for an encoder that reads all of any text."""
    return JoinedTexts([joined(own) for own in pairs], 1.0)


def _share(read: int, whole: int) -> float:
    return round(read / whole, 4) if whole else 1.0

"""Rationale rows: their schema, their JSONL files, and how several texts of a pair share the room of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from training.json_rows import read_json_rows
from training.recipe import VIEWS, View

COMBINED = "combined"
"""Perspective of a pair's rationales joined to one text (LRKD-Combined)."""
Agreement = Literal["match", "mismatch", "missing"]


class Evidence(BaseModel):
    """One thing the query asks for, held against the item.

    Args: dim: brand, colour, size, audience, type, terms, negation or accessory; query_span, item_span: the words on
        either side, "" where there are none; verdict: `missing` means the item says nothing about it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dim: str
    query_span: str
    item_span: str
    verdict: Agreement


class Rationale(BaseModel):
    """One rationale of one pair from one perspective.

    Args: rationale: the text; verdict: the class it concludes, None if it draws no conclusion; generator: who wrote
        it; annotator_seen_pair: whether the generator was fitted on this pair with its label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair_id: str
    perspective: View
    evidence: tuple[Evidence, ...]
    rationale: str
    verdict: str | None
    generator: str
    annotator_seen_pair: bool


def rationale_line(rationale: Rationale) -> str:
    """Give the JSONL line of a rationale, with its line end."""
    return rationale.model_dump_json() + "\n"


def read_rationales(path: Path) -> Iterator[Rationale]:
    """Read a JSONL file of rationales, one at a time.

    Raises: InputError: if the file is missing; RowError: if a line is not a rationale, naming line and field.
    """
    return read_json_rows(path, Rationale, "rationales")


def joined(texts: Mapping[str, str]) -> str:
    """Give one text of a pair's rationales, in the order of the views; "" without any."""
    return " ".join(texts[perspective] for perspective in VIEWS if perspective in texts)


def shared_room(lengths: Sequence[int], room: int) -> list[int]:
    """Share room among texts: each gets an equal part, and what a short one leaves goes to the longer ones.

    Returns: how much of each text fits; together at most `room`.
    """
    given = [0] * len(lengths)
    for place, index in enumerate(sorted(range(len(lengths)), key=lambda i: lengths[i])):
        given[index] = min(lengths[index], room // (len(lengths) - place))
        room -= given[index]
    return given

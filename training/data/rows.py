"""One row of a source: a labelled pair and the split its source put it in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from relevance.errors import RowError
from relevance.labels import LabelScheme
from relevance.pairs import BadRows, LabelledPair, parse_labelled_pair
from training.recipe import DataRecipe


@dataclass(frozen=True, slots=True)
class SourcedPair:
    """A labelled pair as its source gave it.

    Args: labelled: the pair; own_split: the source's own split of its query, None where the source has none.
    """

    labelled: LabelledPair
    own_split: str | None = None


class PairSource(Protocol):
    """A module that reads one kind of source."""

    def source_files(self, recipe: DataRecipe, /) -> list[Path]:
        """Name the files the source reads."""
        ...

    def read_pairs(self, recipe: DataRecipe, scheme: LabelScheme, bad_rows: BadRows, /) -> list[SourcedPair]:
        """Read the labelled pairs.

        Raises: InputError: if a file or a column is missing; RowError: as `bad_rows` says.
        """
        ...


def parse_source_row(
    row: Mapping[str, Any], number: int, *, where: str, columns: Mapping[str, str], scheme: LabelScheme
) -> LabelledPair:
    """Read one row whose columns have a source's own names.

    Args: row: already under our names; columns: our name → the source's, for error messages.
    Raises: RowError: naming the source's column, what was expected and what came.
    """
    try:
        return parse_labelled_pair(row, number, where, scheme)
    except RowError as error:
        raise RowError(where, number, columns.get(error.column, error.column), error.problem) from error


def own_split(value: object, number: int, *, where: str, known: tuple[str, ...]) -> str:
    """Read the split column of a source.

    Raises: RowError: if the value is none of the known splits.
    """
    if value not in known:
        raise RowError(where, number, "split", f"expected one of {', '.join(known)}, found {value!r:.60}")
    return str(value)


def attributes(**texts: object) -> dict[str, str]:
    """Keep the texts that are there."""
    return {name: text for name, text in texts.items() if isinstance(text, str) and text.strip()}


def each_pair_once(pairs: Iterable[tuple[int, SourcedPair]], where: str, bad_rows: BadRows) -> Iterator[SourcedPair]:
    """Pass pairs on, counting one that was there before as a bad row, because files are keyed by pair id.

    Raises: RowError: as `bad_rows` says.
    """
    first_row: dict[str, int] = {}
    for number, sourced in pairs:
        pair_id = sourced.labelled.pair.pair_id
        if pair_id in first_row:
            problem = (
                f"expected each pair of query and item once, found {pair_id!r:.80} in row {first_row[pair_id]} too"
            )
            bad_rows.add(RowError(where, number, "item_id", problem))
            continue
        first_row[pair_id] = number
        yield sourced

"""JSON Lines of our own files: read row by row against a schema, and cut back to whole lines after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from relevance.errors import InputError, RowError

Row = TypeVar("Row", bound=BaseModel)


def read_json_rows(path: Path, schema: type[Row], what: str) -> Iterator[Row]:
    """Read a file, one row at a time.

    Args: what: the rows' name for the error, such as `rationales`.
    Raises: InputError: if the file is missing; RowError: if a line is no such row, naming line and field.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected a file of {what}, found none")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield schema.model_validate_json(line)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                column = ".".join(map(str, first["loc"])) or "*"
                raise RowError(path.name, number, column, f"{first['msg']}, found {first['input']!r:.60}") from error


def cut_to_whole_lines(path: Path) -> int:
    """Cut what a killed run left of its last line, if there is a file.

    Returns: the whole lines it holds.
    """
    if not path.is_file():
        return 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return whole.count(b"\n")

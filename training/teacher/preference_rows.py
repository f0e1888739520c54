"""Preference rows: what DPO learns from, their schema and their JSONL file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, model_validator

from training.json_rows import read_json_rows
from training.recipe import View

FILE = "preferences.jsonl"
Message = dict[str, str]


class Preference(BaseModel):
    """One row that DPO learns from.

    Args: label: the pair's own; view: whose prompt `prompt` is; chosen, rejected: the assistant's texts; the tokens:
        of these texts; chosen_score, rejected_score: 1 and 0, or rewards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair_id: str
    label: str
    view: View
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    chosen_label: str
    rejected_label: str
    chosen_view: View
    rejected_view: View
    chosen_tokens: int
    rejected_tokens: int
    chosen_score: float
    rejected_score: float

    @model_validator(mode="after")
    def _contrast(self) -> Preference:
        if self.chosen_label != self.label:
            raise ValueError(f"expected the chosen label to be the pair's {self.label!r}, found {self.chosen_label!r}")
        if self.chosen == self.rejected:
            raise ValueError("expected a chosen text unlike the rejected one, found the same text twice")
        return self


def read_preferences(path: Path) -> Iterator[Preference]:
    """Read a JSONL file of preferences, one at a time.

    Raises: InputError: if the file is missing; RowError: if a line is not a preference, naming line and field.
    """
    return read_json_rows(path, Preference, "preferences")

"""Text templates: which item fields the student reads, in which order, cleaned how."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from relevance.pairs import Item

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd\ud800-\udfff]")
_FIELD = re.compile(r"title|brand|color|text|attributes\.[A-Za-z0-9_.-]+")


def clean(text: str, max_chars: int) -> str:
    """Normalise a text: cut, NFKC, control characters and lone surrogates to blanks, runs of white space to one blank.

    Args: max_chars: characters read; the rest is not looked at, so a 1 MB title costs no more than a long one.
    """
    text = text[:max_chars]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


class TextTemplate(BaseModel):
    """How a pair becomes two texts; part of the bundle, so that training and serving cannot differ.

    Args: fields: item fields in order (`title`, `brand`, `color`, `text`, `attributes.NAME`); missing ones are skipped;
        separator: put between fields; max_chars: characters read of each field and of the query.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    fields: tuple[str, ...] = ("title",)
    separator: str = " | "
    max_chars: int = Field(default=2000, ge=16, le=100_000)

    @field_validator("fields")
    @classmethod
    def _known_fields(cls, fields: tuple[str, ...]) -> tuple[str, ...]:
        bad = [f for f in fields if not _FIELD.fullmatch(f)]
        if bad or not fields or fields[0] != "title" or len(set(fields)) != len(fields):
            raise ValueError(
                f"expected distinct fields of title, brand, color, text, attributes.NAME, title first; found {fields}"
            )
        return fields

    def query_text(self, query: str) -> str:
        """Give the cleaned query."""
        return clean(query, self.max_chars)

    def item_text(self, item: Item) -> str:
        """Give the cleaned fields of an item, joined; fields that are missing or blank leave no trace."""
        if len(self.fields) == 1:
            return clean(item.title, self.max_chars)
        parts = (clean(value, self.max_chars) for name in self.fields if (value := item.field(name)))
        return self.separator.join(part for part in parts if part)

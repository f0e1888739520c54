"""The annotator's paraphrases, in two families that share no text."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from relevance.errors import InputError
from training.recipe import Perspective, Split

TRAIN_FAMILY, PROBE_FAMILY = "train", "probe"
"""Writers of the training pairs' rationales, and of those that a probe fitted on them is judged on."""
PHRASES = Path(__file__).with_name("phrases.toml")
MIN_PARAPHRASES = 20
"""Of each kind of clause, counted as openings times closings: a paraphrase is one of each."""


@dataclass(frozen=True, slots=True)
class Family:
    """One set of paraphrases.

    Args: openings: by perspective; closings: by kind of clause.
    """

    openings: Mapping[Perspective, tuple[str, ...]]
    closings: Mapping[str, tuple[str, ...]]

    def texts(self) -> Iterator[str]:
        """Give every opening and closing."""
        for texts in (*self.openings.values(), *self.closings.values()):
            yield from texts


@cache
def load_families() -> dict[str, Family]:
    """Read phrases.toml, once.

    Raises: InputError: if the families share a text, or a kind of clause has too few paraphrases.
    """
    data = tomllib.loads(PHRASES.read_text(encoding="utf-8"))
    families = {
        name: Family(*({k: tuple(v) for k, v in parts[part].items()} for part in ("openings", "closings")))
        for name, parts in data.items()
    }
    check_families(families)
    return families


def check_families(families: Mapping[str, Family]) -> None:
    """Refuse families of paraphrases that overlap, or that say too little in different words.

    Raises: InputError: if the families share a text, or a kind of clause has too few paraphrases.
    """
    train, probe = families[TRAIN_FAMILY], families[PROBE_FAMILY]
    shared = sorted(set(train.texts()) & set(probe.texts()))
    if shared:
        raise InputError(f"phrases: expected families that share no text, found {shared[:3]}")
    for name, family in families.items():
        least = min(len(set(texts)) for texts in family.openings.values())
        few = [kind for kind, texts in family.closings.items() if least * len(set(texts)) < MIN_PARAPHRASES]
        if few:
            raise InputError(
                f"phrases: expected {MIN_PARAPHRASES} paraphrases of each kind in {name!r}, openings times closings, "
                f"with {least} openings too few: {few}"
            )


def family_of(split: Split | str) -> str:
    """Name the family that writes for a split: train's writes for no other."""
    return TRAIN_FAMILY if split == "train" else PROBE_FAMILY


def phrase_texts(family: str) -> Iterator[str]:
    """Give every text of a family, slots included."""
    yield from load_families()[family].texts()

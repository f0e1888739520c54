"""Label schemes: the classes an annotator may give a pair, their gains and their tiers."""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.errors import LabelError

N_TIERS = 5
"""Tiers are the integers 0 (worst) to 4 (best)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelScheme:
    """K classes from most to least relevant, each with a short code, a title, a gain and a default tier.

    Args: classes: codes, unique, at least two; titles: names for people; gains: non-negative, the first the largest;
        tiers: 0–4, not increasing.
    Raises: LabelError: if the lengths differ, a code repeats, or gains or tiers are out of order.
    """

    name: str
    classes: tuple[str, ...]
    titles: tuple[str, ...]
    gains: tuple[float, ...]
    tiers: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.classes), len(self.titles), len(self.gains), len(self.tiers)}
        if len(sizes) != 1 or len(self.classes) < 2:
            raise LabelError(
                f"scheme {self.name!r}: expected classes, titles, gains and tiers of one length ≥ 2, found lengths "
                f"{len(self.classes)}, {len(self.titles)}, {len(self.gains)}, {len(self.tiers)}"
            )
        if len(set(self.classes)) != len(self.classes):
            raise LabelError(f"scheme {self.name!r}: expected unique class codes, found {self.classes}")
        if min(self.gains) < 0 or self.gains[0] <= 0 or max(self.gains) != self.gains[0]:
            raise LabelError(f"scheme {self.name!r}: expected gains ≥ 0 with the first the largest, found {self.gains}")
        if any(not 0 <= t < N_TIERS for t in self.tiers) or list(self.tiers) != sorted(self.tiers, reverse=True):
            raise LabelError(f"scheme {self.name!r}: expected tiers 0–4 that do not increase, found {self.tiers}")

    @property
    def n_classes(self) -> int:
        """Number of classes, K."""
        return len(self.classes)

    @property
    def gain_K(self) -> NDArray[np.float64]:
        """Gains divided by the largest, so that the expected gain lies in [0, 1]; shape (K,)."""
        return np.asarray(self.gains, dtype=np.float64) / self.gains[0]

    @property
    def exact(self) -> int:
        """Index of the most relevant class (ESCI: Exact)."""
        return 0

    @property
    def irrelevant(self) -> int:
        """Index of the least relevant class (ESCI: Irrelevant)."""
        return self.n_classes - 1

    def index(self, label: str) -> int:
        """Give the class index of a code or title, upper or lower case alike.

        Raises: LabelError: if the scheme has no such class.
        """
        if label in self.classes:
            return self.classes.index(label)
        folded = label.casefold()
        for i, (code, title) in enumerate(zip(self.classes, self.titles, strict=True)):
            if folded in {code.casefold(), title.casefold()}:
                return i
        raise LabelError(f"expected one of {', '.join(self.classes)} (scheme {self.name!r}), found {label!r}")

    def to_dict(self) -> dict[str, Any]:
        """Give plain data for JSON; `from_dict` reads it back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LabelScheme:
        """Read what `to_dict` wrote, or a parsed TOML table.

        Raises: LabelError: if a key is missing, unknown or of the wrong type.
        """
        expected = {"name", "classes", "titles", "gains", "tiers"}
        if set(data) != expected:
            raise LabelError(f"label scheme: expected the keys {sorted(expected)}, found {sorted(data)}")
        try:
            return cls(
                name=str(data["name"]),
                classes=tuple(str(c) for c in data["classes"]),
                titles=tuple(str(t) for t in data["titles"]),
                gains=tuple(float(g) for g in data["gains"]),
                tiers=tuple(int(t) for t in data["tiers"]),
            )
        except (TypeError, ValueError) as error:
            raise LabelError(f"label scheme: expected lists of strings, numbers and integers: {error}") from error


ESCI = LabelScheme(
    name="esci",
    classes=("E", "S", "C", "I"),
    titles=("Exact", "Substitute", "Complement", "Irrelevant"),
    gains=(1.0, 0.1, 0.01, 0.0),
    tiers=(4, 2, 1, 0),
)
"""Amazon Shopping Queries (arXiv:2206.06588)."""

ESCI_LEGACY_SWAPPED = LabelScheme(
    name="esci-legacy-swapped", classes=ESCI.classes, titles=ESCI.titles, gains=(1.0, 0.01, 0.1, 0.0), tiers=ESCI.tiers
)
"""The gains of esci-data's own nDCG script, which swaps Substitute and Complement; only to compare with old figures."""

ALIEXPRESS = LabelScheme(
    name="aliexpress",
    classes=("strong", "attribute", "model", "brand", "accessory", "category"),
    titles=(
        "Strongly Relevant",
        "Attribute Mismatch",
        "Model Mismatch",
        "Brand Mismatch",
        "Accessory Mismatch",
        "Category Mismatch",
    ),
    gains=(1.0, 0.75, 0.5, 0.5, 0.25, 0.0),
    tiers=(4, 3, 2, 2, 1, 0),
)
"""Six classes of arXiv:2601.21611, section 4.1; the paper gives no gains, ours are tier / 4."""

WANDS = LabelScheme(
    name="wands",
    classes=("Exact", "Partial", "Irrelevant"),
    titles=("Exact match", "Partial match", "Not relevant"),
    gains=(1.0, 0.5, 0.0),
    tiers=(4, 2, 0),
)
"""Wayfair WANDS (Chen et al., ECIR 2022)."""

SCHEMES = {s.name: s for s in (ESCI, ESCI_LEGACY_SWAPPED, ALIEXPRESS, WANDS)}


def load_scheme(name_or_path: str) -> LabelScheme:
    """Give a built-in scheme by name, or read a custom one from a TOML file.

    Raises: LabelError: if the name is unknown and no such file exists, or the file is not a valid scheme.
    """
    if name_or_path in SCHEMES:
        return SCHEMES[name_or_path]
    path = Path(name_or_path)
    if path.suffix != ".toml" or not path.is_file():
        raise LabelError(f"expected a scheme of {sorted(SCHEMES)} or a TOML file, found {name_or_path!r}")
    try:
        return LabelScheme.from_dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LabelError(f"{path}: expected TOML: {error}") from error

"""The perspectives a rationale is written from (arXiv:2601.21611, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

from training.recipe import Perspective


@dataclass(frozen=True, slots=True)
class PerspectiveCard:
    """What one perspective looks at.

    Args: purpose: one sentence; dims: the dimensions of evidence it speaks of, in order.
    """

    name: Perspective
    title: str
    purpose: str
    dims: tuple[str, ...]


USER = PerspectiveCard(
    "user",
    "user intent",
    "What the shopper means by the query, and how much of it the item would give them.",
    ("type", "terms", "audience", "negation"),
)
STRUCT = PerspectiveCard(
    "struct",
    "structured analysis",
    "Each attribute the query names, held against the same attribute of the item.",
    ("type", "brand", "colour", "size", "audience", "terms"),
)
RULE = PerspectiveCard(
    "rule",
    "business rule",
    "The facts that the marketplace's rules on accessories, brands, negations and product types ask for.",
    ("accessory", "type", "brand", "negation", "terms"),
)
CARDS: dict[Perspective, PerspectiveCard] = {"user": USER, "struct": STRUCT, "rule": RULE}

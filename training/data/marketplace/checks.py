"""Checks that the marketplace's splits keep apart what they must."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from relevance.errors import RunError
from relevance.pairs import LabelledPair
from training.data.marketplace.world import HeldOut, World
from training.marketplace.catalogue import CATEGORY
from training.marketplace.facts import Intent, facts_of_item
from training.marketplace.reading import FEATURE, read_mentions


def check_world(world: World) -> None:
    """Refuse a world whose held-out categories or brands are known before test.

    Raises: RunError: naming what was found and where.
    """
    check_held_out(
        world.held_out,
        [sourced.labelled for sourced in world.pairs if sourced.own_split != "test"],
        [intent for intent in world.intents if intent.split != "test"],
    )


def check_held_out(held_out: HeldOut, labelled: Iterable[LabelledPair], intents: Iterable[Intent]) -> None:
    """Refuse pairs or intents, of any split but test, that name a held-out category or brand.

    Facts, titles and what accessories go with are looked at.

    Raises: RunError: naming what was found and where.
    """
    for intent in intents:
        if intent.category in held_out.categories or _brands_of(intent.wanted) & held_out.brands:
            raise RunError(f"query {intent.query_id}: expected no held-out category or brand, found {intent.spans}")
    for one in labelled:
        item = one.pair.item
        facts = facts_of_item(item)
        named = [(m.dim, m.value) for m in read_mentions(item.title)]
        named += [(dim, value) for dim, values in facts.items() for value in values]
        categories = {value for dim, value in named if dim in (CATEGORY, FEATURE)}
        brands = {value.split()[0] for dim, value in named if dim in ("brand", "compatible_with")}
        found = sorted((categories & held_out.categories) | (brands & held_out.brands))
        if found:
            raise RunError(f"item {item.id}: expected no held-out category or brand, found {found}")


def check_titles(leaks: Mapping[str, Mapping[str, int]]) -> None:
    """Refuse splits of which one nearly repeats a title of another; queries are `training.data.split.check_leaks`'s.

    Args: leaks: as `training.data.split.leak_report` gives them.
    Raises: RunError: naming the two splits.
    """
    for splits, counts in leaks.items():
        if counts["near_duplicate_titles"] or counts["shared_items"]:
            raise RunError(
                f"{splits}: expected no items in common and no near-duplicate titles, "
                f"found {counts['shared_items']} and {counts['near_duplicate_titles']}"
            )


def _brands_of(wanted: Mapping[str, str]) -> set[str]:
    return {wanted[dim].split()[0] for dim in ("brand", "compatible_with") if dim in wanted}

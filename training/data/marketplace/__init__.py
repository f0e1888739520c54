"""Source `marketplace`: a synthetic world of shopping with privileged facts, see `training.data.marketplace.world`.

It says nothing about how a method fares on real labels. Items carry the catalogue's partly wrong facts, which only
teachers read; their titles are written from the true ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from relevance.errors import InputError
from relevance.labels import ESCI, LabelScheme
from relevance.pairs import BadRows, LabelledPair
from training.data.marketplace.checks import check_world
from training.data.marketplace.vocabulary import make_tokenizer
from training.data.marketplace.world import CLASSES, World, make_world
from training.data.rows import SourcedPair
from training.marketplace.catalogue import CATALOGUE, load_catalogue
from training.marketplace.facts import INTENTS, TRUTH, write_intents, write_truth
from training.marketplace.phrases import PHRASES, TRAIN_FAMILY, phrase_texts
from training.recipe import DataRecipe, Split

TOKENIZER = "tokenizer.json"


def source_files(_: DataRecipe) -> list[Path]:
    """Name the files this source reads: none but its own word lists."""
    return [CATALOGUE, PHRASES]


def read_pairs(recipe: DataRecipe, scheme: LabelScheme, _: BadRows) -> list[SourcedPair]:
    """Make the pairs with their own splits.

    Raises: InputError: if the label scheme is not ESCI's; RunError: if anything leaks between the splits.
    """
    if scheme.classes != ESCI.classes:
        raise InputError(f"source 'marketplace': expected the classes {CLASSES}, found {scheme.classes}")
    world = make_world(recipe.marketplace)
    check_world(world)
    return world.pairs


def write_side_tables(folder: Path, recipe: DataRecipe) -> None:
    """Write what queries mean and what is true of the pairs, of the whole world, and a tokenizer of training texts."""
    world = make_world(recipe.marketplace)
    write_intents(folder / INTENTS, world.intents)
    write_truth(folder / TRUTH, world.truth)
    make_tokenizer(_training_texts(world)).save(str(folder / TOKENIZER))


def world_card(recipe: DataRecipe, splits: Mapping[Split, Sequence[LabelledPair]]) -> dict[str, Any]:
    """Give what a reader of figures should know of the world: its sizes, its noise, and what training never saw.

    The noise is also told by the class that labels show: a rare one beside a common one has more of it than the rest.

    Args: splits: the pairs that were written, which are fewer than the world's where `max_queries` caps them.
    """
    world = make_world(recipe.marketplace)
    clean = {pair_id: label for pair_id, label, _ in world.truth}
    written = [labelled for members in splits.values() for labelled in members]
    given = Counter(labelled.label for labelled in written)
    moved = Counter(labelled.label for labelled in written if clean[labelled.pair.pair_id] != labelled.label)
    return {
        "recipe": recipe.marketplace.model_dump(mode="json"),
        "categories": len(load_catalogue().categories),
        "brands": len(load_catalogue().brands),
        "held_out_categories": sorted(world.held_out.categories),
        "held_out_brands": sorted(world.held_out.brands),
        "share_of_moved_labels": round(moved.total() / len(written), 4),
        "share_of_moved_labels_by_class": {
            name: round(moved[name] / given[name], 4) for name in CLASSES if given[name]
        },
        "test_pairs": dict(Counter(labelled.source for labelled in splits["test"])),
    }


def _training_texts(world: World) -> Iterator[str]:
    yield from phrase_texts(TRAIN_FAMILY)
    for sourced in world.pairs:
        if sourced.own_split == "train":
            item = sourced.labelled.pair.item
            yield from (sourced.labelled.pair.query.text, item.title, item.brand or "", item.color or "")
            yield from item.attributes.values()

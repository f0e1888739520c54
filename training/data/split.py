"""Splits by query, and the check that nothing leaks between them.

A query has one split whatever rows it comes in. Hashes are of the normalised query, so a run on another day, machine
or order of rows gives the same splits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from relevance.errors import RunError
from relevance.pairs import LabelledPair
from training.data.near_duplicates import near_duplicates
from training.data.rows import SourcedPair
from training.recipe import SPLITS, DataRecipe, Split
from training.words import normalise_query, query_unit, same_words_key

SplitPlan = dict[tuple[str, str | None], Split]
"""(normalised query, its source's own split) → split; queries beyond `max_queries` are not in it."""

CAL_SALT, SPLIT_SALT, CAP_SALT = "cal:", "split:", "cap:"


def plan_splits(queries: Iterable[tuple[str, str | None]], recipe: DataRecipe) -> SplitPlan:
    """Decide the split of every query.

    A source's own split stands, but a source that never says `dev` has its dev queries taken out of train, and a
    source without splits is split by hash. Then a train query goes to `cal` if its hash is below `cal_fraction`; the
    same words in another order go with it, unless the source says which queries are `cal` (marketplace). Last, each
    split keeps its first `max_queries` by hash.

    Args: queries: query text and the source's own split, repetitions allowed.
    """
    keys = {(normalise_query(query), own) for query, own in queries}
    carve_dev = recipe.source == "esci"
    plan = {key: _own_or_hashed(*key, recipe, carve_dev=carve_dev) for key in keys}
    carve_cal = recipe.source != "marketplace"
    trained = [key for key, split in plan.items() if split == "train" and carve_cal]
    to_cal = {same_words_key(query) for query, _ in trained if query_unit(query, CAL_SALT) < recipe.cal_fraction}
    plan |= {key: "cal" for key in trained if same_words_key(key[0]) in to_cal}
    return plan if recipe.max_queries is None else _capped(plan, recipe.max_queries)


def assign_splits(pairs: Sequence[SourcedPair], recipe: DataRecipe) -> tuple[dict[Split, list[LabelledPair]], int]:
    """Sort pairs into splits by query, in the order they came.

    Rows of Exact-only sources whose query is in `cal` are dropped: they say nothing about class shares, and their
    query must not be trained on.

    Returns: the splits, and how many rows of Exact-only sources were dropped.
    """
    plan = plan_splits(((p.labelled.pair.query.text, p.own_split) for p in pairs), recipe)
    splits: dict[Split, list[LabelledPair]] = {split: [] for split in SPLITS}
    dropped = 0
    for sourced in pairs:
        split = plan.get((normalise_query(sourced.labelled.pair.query.text), sourced.own_split))
        if split == "cal" and sourced.labelled.exact_only:
            dropped += 1
        elif split is not None:
            splits[split].append(sourced.labelled)
    return splits, dropped


def hashed_together(recipe: DataRecipe) -> frozenset[Split]:
    """Name the splits that our own hash divides, between which no query may be shared."""
    if recipe.source == "esci-mini":
        return frozenset({"train", "cal"})
    return frozenset({"train", "cal", "dev"}) if recipe.source == "esci" else frozenset(SPLITS)


def leak_report(splits: Mapping[Split, Sequence[LabelledPair]]) -> dict[str, dict[str, int]]:
    """Count what each two splits share.

    Returns: "a|b" → `same_query`, `same_words` (another order, the same query not counted), `shared_items`, and
        `near_duplicate_titles` of `titles_compared`: titles of b's other items that nearly repeat a title of a.
    """
    queries = {s: {normalise_query(p.pair.query.text) for p in pairs} for s, pairs in splits.items()}
    words: dict[str, defaultdict[str, set[str]]] = {s: defaultdict(set) for s in splits}
    for s, texts in queries.items():
        for text in texts:
            words[s][same_words_key(text)].add(text)
    titles = {s: {str(p.pair.item.id): p.pair.item.title for p in pairs} for s, pairs in splits.items()}
    report = {}
    for a, b in combinations(splits, 2):
        shared_items = titles[a].keys() & titles[b].keys()
        reordered = [
            key
            for key in words[a].keys() & words[b].keys()
            if any(one != other for one in words[a][key] for other in words[b][key])
        ]
        others = [title for item, title in titles[b].items() if item not in shared_items]
        near, compared = near_duplicates(titles[a].values(), others)
        report[f"{a}|{b}"] = {
            "same_query": len(queries[a] & queries[b]),
            "same_words": len(reordered),
            "shared_items": len(shared_items),
            "near_duplicate_titles": near,
            "titles_compared": compared,
        }
    return report


def check_leaks(report: Mapping[str, Mapping[str, int]], hashed: frozenset[Split]) -> None:
    """Refuse splits of ours that share a query.

    Raises: RunError: if two splits of `hashed` share a query, or its words in another order.
    """
    for a, b in combinations(SPLITS, 2):
        counts = report.get(f"{a}|{b}", {})
        shared = counts.get("same_query", 0) + counts.get("same_words", 0)
        if {a, b} <= hashed and shared:
            raise RunError(f"expected no query in both {a} and {b}, found {shared}")


def _own_or_hashed(query: str, own: str | None, recipe: DataRecipe, *, carve_dev: bool) -> Split:
    if own is not None and not (carve_dev and own == "train"):
        return next(split for split in SPLITS if split == own)
    unit = query_unit(same_words_key(query), SPLIT_SALT)
    if unit < recipe.dev_fraction:
        return "dev"
    return "test" if own is None and unit < recipe.dev_fraction + recipe.test_fraction else "train"


def _capped(plan: SplitPlan, max_queries: int) -> SplitPlan:
    members: dict[Split, list[tuple[str, str | None]]] = defaultdict(list)
    for key, split in plan.items():
        members[split].append(key)
    kept: SplitPlan = {}
    for split, keys in members.items():
        keys.sort(key=lambda key: (query_unit(key[0], CAP_SALT), key[0], key[1] or ""))
        kept |= dict.fromkeys(keys[:max_queries], split)
    return kept

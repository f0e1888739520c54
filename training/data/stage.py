"""Stage `data`: labelled pairs from a source, split by query, with a leak check and a card.

Besides the options of every stage, `--on-bad-row fail|skip` overrides the recipe: `fail` stops at the first bad row,
`skip` leaves bad rows out and puts their number and the first of them into the card. So does `--source NAME`:
`relevance data --source marketplace` needs no file but the recipe.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relevance.errors import InputError
from relevance.pairs import BadRows, LabelledPair, write_labelled_pairs
from training.data import esci, esci_mini, jsonl, marketplace, wands
from training.data.marketplace.checks import check_titles
from training.data.rows import PairSource
from training.data.split import assign_splits, check_leaks, hashed_together, leak_report
from training.recipe import Split
from training.runs import Run, hash_file, stage_arguments

log = logging.getLogger("relevance.training")
SOURCES: dict[str, PairSource] = {
    "esci-mini": esci_mini,
    "esci": esci,
    "wands": wands,
    "pairs": jsonl,
    "marketplace": marketplace,
}
CARD = "card.json"


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see the module."""
    run = stage_arguments(_with_choices(sys.argv[1:] if argv is None else argv), "data", __doc__)
    recipe = run.recipe.data
    files = SOURCES[recipe.source].source_files(recipe)
    missing = [str(path) for path in files if not path.is_file()]
    if missing:
        raise InputError(f"source {recipe.source!r}: expected the files {missing}, found none")
    hashes = {path.name: hash_file(path) for path in files}
    inputs = {"data": recipe.model_dump(mode="json"), "scheme": run.recipe.label_scheme.to_dict(), "files": hashes}
    with run.stage("data", inputs) as folder:
        if folder is not None:
            _write_splits(run, folder, hashes)
    return 0


def _write_splits(run: Run, folder: Path, file_hashes: Mapping[str, str]) -> None:
    recipe, scheme = run.recipe.data, run.recipe.label_scheme
    bad_rows = BadRows(recipe.on_bad_row)
    pairs = SOURCES[recipe.source].read_pairs(recipe, scheme, bad_rows)
    if recipe.locales is not None:
        pairs = [p for p in pairs if p.labelled.pair.query.locale in recipe.locales]
    splits, left_out = assign_splits(pairs, recipe)
    if not splits["train"]:
        raise InputError(f"source {recipe.source!r}: expected pairs to train on, found none of {len(pairs)}")
    leaks = leak_report(splits)
    check_leaks(leaks, hashed_together(recipe))
    if recipe.source == "marketplace":
        check_titles(leaks)
        marketplace.write_side_tables(folder, recipe)
    for split, members in splits.items():
        write_labelled_pairs(folder / f"pairs.{split}.parquet", members)
    card: dict[str, Any] = {
        "source": recipe.source,
        "fingerprint": hash_file(folder / "pairs.train.parquet"),
        "files": dict(file_hashes),
        "splits": {split: _counts(members) for split, members in splits.items()},
        "not_used": {
            "exact_only_of_cal": left_out,
            "beyond_max_queries": len(pairs) - left_out - sum(map(len, splits.values())),
        },
        "bad_rows": {"count": bad_rows.count, "first": [str(error) for error in bad_rows.first]},
        "leaks": leaks,
    }
    if recipe.source == "marketplace":
        card["marketplace"] = marketplace.world_card(recipe, splits)
    (folder / CARD).write_text(json.dumps(card, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    log.info("data: %s; %d bad rows left out", _sizes(splits), bad_rows.count)


def _counts(pairs: Sequence[LabelledPair]) -> dict[str, Any]:
    """Count rows, queries, items and labels of a split, by locale and over all."""
    by_locale: dict[str, Counter[str]] = {}
    for pair in pairs:
        by_locale.setdefault(pair.pair.query.locale or "", Counter())[pair.label] += 1
    return {
        "pairs": len(pairs),
        "queries": len({pair.pair.query.id for pair in pairs}),
        "items": len({str(pair.pair.item.id) for pair in pairs}),
        "exact_only": sum(pair.exact_only for pair in pairs),
        "labels": dict(sorted(Counter(pair.label for pair in pairs).items())),
        "labels_by_locale": {locale: dict(sorted(c.items())) for locale, c in sorted(by_locale.items())},
    }


def _sizes(splits: Mapping[Split, Sequence[LabelledPair]]) -> str:
    return ", ".join(f"{split} {len(members)}" for split, members in splits.items())


def _with_choices(argv: list[str]) -> list[str]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--on-bad-row", choices=("fail", "skip"))
    parser.add_argument("--source", choices=tuple(SOURCES))
    chosen, rest = parser.parse_known_args(argv)
    for key, value in vars(chosen).items():
        rest += [] if value is None else ["--set", f"data.{key}={value}"]
    return rest

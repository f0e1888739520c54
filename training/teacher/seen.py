"""Which labelled pairs a teacher was fitted on: not all that it might have been, but those that it read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from relevance.pairs import Pair, read_pairs
from training.runs import INPUTS, Run, hash_file, hash_json
from training.teacher.keep import STAGE as GENERATE
from training.teacher.parts import split_parts
from training.teacher.preference_rows import FILE, read_preferences
from training.teacher.sft_rows import sft_rows, split_held_out
from training.words import normalise_query

_PHASE = "sft"
_SHIPPED = "dpo"


def pairs_read(run: Run) -> frozenset[str]:
    """Give the ids of the pairs whose labels are in the weights of a run's teacher.

    They are those of the rationales that SFT learned, and, where DPO's policy is the teacher, of the preferences. Where
    the files at hand are not those that were learned from, all pairs of that part count: too many rather than too few.

    Raises: RunError: if stage `data` or `sft` has not finished.
    """
    run.require("sft")
    parts = split_parts(run)
    fitted = _fitted(run)
    if fitted is None:
        fitted = {one.pair.pair_id for one in parts.fit}
    preferred = _preferred(run)
    if preferred is None:
        preferred = {one.pair.pair_id for one in parts.reserved}
    return frozenset(fitted | preferred)


def with_equal_texts(run: Run, seen: frozenset[str], pairs: Iterable[Pair]) -> frozenset[str]:
    """Add the ids of pairs that read like seen ones under other ids, as a log's may: the same query and item title.

    Raises: RunError: if some are seen and stage `data` has not finished.
    """
    if not seen:
        return seen
    train = read_pairs(run.require("data") / "pairs.train.parquet")
    texts = {_texts(pair) for pair in train if pair.pair_id in seen}
    return seen | {pair.pair_id for pair in pairs if _texts(pair) in texts}


def _texts(pair: Pair) -> tuple[str, str]:
    return normalise_query(pair.query.text), normalise_query(pair.item.title)


def _fitted(run: Run) -> set[str] | None:
    """Give the pairs that SFT learned, without those of which it only measured the loss; None if that is not told."""
    recorded = _inputs(run, "sft").get("phases", ())
    if run.recipe.teacher.method == "progressive" or not recorded or not run.finished(GENERATE):
        return None
    rows = sft_rows(run)
    found = hash_json([[row.pair_id, row.prompt, row.completion] for row in rows])
    if [rest[-1] for name, *rest in recorded if name == _PHASE] != [found]:
        return None
    return {row.pair_id for row in split_held_out(rows)[0]}


def _preferred(run: Run) -> set[str] | None:
    """Give the pairs that the teacher's DPO learned, none where SFT's policy is the teacher; None if not told."""
    if not run.finished(_SHIPPED):
        return set()
    report = json.loads((run.folder(_SHIPPED) / "report.json").read_text(encoding="utf-8"))
    if report["shipped"] != _SHIPPED:
        return set()
    path = run.folder("preferences") / FILE
    if not path.is_file() or _inputs(run, _SHIPPED).get("files", {}).get(FILE) != hash_file(path):
        return None
    return {row.pair_id for row in read_preferences(path)}


def _inputs(run: Run, stage: str) -> dict[str, Any]:
    """Give what a finished stage read, {} where it left no record."""
    path = run.folder(stage) / INPUTS
    if not path.is_file():
        return {}
    inputs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["inputs"]
    return inputs

"""`relevance inspect`: where a scorer is wrong, as one page: confusions, worst mistakes, doubtful labels, what-ifs.

Two ways to start:

  relevance score pairs.parquet --probabilities --out scored.parquet
  relevance inspect scored.parquet --pairs pairs.parquet --bundle BUNDLE --out DIR

  relevance inspect --run runs/demo --split dev --out DIR

SCORED is what `relevance score` writes, .jsonl or .parquet. Expected columns: query_id, item_id, score, tier, label
(the class that was predicted), kept, policy_locale; probabilities (from `score --probabilities`) for doubtful labels
and for an exact what-if under business rules; reason where a pair has no score.

--pairs is the file that was scored: query, title, and optionally query_id, item_id, label (the class that an annotator
gave, a code or a title of the bundle's scheme), category (or an attribute of that name), exact_only. Without labels the
page shows tiers, scores and what another edge would filter.

DIR receives inspect.html, one page that fetches nothing, and inspect.json, the same as data.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from relevance.bundle import open_bundle
from relevance.errors import InputError
from relevance.pairs import BadRows
from training.inspection.examples import Shown
from training.inspection.of_run import files_of, note_test_read, open_run, scored_rows_of
from training.inspection.page import render
from training.inspection.reading import Judge, PairRow, ScoredRow, collect, read_judged, read_scored
from training.inspection.report import Extent, inspect_rows, plain, with_texts
from training.recipe import SPLITS
from training.runs import commit, hash_file

PAGE, DATA = "inspect.html", "inspect.json"


@dataclass(frozen=True, slots=True)
class Source:
    """What is inspected.

    Args: facts: about the files, for the report; judge: who scored them; scored: the rows; pairs: what was scored,
        None where that is not known.
    """

    facts: dict[str, Any]
    judge: Judge
    scored: Iterator[ScoredRow]
    pairs: Path | None


def main(argv: list[str]) -> int:
    """Inspect one scored file or one split of a run.

    Raises: InputError: if an option or a file is wrong; RowError: at the first bad row; RunError: if the run lacks a
        stage; BundleError: if the bundle is damaged.
    """
    arguments = _arguments(argv)
    source = _of_file(arguments) if arguments.run is None else _of_run(arguments)
    bad_rows = BadRows(arguments.on_bad_row)
    report = _inspect(source, arguments, bad_rows)
    report = plain({"source": source.facts, "commit": commit(), "bad_rows": bad_rows.count, **report})
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    (arguments.out / DATA).write_text(text + "\n", encoding="utf-8")
    (arguments.out / PAGE).write_text(render(report), encoding="utf-8")
    overview = report["overview"]
    told = f"{overview['n_rows']} rows, {overview['n_labelled']} with a label; {bad_rows.count} bad rows left out"
    sys.stderr.write(f"relevance inspect: {told} → {arguments.out / PAGE}\n")
    for error in bad_rows.first:
        sys.stderr.write(f"  {error}\n")
    return 0


def _inspect(source: Source, arguments: argparse.Namespace, bad_rows: BadRows) -> dict[str, Any]:
    scheme = source.judge.scheme

    def read(bad_rows: BadRows) -> Iterator[PairRow] | None:
        if source.pairs is None:
            return None
        return read_judged(source.pairs, scheme, category=arguments.category, bad_rows=bad_rows)

    scored = tqdm(source.scored, unit="rows", desc="reading", file=sys.stderr, disable=None)
    rows, left = collect(scored, read(bad_rows), source.judge)
    if arguments.category is not None and len(rows.categories) == 1:
        raise InputError(f"--category: expected a column or an attribute {arguments.category!r} of pairs, found none")
    extent = Extent(Shown(arguments.examples, arguments.per_query), arguments.categories, arguments.draws)
    report = inspect_rows(rows, left, source.judge, extent)
    # Bad rows were reported, or refused, by the first reading.
    return with_texts(report, rows, scheme, read(BadRows("skip")))


def _of_file(arguments: argparse.Namespace) -> Source:
    facts: dict[str, Any] = {name: _file(getattr(arguments, name)) for name in ("policy", "scored", "pairs")}
    bundle = open_bundle(arguments.bundle, arguments.policy)
    facts["bundle"] = bundle.manifest.bundle_id
    judge = Judge(bundle.scheme, bundle.policy, bundle.template)
    return Source(facts, judge, read_scored(arguments.scored, bundle.scheme), arguments.pairs)


def _of_run(arguments: argparse.Namespace) -> Source:
    run, judge = open_run(arguments.run)
    predictions, pairs = files_of(run, arguments.split)
    if arguments.split == "test":
        note_test_read(run, predictions)
    facts = {"scored": _file(predictions), "pairs": _file(pairs), "run": run.recipe.name, "split": arguments.split}
    return Source(facts, judge, scored_rows_of(run, judge, predictions), pairs)


def _file(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    if not path.is_file():
        raise InputError(f"{path}: expected a file, found none")
    return {"name": path.name, "sha256": hash_file(path)}


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="relevance inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scored", type=Path, nargs="?", help="what `relevance score` wrote: .jsonl or .parquet")
    parser.add_argument("--pairs", type=Path, help="the file that was scored, with labels where there are any")
    parser.add_argument(
        "--bundle", type=Path, help="the bundle that scored it; the embedded one: service/default_bundle"
    )
    parser.add_argument("--policy", type=Path, help="the policy.toml it was scored with, if not the bundle's own")
    parser.add_argument("--run", type=Path, help="a run directory, instead of a scored file: its student's predictions")
    parser.add_argument("--split", choices=SPLITS, default="dev", help="of the run (default: dev)")
    parser.add_argument("--out", type=Path, required=True, help=f"directory for {PAGE} and {DATA}")
    parser.add_argument("--category", metavar="NAME", help="column or attribute that groups items (default: category)")
    parser.add_argument("--categories", type=_positive, default=20, help="of their own in tables (default 20)")
    parser.add_argument("--examples", type=_positive, default=50, help="rows of each list (default 50)")
    parser.add_argument("--per-query", type=_positive, default=3, help="most rows of one query in a list (default 3)")
    parser.add_argument("--draws", type=_positive, default=1000, help="of the query bootstrap (default 1000)")
    parser.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail", help="what a bad row of --pairs does")
    arguments = parser.parse_args(argv)
    if (arguments.scored is None) == (arguments.run is None):
        raise InputError("expected either a scored file or --run DIR")
    wrong = ("--pairs", "--bundle", "--policy") if arguments.run is not None else ()
    given = [name for name in wrong if getattr(arguments, name.removeprefix("--")) is not None]
    if given:
        raise InputError(f"--run: expected none of {', '.join(given)} beside it, since the run has its own")
    if arguments.scored is not None and arguments.bundle is None:
        raise InputError("--bundle: expected the bundle that scored the file, found none")
    return arguments


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {text}")
    return value

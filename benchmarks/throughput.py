"""Throughput of the scoring path, as ratios of interleaved rounds in one process.

(a) length-sorted token-budget batches against arrival-order batches of 32, on one locale's titles and on all locales
    with 5 % long outliers; (b) the Scorer (tokenise + run + calibrate + tier) against the bare session on the same
    batches, with a cold and a warm item cache. Each figure is the median over rounds of a time ratio, with its 95 %
    bootstrap interval, beside the A/A interval of the same run (the same thing measured twice).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import gmtime, perf_counter, strftime

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.measure import bootstrap, machine, titles_of
from relevance.pairs import Item
from service.model import Model, load_model
from service.scorer import TOKEN_BUDGET, Prepared, plan_batches
from service.settings import load_settings

ARRIVAL_BATCH = 32
QUERY = "gift for kitchen"


@dataclass(frozen=True)
class Ratio:
    """Median over rounds of slower time / faster time, its 95 % interval, and the A/A interval beside it."""

    median: float
    low: float
    high: float
    aa_low: float
    aa_high: float
    bound: float
    verdict: str


def run_batches(model: Model, prepared: Prepared, batches: list[NDArray[np.int64]]) -> None:
    """Assemble and run each batch."""
    for rows in batches:
        model.session.run(model.scorer.batch(prepared, rows))


def compare(slow: Callable[[], None], fast: Callable[[], None], *, rounds: int, bound: float) -> Ratio:
    """Time slow, fast, fast again in turn, the order reversed every other round."""
    slow_s, fast_s, again_s = ([], [], [])
    steps = [(slow, slow_s), (fast, fast_s), (fast, again_s)]
    for step, _ in steps:
        step()
    for number in tqdm(range(rounds), file=sys.stderr):
        for step, times in steps if number % 2 else steps[::-1]:
            began = perf_counter()
            step()
            times.append(perf_counter() - began)
    ratios, same = np.divide(slow_s, fast_s), np.divide(again_s, fast_s)
    low, high = bootstrap(ratios)
    aa_low, aa_high = bootstrap(same)
    verdict = "met" if low >= bound else "missed" if high < bound else "undecided"
    return Ratio(float(np.median(ratios)), low, high, aa_low, aa_high, bound, verdict)


def batching(model: Model, titles: list[str], *, rounds: int, bound: float, token_budget: int) -> Ratio:
    """Compare arrival-order batches of 32 with the planned ones, tokens at hand."""
    prepared = model.scorer.prepare(QUERY, [Item(title) for title in titles])
    arrival = np.array_split(np.arange(len(titles)), range(ARRIVAL_BATCH, len(titles), ARRIVAL_BATCH))
    planned = plan_batches(prepared.length_B, token_budget)
    return compare(
        lambda: run_batches(model, prepared, arrival),
        lambda: run_batches(model, prepared, planned),
        rounds=rounds,
        bound=bound,
    )


def overhead(model: Model, titles: list[str], *, rounds: int, bound: float, token_budget: int, warm: bool) -> Ratio:
    """Compare the bare session on ready-made batches with the whole scorer on texts; bound on bare / scorer."""
    items = [Item(title) for title in titles]
    prepared = model.scorer.prepare(QUERY, items)
    batches = [model.scorer.batch(prepared, rows) for rows in plan_batches(prepared.length_B, token_budget)]
    cache = model.bundle.tokenizer.item_cache

    def bare() -> None:
        for batch in batches:
            model.session.run(batch)

    def scorer() -> None:
        if not warm and cache is not None:
            cache.clear()
        model.scorer.score(QUERY, items)

    return compare(bare, scorer, rounds=rounds, bound=bound)


def main(argv: list[str]) -> int:
    """Measure and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: the embedded one")
    parser.add_argument("--data", type=Path, help="Parquet with product_title and product_locale; default: generated")
    parser.add_argument("--items", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "throughput.json")
    arguments = parser.parse_args(argv)
    settings = load_settings(bundle=arguments.bundle)
    model = load_model(settings)
    titles = titles_of(arguments.data, arguments.items, np.random.default_rng(0))
    same = {"rounds": arguments.rounds, "token_budget": TOKEN_BUDGET}
    ratios = {
        "sorted_over_arrival_us": batching(model, titles["us"], bound=1.5, **same),
        "sorted_over_arrival_all_with_outliers": batching(model, titles["all"], bound=2.0, **same),
        "scorer_over_bare_cold": overhead(model, titles["us"], bound=0.90, warm=False, **same),
        "scorer_over_bare_warm": overhead(model, titles["us"], bound=0.97, warm=True, **same),
    }
    report = {
        "measured": strftime("%Y-%m-%d", gmtime()),
        "machine": machine(),
        "bundle": model.bundle.manifest.bundle_id,
        "model": model.bundle.manifest.model_id,
        "precision": model.session.precision,
        "threads": settings.threads,
        "batch_tokens": TOKEN_BUDGET,
        "titles": "generated" if arguments.data is None else arguments.data.name,
        "items": arguments.items,
        "rounds": arguments.rounds,
        "ratios": {name: asdict(ratio) for name, ratio in ratios.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, ratio in ratios.items():
        interval = f"[{ratio.low:.3f}, {ratio.high:.3f}]"
        same_interval = f"[{ratio.aa_low:.3f}, {ratio.aa_high:.3f}]"
        print(f"{name}: {ratio.median:.3f} {interval}, A/A {same_interval}, bound {ratio.bound}: {ratio.verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

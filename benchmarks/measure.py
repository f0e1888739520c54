"""What the measuring programs share: texts, intervals, verdicts, options and the report each of them writes."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import gmtime, strftime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relevance.pairs import parquet_rows

RESULTS = Path(__file__).parent / "results"
QUICK_RESULTS = Path(__file__).parents[1] / "runs" / "benchmarks" / "quick"
"""Where reports of `--quick` go: they hold no figures, and must not replace any."""
OUTLIER_SHARE = 0.05
WORDS = {
    "us": "steel kettle organic cotton wireless charger set of two kitchen lamp running shoe black large",
    "es": "hervidor acero algodón orgánico cargador inalámbrico juego cocina lámpara zapatilla negro grande",
    "jp": "電気ケトル ステンレス 充電器 ワイヤレス 大容量 軽量 防水 スニーカー メンズ 収納 ケース",
}
_TITLES = 5000
"""Distinct titles that requests are made of, at most."""
Statistic = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval; with a bound, also the verdict.

    Args: n: values or blocks it comes from.
    """

    value: float
    low: float
    high: float
    n: int
    bound: float | None = None
    verdict: str | None = None


def p99(values: NDArray[np.float64], axis: int | None = None) -> Any:
    """Give the 99th percentile, like `np.median` gives the 50th."""
    return np.quantile(values, 0.99, axis=axis)


def bootstrap(
    values: NDArray[np.float64], draws: int = 2000, *, statistic: Statistic = np.median
) -> tuple[float, float]:
    """Give the 95 % percentile interval of a statistic, the median unless told otherwise."""
    rng = np.random.default_rng(0)
    found = statistic(rng.choice(values, (draws, len(values))), axis=1)
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))


def verdict(low: float, high: float, *, at_least: float | None = None, at_most: float | None = None) -> str | None:
    """Say what an interval shows of a bound: met by its worse end, missed by its better end, else undecided."""
    if at_least is not None:
        return "met" if low >= at_least else "missed" if high < at_least else "undecided"
    if at_most is not None:
        return "met" if high <= at_most else "missed" if low > at_most else "undecided"
    return None


def figure(
    values: Sequence[float] | NDArray[np.float64],
    *,
    statistic: Statistic = np.median,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Figure:
    """Give a statistic of independent values with its interval, and the verdict if there is a bound."""
    array = np.asarray(values, dtype=np.float64)
    low, high = bootstrap(array, statistic=statistic)
    bound = at_most if at_least is None else at_least
    told = verdict(low, high, at_least=at_least, at_most=at_most)
    return Figure(float(statistic(array)), low, high, len(array), bound, told)


def block_ratio(
    above: Sequence[NDArray[np.float64]],
    below: Sequence[NDArray[np.float64]],
    *,
    statistic: Statistic = p99,
    at_most: float | None = None,
) -> Figure:
    """Give statistic(above) / statistic(below) with an interval that resamples whole blocks.

    Values of one block were taken under the same conditions, so that blocks, not values, are independent.

    Args: above, below: one array of values a block; both have as many blocks, taken in turn.
    """
    rng = np.random.default_rng(0)
    found = []
    for _ in range(1000):
        drawn = rng.integers(0, len(above), len(above)).tolist()
        top, bottom = np.concatenate([above[i] for i in drawn]), np.concatenate([below[i] for i in drawn])
        found.append(statistic(top) / statistic(bottom))
    low, high = (float(np.quantile(found, q)) for q in (0.025, 0.975))
    value = float(statistic(np.concatenate(above)) / statistic(np.concatenate(below)))
    return Figure(value, low, high, len(above), at_most, verdict(low, high, at_most=at_most))


def titles_of(data: Path | None, n: int, rng: np.random.Generator) -> dict[str, list[str]]:
    """Give n US titles, and n of all locales with a share of long outliers: from a Parquet file, else generated."""
    if data is not None:
        rows = [row for _, row in parquet_rows(data, ("product_title", "product_locale"))]
        pools = {
            "us": [r["product_title"] for r in rows if r["product_locale"] == "us"],
            "all": [r["product_title"] for r in rows],
        }
    else:
        made = {
            locale: [
                " ".join(rng.choice(words.split(), int(np.clip(rng.lognormal(2.5, 0.5), 2, 50)))) for _ in range(2 * n)
            ]
            for locale, words in WORDS.items()
        }
        pools = {"us": made["us"], "all": [title for titles in made.values() for title in titles]}
    chosen = {name: [str(t) for t in rng.choice(pool, n)] for name, pool in pools.items()}
    for row in rng.choice(n, int(OUTLIER_SHARE * n), replace=False):
        chosen["all"][row] = " ".join([chosen["all"][row]] * 40)
    return chosen


def requests_of(data: Path | None, sizes: Sequence[int], *, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Give one (US query, its item titles) for each size; titles are drawn from all US ones, as a first stage might."""
    rng = np.random.default_rng(seed)
    pool = titles_of(data, max(1, min(_TITLES, sum(sizes))), rng)["us"]
    titles = [pool[i] for i in rng.integers(0, len(pool), sum(sizes)).tolist()]
    if data is not None:
        rows = (row for _, row in parquet_rows(data, ("query", "query_locale")))
        known = list(dict.fromkeys(row["query"] for row in rows if row["query_locale"] == "us"))
    else:
        words = WORDS["us"].split()
        known = [f"{one} {two} {three}" for one in words for two in words for three in words]
    queries = rng.choice(known, len(sizes), replace=len(known) < len(sizes)).tolist()
    ends = np.cumsum(sizes).tolist()
    return [(query, titles[end - size : end]) for query, size, end in zip(queries, sizes, ends, strict=True)]


def options(description: str | None, name: str) -> argparse.ArgumentParser:
    """Give a parser with the options that every program takes."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--bundle", type=Path, help="default: the embedded one")
    parser.add_argument(
        "--data", type=Path, help="Parquet with query, query_locale, product_title, product_locale; default: generated"
    )
    parser.add_argument("--out", type=Path, help=f"default: {RESULTS.parent.name}/{RESULTS.name}/{name}.json")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that the program works")
    parser.set_defaults(program=name)
    return parser


def report_path(arguments: argparse.Namespace) -> Path:
    """Give where a report goes: as told, else among the results, that of a quick run apart from them."""
    if arguments.out is not None:
        return Path(arguments.out)
    return (QUICK_RESULTS if arguments.quick else RESULTS) / f"{arguments.program}.json"


def write_report(
    arguments: argparse.Namespace, argv: Sequence[str], *, server: Mapping[str, Any], figures: Mapping[str, Any]
) -> None:
    """Write one JSON file: what was measured, when, where and how; the figures are shown too.

    Args: arguments, argv: parsed and as given, paths are told by their last part; server: what was served, as
        `Server.description` gives it; figures: name → Figure as a dict, or plain values.
    """
    told = [Path(word).name if "/" in word else word for word in argv]
    report = {
        "measured": strftime("%Y-%m-%d", gmtime()),
        "machine": machine(),
        "command": f"python -m benchmarks.{arguments.program} {' '.join(told)}".strip(),
        "texts": "generated" if arguments.data is None else arguments.data.name,
        "server": dict(server),
        "figures": dict(figures),
    }
    path = report_path(arguments)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    json.dump(report["figures"], sys.stdout, indent=2)
    sys.stdout.write("\n")


def machine() -> str:
    """Describe the processor and the cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores"

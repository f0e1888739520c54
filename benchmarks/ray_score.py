"""`relevance score --ray` on a local cluster against the single process: what the cluster costs and what it scales to.

The same file is scored by one process of one thread, and by a local Ray cluster with each number of workers, in turn,
round after round; the outputs must be equal to the byte. A large and a small file tell the start-up (cluster, workers,
their models) from the rate: rows a second are the rows by which the files differ over the seconds by which they do. On
one machine workers share its cores, so a cluster of one worker shows what Ray adds and more workers cannot show more
than the cores there are.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.measure import figure, options, requests_of, write_report
from benchmarks.servers import PROJECT, cores
from relevance.bundle import open_bundle
from service.settings import DEFAULT_BUNDLE

ITEMS = 50
SINGLE = 0
"""Stands for the single process where others are numbers of workers."""


def write_pairs(path: Path, data: Path | None, queries: int) -> None:
    """Write a file of pairs: 50 items a query."""
    with path.open("w", encoding="utf-8") as file:
        for number, (query, titles) in enumerate(requests_of(data, [ITEMS] * queries, seed=7)):
            for title in titles:
                row = {"query": f"{query} {number}", "title": title, "locale": "us"}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def seconds_of(file: Path, out: Path, arguments: Namespace, workers: int) -> float:
    """Score a file in a process of its own, as from a shell.

    Raises: RuntimeError: if the command fails; carries what it wrote.
    """
    command = [sys.executable, "-m", "relevance.cli", "score", str(file), "--out", str(out), "--threads", "1"]
    if arguments.bundle is not None:
        command += ["--bundle", str(arguments.bundle)]
    if workers != SINGLE:
        command += ["--ray", "local", "--workers", str(workers)]
    began = perf_counter()
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"relevance score ended with {done.returncode}: {done.stderr[-2000:]}")
    return perf_counter() - began


def figures_of(seconds: dict[int, NDArray[np.float64]], rows: tuple[int, int]) -> dict[str, Any]:
    """Give figures of seconds, one row a round, columns small and large file; ratios are within a round."""
    steady = {workers: (rows[1] - rows[0]) / (found[:, 1] - found[:, 0]) for workers, found in seconds.items()}
    start_s = {workers: found[:, 1] - rows[1] / steady[workers] for workers, found in seconds.items()}
    figures: dict[str, Any] = {}
    for workers, found in seconds.items():
        name = "single" if workers == SINGLE else f"ray_{workers}"
        figures[name] = {
            "seconds_large": asdict(figure(found[:, 1])),
            "rows_per_s_after_start": asdict(figure(steady[workers])),
            "start_s": asdict(figure(start_s[workers])),
        }
        if workers != SINGLE:
            figures[name] |= {
                "seconds_over_single": asdict(figure(found[:, 1] / seconds[SINGLE][:, 1])),
                "rate_over_single": asdict(figure(steady[workers] / steady[SINGLE])),
                "start_s_beyond_single": asdict(figure(start_s[workers] - start_s[SINGLE])),
            }
    return figures


def measure(arguments: Namespace, folder: Path) -> dict[str, Any]:
    """Let the ways take turns on both files.

    Raises: RuntimeError: if two ways give different bytes.
    """
    sizes = (arguments.queries // 10, arguments.queries)
    files = [folder / f"pairs.{queries}.jsonl" for queries in sizes]
    for file, queries in zip(files, sizes, strict=True):
        write_pairs(file, arguments.data, queries)
    ways = [SINGLE, *arguments.workers]
    seconds: dict[int, list[list[float]]] = {workers: [] for workers in ways}
    for number in tqdm(range(arguments.rounds), file=sys.stderr, desc="rounds"):
        for workers in ways if number % 2 else ways[::-1]:
            outs = [file.with_suffix(f".{workers}.jsonl") for file in files]
            seconds[workers].append(
                [seconds_of(file, out, arguments, workers) for file, out in zip(files, outs, strict=True)]
            )
        for file in files:
            if len({file.with_suffix(f".{workers}.jsonl").read_bytes() for workers in ways}) != 1:
                raise RuntimeError(f"{file.name}: expected the same bytes from one process and from Ray, found others")
    found = {workers: np.asarray(times) for workers, times in seconds.items()}
    rows = (sizes[0] * ITEMS, sizes[1] * ITEMS)
    told = {"same_bytes": True, "rows": list(rows), "rounds": arguments.rounds, "cores": cores()}
    return figures_of(found, rows) | told


def main(argv: Sequence[str]) -> int:
    """Measure and write results/ray_score.json."""
    parser = options(__doc__, "ray_score")
    parser.add_argument(
        "--queries", type=int, default=400, help=f"of {ITEMS} items in the large file, a tenth in the small"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.queries, arguments.rounds, arguments.workers = 20, 1, [2]
    manifest = open_bundle(arguments.bundle or DEFAULT_BUNDLE).manifest
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments, Path(folder))
    server = {"bundle": manifest.bundle_id, "model": manifest.model_id, "threads_of_each_scorer": 1}
    write_report(arguments, argv, server=server, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python -m benchmarks.dashboard_picture`: draw what dashboards show of a real run, from a real Prometheus.

The service gets a calm and a busy spell; all windows are shortened (benchmarks/watched.py), so the picture shows what
the panels look like and measures nothing. Lines that are always 0 are left out.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.watched import Line, Prometheus, exercise, shortened, watched_service
from k8s.monitoring.__main__ import FOLDER
from k8s.monitoring.panels import Chart
from k8s.monitoring.relevance_boards import RELEVANCE
from k8s.monitoring.service_boards import GOLDEN
from k8s.monitoring.slo_board import SLO

PANELS = {
    SLO: ("Availability: burn rate", "Scored: burn rate", "Latency: burn rate", "Rejected by admission"),
    GOLDEN: (
        "Requests by outcome",
        "Requests by size class",
        "Pairs by outcome",
        "p50 by size class",
        "p99 by size class",
        "p99 by stage",
        "Estimated wait",
    ),
    RELEVANCE: ("Filter rate by locale",),
}
UNITS = {"percentunit": "share", "reqps": "a second", "ops": "a second", "short": "", "s": "seconds"}
_BUSY_CLIENTS = 3
_FIRST_BUSY_ROUND = 1_000


def charts() -> list[tuple[str, Chart]]:
    """Give the charts to draw, with the titles of their dashboards."""
    return [
        (board.title, chart)
        for board, titles in PANELS.items()
        for title in titles
        for chart in board.charts
        if chart.title == title
    ]


def draw(found: Sequence[tuple[str, Chart, list[tuple[str, Line]]]], path: Path, *, since: float) -> None:
    """Draw a grid of panels.

    Args: found: title of the dashboard, chart, and its lines with the legend of each; since: unix time of 0 s.
    """
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "relevance", "font.size": 7}
    figure = Figure(figsize=(11, 2.1 * -(-len(found) // 3)), layout="constrained")
    for axes, (board, chart, lines) in zip(figure.subplots(-(-len(found) // 3), 3).flat, found, strict=False):
        _draw_panel(axes, chart, lines, since)
        axes.set_title(f"{board.removeprefix('Relevance: ')} · {chart.title}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _draw_panel(axes: Axes, chart: Chart, lines: Sequence[tuple[str, Line]], since: float) -> None:
    for legend, line in lines:
        axes.plot([at - since for at in line.times], line.values, linewidth=1, label=legend)
    top = axes.get_ylim()[1]
    if chart.limit is not None and chart.limit < 2 * top:
        axes.axhline(chart.limit, color="red", linewidth=0.7, linestyle="--")
    axes.set_ylim(bottom=0)
    axes.set_ylabel(UNITS[chart.unit])
    axes.set_xlabel("seconds of the run")
    if lines:
        axes.legend(fontsize=5, loc="upper left", ncols=2)


def legend_of(template: str, line: Line) -> str:
    """Fill a legend as Grafana does."""
    return re.sub(r"\{\{(\w+)\}\}", lambda name: line.labels.get(name[1], ""), template).strip()


def telling(lines: Sequence[tuple[str, Line]]) -> list[tuple[str, Line]]:
    """Leave out lines that are always 0 and those that lie on an earlier one, as windows of equal length do."""
    kept: list[tuple[str, Line]] = []
    seen: list[list[float]] = []
    for legend, line in lines:
        numbers = [value for value in line.values if not math.isnan(value)]
        if any(numbers) and numbers not in seen:
            seen.append(numbers)
            kept.append((legend, line))
    return kept


def ask_all(prometheus: Prometheus, seconds: float) -> list[tuple[str, Chart, list[tuple[str, Line]]]]:
    """Give every chart with what its queries gave over the last seconds."""
    found = []
    for board, chart in charts():
        lines = [
            (legend_of(legend, line), line)
            for legend, expr in chart.queries
            for line in prometheus.lines(shortened(expr), seconds)
        ]
        found.append((board, chart, telling(lines)))
    return found


def main(argv: list[str]) -> int:
    """Run, ask, draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard_picture", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/img/dashboards.svg"), help="default %(default)s")
    parser.add_argument("--calm", type=int, default=15, help="rounds of calm traffic (default %(default)s)")
    parser.add_argument("--busy", type=int, default=8, help="rounds of each busy client (default %(default)s)")
    arguments = parser.parse_args(argv)
    rule_files = [FOLDER / "rules" / f"{name}.yaml" for name in ("slo", "causes", "latency-cpu")]
    with (
        tempfile.TemporaryDirectory() as folder,
        watched_service(Path(folder), rule_files) as (server, prometheus),
    ):
        prometheus.wait_for_scrapes(2)
        began = time.time()
        for number in range(arguments.calm):
            exercise(server.port, number)
            prometheus.wait_for_scrapes(1)
        with ThreadPoolExecutor(_BUSY_CLIENTS) as pool:
            rounds = range(_FIRST_BUSY_ROUND, _FIRST_BUSY_ROUND + _BUSY_CLIENTS * arguments.busy)
            list(pool.map(lambda number: exercise(server.port, number), rounds))
        prometheus.wait_for_scrapes(5)
        found = ask_all(prometheus, time.time() - began)
    draw(found, arguments.out, since=began)
    print(f"{arguments.out}: {len(found)} panels")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

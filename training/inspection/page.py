"""The page of an inspection: tables, two charts as inline SVG, a little script that sorts; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from training.charts import STYLE, svg

_TEMPLATES = Path(__file__).parents[1] / "templates"
_TEMPLATE = "inspect.html.j2"
_COLOURS = ("#2f9e6e", "#8ab833", "#d4a017", "#8e6bd1", "#4a90d9", "#d1495b")
"""From the most to the least relevant class; readable on white and on black."""
_GREY = "#8a94a0"
_CLEAR = {"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none"}
_KINDS = {
    "lost": "Most relevant pairs that are filtered",
    "leaked": "Least relevant pairs that are kept",
    "other": "Other pairs in a wrong tier",
}


def render(report: Mapping[str, Any]) -> str:
    """Give the page of what `relevance inspect` found."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "figure": _figure,
        "percent": _percent,
        "share": _share,
        "count": _count,
        "some": _some,
        "heat": _heat,
    }
    titles = report["scheme"]["titles"]
    charts = {"scores": score_chart(report["overview"]["scores"], titles)}
    charts |= {"what_if": what_if_chart(report["what_if"][0])} if report["has_labels"] else {}
    return environment.get_template(_TEMPLATE).render(
        report=report,
        titles=titles,
        names=dict(zip(report["scheme"]["classes"], titles, strict=True)),
        kinds=_KINDS,
        charts={name: Markup(chart) for name, chart in charts.items()},
    )


def score_chart(scores: Mapping[str, Any], titles: Sequence[str]) -> str:
    """Draw how many pairs of each label have which score, labels stacked; those without a label in grey."""
    edges = np.array(scores["edges"])
    places = np.linspace(0, len(_COLOURS) - 1, len(titles)).round().astype(int).tolist()
    layers = [(t, _COLOURS[p], c) for t, p, c in zip(titles, places, scores["by_label"], strict=True)]
    layers.append(("no label", _GREY, scores["unlabelled"]))
    with mpl.rc_context(STYLE | _CLEAR | {"svg.hashsalt": "scores"}):
        figure = Figure(figsize=(6.2, 2.7), layout="constrained")
        axes = figure.subplots()
        below = np.zeros(len(edges) - 1)
        for title, colour, counts in layers:
            if any(counts):
                axes.bar(
                    edges[:-1], counts, np.diff(edges) * 0.92, bottom=below, align="edge", color=colour, label=title
                )
                below = below + counts
        axes.set(xlim=(0, 1), xlabel="score", ylabel="pairs")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _for_both_themes(svg(figure, "Pairs by score and label"))


def what_if_chart(table: Mapping[str, Any]) -> str:
    """Draw what each candidate edge keeps, and how much of the most and least relevant class it filters."""
    lines = table["lines"]
    at = [line["edge"] for line in lines]
    with mpl.rc_context(STYLE | _CLEAR | {"svg.hashsalt": "what_if"}):
        figure = Figure(figsize=(6.2, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.plot(at, [line["kept"] for line in lines], color=_GREY, label="pairs kept")
        for name, colour, label in (
            ("false_filter", _COLOURS[0], "most relevant filtered"),
            ("leak", _COLOURS[-1], "least relevant kept"),
        ):
            if any(line[name]["n"] for line in lines):
                value, low, high = (
                    np.array([line[name][key] for line in lines], dtype=np.float64) for key in ("value", "low", "high")
                )
                axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(at, value, color=colour, label=label)
        today = sorted(set(table["edges"].values()))
        for edge in today:
            axes.axvline(edge, color="#000000", linestyle="--", linewidth=1)
        axes.plot([], [], color="#000000", linestyle="--", linewidth=1, label=f"today's edge{'s' * (len(today) > 1)}")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="filter edge", ylabel="share")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return _for_both_themes(svg(figure, "What each filter edge keeps and loses"))


def _for_both_themes(drawing: str) -> str:
    """Let black follow the colour of the text; the page's style sheet does the same for letters."""
    return drawing.replace("#000000", "currentColor")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _share(interval: Mapping[str, float | None]) -> str:
    """Give `54.8 % (50.0–59.8)`."""
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return _percent(value)
    return f"{100 * value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _count(n: int) -> str:
    return f"{n:,}"


def _some(n: int, name: str) -> str:
    """Give `1 pair`, `2,000 pairs`, `3 queries`."""
    plural = name[:-1] + "ies" if name.endswith("y") else name + "s"
    return f"{n:,} {name if n == 1 else plural}"


def _heat(count: int, row: Sequence[int]) -> int:
    """Give a count as a percentage of its row, for a cell's shade."""
    return round(100 * count / max(1, sum(row)))

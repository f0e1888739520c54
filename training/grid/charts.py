"""Charts of a grid's report as inline SVG, made as those of `training.charts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from training.charts import STYLE, svg

_AHEAD, _BEHIND, _OPEN = "#22693a", "#9b2c2c", "#718096"
_CLASSES = ("#2b6cb0", "#dd6b20", "#805ad5", "#4a5568", "#319795", "#b83280")
_ROW = 0.27


def forest(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw differences of macro-F1 with their intervals, one line a comparison, the detectable difference as a band.

    Args: rows: of a family in results.json, those that were run.
    """
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"forest {title}"}):
        figure = Figure(figsize=(7.2, 0.9 + _ROW * max(1, len(rows))), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color="black", linewidth=0.8)
        for i, row in enumerate(rows):
            own, y = row["figures"]["macro_f1"], len(rows) - 1 - i
            colour = {"ahead": _AHEAD, "behind": _BEHIND}.get(row["verdict"], _OPEN)
            reach = own["detectable"] or 0.0
            axes.barh(y, 2 * reach, left=-reach, height=0.7, color="#edf2f7")
            if own["low"] is not None and own["high"] is not None:
                axes.plot([own["low"], own["high"]], [y, y], color=colour, linewidth=1.6)
            axes.plot(own["value"], y, color=colour, marker="o", markersize=4)
        names = [f"{row['ours_title']} − {row['theirs_title']}" for row in rows]
        axes.set_yticks(range(len(rows) - 1, -1, -1), names)
        axes.set_xlabel("difference of macro-F1; grey: smaller than this is not detectable")
        return svg(figure, title)


def class_f1(systems: Sequence[Mapping[str, Any]], codes: Sequence[str], titles: Sequence[str]) -> str:
    """Draw F1 of each class, one line a system, as dots."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": "class_f1"}):
        figure = Figure(figsize=(7.2, 1.0 + _ROW * max(1, len(systems))), layout="constrained")
        axes = figure.subplots()
        y = range(len(systems) - 1, -1, -1)
        for k, (code, title) in enumerate(zip(codes, titles, strict=True)):
            values = [system["figures"][f"f1_{code}"]["value"] for system in systems]
            axes.plot(
                values, list(y), marker="o", linestyle="none", markersize=4, color=_CLASSES[k % len(_CLASSES)],
                label=title,
            )  # fmt: skip
        axes.set_yticks(list(y), [system["title"] for system in systems])
        axes.set(xlim=(0, 1), xlabel="F1")
        axes.grid(axis="y", color="#edf2f7")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(codes))
        return svg(figure, "F1 of each class by system")


def seed_spread(runs: Sequence[Mapping[str, Any]]) -> str:
    """Draw macro-F1 of every finished run, one line a system.

    Args: runs: of results.json, in its order, those that finished.
    """
    names = list(dict.fromkeys(run["title"] for run in runs))
    with mpl.rc_context(STYLE | {"svg.hashsalt": "seed_spread"}):
        figure = Figure(figsize=(7.2, 0.9 + _ROW * max(1, len(names))), layout="constrained")
        axes = figure.subplots()
        for run in runs:
            axes.plot(
                run["macro_f1"], len(names) - 1 - names.index(run["title"]), color=_CLASSES[0], marker="|",
                markersize=9, markeredgewidth=1.6,
            )  # fmt: skip
        axes.set_yticks(range(len(names) - 1, -1, -1), names)
        axes.set_xlabel("macro-F1, one mark a seed")
        axes.grid(axis="y", color="#edf2f7")
        return svg(figure, "Macro-F1 of every seed")


def response_curve(sweep: Mapping[str, Any]) -> str:
    """Draw macro-F1 over the values of a swept key with intervals, and ours as a line and a band.

    Args: sweep: of results.json, with at least one finished point; numbers stand on a logarithmic axis.
    """
    points, ours = sweep["points"], sweep["ours"]
    numbers = all(isinstance(point["value"], int | float) and point["value"] > 0 for point in points)
    at = [point["value"] if numbers else float(i) for i, point in enumerate(points)]
    drawn = [(x, point["figure"]) for x, point in zip(at, points, strict=True) if point["figure"]]
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"response_curve {sweep['name']}"}):
        figure = Figure(figsize=(4.8, 2.8), layout="constrained")
        axes = figure.subplots()
        if ours is not None:
            axes.axhline(ours["value"], color=_OPEN, linestyle="--", linewidth=1, label="ours")
            if ours["low"] is not None and ours["high"] is not None:
                axes.axhspan(ours["low"], ours["high"], color="#edf2f7")
            axes.legend(loc="lower right", bbox_to_anchor=(1, 1))
        for x, own in drawn:
            if own["low"] is not None and own["high"] is not None:
                axes.plot([x, x], [own["low"], own["high"]], color=_CLASSES[0], linewidth=1.2)
        axes.plot(
            [x for x, _ in drawn], [own["value"] for _, own in drawn], color=_CLASSES[0], marker="o", markersize=4
        )
        if numbers:
            axes.set_xscale("log")
        axes.set_xticks(at, [str(point["value"]) for point in points])
        axes.minorticks_off()
        axes.set(xlabel=sweep["title"], ylabel="macro-F1")
        return svg(figure, f"Response curve: {sweep['title']}")

"""Charts of the report as inline SVG: text stays text, nothing is fetched, the same figures give the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
"""What every chart is drawn with; a salt of its own for the ids makes its bytes the same each time."""
_BLUE, _GREY, _RED = "#2b6cb0", "#9aa5b1", "#c53030"


def per_class_f1(
    codes: Sequence[str], figures: Mapping[str, Mapping[str, float | None]], always_macro_f1: float
) -> str:
    """Draw F1 of each class and the macro mean with their intervals, and the macro mean of one constant answer."""
    names = [*(f"f1_{code}" for code in codes), "macro_f1"]
    with mpl.rc_context(STYLE | {"svg.hashsalt": "per_class_f1"}):
        figure = Figure(figsize=(4.6, 2.8), layout="constrained")
        axes = figure.subplots()
        for i, name in enumerate(names):
            value, low, high = (figures[name][key] for key in ("value", "low", "high"))
            axes.bar(i, value or 0.0, color=_GREY if name == "macro_f1" else _BLUE, width=0.6)
            if low is not None and high is not None:
                axes.plot([i, i], [low, high], color="black", linewidth=1.2)
        axes.axhline(always_macro_f1, color=_RED, linestyle="--", linewidth=1, label=f"macro of always {codes[0]}")
        axes.legend(loc="upper right")
        axes.set_xticks(range(len(names)), [*codes, "macro"])
        axes.set_ylim(0, 1)
        axes.set_ylabel("F1")
        return svg(figure, "F1 of each class")


def reliability(bins: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """Draw forecast against frequency of the predicted class, before and after calibration."""
    with mpl.rc_context(STYLE | {"svg.hashsalt": "reliability"}):
        figure = Figure(figsize=(3.8, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
        for key, colour, label in (("before", _GREY, "before"), ("after", _BLUE, "calibrated")):
            axes.plot(
                bins[key]["forecast"], bins[key]["frequency"], color=colour, marker="o", markersize=3, label=label
            )
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability given", ylabel="share that was right")
        axes.legend()
        return svg(figure, "Reliability diagram")


def trade_off(points: Sequence[Mapping[str, float | None]], shipped: tuple[float | None, float | None]) -> str:
    """Draw the share of Irrelevant filtered against the share of Exact filtered, one point a candidate cut.

    Args: shipped: (Exact filtered, Irrelevant filtered) at the shipped policy; None is not drawn.
    """
    exact, irrelevant = (
        np.array([p[key] for p in points], dtype=np.float64) for key in ("exact_filtered", "irrelevant_filtered")
    )
    with mpl.rc_context(STYLE | {"svg.hashsalt": "trade_off"}):
        figure = Figure(figsize=(4.2, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot(exact, irrelevant, color=_BLUE)
        axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
        x, y = (np.array([share], dtype=np.float64) for share in shipped)
        axes.plot(x, y, color=_RED, marker="o", linestyle="none", label="shipped policy")
        axes.legend(loc="lower right")
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of most relevant filtered")
        axes.set_ylabel("share of least relevant filtered")
        return svg(figure, "Filter trade-off curve")


def svg(figure: Figure, title: str) -> str:
    """Give a figure as an `svg` element that tells screen readers its title."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text[text.index("<svg") :])
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)

"""The probing study's table and plot."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from training.studies.study_run import markdown_table, shown

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "probing",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_BLUE, _GREY = "#2b6cb0", "#9aa5b1"


def table(result: Mapping[str, Any]) -> str:
    """Give the Markdown page: representations, what the latent is compared with, and keywords."""
    titles, words = result["titles"], result["keywords"]
    intro = (
        f"Probes for {len(words)} keywords on {result['n_pairs']} pairs of {result['n_queries']} queries, "
        f"{result['folds']} folds of whole queries; system {result['system']}, seeds "
        f"{', '.join(map(str, result['seeds']))}. Pairs whose query or item text shows a keyword are left out of its "
        f"probe. {_scope(len(result['seeds']))}\n"
    )
    representations = markdown_table(
        ("representation", "F1", "AUC", "F1 minus control task", "F1 over the label alone"),
        [
            (
                titles[name],
                _figure(row["f1"]),
                _figure(row["auc"]),
                _figure(row["selectivity"]),
                shown(row["over_label"]),
            )
            for name, row in result["representations"].items()
        ],
    )
    comparisons = markdown_table(
        ("latent r minus", "mean ΔF1", f"keywords ahead (Holm, p < {result['level']:g})", "behind", "undecided"),
        [
            (
                titles[name],
                shown(row["latent_minus"]),
                str(row["ahead"]),
                str(row["behind"]),
                str(len(words) - row["ahead"] - row["behind"]),
            )
            for name, row in result["comparisons"].items()
        ],
    )
    keywords = markdown_table(
        ("keyword", "pairs", "with it", "left out", "F1 of r", "F1 of [CLS]", "F1 of the label", "r over the label"),
        [
            (
                word["word"],
                str(word["n_pairs"]),
                str(word["n_present"]),
                str(word["n_dropped"]),
                *(_figure(word["f1"][name]) for name in ("latent", "cls", "label")),
                f"{shown(word['latent_minus']['label'])}, p = {word['latent_minus']['label']['p_holm']:.3f}",
            )
            for word in words
        ],
    )
    return "\n".join([intro, representations, comparisons, keywords])


def draw_deltas(result: Mapping[str, Any]) -> str:
    """Draw F1 over the label-only probe of each representation: one dot a keyword, the mean with its interval."""
    names = [name for name in result["representations"] if name != "label"]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.4, 0.4 * len(names) + 0.9), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(reversed(names)):
            dots = [word["f1"][name] - word["f1"]["label"] for word in result["keywords"]]
            mean = result["representations"][name]["over_label"]
            axes.plot(dots, [place] * len(dots), color=_GREY, marker=".", linestyle="none")
            axes.plot([mean["low"], mean["high"]], [place, place], color=_BLUE, linewidth=2)
            axes.plot(mean["value"], place, color=_BLUE, marker="o")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(names)), [result["titles"][name] for name in reversed(names)])
        axes.set_xlabel("F1 minus F1 of the label-only probe")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def _scope(n_seeds: int) -> str:
    if n_seeds == 1:
        return "Intervals: 95 %, whole queries drawn, for this one student of each system; p of folds of the same."
    return (
        f"Intervals: 95 %, whole queries and, apart from them, the {n_seeds} seeds drawn; p of folds, for the mean of "
        "these students, other seeds not considered."
    )


def _figure(value: float) -> str:
    return "–" if value != value else f"{value:.3f}"

"""CARD.md: what a bundle was trained on and what it is good and bad at, in figures with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from relevance.bundle import Manifest

SHOWN = ("accuracy", "macro_f1", "auc_exact", "auc_irrelevant", "ndcg_10", "ece", "false_filter_rate", "leak_rate")
"""Figures of the evaluation report that the card shows, where the report has them."""


def read_report(path: Path) -> dict[str, Any]:
    """Read the report of the evaluate stage."""
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def quality_figures(report: dict[str, Any] | None) -> dict[str, float]:
    """Give the primary view's figures and interval ends under `NAME`, `NAME_low`, `NAME_high`."""
    if report is None:
        return {}
    figures = report["views"][report["primary"]]["figures"]
    flat = {}
    for name, row in figures.items():
        for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            if row[end] is not None:
                flat[f"{name}{suffix}"] = float(row[end])
    return flat


def render_card(
    manifest: Manifest, report: dict[str, Any] | None, n_train: int, *, about: Mapping[str, Sequence[str]]
) -> str:
    """Write the card of a bundle for which nobody wrote one.

    Args: n_train: labelled pairs it was trained on; about: further sections, heading → lines.
    """
    scheme = manifest.scheme
    lines = [
        f"# {manifest.model_id}",
        "",
        "A BERT cross-encoder with calibrated relevance tiers, made by the pipeline of relevance-tiers.",
        "",
        f"- Created {manifest.created} at commit {manifest.commit}.",
        f"- Classes ({scheme['name']}): {', '.join(scheme['titles'])}; gains {', '.join(map(str, scheme['gains']))}.",
        f"- Trained on {n_train} labelled pairs; data fingerprint `{manifest.data_fingerprint}`.",
        f"- Precisions: {', '.join(manifest.graphs)}; at most {manifest.limits.max_pair_tokens} tokens a pair.",
        *(f"- Licence of {what}: {licence}." for what, licence in manifest.licences.items()),
        "",
        *(line for heading, points in about.items() for line in (f"## {heading}", "", *_points(points), "")),
        "## Figures",
        "",
        *_figures(report),
        *_comparison(report),
        "",
        "## Locales",
        "",
        *(f"- {name}: {rating}" for name, rating in manifest.locales.items()),
        *([] if manifest.locales else ["All locales share the pooled calibration and cut points."]),
        "",
        "## Limits",
        "",
        "The figures hold for queries and items like those it was evaluated on. It reads the item fields that the",
        "template names and nothing else: no images, no prices, no stock. Longer items are cut at the token limit.",
    ]
    return "\n".join(lines) + "\n"


def _points(points: Sequence[str]) -> list[str]:
    return [f"- {point}" for point in points]


def _figures(report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return ["Not evaluated: the evaluate stage was not run before the export."]
    views = {"all locales": report["views"][report["primary"]], **report["locales"]}
    lines = [
        f"On the {report['split']} split, {report['confidence']:.0%} intervals by query bootstrap.",
        "",
        "| figure | " + " | ".join(f"{name} ({view['n_pairs']} pairs)" for name, view in views.items()) + " |",
        "|---" * (len(views) + 1) + "|",
    ]
    for name in SHOWN:
        rows = [view["figures"].get(name) for view in views.values()]
        if any(row is not None for row in rows):
            lines.append(f"| {name} | " + " | ".join(map(_cell, rows)) + " |")
    return lines


def _comparison(report: dict[str, Any] | None) -> list[str]:
    baseline = None if report is None else report.get("baseline")
    if report is None or baseline is None:
        return []
    lines = [
        "",
        f"Against the baseline ({baseline['name']}, trained on the same pairs), paired, {baseline['confidence']:.0%} "
        "intervals by query bootstrap:",
        "",
        "| figure | rows | this model | baseline | difference |",
        "|---|---|---|---|---|",
    ]
    for name, row in baseline["paired"].items():
        if None not in row.values():
            difference = f"{row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f})"
            lines.append(f"| {name} | {row['rows']} | {row['ours']:.3f} | {row['theirs']:.3f} | {difference} |")
    return lines


def _cell(row: dict[str, float | None] | None) -> str:
    if row is None or row["value"] is None:
        return "–"
    low, high = row["low"], row["high"]
    ends = "" if low is None or high is None else f" ({low:.3f}–{high:.3f})"
    return f"{row['value']:.3f}{ends}"

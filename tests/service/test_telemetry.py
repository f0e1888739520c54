"""The instruments: their names, types and labels are a contract with dashboards; nothing is missing at zero."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

from service.telemetry import Telemetry

GOLDEN = Path(__file__).parents[1] / "golden" / "instruments.txt"


def test_the_instruments_are_the_golden_ones():
    """Name, type, label names and help of each; `make golden` rewrites the file, a diff shows what dashboards lose."""
    telemetry = Telemetry()
    telemetry.declare_locales(["pooled"])
    lines = []
    for family in telemetry.registry.collect():
        labels = sorted({name for sample in family.samples for name in sample.labels} - {"le"})
        lines.append(f"{family.name} {family.type} [{', '.join(labels)}] {family.documentation}")
    found = "\n".join(sorted(lines)) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")

    assert found == GOLDEN.read_text(encoding="utf-8")


def test_counters_with_known_labels_are_there_before_anything_happens():
    """A rate over a series that does not exist yet is a hole in a dashboard: every counter has a sample at once."""
    telemetry = Telemetry()
    telemetry.declare_locales(["pooled", "us"])

    empty = [family.name for family in telemetry.registry.collect() if family.type != "gauge" and not family.samples]

    assert empty == []


def test_what_is_not_known_is_not_zero():
    """Agreement with a shadow that does not exist is not a number, so that no alert on a low one fires."""
    telemetry = Telemetry()

    values = [
        telemetry.registry.get_sample_value(f"relevance_shadow_{name}") for name in ("tier_kappa", "rank_correlation")
    ]

    assert all(value is not None and math.isnan(value) for value in values)


def test_scores_are_counted_by_locale_in_buckets_that_add_up():
    """0.0, 0.05, 0.5 and 1.0: cumulative counts at the edges, the sum, and other locales untouched."""
    telemetry = Telemetry()
    telemetry.declare_locales(["pooled", "us"])
    telemetry.score.observe("us", np.asarray([0.0, 0.05, 0.5, 1.0]))

    def value(name: str, **labels: str) -> float | None:
        """Give one sample."""
        return telemetry.registry.get_sample_value(name, labels)

    edges = {
        edge: value("relevance_score_bucket", locale="us", le=edge) for edge in ("0.05", "0.45", "0.5", "1.0", "+Inf")
    }
    assert edges == {"0.05": 2, "0.45": 2, "0.5": 3, "1.0": 4, "+Inf": 4}
    assert value("relevance_score_sum", locale="us") == 1.55
    assert value("relevance_score_count", locale="pooled") == 0

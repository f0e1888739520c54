"""Response curves: what each value of a swept recipe key makes of the figures, and how far that is from ours."""

from __future__ import annotations

from typing import Any

from training.grid import statistics
from training.grid.comparisons import NOT_ASKED, NOT_RUN, PRIMARY, Judged, compare, figure
from training.grid.systems import SWEEPS, SYSTEMS
from training.recipe import Recipe

_TITLES = {
    "lambda": "guidance weight λ",
    "codes": "codes K of LRKD-Poly",
    "length": "tokens of a pair",
    "encoder": "rationale encoder",
}


def response_curves(judged: Judged, recipe: Recipe) -> list[dict[str, Any]]:
    """Give every sweep there is, in the order of `SWEEPS`.

    Returns: one row a sweep: `state` (None where at least one point finished), `ours` and `points`, which hold value,
        figure of macro-F1 and difference to ours; the points of one sweep are one family of Holm's.
    """
    return [_curve(sweep, judged, recipe) for sweep in SWEEPS]


def _curve(sweep: str, judged: Judged, recipe: Recipe) -> dict[str, Any]:
    ours, key = recipe.grid.ours, SWEEPS[sweep][1]
    systems = [s for s in judged.grid.systems if s.group == "sweep" and s.name.startswith(f"sweep_{sweep}_")]
    rows = compare([(s.name, ours) for s in systems], judged)
    points = [
        {
            "system": s.name,
            "title": s.title,
            "value": SYSTEMS[s.name].overrides[key] if s.name in SYSTEMS else s.name.rpartition("_")[2],
            "finished": len(s.seeds),
            "asked": len(s.runs),
            "figure": _primary(s.name, judged),
            "difference": row,
        }
        for s, row in zip(systems, rows, strict=True)
    ]
    finished = any(point["figure"] for point in points)
    return {
        "name": sweep,
        "title": _TITLES[sweep],
        "key": key,
        "state": None if finished else NOT_RUN if points else NOT_ASKED,
        "ours": _primary(ours, judged),
        "points": points,
    }


def _primary(name: str, judged: Judged) -> dict[str, float] | None:
    own = judged.samples.get(name)
    return None if own is None else figure(statistics.estimate(own, PRIMARY, judged.seed))

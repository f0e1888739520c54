"""Stage `report`: report.json → one self-contained report.html; of a grid's directory, its comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from relevance.errors import RunError
from training import charts
from training.evaluate import REPORT
from training.grid.page import is_grid, report_grid
from training.runs import hash_file, log, stage_arguments

PAGE = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"
_ROWS = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1, as served",
    "macro_f1_uncalibrated": "macro-F1, before calibration",
    "auc_exact": "AUC, most relevant against the rest",
    "auc_irrelevant": "AUC, least relevant against the rest",
    "ndcg_10": "nDCG@10 on complete lists",
    "map": "MAP on complete lists",
    "ece": "ECE",
    "ece_uncalibrated": "ECE before calibration",
    "classwise_ece": "classwise ECE",
    "classwise_ece_uncalibrated": "classwise ECE before calibration",
    "brier": "Brier score",
    "brier_uncalibrated": "Brier score before calibration",
    "false_filter_rate": "share of most relevant filtered",
    "leak_rate": "share of least relevant kept",
}


def main(argv: list[str]) -> int:
    """Run the stage.

    Raises: RunError: if evaluate has not finished, or its report is of another version; as `report_grid`.
    """
    run = stage_arguments(argv, "report", __doc__)
    if is_grid(run):
        report_grid(run)
        return 0
    source = run.require("evaluate") / REPORT
    template = hash_file(_TEMPLATES / "report.html.j2")
    with run.stage("report", {"report": hash_file(source), "template": template}) as folder:
        if folder is not None:
            page = render(json.loads(source.read_text(encoding="utf-8")))
            (folder / PAGE).write_text(page, encoding="utf-8")
            log.info("report: %s", folder / PAGE)
    return 0


def render(report: dict[str, Any]) -> str:
    """Give the page: charts are inline SVG and nothing is fetched from elsewhere.

    Raises: RunError: if the report lacks a figure that the page shows.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"figure": _figure, "interval": _interval, "share": _share}
    try:
        view = report["views"][report["primary"]]
        figures = view["figures"]
        leak = figures["leak_rate"]["value"]
        shipped = (figures["false_filter_rate"]["value"], None if leak is None else 1 - leak)
        drawings = {
            "per_class_f1": Markup(
                charts.per_class_f1(report["classes"], figures, view["always_most_relevant"]["macro_f1"])
            ),
            "reliability": Markup(charts.reliability(view["reliability"])),
            "trade_off": Markup(charts.trade_off(view["trade_off"], shipped)),
        }
        page = environment.get_template("report.html.j2")
        return page.render(report=report, view=view, charts=drawings, rows=_ROWS)
    except (KeyError, UndefinedError) as error:
        raise RunError(
            f"{REPORT}: expected the figures of this version ({error}); run `relevance evaluate` again"
        ) from error


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(figure: dict[str, float | None]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return _figure(figure["value"])
    return f"{_figure(figure['value'])} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _share(count: int, row: list[int]) -> str:
    return f"{count / max(1, sum(row)):.0%}"

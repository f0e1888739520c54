"""Report of a grid: OUT/report/{results.json, report.html, table.md, charts/*.svg}; the page fetches nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, UndefinedError
from markupsafe import Markup

from relevance.errors import RunError
from training.evaluate import TEST_READS
from training.grid import charts
from training.grid.comparisons import NOT_ASKED, NOT_RUN
from training.grid.fits import FITS, grid_files
from training.grid.results import grid_results
from training.grid.table import COLUMNS, FAMILIES, markdown, p_value, signed
from training.recipe import RECIPES
from training.runs import Run, commit, hash_file, log

RESULTS = "results.json"
PAGE = "report.html"
TABLE = "table.md"
CHARTS = "charts"
_TEMPLATES = Path(__file__).parents[1] / "templates"
_TEMPLATE = "grid.html.j2"
_GROUPS = {
    "baseline": "baselines",
    "rival": "rivals",
    "ours": "latent reasoning distillation",
    "ablation": "ablations",
    "control": "controls",
    "ensemble": "ensembles",
    "ceiling": "ceilings: readers that compare by rule, most of them of more than a student sees",
    "sweep": "response curves",
}
_CLAIMS = {
    "controls": "The system could be ahead of plain BERT for reasons that are not the rationale. Each control has the "
    "same size, λ and training, and targets that tell less or nothing. Of a control that the system is not ahead of, "
    "it is not shown that the rationale does the work. A wrong target can also do harm: being ahead of a control shows "
    "something only where that control is not itself behind λ = 0, which the next table tests.",
    "controls_unguided": "Whether what a control is pulled towards helps or harms, beside no guidance at all, which "
    "has learning rates of its own.",
    "ablations": "Each ablation leaves a part or all but one of the perspectives out, or puts something simpler in its "
    "place, so that its size may differ; λ = 0 has learning rates of its own. Of an ablation that the system is not "
    "ahead of, it is not shown that the part helps.",
    "preset": "The paper's own preset (learning rate 2e-6, 5 epochs, batches of 256): whether its comparison holds "
    "when trained as the paper says, and what the preset costs plain BERT.",
}
"""What being ahead would show, by family of claims."""


def is_grid(run: Run) -> bool:
    """Say whether the run directory is a grid's."""
    return (run.path / FITS).is_dir()


def report_grid(run: Run) -> None:
    """Write the grid's report; the reading of the test split is noted as `relevance evaluate` does.

    Raises: RunError, InputError: as `grid_results`.
    """
    tuning = run.recipe.grid.tuning
    inputs = {
        "recipe": run.recipe.model_dump(mode="json"),
        "template": hash_file(_TEMPLATES / _TEMPLATE),
        "tuning": hash_file(RECIPES / tuning) if tuning is not None and (RECIPES / tuning).is_file() else None,
        "files": {str(path.relative_to(run.path)): hash_file(path) for path in grid_files(run)},
    }
    with run.stage("report", inputs) as folder:
        if folder is None:
            return
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": commit(), "grid": run.recipe.name}
        with (run.path / TEST_READS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        results = grid_results(run)
        text = json.dumps(results, indent=1, allow_nan=False) + "\n"
        (folder / RESULTS).write_text(text, encoding="utf-8")
        (folder / PAGE).write_text(render_grid(results), encoding="utf-8")
        (folder / TABLE).write_text(markdown(results), encoding="utf-8")
        (folder / CHARTS).mkdir()
        for name, drawing in drawings(results).items():
            (folder / CHARTS / f"{name}.svg").write_text(drawing, encoding="utf-8")
        log.info("report: %s", folder / PAGE)


def render_grid(results: Mapping[str, Any]) -> str:
    """Give the page of a grid's results.

    Raises: RunError: if the results lack a figure that the page shows.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {
        "figure": _figure, "interval": _interval, "spread": _spread, "signed": signed, "share": _share,
        "seconds": _seconds, "p_value": p_value,
    }  # fmt: skip
    try:
        page = environment.get_template(_TEMPLATE)
        return page.render(
            results=results, charts=drawings(results), columns=COLUMNS, families=FAMILIES, groups=_GROUPS,
            claims=_CLAIMS, summary=summary(results), throughput=throughput(results), tuning=_rows(results["tuning"]),
            machine=_rows(results["grid"]["machine"]), allowances=_rows(results["grid"]["allowances"]),
        )  # fmt: skip
    except (KeyError, UndefinedError) as error:
        raise RunError(
            f"{RESULTS}: expected the figures of this version ({error}); run `relevance report` again"
        ) from error


def drawings(results: Mapping[str, Any]) -> dict[str, Markup]:
    """Give every chart of a grid's results as SVG: `forest-FAMILY`, `sweep-NAME`, `class-f1` and `seed-spread`."""
    finished = [system for system in results["systems"] if system["figures"] is not None]
    run_rows = {family: [r for r in rows if r["figures"]] for family, rows in results["differences"].items()}
    drawn = {f"forest-{family}": charts.forest(rows, FAMILIES[family]) for family, rows in run_rows.items() if rows}
    drawn |= {
        f"sweep-{curve['name']}": charts.response_curve(curve) for curve in results["sweeps"] if not curve["state"]
    }
    drawn["class-f1"] = charts.class_f1(finished, results["classes"], results["titles"])
    drawn["seed-spread"] = charts.seed_spread([r for r in results["runs"] if r["macro_f1"] is not None])
    return {name: Markup(drawing) for name, drawing in drawn.items()}


def summary(results: Mapping[str, Any]) -> list[str]:
    """Give the outcome in sentences: counts of verdicts by family, and what is missing."""
    lines = []
    for family, rows in results["differences"].items():
        words = [row["verdict"].split(" (")[0] for row in rows]
        possible = ("ahead", "behind", "undecided", NOT_RUN, NOT_ASKED)
        counts = [f"{words.count(word)} {word}" for word in possible if word in words]
        lines.append(f"{FAMILIES[family]}: {', '.join(counts)}, of {len(rows)}.")
    states = [run["state"] for run in results["runs"]]
    counts = [f"{states.count(s)} {s}" for s in ("done", "diverged", "failed", NOT_RUN) if s in states]
    return [*lines, f"Runs: {', '.join(counts)}."]


def throughput(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give each system's mean training time, speed, size, how much of its guidance it met, and its tuned values.

    No ratios: runs share their cores with whatever else runs, so a fair one comes from benchmarks.training_throughput.
    """
    rows: list[dict[str, Any]] = []
    keys: tuple[str, ...] = ("seconds", "pairs_per_second", "parameters")
    keys += ("guidance_explained", "guidance_reachable", "rationale_tokens_read")
    for system in results["systems"]:
        runs = [r for r in results["runs"] if r["system"] == system["name"] and r["state"] == "done"]
        means = {key: _mean([r[key] for r in runs]) for key in keys}
        tuned = [f"{key.removeprefix('student.')} = {value}" for key, value in (system["tuned"] or {}).items()]
        rows.append({"name": system["name"], "title": system["title"], "tuned": ", ".join(tuned), **means})
    return rows


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _rows(value: Any) -> list[dict[str, Any]] | None:  # noqa: ANN401 - any JSON value
    """Give rows for a table: those of a list of objects, or one name and value each of an object."""
    if not value:
        return None
    rows = value if isinstance(value, list) else [{"name": key, "value": each} for key, each in value.items()]
    return [{key: json.dumps(v) if isinstance(v, dict | list) else v for key, v in row.items()} for row in rows]


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(figure: Mapping[str, float | None]) -> str:
    if figure["low"] is None or figure["high"] is None:
        return _figure(figure["value"])
    return f"{_figure(figure['value'])} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _spread(figure: Mapping[str, float | None]) -> str:
    return _figure(figure["value"]) + ("" if figure["sd"] is None else f" ± {figure['sd']:.3f}")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"

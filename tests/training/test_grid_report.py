"""Response curves and the tuning ledger in the report of a made-up grid."""

import json

import numpy as np
import pytest

from relevance.cli import main
from relevance.errors import RunError
from training.grid.page import render_grid, report_grid
from training.grid.results import grid_results
from training.grid.systems import SWEEPS, SYSTEMS
from training.grid.table import markdown
from training.predictions import Predictions, write_predictions
from training.recipe import load_recipe
from training.runs import Run

RECIPE = """
name = "made-up"
[data]
source = "pairs"
path = "none.jsonl"
[grid]
systems = ["bert", "lrkd_gat"]
sweeps = ["lambda", "encoder", "length"]
seeds = [0, 1]
draws = 200
rivals = ["bert"]
{tuning}
"""
N_QUERIES, N_ITEMS = 40, 6


def finish(out, system, seed, strength):
    """Write a finished run whose logits name the label the more surely the greater the strength."""
    label = np.random.default_rng(0).choice(4, N_QUERIES * N_ITEMS, p=[0.5, 0.25, 0.1, 0.15])
    noise = np.random.default_rng([seed, sum(map(ord, system))]).normal(size=(len(label), 4))
    query_id = np.repeat([f"q{i}" for i in range(N_QUERIES)], N_ITEMS)
    rows = Predictions(
        pair_id=np.array([f"{q}\ti{i}" for i, q in enumerate(query_id)]),
        query_id=query_id,
        item_id=np.array([f"i{i}" for i in range(len(label))]),
        query=np.char.add("blue kettle ", query_id),
        locale=np.array(["us"] * len(label)),
        source=np.array(["main"] * len(label)),
        label=label,
        exact_only=np.zeros(len(label), dtype=bool),
        logits_NK=strength * np.eye(4)[label] + noise,
    )
    folder = out / "fits" / system / f"seed_{seed}"
    (folder / "student").mkdir(parents=True)
    for split in ("dev", "test"):
        write_predictions(folder / "student" / f"predictions.{split}.parquet", rows)
    (folder / "status.json").write_text(json.dumps({"state": "done"}))


def run_of(folder, tuning=None):
    """Give the run of the made-up recipe in a folder."""
    path = folder / "made-up.toml"
    path.write_text(RECIPE.format(tuning="" if tuning is None else f'tuning = "{tuning}"'))
    return Run(load_recipe(str(path)), folder / "out")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Two points of the λ curve finished, one of them as good as ours and one far worse; no other point did."""
    folder = tmp_path_factory.mktemp("curves")
    for seed in (0, 1):
        for system, strength in (("bert", 2.0), ("lrkd_gat", 3.0), ("sweep_lambda_0.1", 3.0), ("sweep_lambda_3", 0.5)):
            finish(folder / "out", system, seed, strength)
    return grid_results(run_of(folder))


def test_each_point_of_a_response_curve_has_its_figure_and_its_difference_to_ours(results):
    """The values of SWEEPS in order; p is corrected over all six points, four of which did not finish."""
    curve = results["sweeps"][0]
    assert (curve["name"], curve["key"], curve["state"]) == ("lambda", "student.guidance_weight", None)
    points = {point["value"]: point for point in curve["points"]}
    assert tuple(points) == SWEEPS["lambda"][2]
    system = next(row for row in results["systems"] if row["name"] == "sweep_lambda_3")
    assert points[3.0]["figure"]["value"] == system["figures"]["macro_f1"]["value"]
    assert points[3.0]["figure"]["low"] < points[3.0]["figure"]["value"] < points[3.0]["figure"]["high"]
    gap = points[3.0]["difference"]
    assert (gap["theirs"], gap["verdict"]) == ("lrkd_gat", "behind")
    assert gap["p_holm"] == pytest.approx(6 * gap["figures"]["macro_f1"]["p"])
    assert points[0.1]["difference"]["verdict"].startswith("undecided (MDD")
    assert (points[1.0]["figure"], points[1.0]["difference"]["verdict"]) == (None, "not run")


def test_a_curve_without_a_finished_point_says_so(results):
    """Asked for and not run; not asked for; neither is among the families of ours."""
    assert {curve["name"]: curve["state"] for curve in results["sweeps"]} == {
        "lambda": None,
        "codes": "not in this recipe",
        "length": "not run",
        "encoder": "not run",
    }
    compared = [row["theirs"] for rows in results["differences"].values() for row in rows]
    assert not any(name.startswith("sweep_") for name in compared)


def test_the_page_draws_one_chart_a_curve_that_was_run(results):
    """The λ curve is drawn and tabled; the page names its key, the main table its group; Markdown has its rows."""
    page, table = render_grid(results), markdown(results)
    assert page.count("Response curve: ") == 1
    assert "(student.guidance_weight)" in page
    assert ">response curves<" in page
    assert "<p>Not in this recipe.</p>" in page
    rows = table[table.index("### Response curve: guidance weight λ") :].splitlines()
    assert rows[4].startswith("| 0.01 | 0 of 2 | – |")
    assert rows[6].startswith("| 0.1 | 2 of 2 | 0.")


def test_values_that_are_no_numbers_stand_side_by_side(tmp_path):
    """The curve of the rationale encoder has one value, a folder's name."""
    for seed in (0, 1):
        finish(tmp_path / "out", "lrkd_gat", seed, 2.0)
        finish(tmp_path / "out", "sweep_encoder_lsa", seed, 2.0)
    page = render_grid(grid_results(run_of(tmp_path)))
    assert page.count("Response curve: rationale encoder") == 1
    assert SYSTEMS["sweep_encoder_lsa"].overrides["student.guidance.store"] in page


def test_a_ledger_that_is_missing_or_damaged_is_named(tmp_path):
    """No file, no JSON, no object, a field that lacks: the error names file and line; a good one marks its choice."""
    finish(tmp_path / "out", "bert", 0, 2.0)
    ledger = tmp_path / "ledger.jsonl"
    run = run_of(tmp_path, ledger)
    with pytest.raises(RunError, match=r"expected a tuning ledger, found none at .*ledger\.jsonl"):
        grid_results(run)
    good = {"system": "bert", "trial": 0, "overrides": {"rate": 2}, "dev": 0.5, "config_hash": "c"}
    for line in ("{", "[1]", '{"system": "bert"}', "7"):
        ledger.write_text(json.dumps(good) + "\n" + line + "\n")
        with pytest.raises(RunError, match=r"ledger\.jsonl, line 2: expected an object with system"):
            grid_results(run)
    ledger.write_text(json.dumps(good) + "\n" + json.dumps(good | {"system": "crsd"}) + "\n")
    (tmp_path / "out" / "grid.json").write_text(json.dumps({"tuning": {"bert": {"rate": 2}}}))
    (row,) = grid_results(run)["tuning"]
    assert row == {"system": "bert", "trial": 0, "overrides": {"rate": 2}, "dev": 0.5, "chosen": True}


def test_the_report_is_made_again_when_the_ledger_changed(tmp_path):
    """The ledger lies outside the grid's folder, so its hash is among the stage's inputs."""
    finish(tmp_path / "out", "bert", 0, 2.0)
    ledger = tmp_path / "ledger.jsonl"
    row = {"system": "bert", "trial": 0, "overrides": {}, "dev": 0.5}
    ledger.write_text(json.dumps(row) + "\n")
    report_grid(run_of(tmp_path, ledger))
    ledger.write_text(json.dumps(row | {"dev": 0.625}) + "\n")
    assert main(["report", "--recipe", str(tmp_path / "made-up.toml"), "--out", str(tmp_path / "out")]) == 0
    assert "0.625" in (tmp_path / "out" / "report" / "report.html").read_text()

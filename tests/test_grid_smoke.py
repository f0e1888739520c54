"""The whole comparison in small: every kind of system on a piece of the marketplace, and the report of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.grid.systems import SYSTEMS, systems_of
from training.predictions import read_predictions
from training.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPE = "marketplace-smoke"


def relevance(*arguments):
    """Run the command line in the checkout."""
    command = [sys.executable, "-m", "relevance.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=900)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory of the finished grid, its report made."""
    out = tmp_path_factory.mktemp("smoke")
    for command in (("grid", RECIPE), ("report", "--recipe", RECIPE)):
        done = relevance(*command, "--out", out)
        assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.timeout(1200)
def test_every_system_of_the_recipe_finishes(finished):
    """Students, untrained systems, annotated ceilings and averages alike; each scored the same pairs."""
    systems = systems_of(load_recipe(RECIPE))
    assert {system.kind for system in systems} == {"student", "baseline", "average", "annotated"}
    first = None
    for system in systems:
        folder = finished / "fits" / system.name / "seed_0"
        status = json.loads((folder / "status.json").read_text())
        assert (status["state"], status["error"]) == ("done", None), system.name
        test = read_predictions(folder / "student" / "predictions.test.parquet")
        first = test if first is None else first
        assert np.isfinite(test.logits_NK).all()
        np.testing.assert_array_equal(test.pair_id, first.pair_id)


def test_the_report_shows_each_control_and_prints_no_ranking(finished):
    """A sceptic finds every control; of figures that mean nothing no difference is told."""
    page = (finished / "report" / "report.html").read_text(encoding="utf-8")
    table = (finished / "report" / "table.md").read_text(encoding="utf-8")
    results = json.loads((finished / "report" / "results.json").read_text(encoding="utf-8"))

    for system in systems_of(load_recipe(RECIPE)):
        assert SYSTEMS[system.name].title in page
    assert "says nothing about ESCI accuracy" in page
    assert "smoke" in page
    assert not results["differences"]
    assert "ahead" not in table


def test_the_leak_checks_left_their_figures(finished):
    """Rationales of the three splits and the probe from embedding to label."""
    checks = json.loads((finished / "grid.json").read_text())["checks"]

    assert checks["rationales"]
    assert checks["embeddings"]["probes"]["train"]
    assert checks["visible"]["rationales"]["train"]["generators"] == ["marketplace-visible-1/train"]
    assert checks["data"]["shared"]["train|test"]["near_duplicate_titles"] == 0
    assert "data.marketplace.share_of_moved_labels" in (finished / "report" / "report.html").read_text("utf-8")


def test_how_much_of_the_rationales_was_read_is_told(finished):
    """Of the rivals that read their text within a limit a share, of the embeddings all; of others nothing."""
    embeddings = json.loads((finished / "grid.json").read_text())["checks"]["embeddings"]
    runs = json.loads((finished / "report" / "results.json").read_text(encoding="utf-8"))["runs"]
    read = {run["system"]: run["rationale_tokens_read"] for run in runs}

    assert embeddings["tokens_read"] == dict.fromkeys(("user", "struct", "rule", "combined"), 1.0)
    assert 0 < read["ced_kd"] < 1
    assert 0 < read["crsd"] < 1
    assert read["bert"] is read["lrkd_gat"] is None


def test_the_same_initial_encoder_is_every_students(finished):
    """For one seed the systems differ in what they learn from and not in where they start or what they read."""
    recipes = {
        system.name: json.loads((finished / "fits" / system.name / "seed_0" / "recipe.json").read_text())
        for system in systems_of(load_recipe(RECIPE))
        if system.kind == "student"
    }
    common = {json.dumps([r["student"]["encoder"], r["student"]["fit"]["epochs"], r["seed"]]) for r in recipes.values()}

    assert len(recipes) > 10
    assert len(common) == 1

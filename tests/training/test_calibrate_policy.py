"""What the cut points are chosen and certified on: the scores that requests get, and queries that are distinct."""

import json
from dataclasses import replace

import numpy as np
import pytest
from test_report_stages import finish, made_up, run_stage

from relevance.calibration import softmax
from relevance.errors import RecipeError
from relevance.labels import ESCI
from relevance.policy import TierPolicy
from training.calibrate import (
    apply_calibrator,
    by_query_text,
    choose_policy,
    fit_calibrator,
    policy_locales,
    pooled_locales,
)
from training.recipe import load_recipe


@pytest.fixture
def recipe():
    """The tiny recipe's policy, with vector scaling and an alias."""
    overrides = ["calibrate.method=vector", 'calibrate.aliases={"en-US"="us"}', "calibrate.rules=[]"]
    return load_recipe("tiny", overrides)


def test_the_pooled_edge_is_chosen_on_pooled_scores(recipe):
    """jp's Exact logits are low, which its own fit mends and the pooled one does not: of requests without a locale more
    Exact pairs are filtered at the same edge, and the policy's bound is theirs."""
    rows = made_up(400, 1)
    rows.logits_NK[rows.locale == "jp", 0] -= 9
    calibrator = fit_calibrator(recipe.calibrate, rows, ESCI)
    own_NK = apply_calibrator(calibrator, rows.logits_NK, policy_locales(rows, recipe.calibrate))
    pooled_NK = apply_calibrator(calibrator, rows.logits_NK, pooled_locales(rows))
    honest, _ = choose_policy(recipe, rows, own_NK, pooled_NK)
    flattered, _ = choose_policy(recipe, rows, own_NK, own_NK)

    assert honest.pooled.values[1] == flattered.pooled.values[1]
    assert honest.pooled.bootstrap_bound > 1.2 * flattered.pooled.bootstrap_bound
    assert honest.locales["us"] == flattered.locales["us"]


def test_rows_tagged_with_an_alias_are_rows_of_what_it_stands_for(recipe):
    """A locale of their own, too small to certify, would switch the alias off for every request."""
    rows = made_up(200, 1)
    rows = replace(rows, locale=np.where(np.arange(len(rows)) < 16, "en_US", "us"))
    policy, _ = choose_policy(recipe, rows, softmax(rows.logits_NK), softmax(rows.logits_NK))

    assert set(policy.locales) == {"us"}
    assert policy.resolve("en-US") == "us"


def test_queries_are_told_apart_by_their_text(tmp_path):
    """Twenty sessions that typed one text are one query of which one Exact pair counts."""
    rows = made_up(100, 1)
    typed = np.array([f"Mug  {int(q.split('-')[1]) // 20}" for q in rows.query_id])
    finish(tmp_path / "run" / "student", cal=replace(rows, query=typed))
    assert run_stage("calibrate", tmp_path / "run") == 0
    figures = json.loads((tmp_path / "run" / "calibrate" / "calibrate.json").read_text())
    policy = TierPolicy.from_toml((tmp_path / "run" / "calibrate" / "policy.toml").read_bytes(), ESCI)

    assert len(np.unique(by_query_text(replace(rows, query=typed)).query_id)) == 5
    assert figures["n_queries"] == policy.pooled.n_exact == 5
    assert not policy.pooled.certified


def test_a_rule_for_a_locale_without_pairs_is_refused(recipe):
    """It would be written and never hold."""
    rule = {"name": "law", "query_matches": "knife", "locales": ("fr",), "cap_tier": 0}
    section = recipe.calibrate.model_copy(update={"rules": (rule,)})
    rows = made_up(50, 1)
    probabilities_NK = np.full((len(rows), 4), 0.25)
    with pytest.raises(RecipeError, match=r"rule 'law', locales: expected some of \['jp', 'us'\]"):
        choose_policy(recipe.model_copy(update={"calibrate": section}), rows, probabilities_NK, probabilities_NK)


def test_a_calibrator_of_another_student_is_not_evaluated(tmp_path, capsys):
    """The student was trained again, and calibrate was not run."""
    out = tmp_path / "run"
    finish(out / "student", cal=made_up(100, 1), test=made_up(40, 2))
    assert run_stage("calibrate", out) == 0
    for path in (out / "student").glob("*"):
        path.unlink()
    (out / "student").rmdir()
    finish(out / "student", cal=made_up(100, 5), test=made_up(40, 2))
    assert run_stage("evaluate", out) == 2
    assert "run `relevance calibrate`" in capsys.readouterr().err

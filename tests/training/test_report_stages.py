"""Stages calibrate, evaluate and report, on predictions made up by the test."""

import json

import numpy as np
import pytest

from relevance.calibration import Calibrator, softmax
from relevance.cli import main
from relevance.errors import InputError, RunError
from relevance.labels import ESCI
from relevance.policy import TierPolicy
from training import evaluate as evaluate_module
from training.calibrate import apply_calibrator
from training.measures import always_most_relevant, complete_lists
from training.predictions import Predictions, read_predictions, write_predictions
from training.report import render

RECIPE = """
name = "made up"
[data]
source = "pairs"
path = "none.jsonl"
[calibrate]
aliases = {"en-US" = "us", "fr" = "nowhere"}
rules = [{name = "complement", class_at_least = {C = 0.5}, cap_tier = 1}]
[evaluate]
draws = 50
"""


def made_up(n_queries, seed, noise=1.0):
    """Give predictions of four pairs a query, twice too sure; 9 in 10 queries are from us, the others from jp."""
    rng = np.random.default_rng(seed)
    n = 4 * n_queries
    true = rng.normal(size=(n, 4)) * 2 + np.array([1.5, 0.5, -1.5, 0])
    label = np.array([rng.choice(4, p=p) for p in softmax(true)])
    query_id = np.repeat([f"q{seed}-{i}" for i in range(n_queries)], 4)
    exact_only = np.arange(n) % 10 == 0
    return Predictions(
        pair_id=np.array([f"{q}\ti{i}" for i, q in enumerate(query_id)]),
        query_id=query_id,
        item_id=np.array([f"i{i}" for i in range(n)]),
        query=np.char.add("mug ", query_id),
        locale=np.where(np.arange(n) // 4 % 10 == 0, "jp", "us"),
        source=np.array(["made"] * n),
        label=np.where(exact_only, 0, label),
        exact_only=exact_only,
        logits_NK=2 * (true + noise * rng.normal(size=(n, 4))),
    )


def finish(folder, **predictions):
    """Write predictions of splits into a stage folder and mark it done."""
    folder.mkdir(parents=True)
    for split, rows in predictions.items():
        write_predictions(folder / f"predictions.{split}.parquet", rows)
    (folder / "DONE.json").write_text('{"inputs": ""}\n')


def run_stage(command, out, *options):
    """Run one stage of the made-up recipe."""
    recipe = out.parent / "recipe.toml"
    recipe.write_text(RECIPE)
    return main([command, "--recipe", str(recipe), "--out", str(out), *options])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with student and baseline predictions, calibrated, evaluated and reported."""
    out = tmp_path_factory.mktemp("made") / "run"
    finish(out / "student", cal=made_up(250, 1), test=made_up(120, 2))
    worse = made_up(120, 2)
    worse.logits_NK[:] = np.random.default_rng(3).permutation(worse.logits_NK)
    finish(out / "lexical", test=worse)
    assert [run_stage(stage, out) for stage in ("calibrate", "evaluate", "report")] == [0, 0, 0]
    return out


def report_of(out):
    """Read report.json."""
    return json.loads((out / "evaluate" / "report.json").read_text())


def test_calibrate_writes_a_calibrator_and_a_policy_of_both_locales(run):
    """us has enough Exact queries for cuts of its own, jp takes the pooled ones and is not certified."""
    calibrator = Calibrator.model_validate_json((run / "calibrate" / "calibration.json").read_bytes())
    policy = TierPolicy.from_toml((run / "calibrate" / "policy.toml").read_bytes(), ESCI)
    assert sorted(calibrator.locales) == sorted(policy.locales) == ["jp", "us"]
    assert policy.locales["us"].certified
    assert policy.locales["us"].bound <= 0.05
    assert not policy.locales["jp"].certified
    assert policy.locales["jp"].values == policy.pooled.values
    assert policy.resolve("en_US") == "us"
    assert policy.resolve("fr") == "pooled"
    assert len(calibrator.version) == len(policy.version) == 12


def test_calibration_helps_on_queries_it_did_not_see(run):
    """Logits are twice too sure, so the cross-validated error falls; Exact-only rows are not counted."""
    figures = json.loads((run / "calibrate" / "calibrate.json").read_text())
    assert figures["ece"]["after"] < figures["ece"]["before"]
    assert figures["brier"]["after"] < figures["brier"]["before"]
    assert (figures["n_pairs"], figures["n_exact_only_dropped"]) == (900, 100)


def test_the_shipped_policy_keeps_its_promise_on_the_test_split(run):
    """Where us is certified, few of the Exact pairs of fresh us queries are filtered; jp filters nothing."""
    locales = report_of(run)["locales"]
    assert locales["us"]["figures"]["false_filter_rate"]["value"] <= 0.08
    assert 0 < locales["us"]["figures"]["leak_rate"]["value"] < 1
    assert locales["jp"]["figures"]["false_filter_rate"]["value"] == 0
    assert locales["jp"]["figures"]["leak_rate"]["value"] == 1


def test_the_report_has_both_views_and_says_which_is_primary(run):
    """480 pairs, 48 of them from Exact-only sources."""
    report = report_of(run)
    assert report["primary"] == "without_exact_only"
    assert report["views"]["all"]["n_pairs"] == 480
    assert report["views"]["without_exact_only"]["n_pairs"] == 432


def test_every_table_of_a_view_counts_the_same_pairs(run):
    """Confusion, tiers by label and locales are cuts through the same rows."""
    report = report_of(run)
    view = report["views"]["without_exact_only"]
    assert np.sum(view["confusion"]) == np.sum(view["tiers_by_label"]) == view["n_pairs"]
    assert np.sum(view["confusion"], axis=1).tolist() == np.sum(view["tiers_by_label"], axis=1).tolist()
    assert sum(local["n_pairs"] for local in report["locales"].values()) == view["n_pairs"]


def test_the_figures_are_those_of_the_rows(run):
    """Accuracy and the always-Exact line, computed here from the files."""
    rows = read_predictions(run / "student" / "predictions.test.parquet")
    rows = rows.rows(~rows.exact_only)
    calibrator = Calibrator.model_validate_json((run / "calibrate" / "calibration.json").read_bytes())
    policy = TierPolicy.from_toml((run / "calibrate" / "policy.toml").read_bytes(), ESCI)
    predicted = policy.labels(apply_calibrator(calibrator, rows.logits_NK, rows.locale), ESCI)
    view, p = report_of(run)["views"]["without_exact_only"], np.mean(rows.label == 0)
    assert view["figures"]["accuracy"]["value"] == pytest.approx(np.mean(predicted == rows.label))
    assert np.trace(view["confusion"]) == np.sum(predicted == rows.label)
    assert view["always_most_relevant"]["accuracy"] == pytest.approx(p)
    assert view["always_most_relevant"]["macro_f1"] == pytest.approx(2 * p / ((1 + p) * 4))


def test_each_interval_of_a_share_holds_its_figure(run):
    """Accuracy, F1 and AUC lie between the ends."""
    figures = report_of(run)["views"]["without_exact_only"]["figures"]
    for name in ("accuracy", "macro_f1", "auc_exact", "auc_irrelevant", "f1_E"):
        assert figures[name]["low"] <= figures[name]["value"] <= figures[name]["high"]


def test_the_trade_off_rises_from_the_rules_alone_to_everything(run):
    """Both shares grow with the cut; at cut 1 nearly all is filtered."""
    points = report_of(run)["views"]["without_exact_only"]["trade_off"]
    for name in ("exact_filtered", "irrelevant_filtered"):
        assert np.all(np.diff([point[name] for point in points]) >= 0)
    assert points[-1]["irrelevant_filtered"] > 0.99


def test_a_student_that_knows_more_beats_a_shuffled_one_pair_by_pair(run):
    """The baseline's logits belong to other pairs: AUC near 0.5, and the lower end of the difference is above 0."""
    paired = report_of(run)["baseline"]["paired"]
    assert paired["auc_exact"]["rows"] == "us"
    assert paired["auc_exact"]["theirs"] == pytest.approx(0.5, abs=0.1)
    assert all(paired[name]["low"] > 0 for name in ("auc_exact", "auc_irrelevant", "macro_f1"))
    assert paired["accuracy"]["difference"] == pytest.approx(paired["accuracy"]["ours"] - paired["accuracy"]["theirs"])


def test_each_read_of_the_test_split_is_noted_and_survives_a_new_evaluation(run):
    """A first read, a repeated stage that reads nothing, and a second read with other settings: two lines."""
    assert run_stage("evaluate", run) == 0
    assert len((run / "test_reads.jsonl").read_text().splitlines()) == 1
    assert run_stage("evaluate", run, "--set", "evaluate.draws=51") == 0
    lines = (run / "test_reads.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert sorted(json.loads(lines[0])["files"]) == ["baseline", "calibration", "policy", "student"]


def test_the_page_fetches_nothing_and_shows_the_figures(run):
    """One file: no script, no link, no address but the SVG name spaces."""
    page = (run / "report" / "report.html").read_text()
    addresses = {part.split('"')[0] for part in page.split("http")[1:]}
    assert addresses <= {"://www.w3.org/2000/svg", "://www.w3.org/1999/xlink"}
    assert "<script" not in page
    assert "<link" not in page
    assert page.count("<svg") == 3
    assert "no: nothing is filtered" in page
    assert f"{report_of(run)['views']['without_exact_only']['figures']['brier']['value']:.3f}" in page


def test_a_text_from_outside_cannot_break_the_page(run):
    """A recipe named like a tag is shown, not obeyed."""
    page = render(report_of(run) | {"name": "<script>alert(1)</script>"})
    assert "<script" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("key", ["views", "titles"])
def test_a_report_of_another_version_is_refused(run, key):
    """A figure the page shows is not there, be it in a chart or in the text."""
    report = report_of(run)
    del report[key]
    with pytest.raises(RunError, match=f"{key}.*run `relevance evaluate` again"):
        render(report)


def test_baseline_predictions_of_other_pairs_are_refused(run, tmp_path):
    """Pairs in another order cannot be compared pair by pair."""
    other = tmp_path / "run"
    for name in ("student", "calibrate"):
        (other / name).mkdir(parents=True)
        for file in (run / name).iterdir():
            (other / name / file.name).write_bytes(file.read_bytes())
    finish(other / "lexical", test=made_up(120, 2).rows(np.arange(480)[::-1]))
    assert run_stage("evaluate", other) == 2
    files = {
        "student": other / "student" / "predictions.test.parquet",
        "calibration": other / "calibrate" / "calibration.json",
        "policy": other / "calibrate" / "policy.toml",
        "baseline": other / "lexical" / "predictions.test.parquet",
    }
    recipe = evaluate_module.Recipe.model_validate(
        {"name": "r", "data": {"source": "pairs", "path": "x"}, "evaluate": {"draws": 50}}
    )
    with pytest.raises(InputError, match="the same pairs in the same order"):
        evaluate_module.evaluate(recipe, files)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("calibrate.filter_tier=3", "expected at most 2"),
        ('calibrate.rules=[{name="r", class_at_least={C=0.5}}]', "cap_tier"),
        ('calibrate.rules=[{name="r", class_at_least={Z=0.5}, cap_tier=1}]', "expected classes of"),
    ],
)
def test_an_impossible_policy_is_told_before_anything_is_shipped(tmp_path, capsys, option, message):
    """Tiers above the certified edge, an incomplete rule and an unknown class."""
    finish(tmp_path / "run" / "student", cal=made_up(30, 1))
    assert run_stage("calibrate", tmp_path / "run", "--set", option) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run" / "calibrate" / "policy.toml").exists()


def test_calibrating_on_exact_only_rows_is_refused(tmp_path, capsys):
    """They say nothing about class shares."""
    finish(tmp_path / "run" / "student", cal=made_up(30, 1).rows(np.arange(0, 120, 10)))
    assert run_stage("calibrate", tmp_path / "run") == 2
    assert "Exact-only" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["calibrate", "evaluate", "report", "baseline"])
def test_a_stage_names_the_one_it_waits_for(tmp_path, capsys, stage):
    """Nothing has run yet."""
    assert run_stage(stage, tmp_path / "run") == 2
    assert "expected a finished stage; run `relevance " in capsys.readouterr().err


def test_legacy_gains_are_esci_only_and_change_only_the_ranking(run, tmp_path, capsys):
    """Another scheme is refused; under ESCI the report says that the gains were swapped."""
    options = ["--set", "evaluate.legacy_swapped_gains=true"]
    assert run_stage("evaluate", run, *options, "--set", "scheme=wands") == 2
    assert "expected the scheme 'esci'" in capsys.readouterr().err
    assert run_stage("evaluate", run, *options) == 0
    assert report_of(run)["legacy_swapped_gains"] is True
    assert report_of(run)["gains"] == [1.0, 0.01, 0.1, 0.0]
    assert run_stage("evaluate", run) == 0


def test_complete_lists_need_ten_candidates_and_a_source_of_lists_where_there_is_one():
    """Query a has ten, b ten, c two; three of a list source are no list, nor are nine and an Exact-only pair."""
    query_id, source = np.array(["a"] * 10 + ["b"] * 10 + ["c"] * 2), np.array(["x"] * 22)
    none = np.zeros(22, dtype=bool)
    assert complete_lists(query_id, source, none).tolist() == [True] * 20 + [False] * 2
    listed = np.array(["us_judgments_joined"] * 10 + ["x"] * 12)
    assert complete_lists(query_id, listed, none).tolist() == [True] * 10 + [False] * 12
    few = np.array(["us_judgments_joined"] * 3 + ["x"] * 7 + ["us_judgments_joined"] * 10 + ["x"] * 2)
    assert complete_lists(query_id, few, none).tolist() == [False] * 10 + [True] * 10 + [False] * 2
    exact_only = np.arange(22) == 0
    assert complete_lists(query_id, source, exact_only).tolist() == [False] * 10 + [True] * 10 + [False] * 2


def test_always_exact_in_closed_form():
    """Three of four are Exact: p = 0.75, macro-F1 = 1.5 / (1.75 · 4)."""
    found = always_most_relevant(np.array([0, 0, 0, 3]), ESCI)
    assert found == pytest.approx({"accuracy": 0.75, "macro_f1": 1.5 / 7})

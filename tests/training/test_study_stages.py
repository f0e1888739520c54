"""The studies as commands on a tiny run and on a grid's fit, and their figures on hand-made rows."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from relevance import cli
from relevance.calibration import softmax
from relevance.errors import InputError, RunError
from relevance.labels import ESCI
from relevance.metrics.classification import macro_f1
from relevance.metrics.reliability import brier, classwise_ece, top_label_ece
from relevance.pairs import Item
from training.inspection.of_run import open_run
from training.measures import Bootstrap, Scored
from training.predictions import predictions_of, read_predictions, write_predictions
from training.studies.calibration import compare_methods
from training.studies.disparity import LEAST_PAIRS, brand_tier, disparity, item_kind
from training.studies.perturbations import suites
from training.studies.robustness import applied, compare
from training.studies.stage import STUDIES, main
from training.studies.transfer import slices

BOOTSTRAP = Bootstrap(draws=60)
OPTIONS = ("--set", "evaluate.draws=60")


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run that studies may write into."""
    out = tmp_path_factory.mktemp("study") / "run"
    shutil.copytree(tiny_run, out)
    return out


def study(name, run, *options):
    """Run a study and give its result and table."""
    assert main([name, "--recipe", str(run / "recipe.toml"), "--out", str(run), *OPTIONS, *options]) == 0
    folder = next(p for p in run.rglob(f"studies/{name}") if (p / "result.json").is_file())
    return json.loads((folder / "result.json").read_text()), (folder / "table.md").read_text()


def scored_rows(label, kept, *, query=None, predicted=None, tier=None, score=None):
    """Give scored pairs whose probabilities do not matter."""
    n = len(label)
    flags = np.zeros(n, dtype=bool)
    names = np.arange(n).astype(str) if query is None else np.asarray(query, dtype=np.str_)
    uniform_NK = np.full((n, 4), 0.25)
    kept = np.asarray(kept, dtype=bool)
    return Scored(
        query_id=names,
        item_id=np.arange(n).astype(str),
        policy_locale=np.full(n, "us"),
        label=np.asarray(label),
        predicted=np.zeros(n, dtype=np.int64) if predicted is None else np.asarray(predicted),
        exact_only=flags,
        raw_NK=uniform_NK,
        probabilities_NK=uniform_NK,
        score=np.zeros(n) if score is None else np.asarray(score),
        tier=np.where(kept, 4, 0) if tier is None else np.asarray(tier),
        kept=kept,
        kept_at_worst=flags,
        kept_at_best=~flags,
        ranked=flags,
    )


def test_an_unknown_study_is_refused_with_the_known_ones():
    """The message names what there is."""
    with pytest.raises(InputError, match="robustness"):
        main(["horoscope"])
    with pytest.raises(InputError, match="nothing"):
        main([])


def test_every_study_of_the_table_has_a_main():
    """The table is imported lazily, so a wrong name would show only when asked for."""
    from importlib import import_module

    for module, about in STUDIES.values():
        assert callable(import_module(module).main)
        assert about


def test_the_calibration_study_writes_tables_and_charts(run):
    """Three parts, a chart for each scope and method, and a note that the test split was read."""
    result, table = study("calibration", run, "--resamples", "2", "--simulations", "3")
    test = read_predictions(run / "student" / "predictions.test.parquet")
    charts = {path.name for path in (run / "studies" / "calibration").glob("*.svg")}
    assert set(result["methods"]) == {"pooled", "us", "es", "jp"}
    raw = result["methods"]["pooled"]["figures"]["none"]
    assert raw["ece"]["value"] == pytest.approx(top_label_ece(softmax(test.logits_NK), test.label))
    assert len(result["guarantee"]) == 5
    assert {p["draws"] for p in result["guarantee"]} == {3, 2}
    assert result["stability"]["resamples"] == 2
    assert "reliability.pooled.isotonic.svg" in charts
    assert len(charts) == 4 * 3
    assert "| pooled | vector |" in table
    assert "The promise P(certified and false-filter rate > 0.05) ≤ 0.05 on known populations" in table
    assert json.loads((run / "test_reads.jsonl").read_text().splitlines()[0])["study"] == "calibration"


def test_a_finished_study_is_not_done_again(run):
    """The same inputs leave the folder as it was; another option starts over."""
    options = ("--recipe", str(run / "recipe.toml"), "--out", str(run), *OPTIONS)
    assert main(["transfer", *options]) == 0
    path = run / "studies" / "transfer" / "table.md"
    path.write_text("kept")
    assert main(["transfer", *options]) == 0
    assert path.read_text() == "kept"
    assert main(["transfer", *options, "--set", "evaluate.draws=50"]) == 0
    assert path.read_text() != "kept"


def test_another_student_s_calibrator_and_swaps_are_refused(run, tmp_path):
    """The student was trained again: first `calibrate` must follow, then studies are made anew, then their readers."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    shutil.rmtree(other / "studies", ignore_errors=True)
    options = ("--recipe", str(other / "recipe.toml"), "--out", str(other), *OPTIONS)
    assert cli.main(["calibrate", *options[:4]]) == 0
    assert main(["robustness", *options, "--pairs", "3"]) == 0
    assert main(["transfer", *options]) == 0
    table = other / "studies" / "transfer" / "table.md"
    table.write_text("kept")
    path = other / "student" / "predictions.cal.parquet"
    found = read_predictions(path)
    write_predictions(path, replace(found, logits_NK=found.logits_NK[:, ::-1].copy()))
    with pytest.raises(RunError, match="relevance calibrate"):
        main(["transfer", *options])
    with pytest.raises(RunError, match="relevance calibrate"):
        open_run(other)
    assert cli.main(["calibrate", *options[:4]]) == 0
    assert main(["transfer", *options]) == 0
    assert table.read_text() != "kept"
    with pytest.raises(RunError, match="relevance study robustness"):
        main(["disparity", *options])


def test_the_robustness_study_scores_both_forms(run):
    """Every suite is there; suites that make the truth false take Exact pairs alone; disparity reads the brand swap."""
    result, table = study("robustness", run, "--pairs", "25")
    assert set(result["suites"]) == {suite.name for suite in suites(())}
    stuffed = result["suites"]["title stuffed with sales words"]
    assert stuffed["applies"] == 1.0
    assert stuffed["n_pairs"] == 25
    assert stuffed["tier_flips"]["low"] <= stuffed["tier_flips"]["value"] <= stuffed["tier_flips"]["high"]
    assert stuffed["score_change"]["value"] != 0
    assert result["suites"]["negation"]["applies"] <= 0.5
    assert "| negation |" in table
    disparity_result, disparity_table = study("disparity", run)
    swap = result["suites"]["brand of the title swapped, not asked for"]
    assert disparity_result["brand_swap"] == swap
    assert "By locale" in disparity_table


def test_a_grid_s_fit_is_studied_in_its_own_folder(run, tmp_path):
    """Data come from the grid's folder; a system without training has no DONE; the study calibrates by itself."""
    grid = tmp_path / "grid"
    shutil.copytree(run / "data", grid / "data")
    shutil.copytree(run / "calibrate", grid / "calibrate")  # of another student, the pipeline's own
    shutil.copytree(run / "student", grid / "fits" / "bert" / "seed_1" / "student")
    shutil.copy(run / "recipe.toml", grid)
    (grid / "fits" / "bert" / "seed_1" / "student" / "DONE.json").unlink()
    options = ("--recipe", str(grid / "recipe.toml"), "--out", str(grid), *OPTIONS)
    assert main(["disparity", *options, "--fit", "bert/seed_1"]) == 0
    folder = grid / "fits" / "bert" / "seed_1" / "studies" / "disparity"
    assert {"policy.toml", "calibration.json", "result.json", "table.md"} <= {p.name for p in folder.iterdir()}
    assert json.loads((folder / "result.json").read_text())["brand_swap"] is None
    with pytest.raises(RunError, match="seed_7"):
        main(["disparity", *options, "--fit", "bert/seed_7"])


def test_predictions_of_other_pairs_are_refused(run, tmp_path):
    """The data of the run must hold every pair that was scored."""
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "data" / "pairs.test.parquet").write_bytes((other / "data" / "pairs.dev.parquet").read_bytes())
    with pytest.raises(InputError, match="missing"):
        main(["robustness", "--recipe", str(other / "recipe.toml"), "--out", str(other), *OPTIONS, "--pairs", "3"])
    with pytest.raises(InputError, match="at least 1"):
        main(["robustness", "--recipe", str(other / "recipe.toml"), "--out", str(other), "--pairs", "0"])


def test_methods_are_compared_on_the_same_draws(tiny_pairs):
    """Figures are the metrics themselves; changes are from no calibration, whose own change is 0."""
    rng = np.random.default_rng(0)
    rows = predictions_of(tiny_pairs, rng.normal(size=(len(tiny_pairs), 4)), ESCI)
    probabilities = {"none": softmax(rows.logits_NK), "temperature": softmax(rows.logits_NK / 3)}
    table = compare_methods(probabilities, rows, BOOTSTRAP, rows.locale)
    assert set(table) == {"pooled", "us", "es", "jp"}
    own = rows.locale == "es"
    for method, probabilities_NK in probabilities.items():
        figures = table["es"]["figures"][method]
        for name, measure in (("ece", top_label_ece), ("classwise_ece", classwise_ece), ("brier", brier)):
            assert figures[name]["value"] == pytest.approx(measure(probabilities_NK[own], rows.label[own]))
    changes = table["pooled"]["figures"]["temperature"]["brier"]["change"]
    after, before = (brier(probabilities[m], rows.label) for m in ("temperature", "none"))
    assert changes["value"] == pytest.approx(after - before)
    assert changes["low"] < changes["value"] < changes["high"]
    zero = table["pooled"]["figures"]["none"]["ece"]["change"]
    assert (zero["low"], zero["high"]) == (0.0, 0.0)


def test_robustness_figures_count_what_changed():
    """Four pairs: one tier, one kept flag and one label change; two scores fall, one rises."""
    before = scored_rows([0, 0, 1, 3], [1, 1, 1, 0], predicted=[0, 0, 1, 3], score=[0.9, 0.8, 0.3, 0.1])
    after = scored_rows([0, 0, 1, 3], [1, 0, 1, 0], predicted=[0, 1, 1, 3], score=[0.9, 0.1, 0.2, 0.3])
    figures = {name: f["value"] for name, f in compare(before, after, ESCI, BOOTSTRAP).items()}
    expected = macro_f1(before.label, after.predicted, 4) - macro_f1(before.label, before.predicted, 4)
    assert (figures["tier_flips"], figures["kept_flips"], figures["label_flips"]) == (0.25, 0.25, 0.25)
    assert (figures["score_fell"], figures["score_rose"]) == (0.5, 0.25)
    assert figures["score_change"] == pytest.approx((-0.7 - 0.1 + 0.2) / 4)
    assert figures["macro_f1_change"] == pytest.approx(expected)


def test_suites_that_make_the_truth_false_take_exact_pairs_alone(tiny_pairs):
    """The negation of a Substitute says nothing of what its score should do."""
    falls = next(suite for suite in suites(()) if suite.name == "negation")
    kept = next(suite for suite in suites(()) if suite.name == "title stuffed with sales words")
    assert {p.label for p, _ in applied(falls, tiny_pairs, ESCI, seed=0)} == {"E"}
    assert len(applied(kept, tiny_pairs, ESCI, seed=0)) == len(tiny_pairs)


def test_brand_tiers_and_kinds_of_items():
    """Ten training pairs make a brand frequent; letters' case does not matter; an accessory says what it fits."""
    counts = {"voltry": 10, "fleetrun": 9}
    tiers = [brand_tier(Item("t", brand=brand), counts) for brand in ("Voltry", " FLEETRUN", "Newcomer", "", None)]
    assert tiers == ["frequent", "rare", "unknown", "none named", "none named"]
    kinds = [
        item_kind(Item("t", attributes=attributes))
        for attributes in (
            {"compatible_with": "Voltry X1", "category": "Phones"},
            {"category": "Electronics > Phone Accessories > Cases"},
            {"category": "Electronics > Phones", "compatible_with": " "},
            {"size": "M"},
        )
    ]
    assert kinds == ["accessory", "accessory", "product", "not told"]


def test_disparity_compares_rates_of_groups_that_are_large_enough():
    """Group a loses 10 of 40 Exact pairs, b 2 of 40, c its only one, which is too small to take part."""
    group = np.array(["a"] * 40 + ["b"] * 40 + ["c"])
    kept = np.concatenate([np.arange(40) >= 10, np.arange(40) >= 2, [False]])
    result = disparity(scored_rows(np.zeros(81, dtype=int), kept), group, ESCI, bootstrap=BOOTSTRAP, edge=2)
    rates = {name: g["false_filter_rate"]["value"] for name, g in result["groups"].items()}
    apart = result["apart"]["false_filter_rate"]
    assert rates == {"a": 0.25, "b": 0.05, "c": 1.0}
    assert apart["gap"]["value"] == pytest.approx(0.2)
    assert apart["ratio"]["value"] == pytest.approx((10.5 / 41) / (2.5 / 41))
    assert apart["gap"]["low"] < 0.2 < apart["gap"]["high"]
    assert result["groups"]["a"]["n_exact"] == 40
    assert np.isnan(result["groups"]["a"]["leak_rate"]["value"])
    assert np.isnan(result["apart"]["leak_rate"]["gap"]["value"])
    assert LEAST_PAIRS <= 40


def test_an_uncertified_locale_filters_nothing_but_would():
    """All kept, half below the edge: a rate of 0 as served and of 0.5 everywhere."""
    rows = scored_rows(np.zeros(40, dtype=int), np.ones(40), tier=np.arange(40) % 2 * 4)
    result = disparity(rows, np.full(40, "us"), ESCI, bootstrap=BOOTSTRAP, edge=2)
    assert result["groups"]["us"]["false_filter_rate"]["value"] == 0.0
    assert result["groups"]["us"]["false_filter_rate_everywhere"]["value"] == 0.5


def test_slices_are_compared_with_main():
    """Main is right on 3 of 4, the held-out slice on 1 of 4; sources without `main` have no differences."""
    rows = scored_rows([0, 0, 0, 1, 0, 1, 1, 1] * 5, np.ones(40), predicted=np.zeros(40, dtype=int))
    source = np.array((["main"] * 4 + ["heldout_brand"] * 4) * 5)
    table = slices(rows, source, ESCI, BOOTSTRAP)
    assert list(table) == ["main", "heldout_brand"]
    assert table["main"]["difference"] is None
    assert table["heldout_brand"]["figures"]["accuracy"]["value"] == 0.25
    assert table["heldout_brand"]["difference"]["accuracy"]["value"] == pytest.approx(-0.5)
    assert table["heldout_brand"]["difference"]["accuracy"]["high"] < 0
    alone = slices(replace(rows), np.full(40, "shop"), ESCI, BOOTSTRAP)
    assert alone["shop"]["difference"] is None

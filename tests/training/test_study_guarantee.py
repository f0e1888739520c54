"""The false-filter promise on known populations, and calibration done again on resampled queries."""

import numpy as np
import pytest
from scipy import stats

from relevance.labels import ESCI
from training.calibrate import policy_locales
from training.cut_points import CalRows, FalseFilterRule
from training.predictions import predictions_of
from training.recipe import load_recipe
from training.studies.guarantee import (
    Population,
    check_guarantee,
    check_refitted,
    query_rate,
    simulated_population,
    summary,
)
from training.studies.stability import calibrated_again, held_out_probabilities, resample_queries, study_stability

RULE = FalseFilterRule()
RECIPE = """
name = "made up"
[data]
source = "pairs"
path = "none.jsonl"
[calibrate]
epsilon = 0.3
min_exact_queries = 10
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe whose cut points small data can certify."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE)
    return load_recipe(str(path))


@pytest.fixture(scope="module")
def rows(tiny_pairs):
    """Made-up logits of the tiny pairs that follow the labels, noisily."""
    rng = np.random.default_rng(0)
    label_N = np.array([ESCI.index(p.label) for p in tiny_pairs])
    return predictions_of(tiny_pairs, 2 * np.eye(4)[label_N] + rng.normal(size=(len(label_N), 4)), ESCI)


def test_the_query_rate_weighs_queries_and_not_pairs():
    """Of a one of three Exact pairs is filtered, of b the only one, c has none: (1/3 + 1) / 2; of pairs, 2 of 4."""
    exact = np.array([True, True, True, True, False])
    nothing = np.zeros(5, dtype=bool)
    cal_rows = CalRows(np.array(list("aaabc")), exact, np.zeros(5), nothing, nothing, ~nothing)
    filtered = np.array([True, False, False, True, True])
    assert query_rate(cal_rows, filtered) == pytest.approx(2 / 3)


def test_a_simulated_query_s_pairs_are_as_alike_as_asked():
    """Intraclass correlation of the logits of Exact pairs: spread² / (spread² + 1)."""
    for spread in (0.0, 1.0):
        rows = simulated_population("p", spread=spread, n_queries=3000).rows
        logit, query = stats.logistic.ppf(rows.score[rows.exact]), rows.query_id[rows.exact]
        first = np.flatnonzero(query[:-1] == query[1:])
        assert len(np.unique(query)) == 3000
        assert np.corrcoef(logit[first], logit[first + 1])[0, 1] == pytest.approx(spread**2 / (spread**2 + 1), abs=0.05)


def test_hard_queries_with_more_exact_pairs_are_filtered_more_by_pairs_than_by_queries():
    """With a size effect the two rates part; without one they agree."""
    for size_effect, apart in ((0.0, False), (0.7, True)):
        rows = simulated_population("p", spread=1.0, size_effect=size_effect, n_queries=5000).rows
        filtered = rows.filtered(0.3)
        gap = filtered[rows.exact].mean() - query_rate(rows, filtered)
        assert (gap > 0.02) == apart


def test_the_promise_is_kept_on_a_known_population():
    """Of 25 certified edges at least as many must hold as 99 % of Binomial(25, 0.95) reach."""
    population = simulated_population("alike", spread=1.5, n_queries=2000, seed=1)
    figures = check_guarantee(population, n_queries=80, rule=RULE, draws=25)
    held = round(figures["coverage"]["value"] * figures["certified"])
    assert figures["certified"] == 25
    assert held >= stats.binom.ppf(0.01, 25, 0.95)
    assert figures["mean_query_rate"] < RULE.epsilon
    assert figures["mean_irrelevant_filtered"] > 0.1


def test_a_rule_of_no_confidence_is_caught():
    """An edge certified at confidence 0.51 breaks the 5 % far more often than one at 0.95."""
    population = simulated_population("alike", spread=1.0, n_queries=2000, seed=2)
    loose = check_guarantee(population, n_queries=80, rule=FalseFilterRule(confidence=0.51), draws=15)
    strict = check_guarantee(population, n_queries=80, rule=RULE, draws=15)
    assert loose["coverage"]["value"] < strict["coverage"]["value"] - 0.2


def test_a_population_that_can_not_be_certified_says_so():
    """Every Exact pair scores 0 and is filtered from the first cut on; the lowest cut, 0, is all that remains."""
    n = 200
    nothing = np.zeros(n, dtype=bool)
    best_filtered = CalRows(np.arange(n).astype(str), ~nothing, np.zeros(n), nothing, nothing, nothing)
    figures = check_guarantee(Population("lost", best_filtered, nothing), n_queries=80, rule=RULE, draws=5)
    assert figures["certified"] == 0
    assert np.isnan(figures["coverage"]["value"])
    assert figures["broken"]["value"] == 0.0
    assert figures["verdict"] == "nothing was certified"


@pytest.mark.parametrize(
    ("held", "draws", "verdict"),
    [(1000, 1000, "kept"), (950, 1000, "undecided"), (900, 1000, "broken")],
)
def test_shares_have_their_clopper_pearson_intervals(held, draws, verdict):
    """The ends are quantiles of Beta(k, n - k + 1) and Beta(k + 1, n - k); all certified, broken is 1 - coverage."""
    outcome = {"certified": True, "pair_rate": 0.2, "irrelevant_filtered": 0.5}
    outcomes = [outcome | {"query_rate": 0.04 if i < held else 0.06} for i in range(draws)]
    figures = summary("p", 100, RULE, outcomes)
    assert figures["coverage"]["value"] == held / draws
    assert figures["coverage"]["low"] == pytest.approx(stats.beta.ppf(0.025, held, draws - held + 1))
    assert figures["coverage"]["high"] == pytest.approx(
        1.0 if held == draws else stats.beta.ppf(0.975, held + 1, draws - held)
    )
    assert figures["broken"]["value"] == pytest.approx(1 - held / draws)
    assert figures["broken"]["high"] == pytest.approx(1 - figures["coverage"]["low"])
    assert (figures["pair_coverage"]["value"], figures["pair_broken"]["value"]) == (0.0, 1.0)
    assert figures["verdict"] == verdict


def test_the_promise_counts_all_samples_and_not_the_certified_alone():
    """Of 1,000 samples 100 are certified, 20 of them wrongly: the coverage is 0.8, and 2 % break a promise of 5 %."""
    outcomes = [
        {"certified": i < 100, "query_rate": 0.06 if i < 20 else 0.04, "pair_rate": 0.04, "irrelevant_filtered": 0.5}
        for i in range(1000)
    ]
    figures = summary("p", 100, RULE, outcomes)
    assert (figures["coverage"]["value"], figures["broken"]["value"]) == (0.8, 0.02)
    assert figures["broken"]["high"] == pytest.approx(stats.beta.ppf(0.975, 21, 980))
    assert figures["verdict"] == "kept"
    assert figures["pair_broken"]["value"] == 0.0


def test_a_resample_holds_whole_queries_each_copy_under_a_name_of_its_own(rows):
    """As many copies as there are queries, 6 pairs each, with the originals' logits."""
    sample = resample_queries(rows, np.random.default_rng(1))
    names, counts = np.unique(sample.rows.query_id, return_counts=True)
    assert len(names) == len(np.unique(rows.query_id))
    assert set(counts.tolist()) == {6}
    assert len(np.unique(sample.original_N)) < len(names)
    for name in names[:10]:
        own = sample.rows.query_id == name
        assert len(np.unique(sample.original_N[own])) == 1
        original = rows.query_id == sample.original_N[own][0]
        np.testing.assert_array_equal(sample.rows.logits_NK[own], rows.logits_NK[original])


def test_copies_of_one_query_are_never_on_both_sides_of_cross_fitting(rows, recipe):
    """Then all copies take the same fit, so their probabilities are equal."""
    sample = resample_queries(rows, np.random.default_rng(2))
    probabilities_NK = held_out_probabilities(recipe.calibrate, sample, recipe)
    copied = next(name for name in np.unique(sample.original_N) if (sample.original_N == name).sum() > 6)
    first, *others = np.split(probabilities_NK[sample.original_N == copied], (sample.original_N == copied).sum() // 6)
    for other in others:
        np.testing.assert_array_equal(other, first)


def test_movements_are_those_of_the_resampled_policies(rows, recipe):
    """The figures agree with policies made here from the same draws."""
    cal, test = rows.rows(np.arange(len(rows)) % 12 < 6), rows.rows(np.arange(len(rows)) % 12 >= 6)
    shipped = calibrated_again(recipe, resample_queries(cal, np.random.default_rng(99)))
    result = study_stability(recipe, cal, test, shipped=shipped, resamples=2)
    rng = np.random.default_rng(recipe.seed)
    policies = [calibrated_again(recipe, resample_queries(cal, rng))[1] for _ in range(2)]
    edges = np.array([policy.pooled.values[1] for policy in policies])
    reference = shipped[1].pooled.values[1]
    figures = result["cuts"]["pooled"]["1|2"]
    assert figures["reference"] == reference
    assert figures["moved"] == np.mean(np.abs(edges - reference) > 1e-9)
    assert figures["shift"] == pytest.approx(np.median(np.abs(edges - reference)))
    assert result["cuts"]["pooled"]["certified_share"] == np.mean([p.pooled.certified for p in policies])
    assert 0 <= result["flips_per_1000"]["kept"]["mean"] <= result["flips_per_1000"]["tier"]["mean"]
    assert result["flips_per_1000"]["tier"]["mean"] > 0
    assert set(result["cuts"]) == {"pooled", *policy_locales(cal, recipe.calibrate)}


def test_a_locale_that_was_not_drawn_takes_its_rule_along(rows, recipe):
    """A resample without any pair of jp: its rule would hold for nobody, and is no fault of the recipe."""
    rule = {"name": "r", "query_matches": "case", "locales": ["jp"], "cap_tier": 1}
    ruled = recipe.model_copy(update={"calibrate": recipe.calibrate.model_copy(update={"rules": (rule,)})})
    rng = np.random.default_rng(0)
    without = resample_queries(rows.rows(rows.locale != "jp"), rng)

    assert calibrated_again(ruled, resample_queries(rows, rng))[1].rules
    assert not calibrated_again(ruled, without)[1].rules
    few = rows.rows((rows.locale != "jp") | np.isin(rows.query_id, np.unique(rows.query_id[rows.locale == "jp"])[:1]))
    assert check_refitted(ruled, few, n_queries=30, draws=4)["draws"] == 4


def test_the_whole_stage_is_checked_on_a_real_pool(rows, recipe):
    """Every draw is counted, and rates are shares."""
    figures = check_refitted(recipe, rows, n_queries=60, draws=3)
    assert figures["draws"] == 3
    assert figures["certified"] == 3
    assert 0 <= figures["mean_query_rate"] <= 1
    assert figures["epsilon"] == 0.3

"""Fitted calibrators against scikit-learn and constructions whose answer is known."""

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression

from relevance.calibration import Isotonic, Temperature, VectorScaling, softmax
from relevance.errors import InputError
from relevance.metrics.reliability import top_label_ece
from training.calibrator_fit import blend, cross_fitted, fit, fit_isotonic, fit_locales, fit_temperature, fit_vector


def drawn(n=4000, temperature=2.0, bias=(0.0, 0.0, 0.0, 0.0), seed=0):
    """Draw labels from softmax(true logits) and give logits that are too sure by a factor and off by a bias."""
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(n, 4)) + np.array([1.0, 0, -1, 0])
    labels = np.array([rng.choice(4, p=p) for p in softmax(true)])
    return (true - np.asarray(bias)) * temperature, labels


class Logits(ClassifierMixin, BaseEstimator):
    """A fitted classifier whose decision function is its input."""

    def fit(self, X, y):
        """Remember the classes."""
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        """Give the input back."""
        return X

    def predict(self, X):
        """Give the class of the largest input."""
        return self.classes_[X.argmax(axis=1)]


def test_the_temperature_is_found_again():
    """Logits were multiplied by 2, so the temperature is near 2."""
    assert fit_temperature(*drawn()).temperature == pytest.approx(2, abs=0.15)


def test_the_temperature_fit_equals_scikit_learn():
    """CalibratedClassifierCV(method="temperature") on the same logits gives the same probabilities."""
    logits, labels = drawn(800)
    theirs = CalibratedClassifierCV(FrozenEstimator(Logits().fit(logits, labels)), method="temperature")
    theirs.fit(logits, labels)
    assert np.allclose(theirs.predict_proba(logits), fit_temperature(logits, labels).apply(logits), atol=2e-3)


def test_vector_scaling_finds_weight_and_bias_again():
    """weight 1/2 undoes the factor 2; the bias is known up to a constant, so its differences are compared."""
    bias = np.array([0.0, 0.5, -0.5, 1.0])
    found = fit_vector(*drawn(20_000, bias=bias))
    assert np.asarray(found.weight) == pytest.approx(np.full(4, 0.5), abs=0.06)
    assert np.diff(found.bias) == pytest.approx(np.diff(bias), abs=0.15)


def test_vector_scaling_is_at_the_minimum_of_its_penalised_loss():
    """No small step in any of the eight directions lowers log-loss + ½‖(w - 1, b)‖²."""
    logits, labels = drawn(300)
    found = fit_vector(logits, labels)
    at = np.concatenate([found.weight, found.bias])

    def loss(parameters):
        scaled = log_softmax(logits * parameters[:4] + parameters[4:], axis=1)
        away = parameters - np.repeat([1.0, 0.0], 4)
        return -scaled[np.arange(len(labels)), labels].sum() + 0.5 * away @ away

    steps = 0.02 * np.concatenate([np.eye(8), -np.eye(8)])
    assert all(loss(at) < loss(at + step) for step in steps)


def test_vector_scaling_without_evidence_stays_at_the_identity():
    """One pair moves the parameters little: the prior pulls weights to 1 and biases to 0."""
    found = fit_vector(np.zeros((1, 4)), np.array([0]))
    assert np.asarray(found.weight) == pytest.approx(np.ones(4))
    assert np.abs(found.bias).max() < 1


def test_each_isotonic_map_equals_scikit_learn():
    """The knots reproduce the regression's prediction at every training point."""
    logits, labels = drawn(500)
    found = fit_isotonic(logits, labels)
    for k, knots in enumerate(found.knots):
        x = softmax(logits)[:, k]
        oracle = IsotonicRegression(out_of_bounds="clip").fit(x, labels == k)
        assert np.allclose(oracle.predict(x), np.interp(x, *np.array(knots).T))


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_calibration_lowers_the_error_on_pairs_it_did_not_see(method):
    """Logits twice too sure: ECE on a second draw falls below a half of what it was."""
    fitted = fit(method, *drawn())
    logits, labels = drawn(seed=1)
    assert top_label_ece(fitted.apply(logits), labels) < 0.5 * top_label_ece(softmax(logits), labels)


@pytest.mark.parametrize("method", ["temperature", "vector", "isotonic"])
def test_a_fit_without_pairs_is_refused(method):
    """Nothing to fit on."""
    with pytest.raises(InputError, match="at least one labelled pair"):
        fit(method, np.zeros((0, 4)), np.zeros(0, dtype=np.int64))


def test_a_perfect_order_does_not_run_away():
    """Every label is the arg-max, so the best temperature is 0; ours is small, but not below e^-4."""
    assert np.exp(-4) <= fit_temperature(np.eye(4), np.arange(4)).temperature < 0.1


def test_temperatures_are_blended_in_log_space():
    """Half way between 1 and 4 lies 2."""
    mixed = blend(Temperature(temperature=1), Temperature(temperature=4), 0.5)
    assert mixed.temperature == pytest.approx(2)


def test_vectors_are_blended_in_parameter_space():
    """A quarter of the way from 1 to 3 and from 0 to 4."""
    pooled, own = VectorScaling(weight=(1, 1), bias=(0, 0)), VectorScaling(weight=(3, 1), bias=(0, 4))
    assert blend(pooled, own, 0.25) == VectorScaling(weight=(1.5, 1), bias=(0, 1))


def test_isotonic_maps_are_blended_on_all_their_knots():
    """y = x and y = x² through three points, half each: at 0.5 (0.5 + 0.25) / 2 = 0.375."""
    pooled = Isotonic(knots=(((0.0, 0.0), (1.0, 1.0)),) * 2)
    own = Isotonic(knots=(((0.0, 0.0), (0.5, 0.25), (1.0, 1.0)),) * 2)
    assert blend(pooled, own, 0.5).knots[0] == ((0.0, 0.0), (0.5, 0.375), (1.0, 1.0))


def test_calibrators_of_two_kinds_are_not_blended():
    """Their parameters have nothing in common."""
    with pytest.raises(InputError, match="temperature and vector"):
        blend(Temperature(temperature=1), VectorScaling(weight=(1, 1), bias=(0, 0)), 0.5)


@pytest.mark.parametrize(("shrinkage", "expected"), [(0.0, 4.0), (1000.0, 2.0), (1e12, 1.0)])
def test_a_locale_is_shrunk_by_its_number_of_pairs(shrinkage, expected):
    """n = 1000: weight 1, a half and nearly 0 of its own ln(temperature)."""
    logits, labels = drawn(1000, temperature=3)
    own = fit_temperature(logits, labels).temperature
    pooled, locales = fit_locales("temperature", logits, labels, locale_N=np.array(["jp"] * 1000), shrinkage=shrinkage)
    weight = np.log2(expected) / 2
    assert locales["jp"].temperature == pytest.approx(own**weight * pooled.temperature ** (1 - weight))


def test_pairs_without_a_locale_count_only_for_the_pooled_fit():
    """The empty name is no locale."""
    logits, labels = drawn(100)
    locale = np.array(["", "es"] * 50)
    _, locales = fit_locales("vector", logits, labels, locale_N=locale, shrinkage=50)
    assert sorted(locales) == ["es"]


def test_no_pair_is_calibrated_by_a_fit_that_saw_its_query():
    """Rows to fit on and to apply to share no query, and every row is applied to once."""
    query_ids = np.array([f"q{i % 7}" for i in range(40)])
    applied = np.zeros(40)

    def apply_fit(fit_on, apply_to):
        assert not set(query_ids[fit_on]) & set(query_ids[apply_to])
        applied[apply_to] += 1
        return np.full((int(apply_to.sum()), 2), 0.5)

    assert cross_fitted(apply_fit, query_ids, folds=5, seed=0).shape == (40, 2)
    assert (applied == 1).all()


def test_fewer_queries_than_folds_are_refused():
    """Two queries cannot make five folds."""
    with pytest.raises(InputError, match="at least 5 queries, found 2"):
        cross_fitted(lambda fit_on, apply_to: np.zeros((1, 2)), np.array(["a", "b"]), folds=5, seed=0)

"""Calibrators: what each map keeps, and that probabilities are probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from relevance.calibration import Calibrator, Isotonic, Temperature, VectorScaling, expected_gain, softmax
from relevance.labels import ESCI

LOGITS = hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(-30, 30, width=32))
NEVER = ((0.0, 0.0), (1.0, 0.0))
PLAIN = ((0.0, 0.0), (1.0, 1.0))


@given(LOGITS, st.floats(0.05, 20))
def test_temperature_keeps_the_arg_max(logits, temperature):
    """Dividing by a positive number keeps the order; a class that led before has the highest probability after."""
    probabilities = Temperature(temperature=temperature).apply(logits)
    rows = np.arange(len(logits))
    assert np.array_equal(probabilities.max(axis=1), probabilities[rows, logits.argmax(axis=1)])


@given(LOGITS)
def test_identity_parameters_give_the_softmax(logits):
    """Temperature 1, weights 1 with biases 0, and straight maps change nothing."""
    plain = softmax(logits)
    assert np.allclose(plain, Temperature(temperature=1).apply(logits))
    assert np.allclose(plain, VectorScaling(weight=(1, 1, 1, 1), bias=(0, 0, 0, 0)).apply(logits))
    assert np.allclose(plain, Isotonic(knots=(PLAIN,) * 4).apply(logits))


@given(LOGITS, st.lists(st.floats(-3, 3), min_size=8, max_size=8))
def test_probabilities_sum_to_one_and_the_score_lies_in_the_unit_interval(logits, parameters):
    """Whatever the parameters."""
    fit = VectorScaling(weight=tuple(parameters[:4]), bias=tuple(parameters[4:]))
    probabilities = fit.apply(logits)
    score = expected_gain(probabilities, ESCI)
    assert np.allclose(1, probabilities.sum(axis=1))
    assert score.min() >= 0
    assert score.max() <= 1


def test_softmax_survives_large_logits():
    """exp(1000) overflows; the shifted form does not: 1 / (1 + e^-1) = 0.7311."""
    assert softmax(np.array([[1000.0, 999.0]]))[0, 0] == pytest.approx(0.731059, abs=1e-6)


def test_isotonic_is_uniform_where_every_map_gives_zero():
    """A quarter each rather than 0 / 0."""
    assert np.array_equal(np.full((1, 4), 0.25), Isotonic(knots=(NEVER,) * 4).apply(np.zeros((1, 4))))


def test_the_score_is_the_expected_gain():
    """0.5 · 1 + 0.2 · 0.1 + 0.2 · 0.01 + 0.1 · 0 = 0.522."""
    assert expected_gain(np.array([[0.5, 0.2, 0.2, 0.1]]), ESCI)[0] == pytest.approx(0.522)


def test_an_unknown_locale_takes_the_pooled_fit():
    """Only named locales have a fit of their own: e^4/(e^4 + 3) against e^2/(e^2 + 3)."""
    calibrator = Calibrator(
        version="v", n_classes=4, pooled=Temperature(temperature=1), locales={"jp": Temperature(temperature=2)}
    )
    logits = np.array([[4.0, 0, 0, 0]])
    assert calibrator.probabilities(logits, "fr")[0, 0] == pytest.approx(np.e**4 / (np.e**4 + 3))
    assert calibrator.probabilities(logits, "jp")[0, 0] == pytest.approx(np.e**2 / (np.e**2 + 3))


@pytest.mark.parametrize(
    "fit",
    [
        Temperature(temperature=0.7),
        VectorScaling(weight=(1, 2, 3, 4), bias=(0, 0.1, 0, -1)),
        Isotonic(knots=(PLAIN, NEVER, PLAIN, PLAIN)),
    ],
    ids=lambda fit: fit.kind,
)
def test_a_calibrator_survives_json(fit):
    """The kind decides which parameters are read."""
    calibrator = Calibrator(version="v", n_classes=4, pooled=fit, locales={"us": fit})
    assert calibrator == Calibrator.model_validate_json(calibrator.model_dump_json())


@pytest.mark.parametrize(
    "fit", [VectorScaling(weight=(1, 1), bias=(0, 0)), Isotonic(knots=(PLAIN, PLAIN))], ids=lambda fit: fit.kind
)
def test_parameters_of_another_number_of_classes_are_refused(fit):
    """Two classes do not calibrate four."""
    with pytest.raises(ValidationError, match="expected parameters of 4 classes"):
        Calibrator(version="v", n_classes=4, pooled=Temperature(temperature=1), locales={"us": fit})


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_a_temperature_that_is_not_a_positive_number_is_refused(temperature):
    """Neither zero nor nan divides logits."""
    with pytest.raises(ValidationError):
        Temperature(temperature=temperature)

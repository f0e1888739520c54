"""Fitting calibrators on labelled logits, and shrinking a locale's fit towards the pooled one.

Suffixes: N pairs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from relevance.calibration import Isotonic, Parameters, Temperature, VectorScaling, softmax
from relevance.errors import InputError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Method = Literal["temperature", "vector", "isotonic"]

LOG_TEMPERATURE_RANGE = (-4.0, 4.0)
VECTOR_PENALTY = 1.0
"""Weight of ½‖(weight - 1, bias)‖² against the summed log-loss: a unit normal prior around the identity."""


def fit(method: Method, logits_NK: Floats, label_N: Ints) -> Parameters:
    """Fit one calibrator.

    Raises: InputError: without pairs.
    """
    if not len(label_N):
        raise InputError("calibration: expected at least one labelled pair, found none")
    if method == "temperature":
        return fit_temperature(logits_NK, label_N)
    if method == "vector":
        return fit_vector(logits_NK, label_N)
    return fit_isotonic(logits_NK, label_N)


def fit_temperature(logits_NK: Floats, label_N: Ints) -> Temperature:
    """Minimise the log-loss over ln(temperature), kept within ±4."""

    def loss(log_temperature: Floats) -> tuple[float, Floats]:
        scaled_NK = logits_NK * np.exp(-log_temperature[0])
        value, slope_NK = _log_loss(scaled_NK, label_N)
        return value, np.array([-(slope_NK * scaled_NK).sum()])

    found = minimize(loss, np.zeros(1), jac=True, method="L-BFGS-B", bounds=[LOG_TEMPERATURE_RANGE])
    return Temperature(temperature=float(np.exp(found.x[0])))


def fit_vector(logits_NK: Floats, label_N: Ints) -> VectorScaling:
    """Minimise the log-loss plus a mild L2 pull of weights to 1 and biases to 0.

    The pull fixes what the softmax leaves open (a constant added to all biases) and keeps rare classes sane.
    """
    n_classes = logits_NK.shape[1]
    identity = np.concatenate([np.ones(n_classes), np.zeros(n_classes)])

    def loss(parameters: Floats) -> tuple[float, Floats]:
        weight_K, bias_K = parameters[:n_classes], parameters[n_classes:]
        value, slope_NK = _log_loss(logits_NK * weight_K + bias_K, label_N)
        away = parameters - identity
        gradient = np.concatenate([(slope_NK * logits_NK).sum(axis=0), slope_NK.sum(axis=0)])
        return value + VECTOR_PENALTY / 2 * float(away @ away), gradient + VECTOR_PENALTY * away

    found = minimize(loss, identity, jac=True, method="L-BFGS-B")
    return VectorScaling(weight=tuple(found.x[:n_classes].tolist()), bias=tuple(found.x[n_classes:].tolist()))


def fit_isotonic(logits_NK: Floats, label_N: Ints) -> Isotonic:
    """Fit one isotonic regression a class on the softmax."""
    probability_NK = softmax(logits_NK)
    maps = []
    for k in range(logits_NK.shape[1]):
        regression = IsotonicRegression(out_of_bounds="clip")
        regression.fit(probability_NK[:, k], (label_N == k).astype(np.float64))
        maps.append(tuple(zip(regression.X_thresholds_.tolist(), regression.y_thresholds_.tolist(), strict=True)))
    return Isotonic(knots=tuple(maps))


def blend(pooled: Parameters, own: Parameters, weight: float) -> Parameters:
    """Mix a locale's own fit with the pooled one: ln(temperature), parameters, or maps on the union of their knots.

    Args: weight: of the own fit, in [0, 1].
    Raises: InputError: if the two are of different kinds.
    """
    if isinstance(pooled, Temperature) and isinstance(own, Temperature):
        mixed = _mix(np.log(pooled.temperature), np.log(own.temperature), weight)
        return Temperature(temperature=float(np.exp(mixed)))
    if isinstance(pooled, VectorScaling) and isinstance(own, VectorScaling):
        return VectorScaling(
            weight=tuple(_mix(pooled.weight, own.weight, weight).tolist()),
            bias=tuple(_mix(pooled.bias, own.bias, weight).tolist()),
        )
    if isinstance(pooled, Isotonic) and isinstance(own, Isotonic):
        pairs = zip(pooled.knots, own.knots, strict=True)
        return Isotonic(knots=tuple(_blend_maps(np.array(p), np.array(o), weight) for p, o in pairs))
    raise InputError(f"expected two calibrators of one kind, found {pooled.kind} and {own.kind}")


def fit_locales(
    method: Method, logits_NK: Floats, label_N: Ints, *, locale_N: NDArray[np.str_], shrinkage: float
) -> tuple[Parameters, dict[str, Parameters]]:
    """Fit the pooled calibrator and one a locale, shrunk to it with weight n / (n + shrinkage).

    Args: locale_N: policy locale of each pair, "" for none; shrinkage: pairs at which both weigh the same.
    """
    pooled = fit(method, logits_NK, label_N)
    locales: dict[str, Parameters] = {}
    for locale in sorted(set(locale_N.tolist()) - {""}):
        own = locale_N == locale
        n = int(own.sum())
        locales[locale] = blend(pooled, fit(method, logits_NK[own], label_N[own]), n / (n + shrinkage))
    return pooled, locales


def cross_fitted(
    apply_fit: Callable[[NDArray[np.bool_], NDArray[np.bool_]], Floats],
    query_ids: NDArray[np.str_],
    *,
    folds: int,
    seed: int,
) -> Floats:
    """Give each pair probabilities from a calibrator that saw no pair of its query.

    Args: apply_fit: (rows to fit on, rows to apply to), bool of shape (N,) → probabilities of the latter.
    Raises: InputError: if there are fewer queries than folds.
    """
    names, inverse = np.unique(query_ids, return_inverse=True)
    if len(names) < folds:
        raise InputError(f"calibration: expected at least {folds} queries, found {len(names)}")
    fold_of_query = np.random.default_rng(seed).permutation(len(names)) % folds
    fold_N = fold_of_query[inverse]
    parts = {f: apply_fit(fold_N != f, fold_N == f) for f in range(folds)}
    probabilities_NK = np.zeros((len(query_ids), parts[0].shape[1]))
    for f, part in parts.items():
        probabilities_NK[fold_N == f] = part
    return probabilities_NK


def _log_loss(logits_NK: Floats, label_N: Ints) -> tuple[float, Floats]:
    shifted_NK = logits_NK - logits_NK.max(axis=1, keepdims=True)
    log_total_N = np.log(np.exp(shifted_NK).sum(axis=1))
    row_N = np.arange(len(label_N))
    value = float((log_total_N - shifted_NK[row_N, label_N]).sum())
    slope_NK = softmax(logits_NK)
    slope_NK[row_N, label_N] -= 1
    return value, slope_NK


def _mix(pooled: object, own: object, weight: float) -> Floats:
    mixed: Floats = (1 - weight) * np.asarray(pooled, dtype=np.float64) + weight * np.asarray(own, dtype=np.float64)
    return mixed


def _blend_maps(pooled: Floats, own: Floats, weight: float) -> tuple[tuple[float, float], ...]:
    x = np.unique(np.concatenate([pooled[:, 0], own[:, 0]]))
    y = _mix(np.interp(x, pooled[:, 0], pooled[:, 1]), np.interp(x, own[:, 0], own[:, 1]), weight)
    return tuple(zip(x.tolist(), y.tolist(), strict=True))

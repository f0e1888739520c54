"""Calibrators: logits → probabilities → score. Applying lives here, fitting in `training.calibrate`.

Suffixes: B pairs, K classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from relevance.labels import LabelScheme

Floats = NDArray[np.float64]


def softmax(logits_BK: NDArray[np.floating]) -> Floats:
    """Give the softmax over the last axis in float64."""
    shifted = np.asarray(logits_BK, dtype=np.float64)
    shifted = shifted - shifted.max(axis=-1, keepdims=True)
    powers = np.exp(shifted)
    total: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return total


class _Parameters(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Temperature(_Parameters):
    """softmax(logits / temperature): keeps the arg-max (Guo et al., arXiv:1706.04599)."""

    kind: Literal["temperature"] = "temperature"
    temperature: float = Field(gt=0)

    def apply(self, logits_BK: NDArray[np.floating]) -> Floats:
        """Give probabilities of shape (B, K)."""
        return softmax(np.asarray(logits_BK, dtype=np.float64) / self.temperature)


class VectorScaling(_Parameters):
    """softmax(weight · logits + bias), one weight and bias a class (Guo et al., arXiv:1706.04599)."""

    kind: Literal["vector"] = "vector"
    weight: tuple[float, ...]
    bias: tuple[float, ...]

    def apply(self, logits_BK: NDArray[np.floating]) -> Floats:
        """Give probabilities of shape (B, K)."""
        return softmax(np.asarray(logits_BK, dtype=np.float64) * np.asarray(self.weight) + np.asarray(self.bias))


class Isotonic(_Parameters):
    """One isotonic map a class on the softmax, then renormalised (Zadrozny and Elkan, KDD 2002).

    Args: knots: for each class the (x, y) points of its map, x increasing, y not decreasing.
    """

    kind: Literal["isotonic"] = "isotonic"
    knots: tuple[tuple[tuple[float, float], ...], ...]

    def apply(self, logits_BK: NDArray[np.floating]) -> Floats:
        """Give probabilities of shape (B, K); uniform where every class's map gives 0."""
        raw_BK = softmax(logits_BK)
        columns = [
            np.interp(raw_BK[:, k], [x for x, _ in points], [y for _, y in points])
            for k, points in enumerate(self.knots)
        ]
        mapped_BK = np.stack(columns, axis=-1)
        total_B1 = mapped_BK.sum(axis=-1, keepdims=True)
        empty_B1 = total_B1 <= 0
        probabilities_BK: Floats = np.where(empty_B1, 1 / len(columns), mapped_BK / np.where(empty_B1, 1, total_B1))
        return probabilities_BK


Parameters = Annotated[Temperature | VectorScaling | Isotonic, Field(discriminator="kind")]


class Calibrator(BaseModel):
    """Fitted maps from logits to probabilities, one a locale and a pooled one for all others.

    Args: version: names this fit in responses; n_classes: K; pooled, locales: parameters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    version: str
    n_classes: int = Field(ge=2)
    pooled: Parameters
    locales: dict[str, Parameters] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _sizes_agree(self) -> Calibrator:
        for where, fit in {"pooled": self.pooled, **self.locales}.items():
            if isinstance(fit, VectorScaling):
                sizes = {len(fit.weight), len(fit.bias)}
            elif isinstance(fit, Isotonic):
                sizes = {len(fit.knots)}
            else:
                sizes = {self.n_classes}
            if sizes != {self.n_classes}:
                raise ValueError(f"{where}: expected parameters of {self.n_classes} classes, found {sorted(sizes)}")
        return self

    def probabilities(self, logits_BK: NDArray[np.floating], policy_locale: str = "pooled") -> Floats:
        """Give calibrated probabilities.

        Args: logits_BK: float; policy_locale: as `TierPolicy.resolve` names it; unknown ones take the pooled fit.
        Returns: float64 of shape (B, K), rows summing to 1.
        """
        return self.locales.get(policy_locale, self.pooled).apply(logits_BK)


def expected_gain(probabilities_BK: Floats, scheme: LabelScheme) -> Floats:
    """Give the score of each pair: Σ_c P(c) · gain(c) / max gain, in [0, 1], shape (B,)."""
    score_B: Floats = np.clip(probabilities_BK @ scheme.gain_K, 0.0, 1.0)
    return score_B

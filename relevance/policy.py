"""Tier policies: cut points per locale, business rules and the filter tier turn a score into tier and kept.

Suffixes: B pairs, K classes.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import re2
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from relevance.errors import PolicyError
from relevance.labels import N_TIERS, LabelScheme

POOLED = "pooled"


class CutPoints(BaseModel):
    """The four scores at which the tier rises, and whether filtering by them is certified.

    Args: values: the cuts 0|1, 1|2, 2|3, 3|4 in [0, 1], not decreasing; equal neighbours merge two tiers (the lower
        one is then never given); certified: whether P(filtered | Exact) ≤ epsilon was shown on `cal`; an uncertified
        locale gets tiers but nothing is filtered; n_exact: Exact queries it was shown on; bound: the upper bound.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    values: tuple[float, float, float, float]
    certified: bool
    epsilon: float = Field(default=0.05, gt=0, lt=1)
    n_exact: int = Field(default=0, ge=0)
    bound: float = Field(default=1.0, ge=0, le=1)
    bootstrap_bound: float = Field(default=1.0, ge=0, le=1)

    @field_validator("values")
    @classmethod
    def _ordered(cls, values: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        if list(values) != sorted(values) or values[0] < 0 or values[-1] > 1:
            raise ValueError(f"expected four cut points in [0, 1] that do not decrease, found {values}")
        return values


class BusinessRule(BaseModel):
    """A declarative rule: where all its conditions hold, the tier is capped or raised.

    Args: class_at_least: class code → least probability; query_matches: a regular expression (RE2, linear time)
        searched in the cleaned query; locales: policy locales it applies in, empty for all;
        cap_tier: highest tier allowed; floor_tier: lowest tier allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    class_at_least: dict[str, float] = Field(default_factory=dict)
    query_matches: str | None = None
    locales: tuple[str, ...] = ()
    cap_tier: int | None = Field(default=None, ge=0, lt=N_TIERS)
    floor_tier: int | None = Field(default=None, ge=0, lt=N_TIERS)

    @model_validator(mode="after")
    def _complete(self) -> BusinessRule:
        if (self.cap_tier is None) == (self.floor_tier is None):
            raise ValueError(f"rule {self.name!r}: expected exactly one of cap_tier and floor_tier")
        if not self.class_at_least and self.query_matches is None:
            raise ValueError(f"rule {self.name!r}: expected class_at_least or query_matches, found neither")
        if self.query_matches is not None:
            try:
                re2.compile(self.query_matches, _re2_options())
            except re2.error as error:
                raise ValueError(f"rule {self.name!r}: expected an RE2 regular expression: {error}") from error
        return self

    @cached_property
    def _pattern(self) -> Any:  # noqa: ANN401 - re2 ships no types
        return re2.compile(self.query_matches or "", _re2_options())

    def applies(self, query: str, policy_locale: str) -> bool:
        """Say whether the conditions on the request hold."""
        if self.locales and policy_locale not in self.locales:
            return False
        return self.query_matches is None or self._pattern.search(query) is not None

    def fires(self, probabilities_BK: NDArray[np.float64], scheme: LabelScheme) -> NDArray[np.bool_]:
        """Say for which pairs the conditions on classes hold; shape (B,)."""
        fires_B = np.ones(len(probabilities_BK), dtype=bool)
        for code, least in self.class_at_least.items():
            fires_B &= probabilities_BK[:, scheme.classes.index(code)] >= least
        return fires_B


@dataclass(frozen=True, slots=True)
class Decision:
    """What a policy says of B pairs.

    Args: tier_B: int64, 0–4; kept_B: bool; label_B: index of the class with the largest weighted
        probability; fired: (rule name, bool of shape (B,)) for each rule that fired somewhere;
        policy_locale: whose cut points were used; certified: False means that nothing was filtered.
    """

    tier_B: NDArray[np.int64]
    kept_B: NDArray[np.bool_]
    label_B: NDArray[np.int64]
    fired: tuple[tuple[str, NDArray[np.bool_]], ...]
    policy_locale: str
    certified: bool


class TierPolicy(BaseModel):
    """Cut points per locale with a pooled fallback, aliases, business rules and the filter tier.

    Args: version: names this policy in responses; filter_tier: pairs below it are filtered; aliases: lower-case locale
        tag → name in `locales`; label_weights: class code → weight of its probability when a label is chosen, 1 where
        not named, so that rare classes are not always outvoted; pooled, locales: cut points; rules: applied in order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    version: str
    filter_tier: int = Field(default=2, ge=0, lt=N_TIERS)
    pooled: CutPoints
    locales: dict[str, CutPoints] = Field(default_factory=dict)
    aliases: dict[str, str] = Field(default_factory=dict)
    label_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    rules: tuple[BusinessRule, ...] = ()

    @model_validator(mode="after")
    def _aliases_point_somewhere(self) -> TierPolicy:
        lost = {a: t for a, t in self.aliases.items() if t not in self.locales and t != POOLED}
        if lost:
            raise ValueError(f"aliases: expected targets among {sorted(self.locales)} or 'pooled', found {lost}")
        wrong = [n for n in (*self.locales, *self.aliases) if n != fold_locale(n)]
        if wrong:
            raise ValueError(f"expected lower-case locale names with '-', found {wrong}")
        for rule in self.rules:
            never = [n for n in rule.locales if n != POOLED and n not in self.locales]
            if never:
                raise ValueError(
                    f"rule {rule.name!r}, locales: expected some of {sorted(self.locales)} or 'pooled', which are what "
                    f"requests are resolved to, found {never}, for which the rule would never hold"
                )
        return self

    @classmethod
    def from_toml(cls, data: bytes, scheme: LabelScheme) -> TierPolicy:
        """Read a policy.toml and check its rules against the scheme.

        Raises: PolicyError: if it is not TOML, breaks the schema, or names a class outside the scheme.
        """
        try:
            policy = cls.model_validate(tomllib.loads(data.decode("utf-8")))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as error:
            raise PolicyError(f"policy.toml: {error}") from error
        named = {f"rule {rule.name!r}": rule.class_at_least for rule in policy.rules}
        for where, classes in {"label_weights": policy.label_weights, **named}.items():
            unknown = sorted(set(classes) - set(scheme.classes))
            if unknown:
                raise PolicyError(f"policy.toml, {where}: expected classes of {scheme.classes}, found {unknown}")
        return policy

    def resolve(self, locale: str | None) -> str:
        """Give the policy locale of a request's locale: exact name, alias, language, else `pooled`."""
        if locale is None:
            return POOLED
        folded = fold_locale(locale)
        for name in (folded, folded.split("-")[0]):
            if name in self.locales:
                return name
            if name in self.aliases:
                return self.aliases[name]
        return POOLED

    def cut_points(self, policy_locale: str) -> CutPoints:
        """Give the cut points that a name from `resolve` stands for."""
        return self.locales.get(policy_locale, self.pooled)

    def decide(
        self,
        score_B: NDArray[np.float64],
        probabilities_BK: NDArray[np.float64],
        scheme: LabelScheme,
        *,
        policy_locale: str,
        query: str,
        min_tier: int | None = None,
    ) -> Decision:
        """Turn scores into tiers and kept flags; monotone in the score among pairs for which the same rules fired.

        Args: score_B, probabilities_BK: float64; policy_locale: from `resolve`; query: cleaned text;
            min_tier: the caller's own filter tier, which also overrides an uncertified locale.
        """
        cuts = self.cut_points(policy_locale)
        tier_B = np.searchsorted(np.asarray(cuts.values), score_B, side="right").astype(np.int64)
        fired = []
        for rule in self.rules:
            if not rule.applies(query, policy_locale):
                continue
            fires_B = rule.fires(probabilities_BK, scheme)
            if not fires_B.any():
                continue
            fired.append((rule.name, fires_B))
            if rule.cap_tier is not None:
                tier_B[fires_B] = np.minimum(tier_B[fires_B], rule.cap_tier)
            if rule.floor_tier is not None:
                tier_B[fires_B] = np.maximum(tier_B[fires_B], rule.floor_tier)
        if min_tier is not None:
            kept_B = tier_B >= min_tier
        elif cuts.certified:
            kept_B = tier_B >= self.filter_tier
        else:
            kept_B = np.ones(len(tier_B), dtype=bool)
        return Decision(
            tier_B=tier_B,
            kept_B=kept_B,
            label_B=self.labels(probabilities_BK, scheme),
            fired=tuple(fired),
            policy_locale=policy_locale,
            certified=cuts.certified,
        )

    def labels(self, probabilities_BK: NDArray[np.float64], scheme: LabelScheme) -> NDArray[np.int64]:
        """Give the class index with the largest weighted probability of each pair; shape (B,)."""
        weight_K = np.array([self.label_weights.get(code, 1.0) for code in scheme.classes])
        label_B: NDArray[np.int64] = (probabilities_BK * weight_K).argmax(axis=1)
        return label_B


def fold_locale(locale: str) -> str:
    """Give a locale tag in lower case with `-` between its parts."""
    return locale.strip().lower().replace("_", "-")


def _re2_options() -> Any:  # noqa: ANN401 - re2 ships no types
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 20
    return options

"""The dashboards of what the model says: tiers, filter, drift; and the shadow bundle."""

from __future__ import annotations

from k8s.monitoring.cause_rules import FLIPS, LOW_TIERS
from k8s.monitoring.objectives import MAX_FLIP_RATIO, MAX_PSI
from k8s.monitoring.panels import Board, Chart
from k8s.monitoring.queries import IN, POD, answered, by_pod, quantile, rate, total

_LOCALE = 'locale=~"$locale"'
_FILTERED = total("relevance_pairs_total", 'outcome="filtered"')
_DECIDED = total("relevance_pairs_total", 'outcome=~"scored|filtered"')
_SCORE_SUM = rate("relevance_score_sum", "locale", _LOCALE)
_SCORE_COUNT = rate("relevance_score_count", "locale", _LOCALE)
RELEVANCE = Board(
    "relevance-relevance",
    "Relevance: tiers, filter and drift",
    "What the model says, locale by locale.",
    (
        (
            "Tiers and filter",
            (
                Chart(
                    "Pairs by tier",
                    "Scored pairs.",
                    "ops",
                    (("tier {{tier}}", rate("relevance_tier_total", "tier", _LOCALE)),),
                ),
                Chart(
                    "Filter rate by locale",
                    "Share of pairs in tiers 0 and 1, which the default policy filters where the locale is certified.",
                    "percentunit",
                    (
                        ("{{locale}} 1h", f"{LOW_TIERS}1h{{{IN},{_LOCALE}}}"),
                        ("{{locale}} 1d", f"{LOW_TIERS}1d{{{IN},{_LOCALE}}}"),
                    ),
                ),
                Chart(
                    "Filtered, all locales",
                    "Share of scored pairs that were not kept, by the policy and the request's min_tier.",
                    "percentunit",
                    (
                        (
                            "filtered",
                            f"{_FILTERED} / {_DECIDED}",
                        ),
                    ),
                ),
            ),
        ),
        (
            "Scores",
            (
                Chart(
                    "Median score by locale",
                    "From a histogram with edges 0.05 apart.",
                    "percentunit",
                    (("{{locale}}", quantile(0.5, "relevance_score", "locale", _LOCALE)),),
                ),
                Chart(
                    "Mean score by locale",
                    "A shift without a new bundle or policy is a shift of the traffic.",
                    "percentunit",
                    (
                        (
                            "{{locale}}",
                            f"{_SCORE_SUM} / {_SCORE_COUNT}",
                        ),
                    ),
                ),
                Chart(
                    "Pairs by locale",
                    "Scored pairs; pooled: locales that the policy does not know.",
                    "ops",
                    (("{{locale}}", rate("relevance_tier_total", "locale", _LOCALE)),),
                ),
            ),
        ),
        (
            "Drift",
            (
                Chart(
                    "Population stability index",
                    "Recent pairs against the bundle's baseline, worst replica. Empty before 500 pairs of a locale.",
                    "short",
                    (("{{what}} {{locale}}", f"max by (what, locale) (relevance_drift_psi{{{POD},{_LOCALE}}})"),),
                    MAX_PSI,
                ),
                Chart(
                    "Truncated items",
                    "Share of scored pairs whose item was not read to its end.",
                    "percentunit",
                    (("truncated", f"{total('relevance_truncated_total')} / {total('relevance_tier_total')}"),),
                ),
                Chart(
                    "Unknown locales",
                    "Share of requests that named a locale and took the pooled cut points.",
                    "percentunit",
                    (
                        (
                            "pooled",
                            f"{total('relevance_locale_fallback_total')} / {answered()}",
                        ),
                    ),
                ),
            ),
        ),
    ),
    ("locale",),
)
SHADOW = Board(
    "relevance-shadow",
    "Relevance: shadow",
    "The second bundle on sampled requests, beside what is served; empty without one.",
    (
        (
            "Agreement",
            (
                Chart(
                    "Tier flips",
                    "Share of compared pairs that the shadow puts into another tier, over an hour.",
                    "percentunit",
                    (("{{namespace}}", f"{FLIPS}{{{IN}}}"),),
                    MAX_FLIP_RATIO,
                ),
                Chart(
                    "Kappa of tiers",
                    "Quadratically weighted, over the last compared requests.",
                    "short",
                    by_pod("relevance_shadow_tier_kappa"),
                ),
                Chart(
                    "Rank correlation",
                    "Mean Spearman correlation of the last compared requests.",
                    "short",
                    by_pod("relevance_shadow_rank_correlation"),
                ),
            ),
        ),
        (
            "Cost and samples",
            (
                Chart(
                    "Cost against the primary",
                    "Session seconds a token, shadow over primary.",
                    "short",
                    by_pod("relevance_shadow_latency_ratio"),
                ),
                Chart(
                    "Sampled pairs",
                    "dropped: too many waited; failed: the shadow's session.",
                    "ops",
                    (("{{outcome}}", rate("relevance_shadow_pairs_total", "outcome")),),
                ),
                Chart(
                    "Pair log",
                    "Sampled pairs written and lost.",
                    "ops",
                    (("{{outcome}}", rate("relevance_pair_log_rows_total", "outcome")),),
                ),
                Chart("Pair log on disk", "Bytes of each replica.", "bytes", by_pod("relevance_pair_log_bytes")),
            ),
        ),
    ),
)

"""What another filter edge would keep and lose: one line a candidate edge, for all locales together and for each.

Business rules stay as they are; a locale that filters nothing today is counted as if it filtered. Suffix: N rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from relevance.labels import LabelScheme
from relevance.policy import TierPolicy
from training.inspection.confusion import rate, share_of_queries
from training.inspection.rows import Bools, Rows, RuleOutcomes, edge_of

GRID = tuple(np.round(np.linspace(0.0, 1.0, 21), 2).tolist())
"""Candidate edges beside the policy's own cut points."""
ALL = "all"


def what_if(rows: Rows, outcomes: RuleOutcomes, policy: TierPolicy, scheme: LabelScheme) -> list[dict[str, Any]]:
    """Give the tables: all locales with one edge for all, then each policy locale.

    Returns: of each scope: `locale`, `n_rows`, `edges` (the policy's, by locale), `unfiltered` (locales where today's
        policy filters nothing), `served` (what is kept today) and `lines`, one a candidate edge.
    """
    every_N = np.ones(len(rows), dtype=bool)
    scopes = [(ALL, every_N)] if len(rows.locales) > 1 else []
    scopes += [(name, rows.locale_N == code) for code, name in enumerate(rows.locales)]
    tables = []
    for name, own_N in scopes:
        locales = rows.locales if name == ALL else (name,)
        own_cuts = {cut for locale in locales for cut in policy.cut_points(locale).values}
        edges = sorted({*GRID, *own_cuts})
        today = {locale: edge_of(policy, locale) for locale in locales}
        tables.append(
            {
                "locale": name,
                "n_rows": int(own_N.sum()),
                "edges": today,
                "unfiltered": [locale for locale in locales if not policy.cut_points(locale).certified],
                "served": _line(rows, own_N, ~rows.kept_N[own_N], scheme),
                "lines": [
                    {
                        "edge": edge,
                        "cuts": _cuts_at(edge, policy, locales),
                        "today": [locale for locale, own in today.items() if own == edge],
                        **_line(rows, own_N, outcomes.filtered(rows.score_N, edge)[own_N], scheme),
                    }
                    for edge in (edges if policy.filter_tier else ())
                ],
            }
        )
    return tables


def _cuts_at(edge: float, policy: TierPolicy, locales: tuple[str, ...]) -> list[str]:
    """Name the policy's cut points at an edge, such as `1|2 us`; the locale is left out where all agree."""
    names = []
    for i in range(4):
        own = [locale for locale in locales if policy.cut_points(locale).values[i] == edge]
        if own:
            names.append(f"{i}|{i + 1}" if len(own) == len(locales) else f"{i}|{i + 1} {', '.join(own)}")
    return names


def _line(rows: Rows, own_N: Bools, filtered_N: Bools, scheme: LabelScheme) -> dict[str, Any]:
    """Give what one edge does to the rows of a scope; what needs labels is None without any."""
    kept_N, query_N, label_N = ~filtered_N, rows.query_N[own_N], rows.label_N[own_N]
    line: dict[str, Any] = {"kept": float(kept_N.mean()), "filtered": int(filtered_N.sum())}
    labelled_N = rows.labelled_N[own_N]
    if not labelled_N.any():
        return line | {"false_filter": None, "leak": None, "precision": None, "recall": None}
    exact_N = label_N == scheme.exact
    false_filter = rate(filtered_N, exact_N, query_N)
    kept_labelled_N = kept_N & labelled_N
    precision = share_of_queries(exact_N[kept_labelled_N], query_N[kept_labelled_N]) if kept_labelled_N.any() else None
    return line | {
        "false_filter": false_filter,
        "leak": rate(kept_N, label_N == scheme.irrelevant, query_N),
        "precision": None if precision is None else precision.value,
        "recall": 1 - false_filter["value"] if false_filter["n"] else None,
    }

"""One group of a file, the unit of offline scoring: pairs of one query in, output lines out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from pydantic_core import to_json

from relevance.errors import QueryTooLongError
from relevance.pairs import Pair
from service.model import Model
from service.scorer import REASONS, Scored, Scorer

_DECIMALS = 6


@dataclass(frozen=True, slots=True)
class ScoredGroup:
    """What became of a group.

    Args: n_rows: pairs; lines: one JSON line a pair, in input order; problem: why the query was refused, else None.
    """

    n_rows: int
    lines: bytes
    problem: str | None = None


def score_group(scorer: Scorer, group: list[Pair]) -> ScoredGroup:
    """Score a group; a query over the limit leaves its rows unscored and says so."""
    query, classes = group[0].query, scorer.bundle.scheme.classes
    try:
        scored = scorer.score(query.text, [pair.item for pair in group], locale=query.locale)
    except QueryTooLongError as error:
        unscored = scorer.unscored(len(group), "error", locale=query.locale)
        return ScoredGroup(len(group), output_lines(group, unscored, classes), str(error))
    return ScoredGroup(len(group), output_lines(group, scored, classes))


def output_lines(group: list[Pair], scored: Scored, classes: tuple[str, ...]) -> bytes:
    """Give one JSON line a pair, in input order."""
    lines = []
    for row, (pair, score) in enumerate(zip(group, np.round(scored.score_B, _DECIMALS).tolist(), strict=True)):
        reason = int(scored.reason_B[row])
        line = {
            "query_id": pair.query.id,
            "item_id": pair.item.id,
            "score": None if reason else score,
            "tier": None if reason else int(scored.tier_B[row]),
            "label": None if reason else classes[scored.label_B[row]],
            "kept": bool(scored.kept_B[row]),
            "truncated": bool(scored.truncated_B[row]),
            "policy_locale": scored.policy_locale,
            "reason": REASONS[reason - 1] if reason else None,
        }
        lines.append(to_json(line) + b"\n")
    return b"".join(lines)


def policy_hash(model: Model) -> str:
    """Give a hash of the policy that a model applies."""
    return hashlib.sha256(model.bundle.policy.model_dump_json().encode()).hexdigest()

"""One group of a file, the unit of offline scoring: pairs of one query in, output lines out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
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


def score_group(scorer: Scorer, group: list[Pair], *, probabilities: bool = False) -> ScoredGroup:
    """Score a group; a query over the limit leaves its rows unscored and says so.

    Args: probabilities: write those of the classes too, in the scheme's order.
    """
    query, scheme = group[0].query, scorer.bundle.scheme
    chances_BK = np.zeros((len(group), scheme.n_classes)) if probabilities else None
    try:
        prepared = scorer.prepare(query.text, [pair.item for pair in group], locale=query.locale)
    except QueryTooLongError as error:
        unscored = scorer.unscored(len(group), "error", locale=query.locale)
        return ScoredGroup(len(group), output_lines(group, unscored, scheme.classes, chances_BK), str(error))
    logits = scorer.run(prepared)
    scored = scorer.finish(prepared, logits)
    if probabilities:
        known_BK = np.where(scored.reason_B[:, None] == 0, logits.logits_BK, np.float32(0))
        chances_BK = scorer.bundle.calibrator.probabilities(known_BK, scored.policy_locale)
    return ScoredGroup(len(group), output_lines(group, scored, scheme.classes, chances_BK))


def output_lines(
    group: list[Pair], scored: Scored, classes: tuple[str, ...], probabilities_BK: NDArray[np.float64] | None
) -> bytes:
    """Give one JSON line a pair, in input order; probabilities are a field of it where they are given."""
    lines = []
    chances_BK = None if probabilities_BK is None else np.round(probabilities_BK, _DECIMALS).tolist()
    for row, (pair, score) in enumerate(zip(group, np.round(scored.score_B, _DECIMALS).tolist(), strict=True)):
        reason = int(scored.reason_B[row])
        line: dict[str, Any] = {
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
        if chances_BK is not None:
            line["probabilities"] = None if reason else chances_BK[row]
        lines.append(to_json(line) + b"\n")
    return b"".join(lines)


def policy_hash(model: Model) -> str:
    """Give a hash of the policy that a model applies."""
    return hashlib.sha256(model.bundle.policy.model_dump_json().encode()).hexdigest()

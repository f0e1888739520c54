"""The body of a `/score` answer, built once as bytes: plain Python values, one pass, one serialisation."""

from __future__ import annotations

from itertools import chain, repeat
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from relevance.bundle import Bundle
from relevance.labels import N_TIERS
from service.model import Model
from service.schemas import ScoreRequest
from service.scorer import REASONS, Scored

SCORE_DECIMALS = 6
_EXPLANATION = b'"explanation":'
_NO_EXPLANATION = _EXPLANATION + b"null"


class Timings(TypedDict):
    """Milliseconds spent on one request."""

    queue: float
    tokenize: float
    infer: float
    total: float


def score_body(request: ScoreRequest, scored: Scored, model: Model, *, request_id: str, timing_ms: Timings) -> bytes:
    """Give the JSON of an answer: kept rows, filtered rows as asked, counts and costs; explained where asked."""
    bundle = model.bundle
    has_score_B = scored.reason_B == 0
    rows = score_rows(request, scored, bundle)
    by_tier = np.bincount(scored.tier_B[has_score_B], minlength=N_TIERS).tolist()
    n_kept = int(scored.kept_B.sum())
    shown = result_order(request, scored).tolist()
    filtered_rows = np.flatnonzero(~scored.kept_B).tolist()
    filtered: list[Any] = []
    if request.return_filtered == "ids":
        filtered = [{"id": request.items[row]["id"], "index": row} for row in filtered_rows]
    elif request.return_filtered == "full":
        filtered = [rows[row] for row in filtered_rows]
    n_scored = int(has_score_B.sum())
    body: dict[str, Any] = {
        "request_id": request_id,
        "model": f"{bundle.manifest.model_id}@{bundle.manifest.bundle_id}",
        "calibration": bundle.calibrator.version,
        "policy": bundle.policy.version,
        "results": [rows[row] for row in shown],
        "policy_locale": scored.policy_locale,
        "fields_used": bundle.template.fields,
        "filtered": filtered,
        "counts": {
            "items": len(rows),
            "scored": n_scored,
            "kept": n_kept,
            "filtered": len(filtered_rows),
            "by_tier": {str(tier): count for tier, count in enumerate(by_tier)},
        },
        "partial": n_scored < len(rows),
        "usage": {"pairs": n_scored, "tokens": scored.tokens, "padded_tokens": scored.padded_tokens},
        "timing_ms": timing_ms,
    }
    content = to_json(body)
    explainer = model.explanations.explainer
    if not request.explain or explainer is None:
        return content
    in_order = [*shown, *filtered_rows] if request.return_filtered == "full" else shown
    return _explained(content, explainer.explain(scored, in_order), in_order)


def _explained(content: bytes, explanations: dict[int, bytes], in_order: list[int]) -> bytes:
    """Put explanations where there is none yet; no text of a caller can look like such a place, its quotes are escaped.

    Args: in_order: the items whose rows stand in the content.
    """
    *pieces, last = content.split(_NO_EXPLANATION)
    found = (explanations.get(row, b"null") for row in in_order)
    return b"".join([*chain.from_iterable(zip(pieces, repeat(_EXPLANATION), found, strict=False)), last])


def result_order(request: ScoreRequest, scored: Scored) -> NDArray[np.int64]:
    """Give the positions that `results` shows, in its order: kept, cut to top_k by score, sorted as asked.

    Unscored rows rank after scored ones; equal scores keep input order.
    """
    rank_B = np.where(scored.reason_B == 0, scored.score_B, -1.0)
    kept = np.flatnonzero(scored.kept_B)
    by_score = kept[np.argsort(-rank_B[kept], kind="stable")]
    if request.top_k is not None:
        by_score = by_score[: request.top_k]
    return by_score if request.sort == "score" else np.sort(by_score)


def score_rows(request: ScoreRequest, scored: Scored, bundle: Bundle) -> list[dict[str, Any]]:
    """Give one plain row an item, in input order."""
    classes = bundle.scheme.classes
    rows = []
    columns = zip(
        request.items,
        np.round(scored.score_B, SCORE_DECIMALS).tolist(),
        scored.tier_B.tolist(),
        scored.label_B.tolist(),
        scored.kept_B.tolist(),
        scored.truncated_B.tolist(),
        scored.reason_B.tolist(),
        scored.cached_B.tolist(),
        strict=True,
    )
    for index, (item, score, tier, label, kept, truncated, reason, cached) in enumerate(columns):
        row: dict[str, Any] = {
            "id": item["id"],
            "index": index,
            "score": None if reason else score,
            "tier": None if reason else tier,
            "label": None if reason else classes[label],
            "kept": kept,
            "truncated": truncated,
            "source": "unscored" if reason else "cache" if cached else "model",
        }
        if reason:
            row["reason"] = REASONS[reason - 1]
        if request.explain:
            row["explanation"] = None
        rows.append(row)
    for name, fired_B in scored.fired:
        for index in np.flatnonzero(fired_B & (scored.reason_B == 0)).tolist():
            rows[index].setdefault("rules", []).append(name)
    return rows

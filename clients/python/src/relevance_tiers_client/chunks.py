"""One call as several requests: cutting its items by the service's limits, and making one answer of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relevance_tiers_client.errors import InvalidRequestError, ProblemError
from relevance_tiers_client.models import (
    Counts,
    FilteredId,
    Item,
    Limits,
    Result,
    ScoreOptions,
    ScoreResponse,
    Timing,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The items of one request.

    Args: start: place of the first one in the call; items: themselves; body: the request's, JSON.
    """

    start: int
    items: Sequence[Item]
    body: bytes


def cut(head: bytes, items: Sequence[Item], limits: Limits, *, explain: bool = False) -> list[Chunk]:
    """Give as few requests as the limits allow, in the order of the items.

    Args: head: the JSON object of everything but the items; explain: whether it asks for explanations.
    Raises: InvalidRequestError: an item that fits into no request.
    """
    most = min(limits.max_items, limits.max_explained_items or limits.max_items) if explain else limits.max_items
    opening = head[:-1] + b',"items":['
    room = limits.max_body_bytes - len(opening) - len(b"]}")
    chunks: list[Chunk] = []
    start, held, size = 0, list[bytes](), 0

    def close() -> None:
        body = opening + b",".join(held) + b"]}"
        chunks.append(Chunk(start, items[start : start + len(held)], body))

    for index, item in enumerate(items):
        piece = item.model_dump_json(exclude_defaults=True).encode()
        if len(piece) > room:
            message = f"expected a body of at most {limits.max_body_bytes} bytes, found {len(piece)} of this item alone"
            fault = ProblemError(pointer=f"/items/{index}", message=message)
            raise InvalidRequestError(None, "too_large", message, errors=[fault])
        if held and (len(held) == most or size + 1 + len(piece) > room):
            close()
            start, held, size = index, [], 0
        size += len(piece) + bool(held)
        held.append(piece)
    close()
    return chunks


def merge(
    chunks: Sequence[Chunk], answers: Sequence[ScoreResponse | None], options: ScoreOptions, *, keep_unscored: bool
) -> ScoreResponse:
    """Give the one answer that a single request would have given.

    Args: answers: of each chunk, in order; None where time ran out, at least one is there; options: of the call.
    """
    given = [answer for answer in answers if answer is not None]
    results: list[Result] = []
    filtered: list[Result | FilteredId] = []
    for chunk, answer in zip(chunks, answers, strict=True):
        if answer is not None:
            results += [row.model_copy(update={"index": row.index + chunk.start}) for row in answer.results]
            filtered += [row.model_copy(update={"index": row.index + chunk.start}) for row in answer.filtered]
            continue
        rows = [_unscored(item, chunk.start + place, keep_unscored) for place, item in enumerate(chunk.items)]
        if keep_unscored:
            results += rows
        elif options.get("return_filtered") == "full":
            filtered += rows
        elif options.get("return_filtered") == "ids":
            filtered += [FilteredId(id=row.id, index=row.index) for row in rows]
    counts = _counts(chunks, answers, keep_unscored)
    return given[0].model_copy(
        update={
            "results": in_order(results, options),
            "filtered": filtered,
            "counts": counts,
            "partial": counts.scored < counts.items,
            "usage": Usage(
                pairs=sum(a.usage.pairs for a in given),
                tokens=sum(a.usage.tokens for a in given),
                padded_tokens=sum(a.usage.padded_tokens for a in given),
            ),
        }
    )


def added_up(answers: Sequence[ScoreResponse], total_ms: float) -> Timing:
    """Give the times of a call that took several requests."""
    return Timing(
        queue=round(sum(a.timing_ms.queue for a in answers), 3),
        tokenize=round(sum(a.timing_ms.tokenize for a in answers), 3),
        infer=round(sum(a.timing_ms.infer for a in answers), 3),
        total=total_ms,
    )


def in_order(results: list[Result], options: ScoreOptions) -> list[Result]:
    """Give kept rows as the service shows them: the best `top_k` by score, sorted as asked.

    Unscored rows rank after scored ones; equal scores keep input order.
    """
    by_score = sorted(results, key=lambda row: (-1.0 if row.score is None else row.score, -row.index), reverse=True)
    by_score = by_score[: options.get("top_k") or None]
    return by_score if options.get("sort") == "score" else sorted(by_score, key=lambda row: row.index)


def _unscored(item: Item, index: int, kept: bool) -> Result:
    return Result(
        id=item.id,
        index=index,
        score=None,
        tier=None,
        label=None,
        kept=kept,
        truncated=False,
        source="unscored",
        reason="deadline",
    )


def _counts(chunks: Sequence[Chunk], answers: Sequence[ScoreResponse | None], keep_unscored: bool) -> Counts:
    given = [answer.counts for answer in answers if answer is not None]
    n_late = sum(len(chunk.items) for chunk, answer in zip(chunks, answers, strict=True) if answer is None)
    tiers = dict.fromkeys(tier for counts in given for tier in counts.by_tier)
    return Counts(
        items=sum(len(chunk.items) for chunk in chunks),
        scored=sum(counts.scored for counts in given),
        kept=sum(counts.kept for counts in given) + (n_late if keep_unscored else 0),
        filtered=sum(counts.filtered for counts in given) + (0 if keep_unscored else n_late),
        by_tier={tier: sum(counts.by_tier.get(tier, 0) for counts in given) for tier in tiers},
    )

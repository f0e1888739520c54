"""The scorer: query and items in, scores and tiers out. Pure and thread-safe; all model work of the service is here.

Its three steps are public, because the batcher runs them on different threads: `prepare` (texts → token ids), `run`
(token ids → logits, batch by batch) and `finish` (logits → scores, tiers, kept). Suffixes: B pairs, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from relevance.bundle import Bundle
from relevance.calibration import expected_gain
from relevance.pairs import Item
from relevance.tokenization import N_SPECIAL, PairBatch, TokenIds

Reason = Literal["deadline", "overload", "nan", "error"]
REASONS: tuple[Reason, ...] = ("deadline", "overload", "nan", "error")
"""Why a pair has no score; `Scored.reason_B` holds 1 + the index here, 0 for a scored pair."""
MAX_WASTE = 1.25
MIN_BATCH_TOKENS = 256


class Session(Protocol):
    """What the scorer needs of a session."""

    def run(self, batch: PairBatch) -> NDArray[np.float32]:
        """Give the logits of a batch; float32 of shape (B, K)."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request's pairs as token ids.

    Args: query: cleaned; policy_locale: whose cut points will be used; query_ids, item_ids: without special tokens;
        length_B: tokens of each pair, specials included; truncated_B: not all of the item is read; tokenize_s: spent.
    """

    query: str
    policy_locale: str
    query_ids: TokenIds
    item_ids: list[TokenIds]
    length_B: NDArray[np.int64]
    truncated_B: NDArray[np.bool_]
    tokenize_s: float


@dataclass(frozen=True, slots=True)
class Logits:
    """What a session gave for prepared pairs.

    Args: logits_BK: float32, NaN where not reached; reached_B: False = stopped before its batch; batches: (pairs,
        padded length, real tokens) of each batch run; infer_s: spent.
    """

    logits_BK: NDArray[np.float32]
    reached_B: NDArray[np.bool_]
    batches: tuple[tuple[int, int, int], ...]
    infer_s: float


@dataclass(frozen=True, slots=True)
class Scored:
    """What the service knows of one request's pairs, in the order given.

    Args: score_B: float64 in [0, 1], 0 where unscored; tier_B: 0–4; label_B: index of the class named by the policy;
        kept_B; truncated_B; reason_B: 0 = scored, else see REASONS; policy_locale; certified: False means that this
        locale filters nothing by itself; tokens, padded_tokens: read, and computed on; tokenize_s, infer_s, post_s:
        spent.
    """

    score_B: NDArray[np.float64]
    tier_B: NDArray[np.int64]
    label_B: NDArray[np.int64]
    kept_B: NDArray[np.bool_]
    truncated_B: NDArray[np.bool_]
    reason_B: NDArray[np.int8]
    policy_locale: str
    certified: bool
    tokens: int = 0
    padded_tokens: int = 0
    tokenize_s: float = 0.0
    infer_s: float = 0.0
    post_s: float = 0.0


def plan_batches(length_B: NDArray[np.int64], token_budget: int) -> list[NDArray[np.int64]]:
    """Cut pairs into length-sorted batches, shortest first.

    A batch closes before its pairs × longest length exceed the budget, or, once it holds MIN_BATCH_TOKENS, before
    padding exceeds MAX_WASTE times its real tokens. A pair longer than the budget gets a batch of its own.

    Args: length_B: tokens of each pair; token_budget: pairs × padded length.
    Returns: positions of the pairs of each batch; together each position exactly once.
    """
    order_B = np.argsort(length_B, kind="stable")
    batches: list[NDArray[np.int64]] = []
    start = real = 0
    for end, length in enumerate(length_B[order_B].tolist()):
        padded = (end - start + 1) * length
        wasteful = padded > MAX_WASTE * (real + length) and real >= MIN_BATCH_TOKENS
        if end > start and (padded > token_budget or wasteful):
            batches.append(order_B[start:end])
            start, real = end, 0
        real += length
    if len(order_B):
        batches.append(order_B[start:])
    return batches


class Scorer:
    """Scores the items of one query with one bundle and one session; any thread may call any method.

    Args: token_budget: of a batch, pairs × padded length; keep_unscored: whether pairs without a score are kept.
    """

    def __init__(self, bundle: Bundle, session: Session, *, token_budget: int, keep_unscored: bool = True) -> None:
        self.bundle = bundle
        self._session = session
        self._token_budget = token_budget
        self._keep_unscored = keep_unscored

    def score(
        self, query: str, items: Sequence[Item], *, locale: str | None = None, min_tier: int | None = None
    ) -> Scored:
        """Prepare, run and finish at once.

        Args: query, items: as the caller wrote them; min_tier: overrides the policy's filter tier.
        Raises: QueryTooLongError: if the query has more tokens than the bundle allows.
        """
        prepared = self.prepare(query, items, locale=locale)
        return self.finish(prepared, self.run(prepared), min_tier=min_tier)

    def prepare(self, query: str, items: Sequence[Item], *, locale: str | None = None) -> Prepared:
        """Clean and tokenise the texts of one request.

        Raises: QueryTooLongError: if the query has more tokens than the bundle allows.
        """
        started = perf_counter()
        template, tokenizer = self.bundle.template, self.bundle.tokenizer
        query_text = template.query_text(query)
        query_ids = tokenizer.encode_query(query_text)
        item_ids = tokenizer.encode_items([template.item_text(item) for item in items])
        n_item_B = np.fromiter(map(len, item_ids), dtype=np.int64, count=len(items))
        room = tokenizer.item_budget(query_ids)
        cut_B = np.fromiter((self._too_many_chars(item) for item in items), dtype=bool, count=len(items))
        return Prepared(
            query=query_text,
            policy_locale=self.bundle.policy.resolve(locale),
            query_ids=query_ids,
            item_ids=item_ids,
            length_B=np.minimum(n_item_B, room) + (len(query_ids) + N_SPECIAL),
            truncated_B=(n_item_B > room) | cut_B,
            tokenize_s=perf_counter() - started,
        )

    def run(self, prepared: Prepared, *, stop: Callable[[], bool] | None = None) -> Logits:
        """Run the session over prepared pairs.

        Args: stop: asked before each batch; True leaves the rest unscored.
        """
        started = perf_counter()
        n = len(prepared.item_ids)
        logits_BK = np.full((n, self.bundle.scheme.n_classes), np.nan, dtype=np.float32)
        reached_B = np.zeros(n, dtype=bool)
        batches = []
        for rows in plan_batches(prepared.length_B, self._token_budget):
            if stop is not None and stop():
                break
            batch = self.batch(prepared, rows)
            logits_BK[rows] = self._session.run(batch)
            reached_B[rows] = True
            batches.append((*batch.input_ids_BL.shape, int(prepared.length_B[rows].sum())))
        return Logits(logits_BK, reached_B, tuple(batches), perf_counter() - started)

    def batch(self, prepared: Prepared, rows: NDArray[np.int64]) -> PairBatch:
        """Assemble the padded batch of some prepared pairs."""
        items = [prepared.item_ids[row] for row in rows.tolist()]
        return self.bundle.tokenizer.collate([prepared.query_ids] * len(items), items)

    def finish(self, prepared: Prepared, logits: Logits, *, min_tier: int | None = None) -> Scored:
        """Calibrate logits and apply the policy; rows with NaN or infinite logits become unscored.

        Args: min_tier: overrides the policy's filter tier.
        """
        started = perf_counter()
        finite_B = np.asarray(np.isfinite(logits.logits_BK).all(axis=1))
        reason_B = np.where(finite_B, 0, _code("nan")).astype(np.int8)
        reason_B[~logits.reached_B] = _code("deadline")
        safe_BK = np.where(finite_B[:, None], logits.logits_BK, np.float32(0))
        bundle, locale = self.bundle, prepared.policy_locale
        probabilities_BK = bundle.calibrator.probabilities(safe_BK, locale)
        score_B = expected_gain(probabilities_BK, bundle.scheme)
        decision = bundle.policy.decide(
            score_B, probabilities_BK, bundle.scheme, policy_locale=locale, query=prepared.query, min_tier=min_tier
        )
        return Scored(
            score_B=np.where(finite_B, score_B, 0.0),
            tier_B=decision.tier_B,
            label_B=decision.label_B,
            kept_B=np.where(finite_B, decision.kept_B, self._keep_unscored),
            truncated_B=prepared.truncated_B,
            reason_B=reason_B,
            policy_locale=locale,
            certified=decision.certified,
            tokens=sum(real for _, _, real in logits.batches),
            padded_tokens=sum(rows * length for rows, length, _ in logits.batches),
            tokenize_s=prepared.tokenize_s,
            infer_s=logits.infer_s,
            post_s=perf_counter() - started,
        )

    def unscored(self, n: int, reason: Reason, *, locale: str | None = None) -> Scored:
        """Give the answer for n pairs that no model looked at."""
        zeros = np.zeros(n, dtype=np.int64)
        policy_locale = self.bundle.policy.resolve(locale)
        return Scored(
            score_B=zeros.astype(np.float64),
            tier_B=zeros,
            label_B=zeros,
            kept_B=np.full(n, self._keep_unscored),
            truncated_B=np.zeros(n, dtype=bool),
            reason_B=np.full(n, _code(reason), dtype=np.int8),
            policy_locale=policy_locale,
            certified=self.bundle.policy.cut_points(policy_locale).certified,
        )

    def _too_many_chars(self, item: Item) -> bool:
        template = self.bundle.template
        if len(template.fields) == 1:
            return len(item.title) > template.max_chars
        return any(len(item.field(name) or "") > template.max_chars for name in template.fields)


def _code(reason: Reason) -> int:
    return 1 + REASONS.index(reason)

"""The scorer: query and items in, scores and tiers out. Pure and thread-safe; all model work of the service is here.

Its steps are public, because the batcher runs them on different threads: `texts` (items → cleaned texts), `tokenize`
(texts → token ids), `run` (token ids → logits, batch by batch) and `finish` (logits → scores, tiers, kept).
Suffixes: B pairs, K classes.
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
from service.latents import Latents
from service.pair_cache import Found
from service.words import Reading

Reason = Literal["deadline", "overload", "nan", "error", "passthrough"]
REASONS: tuple[Reason, ...] = ("deadline", "overload", "nan", "error", "passthrough")
"""Why a pair has no score; `Scored.reason_B` holds 1 + the index here, 0 for a scored pair."""
MAX_WASTE = 1.25
MIN_BATCH_TOKENS = 256
TOKEN_BUDGET = 2048
"""Of a batch, pairs × padded length, where no speed was measured: offline scoring."""
_NO_TOKENS: TokenIds = np.empty(0, dtype=np.int32)


class Session(Protocol):
    """What the scorer needs of a session."""

    def run(self, batch: PairBatch) -> NDArray[np.float32]:
        """Give the logits of a batch; float32 of shape (B, K)."""

    def run_with_latents(self, batch: PairBatch) -> tuple[NDArray[np.float32], Latents]:
        """Give the same logits, and what explanations are made from; only asked of graphs that have it."""


@dataclass(frozen=True, slots=True)
class Texts:
    """One request's cleaned texts.

    Args: policy_locale: whose cut points will be used; cut_B: a field was longer than the characters read of it.
    """

    query: str
    items: list[str]
    policy_locale: str
    cut_B: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One request's pairs as token ids.

    Args: query: cleaned; policy_locale: whose cut points will be used; query_ids, item_ids: without special tokens,
        empty for known pairs; length_B: tokens of each pair, specials included; truncated_B: not all of the item is
        read; tokenize_s: spent; known: pairs that need no session; reading: of an answer to be explained.
    """

    query: str
    policy_locale: str
    query_ids: TokenIds
    item_ids: list[TokenIds]
    length_B: NDArray[np.int64]
    truncated_B: NDArray[np.bool_]
    tokenize_s: float
    known: Found | None = None
    reading: Reading | None = None


@dataclass(frozen=True, slots=True)
class Logits:
    """What sessions and caches gave for prepared pairs.

    Args: logits_BK: float32, NaN where there are none; reason_B: 0 = there are logits, else see REASONS; cached_B: not
        computed for this request; tokens, padded_tokens: its own share of the batches; infer_s: seconds of the batches
        that it took part in; latents: of the pairs that have logits, where they were asked for.
    """

    logits_BK: NDArray[np.float32]
    reason_B: NDArray[np.int8]
    cached_B: NDArray[np.bool_]
    tokens: int
    padded_tokens: int
    infer_s: float
    latents: Latents | None = None


@dataclass(frozen=True, slots=True)
class Basis:
    """What the explanations of one request's scored pairs are made from.

    Args: query: cleaned; probabilities_BK: calibrated; filter_tier: below which pairs are filtered, None: none are.
    """

    query: str
    reading: Reading
    latents: Latents
    probabilities_BK: NDArray[np.float64]
    filter_tier: int | None


@dataclass(frozen=True, slots=True)
class Scored:
    """What the service knows of one request's pairs, in the order given.

    Args: score_B: float64 in [0, 1], 0 where unscored; tier_B: 0–4; label_B: index of the class named by the policy;
        kept_B; truncated_B; cached_B; length_B: tokens; reason_B: 0 = scored, else see REASONS; policy_locale;
        certified: False means that this locale filters nothing by itself; fired: names of the rules that fired, with
        where; tokens, padded_tokens: read, and computed on; tokenize_s, infer_s, post_s: spent;
        basis: of explanations, where they were asked for.
    """

    score_B: NDArray[np.float64]
    tier_B: NDArray[np.int64]
    label_B: NDArray[np.int64]
    kept_B: NDArray[np.bool_]
    truncated_B: NDArray[np.bool_]
    cached_B: NDArray[np.bool_]
    length_B: NDArray[np.int64]
    reason_B: NDArray[np.int8]
    policy_locale: str
    certified: bool
    fired: tuple[tuple[str, NDArray[np.bool_]], ...] = ()
    tokens: int = 0
    padded_tokens: int = 0
    tokenize_s: float = 0.0
    infer_s: float = 0.0
    post_s: float = 0.0
    basis: Basis | None = None


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
    """Scores the items of one query with one bundle; any thread may call any method.

    Args: session: for whoever calls first; more_sessions: of the same graph, one for each further engine thread;
        keep_unscored: whether pairs without a score are kept; token_budget: of a batch of `run`, pairs × padded length.
    """

    def __init__(
        self,
        bundle: Bundle,
        session: Session,
        *,
        more_sessions: Sequence[Session] = (),
        keep_unscored: bool = True,
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self.bundle = bundle
        self.sessions = (session, *more_sessions)
        self.keep_unscored = keep_unscored
        self._token_budget = token_budget

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
        return self.tokenize(self.texts(query, items, locale=locale))

    def texts(self, query: str, items: Sequence[Item], *, locale: str | None = None) -> Texts:
        """Clean the texts of one request."""
        template = self.bundle.template
        return Texts(
            query=template.query_text(query),
            items=[template.item_text(item) for item in items],
            policy_locale=self.bundle.policy.resolve(locale),
            cut_B=np.fromiter((self._too_many_chars(item) for item in items), dtype=bool, count=len(items)),
        )

    def tokenize(self, texts: Texts, known: Found | None = None) -> Prepared:
        """Tokenise the texts of the pairs that are not known.

        Raises: QueryTooLongError: if the query has more tokens than the bundle allows.
        """
        started = perf_counter()
        tokenizer = self.bundle.tokenizer
        query_ids = tokenizer.encode_query(texts.query)
        n = len(texts.items)
        if known is None:
            item_ids = tokenizer.encode_items(texts.items)
        else:
            item_ids = [_NO_TOKENS] * n
            missing = np.flatnonzero(~known.found_B).tolist()
            new = tokenizer.encode_items([texts.items[row] for row in missing])
            for row, ids in zip(missing, new, strict=True):
                item_ids[row] = ids
        n_item_B = np.fromiter(map(len, item_ids), dtype=np.int64, count=n)
        room = tokenizer.item_budget(query_ids)
        length_B = np.minimum(n_item_B, room) + (len(query_ids) + N_SPECIAL)
        truncated_B = (n_item_B > room) | texts.cut_B
        if known is not None:
            length_B = np.where(known.found_B, known.length_B, length_B)
            truncated_B = np.where(known.found_B, known.truncated_B, truncated_B)
        tokenize_s = perf_counter() - started
        return Prepared(texts.query, texts.policy_locale, query_ids, item_ids, length_B, truncated_B, tokenize_s, known)

    def run(self, prepared: Prepared, *, stop: Callable[[], bool] | None = None) -> Logits:
        """Run the first session over prepared pairs, on this thread.

        Args: stop: asked before each batch; True leaves the rest unscored.
        """
        started = perf_counter()
        n = len(prepared.item_ids)
        logits_BK = np.full((n, self.bundle.scheme.n_classes), np.nan, dtype=np.float32)
        reason_B = np.full(n, reason_code("deadline"), dtype=np.int8)
        tokens = padded_tokens = 0
        for rows in plan_batches(prepared.length_B, self._token_budget):
            if stop is not None and stop():
                break
            batch = self.batch(prepared, rows)
            logits_BK[rows] = self.sessions[0].run(batch)
            reason_B[rows] = 0
            tokens += int(prepared.length_B[rows].sum())
            padded_tokens += batch.input_ids_BL.size
        return Logits(logits_BK, reason_B, np.zeros(n, dtype=bool), tokens, padded_tokens, perf_counter() - started)

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
        reason_B = np.where((logits.reason_B == 0) & ~finite_B, reason_code("nan"), logits.reason_B).astype(np.int8)
        has_score_B = reason_B == 0
        safe_BK = np.where(has_score_B[:, None], logits.logits_BK, np.float32(0))
        bundle, locale = self.bundle, prepared.policy_locale
        probabilities_BK = bundle.calibrator.probabilities(safe_BK, locale)
        score_B = expected_gain(probabilities_BK, bundle.scheme)
        decision = bundle.policy.decide(
            score_B, probabilities_BK, bundle.scheme, policy_locale=locale, query=prepared.query, min_tier=min_tier
        )
        basis = None
        if prepared.reading is not None and logits.latents is not None:
            filter_tier = bundle.policy.filter_tier if min_tier is None and decision.certified else min_tier
            basis = Basis(prepared.query, prepared.reading, logits.latents, probabilities_BK, filter_tier)
        return Scored(
            score_B=np.where(has_score_B, score_B, 0.0),
            tier_B=decision.tier_B,
            label_B=decision.label_B,
            kept_B=np.where(has_score_B, decision.kept_B, self.keep_unscored),
            truncated_B=prepared.truncated_B,
            cached_B=logits.cached_B & has_score_B,
            length_B=prepared.length_B,
            reason_B=reason_B,
            policy_locale=locale,
            certified=decision.certified,
            fired=decision.fired,
            tokens=logits.tokens,
            padded_tokens=logits.padded_tokens,
            tokenize_s=prepared.tokenize_s,
            infer_s=logits.infer_s,
            post_s=perf_counter() - started,
            basis=basis,
        )

    def unscored(self, n: int, reason: Reason, *, locale: str | None = None) -> Scored:
        """Give the answer for n pairs that no model looked at; passthrough keeps them all."""
        zeros = np.zeros(n, dtype=np.int64)
        policy_locale = self.bundle.policy.resolve(locale)
        return Scored(
            score_B=zeros.astype(np.float64),
            tier_B=zeros,
            label_B=zeros,
            kept_B=np.full(n, self.keep_unscored or reason == "passthrough"),
            truncated_B=np.zeros(n, dtype=bool),
            cached_B=np.zeros(n, dtype=bool),
            length_B=zeros,
            reason_B=np.full(n, reason_code(reason), dtype=np.int8),
            policy_locale=policy_locale,
            certified=self.bundle.policy.cut_points(policy_locale).certified,
        )

    def _too_many_chars(self, item: Item) -> bool:
        template = self.bundle.template
        if len(template.fields) == 1:
            return len(item.title) > template.max_chars
        return any(len(item.field(name) or "") > template.max_chars for name in template.fields)


def reason_code(reason: Reason) -> int:
    """Give the number that stands for a reason in `reason_B`."""
    return 1 + REASONS.index(reason)

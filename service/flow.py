"""A flow: one admitted request on its way through the engines, row by row, and the batches its rows travel in.

Only the queue changes a flow, under the queue's lock. Suffixes: B pairs of a request, N rows of a batch, K classes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from time import monotonic, perf_counter

import numpy as np
from numpy.typing import NDArray

from relevance.errors import RelevanceError
from relevance.tokenization import PairBatch
from service.admission import Ticket
from service.latents import Latents
from service.scorer import MAX_WASTE, MIN_BATCH_TOKENS, Logits, Prepared, Reason, Scorer, reason_code
from service.speed import Speed
from service.tracing import RequestSpan

JOIN_WASTE = 0.03
"""Of a batch's budget may be padding where requests are put together; a batch of its own costs about as much."""


class Flow:
    """One request's rows: waiting (sorted by length), running in a batch, following another request's row, or done.

    Args: prepared: its pairs; known ones are done from the start; keys: cache key of each pair, None shares nothing;
        ticket: what admission gave; span: of its trace.
    """

    def __init__(
        self,
        scorer: Scorer,
        speed: Speed,
        prepared: Prepared,
        *,
        ticket: Ticket,
        keys: Sequence[bytes] | None = None,
        span: RequestSpan | None = None,
    ) -> None:
        self.scorer, self.speed, self.prepared, self.ticket, self.span = scorer, speed, prepared, ticket, span
        self.keys = keys
        n = len(prepared.item_ids)
        known = prepared.known
        if known is None:
            self.logits_BK = np.full((n, scorer.bundle.scheme.n_classes), np.nan, dtype=np.float32)
            self.cached_B = np.zeros(n, dtype=bool)
        else:
            self.logits_BK, self.cached_B = known.logits_BK, known.found_B.copy()
        self.reason_B = np.where(self.cached_B, 0, reason_code("deadline")).astype(np.int8)
        waiting = np.flatnonzero(~self.cached_B)
        waiting = waiting[np.argsort(prepared.length_B[waiting], kind="stable")]
        self.rows: list[int] = waiting.tolist()
        self.lengths: list[int] = prepared.length_B[waiting].tolist()
        self.waiting_tokens: int = sum(self.lengths)
        self.open_rows = len(self.rows)
        self.failed_rows = 0
        self.deficit = 0.0
        self.had_turn = False
        self.closed = False
        self.since = perf_counter()
        self.answered_at = 0.0
        self.infer_s = 0.0
        self.tokens = self.padded_tokens = 0
        self.explained = prepared.reading is not None
        self.latents: Latents | None = None
        self.future: Future[Logits] = Future()
        self.future.set_running_or_notify_cancel()

    def restore(self, row: int) -> None:
        """Put a row back among the waiting ones."""
        length = int(self.prepared.length_B[row])
        place = bisect_right(self.lengths, length)
        self.rows.insert(place, row)
        self.lengths.insert(place, length)
        self.waiting_tokens += length

    def leave(self, rows: set[int]) -> int:
        """Take rows from the waiting ones, and give their tokens."""
        if not rows:
            return 0
        kept = [(row, length) for row, length in zip(self.rows, self.lengths, strict=True) if row not in rows]
        self.rows, self.lengths = [row for row, _ in kept], [length for _, length in kept]
        gone = self.waiting_tokens - sum(self.lengths)
        self.waiting_tokens -= gone
        return gone

    def deliver(self, rows: NDArray[np.int64], logits_NK: NDArray[np.float32], *, cached: bool = False) -> None:
        """Take the logits of some rows."""
        self.logits_BK[rows] = logits_NK
        self.reason_B[rows] = 0
        self.cached_B[rows] = cached
        self.open_rows -= len(rows)

    def keep(self, rows: NDArray[np.int64], found: Latents) -> None:
        """Take the latents of some rows."""
        if self.latents is None:
            n_tokens = int(self.prepared.length_B.max())
            self.latents = Latents.empty(len(self.reason_B), n_tokens=n_tokens, like=found)
        self.latents.put(rows, found)

    def lose(self, rows: NDArray[np.int64], reason: Reason) -> None:
        """Give some rows up."""
        self.reason_B[rows] = reason_code(reason)
        self.open_rows -= len(rows)
        self.failed_rows += len(rows)

    def result(self) -> Logits:
        """Give what is there by now."""
        return Logits(
            self.logits_BK,
            self.reason_B,
            self.cached_B,
            self.tokens,
            self.padded_tokens,
            infer_s=self.infer_s,
            latents=self.latents,
        )


@dataclass(slots=True)
class Batch:
    """Rows of one or more flows of one scorer that run together.

    Args: rows: of each flow, in the batch's order; length: padded length; n_rows; tokens: real ones.
    """

    scorer: Scorer
    speed: Speed
    rows: dict[Flow, list[int]] = field(default_factory=dict)
    length: int = 0
    n_rows: int = 0
    tokens: int = 0

    @property
    def parts(self) -> list[tuple[Flow, NDArray[np.int64]]]:
        """Each flow and its rows, in the batch's order."""
        return [(flow, np.asarray(rows, dtype=np.int64)) for flow, rows in self.rows.items()]

    @property
    def padded_tokens(self) -> int:
        """Rows × padded length."""
        return self.n_rows * self.length

    @property
    def explained(self) -> bool:
        """Whether latents are wanted of a row."""
        return any(flow.explained for flow in self.rows)

    def assemble(self) -> PairBatch:
        """Put the rows' token ids together."""
        queries, items = [], []
        for flow, rows in self.rows.items():
            item_ids = flow.prepared.item_ids
            queries += [flow.prepared.query_ids] * len(rows)
            items += [item_ids[row] for row in rows]
        return self.scorer.bundle.tokenizer.collate(queries, items)

    def take(self, flow: Flow, *, tokens: float, budget_of: Callable[[int], int]) -> int:
        """Move rows of a flow into this batch, as many as fit, and give their tokens.

        The first flow gives its shortest rows; a later one those nearest in length from below, so that the padded
        length grows only where nothing shorter waits. A batch of MIN_BATCH_TOKENS or more stays under MAX_WASTE.

        The first row of a batch is always taken.

        Args: tokens: real tokens the flow may use now; budget_of: padded length → padded tokens of a batch.
        """
        lengths = flow.lengths
        start = end = bisect_right(lengths, self.length) if self.n_rows else 0
        downward, joining = start > 0, bool(self.n_rows)
        length, n_rows, real, used = self.length, self.n_rows, self.tokens, 0
        while used < tokens or not n_rows:
            place = start - 1 if downward else end
            if not 0 <= place < len(lengths):
                break
            new = lengths[place]
            longest, real_after = max(length, new), real + new
            padded, budget = (n_rows + 1) * longest, budget_of(longest)
            wasteful = real >= MIN_BATCH_TOKENS and padded > MAX_WASTE * real_after
            if joining:
                wasteful = padded - real_after > JOIN_WASTE * budget
            if n_rows and (padded > budget or wasteful):
                break
            start, end = (place, end) if downward else (start, place + 1)
            length, n_rows, real, used = longest, n_rows + 1, real_after, used + new
        if start == end:
            return 0
        self.rows.setdefault(flow, []).extend(flow.rows[start:end])
        del flow.rows[start:end], lengths[start:end]
        flow.waiting_tokens -= used
        self.length, self.n_rows, self.tokens = length, n_rows, real
        return used


@dataclass(slots=True)
class Leader:
    """The row that computes a pair for everyone who wants it, and those who wait for it."""

    flow: Flow
    row: int
    followers: list[tuple[Flow, int]] = field(default_factory=list)


def answer(flow: Flow, error: RelevanceError | None = None) -> None:
    """Answer a flow that was just closed: with an error or with what is there."""
    flow.answered_at = min(monotonic(), flow.ticket.deadline)
    if error is not None:
        flow.future.set_exception(error)
    else:
        flow.future.set_result(flow.result())

"""The one queue in front of all engines: fair, work-conserving, and the only place where flows change.

Deficit round-robin (Shreedhar and Varghese, SIGCOMM 1995) in tokens: in its turn a flow may use a quarter of what one
batch may cost, times its weight; a batch takes turns until it is full, and what room is left goes to whoever fits, on
account. Flows that have not had a turn yet and those that have alternate (the sparse flows of RFC 8290), so a small
request waits for one batch of a large one, not for all of it. A pair that one request waits for is not computed again
for another (single flight): its row follows the first; or the first, if it still waits, follows a new request that is
smaller for its weight, and so served sooner.

Suffixes: N rows of a batch, K classes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from threading import Condition
from time import monotonic, perf_counter

import numpy as np
from numpy.typing import NDArray

from relevance.errors import DeadlineError, EngineError
from service.flow import Batch, Flow, Leader, answer
from service.latents import Latents

TURNS = 4
"""Turns of weight 1 in a batch: more follow fair shares more closely, and mix lengths more."""

_SMALLEST = 8
"""A batch is not cut to less than this fraction of its time for the sake of other engines."""


@dataclass(frozen=True, slots=True)
class _Room:
    """A batch that is being filled.

    Args: budget_of: padded length → padded tokens it may have; done_at: about when it will have run.
    """

    batch: Batch
    budget_of: Callable[[int], int]
    done_at: float

    @property
    def full(self) -> bool:
        """Whether not one more row as long as its longest fits."""
        batch = self.batch
        return batch.n_rows > 0 and batch.padded_tokens + batch.length > self.budget_of(batch.length)

    def take(self, flow: Flow, tokens: float) -> int:
        """Move rows of a flow into the batch and charge them to it, if it may share the batch."""
        batch = self.batch
        if self.full or not flow.rows or flow.scorer is not batch.scorer:
            return 0
        if batch.n_rows and self.done_at >= flow.ticket.deadline:
            return 0
        used = batch.take(flow, tokens=tokens, budget_of=self.budget_of)
        flow.deficit -= used
        flow.had_turn = flow.had_turn or used > 0
        return used


class FairQueue:
    """Flows in, batches out, logits back; every method may be called by any thread.

    Args: batch_s: seconds of a batch; engines: threads that call `take`.
    """

    def __init__(self, *, batch_s: float, engines: int = 1) -> None:
        self._batch_s = batch_s
        self._engines = engines
        self._changed = Condition()
        self._new: deque[Flow] = deque()
        self._old: deque[Flow] = deque()
        self._old_first = False
        self._live: set[Flow] = set()
        self._leaders: dict[bytes, Leader] = {}
        self._closing = False
        self._aborted: EngineError | None = None

    def submit(self, flow: Flow) -> None:
        """Take a flow in; one without open rows is answered at once.

        Raises: EngineError: after `abort`.
        """
        with self._changed:
            if self._aborted is not None:
                raise self._aborted
            if flow.keys is not None:
                self._follow(flow, flow.keys)
            done = flow.closed = not flow.open_rows
            if not done:
                self._live.add(flow)
            if flow.rows:
                self._new.append(flow)
                self._changed.notify(self._engines)
        if done:
            answer(flow)

    def take(self, *, wait_s: float = 0.0) -> Batch | None:
        """Give the next batch, None if there was none for so long or the queue is closed and empty."""
        give_up = monotonic() + wait_s
        while True:
            late: list[Flow] = []
            try:
                with self._changed:
                    batch = self._form(late)
                    left_s = give_up - monotonic()
                    if batch is None and not late and left_s > 0 and not self._closing:
                        self._changed.wait(left_s)
                        continue
            finally:
                _answer_late(late)
            if batch is not None or not late:
                return batch

    def complete(
        self, batch: Batch, logits_NK: NDArray[np.float32], seconds: float, latents: Latents | None = None
    ) -> None:
        """Hand a batch's logits to its flows and to the rows that follow them; finished flows are answered.

        Args: latents: of an explained batch's rows.
        """
        finished: list[Flow] = []
        with self._changed:
            start = 0
            for flow, rows in batch.parts:
                part_NK = logits_NK[start : start + len(rows)]
                self._spend(flow, rows, batch.length, seconds)
                if not flow.closed:
                    flow.deliver(rows, part_NK)
                    if flow.explained and latents is not None:
                        flow.keep(rows, latents.part(start, start + len(rows)))
                    self._finish(flow, finished)
                start += len(rows)
                for row, logits_K in zip(rows.tolist(), part_NK, strict=True) if flow.keys is not None else ():
                    for follower, their_row in self._end_lead(flow, row):
                        if not follower.closed:
                            follower.deliver(np.asarray([their_row]), logits_K[None], cached=True)
                            self._finish(follower, finished)
        for flow in finished:
            answer(flow)

    def fail(self, batch: Batch, error: EngineError) -> None:
        """Give the rows of a batch up, and those that follow them; a flow of nothing but failures gets the error."""
        finished: list[Flow] = []
        with self._changed:
            for flow, rows in batch.parts:
                lost = [(flow, rows)]
                for row in rows.tolist() if flow.keys is not None else ():
                    lost += [(other, np.asarray([their_row])) for other, their_row in self._end_lead(flow, row)]
                for other, their_rows in lost:
                    if not other.closed:
                        other.lose(their_rows, "error")
                        self._finish(other, finished)
        for flow in finished:
            answer(flow, error if flow.failed_rows == len(flow.reason_B) else None)

    def close_flow(self, flow: Flow) -> None:
        """Answer a flow now with what is there; rows of its that others wait for are passed on."""
        with self._changed:
            if flow.closed:
                return
            self._drop(flow)
        answer(flow)

    def expire(self, flow: Flow) -> None:
        """Answer a flow whose deadline has come."""
        with self._changed:
            if flow.closed:
                return
            self._drop(flow)
        _answer_late([flow])

    def abort(self, error: EngineError) -> None:
        """Answer every flow with an error, and close."""
        with self._changed:
            flows = list(self._live)
            for flow in flows:
                flow.closed = True
            self._live.clear()
            self._new.clear()
            self._old.clear()
            self._leaders.clear()
            self._closing, self._aborted = True, error
            self._changed.notify_all()
        for flow in flows:
            answer(flow, error)

    def close(self) -> None:
        """Take what waits to its end, then let `take` give None."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether no more flows are to come and none waits."""
        with self._changed:
            return self._closing and not self._new and not self._old

    @property
    def oldest_age_s(self) -> float:
        """Seconds since the oldest unanswered flow came; 0 without one."""
        with self._changed:
            since = min((flow.since for flow in self._live), default=None)
        return 0.0 if since is None else perf_counter() - since

    def _form(self, late: list[Flow]) -> Batch | None:
        """Cut the next batch, or None; flows that cannot be served in time any more are dropped into `late`.

        First every flow has a turn, then what is left of the batch goes to whoever fits, on account.
        """
        room: _Room | None = None
        ended: list[Flow] = []
        for flow in self._turn_order():
            shortest_s = flow.speed.seconds(flow.lengths[0], flow.lengths[0])
            if monotonic() + shortest_s >= flow.ticket.deadline:
                self._drop(flow)
                late.append(flow)
                continue
            if flow.deficit <= 0:
                flow.deficit += flow.ticket.weight * self._quantum(flow)
            if flow.deficit > 0:
                room = room or self._open(flow)
                if room.full:
                    break
                room.take(flow, flow.deficit)
            if flow.deficit <= 0:
                ended.append(flow)
        self._rearrange(ended)
        if room is None and self._old:
            room = self._open(self._old[0])
        more = room is not None
        while room is not None and more:
            taken = [room.take(flow, self._quantum(flow)) for flow in [*self._old, *self._new]]
            self._rearrange([])
            more = any(taken)
        return None if room is None else room.batch

    def _turn_order(self) -> list[Flow]:
        """Give the flows in the order of their turns: new and old ones alternate, each kind begins every other time."""
        self._old_first = not self._old_first
        lines = [list(self._new), list(self._old)]
        first, second = lines[::-1] if self._old_first else lines
        both = [flow for pair in zip(first, second, strict=False) for flow in pair]
        shorter = min(len(first), len(second))
        return [*both, *first[shorter:], *second[shorter:]]

    def _rearrange(self, ended: list[Flow]) -> None:
        """Put flows whose turn has ended last, and let go of those of which nothing waits."""
        begun = [flow for flow in self._new if flow.had_turn]
        self._new = deque(flow for flow in self._new if flow.rows and not flow.had_turn)
        last = set(ended)
        line = [*(flow for flow in [*begun, *self._old] if flow not in last), *ended]
        self._old = deque(flow for flow in line if flow.rows)

    def _quantum(self, flow: Flow) -> float:
        return flow.speed.token_budget(flow.lengths[0], self._batch_s) / TURNS

    def _open(self, flow: Flow) -> _Room:
        seconds = self._batch_seconds(flow)
        return _Room(
            Batch(flow.scorer, flow.speed), partial(flow.speed.token_budget, seconds=seconds), monotonic() + seconds
        )

    def _batch_seconds(self, flow: Flow) -> float:
        """Give what a batch that starts with this flow may take.

        Less than usual where its deadline is near, and where little waits: then each engine gets its share of that, so
        that all of them are done at about the same time (guided self-scheduling, Polychronopoulos and Kuck, 1987).
        """
        seconds = min(self._batch_s, flow.ticket.deadline - monotonic())
        if self._engines > 1:
            waiting = sum(other.waiting_tokens for other in (*self._new, *self._old))
            share_s = flow.speed.seconds(flow.lengths[0], waiting) / self._engines
            seconds = min(seconds, max(share_s, self._batch_s / _SMALLEST))
        return seconds

    def _follow(self, flow: Flow, keys: Iterable[bytes]) -> None:
        """Let rows whose pair is being computed wait for that, and the others be followed.

        A row that still waits in a request that is larger for its weight changes places: it follows the new one. A row
        that is to be explained follows none: only its own batch is sure to be asked for latents.
        """
        keys = list(keys)
        followed: set[int] = set()
        waiting: dict[Flow, set[int]] = {}
        passed: dict[Flow, set[int]] = {}
        share = flow.waiting_tokens / flow.ticket.weight
        for row in flow.rows:
            leader = self._leaders.get(keys[row])
            if leader is None:
                self._leaders[keys[row]] = Leader(flow, row)
                continue
            if flow.explained:
                continue
            first = leader.flow
            if not first.explained and share < first.waiting_tokens / first.ticket.weight:
                if first not in waiting:
                    waiting[first] = set(first.rows)
                if leader.row in waiting[first]:
                    passed.setdefault(first, set()).add(leader.row)
                    self._leaders[keys[row]] = Leader(flow, row, [(first, leader.row), *leader.followers])
                    continue
            leader.followers.append((flow, row))
            followed.add(row)
        flow.ticket.left -= flow.leave(followed)
        for first, rows in passed.items():
            first.ticket.left -= first.leave(rows)
            if not first.rows:
                self._out_of_line(first)

    def _end_lead(self, flow: Flow, row: int) -> list[tuple[Flow, int]]:
        keys = flow.keys or ()
        leader = self._leaders.get(keys[row])
        if leader is None or leader.flow is not flow or leader.row != row:
            return []
        del self._leaders[keys[row]]
        return leader.followers

    def _drop(self, flow: Flow) -> None:
        """Close a flow before its end: its waiting rows go to the first that follows each, or nowhere."""
        flow.closed = True
        self._live.discard(flow)
        self._out_of_line(flow)
        rows = flow.rows if flow.keys is not None else []
        for row in rows:
            followers = [(other, theirs) for other, theirs in self._end_lead(flow, row) if not other.closed]
            if followers:
                heir, heirs_row = followers[0]
                self._leaders[(heir.keys or ())[heirs_row]] = Leader(heir, heirs_row, followers[1:])
                # One whose rows were all taken just now is still in a line.
                if not heir.rows and heir not in self._new and heir not in self._old:
                    self._old.append(heir)
                heir.restore(heirs_row)
                heir.ticket.left += int(heir.prepared.length_B[heirs_row])
        flow.rows, flow.lengths, flow.waiting_tokens = [], [], 0
        self._changed.notify(self._engines)

    def _out_of_line(self, flow: Flow) -> None:
        for line in (self._new, self._old):
            if flow in line:
                line.remove(flow)

    def _finish(self, flow: Flow, finished: list[Flow]) -> None:
        if not flow.open_rows:
            flow.closed = True
            self._live.discard(flow)
            finished.append(flow)

    def _spend(self, flow: Flow, rows: NDArray[np.int64], padded_length: int, seconds: float) -> None:
        tokens = int(flow.prepared.length_B[rows].sum())
        flow.ticket.left -= tokens
        flow.tokens += tokens
        flow.padded_tokens += len(rows) * padded_length
        flow.infer_s += seconds


def _answer_late(flows: Iterable[Flow]) -> None:
    for flow in flows:
        n = len(flow.reason_B)
        if (flow.reason_B == 0).any():
            answer(flow)
        else:
            answer(flow, DeadlineError(f"expected a first batch before the deadline, found {n} items unscored"))

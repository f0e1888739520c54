"""One simulated replica: admission, the fair queue and the engines of this service, on a clock that is told.

It decides as `admission.py` and `queueing.py` do (tests run both side by side), without texts, logits, priorities and
shared rows. Speeds are learnt from batches by the service's own `Speed`.
Suffix: F calls that share the engines.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from service.admission import SHARE, Ticket, finish_times
from service.flow import JOIN_WASTE
from service.queueing import TURNS
from service.scorer import MAX_WASTE, MIN_BATCH_TOKENS
from service.speed import Speed

_SMALLEST = 8


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What one replica can do.

    Args: tokens_per_s: of all engines together; fixed_s: of each batch, beside its tokens; batch_s: time of a batch;
        prefetch: whether the next batch is cut when one begins; max_requests: admitted at the same time; call_s,
        pair_s: of a call outside the engines, and for each of its pairs.
    """

    tokens_per_s: float
    fixed_s: float = 0.0
    engines: int = 1
    batch_s: float = 0.04
    prefetch: bool = False
    max_requests: int = 1024
    call_s: float = 0.0
    pair_s: float = 0.0

    def batch_seconds(self, padded_tokens: int) -> float:
        """Give what a batch takes on one engine."""
        return self.fixed_s + padded_tokens * self.engines / self.tokens_per_s


@dataclass(slots=True, eq=False)
class Call:
    """One request on its way.

    Args: number: which one; lengths: tokens of each row that waits, ascending; deadline: on the simulated clock;
        left: tokens not computed, as admission counts them; open_rows: not delivered.
    """

    number: int
    lengths: list[int]
    deadline: float
    replica: int = 0
    left: float = 0.0
    hopeless: bool = False
    waiting_tokens: int = field(init=False)
    open_rows: int = field(init=False)
    deficit: float = 0.0
    had_turn: bool = False
    closed: bool = False

    def __post_init__(self) -> None:
        self.waiting_tokens, self.open_rows = sum(self.lengths), len(self.lengths)

    def demand(self, now: float, speed: float) -> float:
        """Give the tokens that it will still take."""
        return Ticket(self.left, 1.0, self.deadline, self.hopeless).demand(now, speed)


@dataclass(slots=True)
class Batch:
    """Rows that run together.

    Args: seconds: that it may take; done_at: about when it will have run; rows: of each call, and their tokens;
        budgets: padded tokens it may have, by padded length, worked out once.
    """

    speed: Speed
    seconds: float
    done_at: float
    rows: dict[Call, tuple[int, int]] = field(default_factory=dict)
    length: int = 0
    n_rows: int = 0
    tokens: int = 0
    budgets: dict[int, int] = field(default_factory=dict)

    @property
    def padded_tokens(self) -> int:
        """Rows × longest length."""
        return self.n_rows * self.length

    @property
    def full(self) -> bool:
        """Whether not one more row as long as its longest fits."""
        return self.n_rows > 0 and self.padded_tokens + self.length > self._budget(self.length)

    def take(self, call: Call, tokens: float) -> int:
        """Move rows of a call into the batch, as many as fit and as it may use now; give how many tokens that was.

        The first call gives its shortest rows; a later one those nearest in length from below.
        """
        lengths = call.lengths
        if self.full or not lengths or (self.n_rows and self.done_at >= call.deadline):
            return 0
        start = end = bisect_right(lengths, self.length) if self.n_rows else 0
        downward, joining = start > 0, bool(self.n_rows)
        length, n_rows, real, used = self.length, self.n_rows, self.tokens, 0
        while used < tokens or not n_rows:
            place = start - 1 if downward else end
            if not 0 <= place < len(lengths):
                break
            longest, real_after = max(length, lengths[place]), real + lengths[place]
            padded, budget = (n_rows + 1) * longest, self._budget(longest)
            if joining:
                wasteful = padded - real_after > JOIN_WASTE * budget
            else:
                wasteful = real >= MIN_BATCH_TOKENS and padded > MAX_WASTE * real_after
            if n_rows and (padded > budget or wasteful):
                break
            used += lengths[place]
            start, end = (place, end) if downward else (start, place + 1)
            length, n_rows, real = longest, n_rows + 1, real_after
        if start == end:
            return 0
        taken, their_tokens = self.rows.get(call, (0, 0))
        self.rows[call] = (taken + end - start, their_tokens + used)
        self.length, self.n_rows, self.tokens = length, n_rows, real
        del lengths[start:end]
        call.waiting_tokens -= used
        call.deficit -= used
        call.had_turn = True
        return used

    def _budget(self, length: int) -> int:
        if length not in self.budgets:
            self.budgets[length] = self.speed.token_budget(length, self.seconds)
        return self.budgets[length]


class Replica:
    """Admission and queue of one replica; every method is told what time it is.

    Its speed is known from the start, as after warm-up, from one full batch.
    """

    def __init__(self, spec: ReplicaSpec, *, pair_tokens: int) -> None:
        self.spec = spec
        self.speed = Speed("fp32", engines=spec.engines)
        rows = max(1, int((spec.batch_s - spec.fixed_s) * spec.tokens_per_s / spec.engines / pair_tokens))
        size = rows * pair_tokens
        self.speed.observe(length=pair_tokens, padded_tokens=size, tokens=size, seconds=spec.batch_seconds(size))
        self.admitted: set[Call] = set()
        self.outstanding = 0
        self.idle_engines = spec.engines
        self._new: deque[Call] = deque()
        self._old: deque[Call] = deque()
        self._old_first = False
        self._quanta: dict[int, float] = {}
        self._row_s: dict[int, float] = {}

    def admit(self, call: Call, now: float) -> bool:
        """Take a call or refuse it, by when it and those before it would be done."""
        speed, tokens = self.speed.tokens_per_s, call.waiting_tokens
        call.left, call.hopeless = float(tokens), tokens > max(0.0, call.deadline - now) * SHARE * speed
        if self.admitted and (len(self.admitted) >= self.spec.max_requests or self._late(call, now, speed)):
            return False
        self.admitted.add(call)
        return True

    def submit(self, call: Call) -> None:
        """Let an admitted call wait for the engines."""
        self._new.append(call)

    def take(self, now: float, late: list[Call]) -> Batch | None:
        """Give the next batch, None if nothing waits; calls that cannot be served in time are dropped into `late`."""
        batch: Batch | None = None
        ended: list[Call] = []
        for call in self._turn_order():
            if now + self._row_seconds(call.lengths[0]) >= call.deadline:
                self.drop(call)
                late.append(call)
                continue
            if call.deficit <= 0:
                call.deficit += self._quantum(call.lengths[0])
            if call.deficit > 0:
                batch = batch or self._open(call, now)
                if batch.full:
                    break
                batch.take(call, call.deficit)
            if call.deficit <= 0:
                ended.append(call)
        self._rearrange(ended)
        if batch is None and self._old:
            batch = self._open(self._old[0], now)
        more = batch is not None
        while batch is not None and more and not batch.full:
            taken = [batch.take(call, self._quantum(call.lengths[0])) for call in [*self._old, *self._new]]
            self._rearrange([])
            more = any(taken)
        return batch

    def complete(self, batch: Batch, seconds: float) -> list[Call]:
        """Learn from a batch that ran, and give the calls that it ends."""
        self.speed.observe(length=batch.length, padded_tokens=batch.padded_tokens, tokens=batch.tokens, seconds=seconds)
        self._quanta.clear()
        self._row_s.clear()
        finished = []
        for call, (rows, tokens) in batch.rows.items():
            call.left -= tokens
            if not call.closed:
                call.open_rows -= rows
                if not call.open_rows:
                    self.drop(call)
                    finished.append(call)
        return finished

    def drop(self, call: Call) -> None:
        """Let go of a call that is answered."""
        call.closed = True
        self.admitted.discard(call)
        call.lengths, call.waiting_tokens = [], 0
        for line in (self._new, self._old):
            if call in line:
                line.remove(call)

    def _late(self, new: Call, now: float, speed: float) -> bool:
        calls = [*self.admitted, new]
        left_F = np.asarray([call.demand(now, speed) for call in calls])
        slack_F = np.asarray([call.deadline - now for call in calls])
        ones_F = np.ones(len(calls))
        finish_F = finish_times(left_F, ones_F, speed)
        was_on_time_F = np.append(finish_times(left_F[:-1], ones_F[:-1], speed) <= slack_F[:-1], True)
        slack_F[-1] *= SHARE
        return bool((finish_F - slack_F)[was_on_time_F].max() > 0)

    def _turn_order(self) -> list[Call]:
        self._old_first = not self._old_first
        lines = [list(self._new), list(self._old)]
        first, second = lines[::-1] if self._old_first else lines
        both = [call for pair in zip(first, second, strict=False) for call in pair]
        shorter = min(len(first), len(second))
        return [*both, *first[shorter:], *second[shorter:]]

    def _rearrange(self, ended: list[Call]) -> None:
        begun = [call for call in self._new if call.had_turn]
        self._new = deque([call for call in self._new if call.lengths and not call.had_turn])
        line = [*(call for call in [*begun, *self._old] if call not in ended), *ended]
        self._old = deque([call for call in line if call.lengths])

    def _quantum(self, length: int) -> float:
        if length not in self._quanta:
            self._quanta[length] = self.speed.token_budget(length, self.spec.batch_s) / TURNS
        return self._quanta[length]

    def _row_seconds(self, length: int) -> float:
        if length not in self._row_s:
            self._row_s[length] = self.speed.seconds(length, length)
        return self._row_s[length]

    def _open(self, call: Call, now: float) -> Batch:
        seconds = min(self.spec.batch_s, call.deadline - now)
        if self.spec.engines > 1:
            waiting = sum(other.waiting_tokens for other in (*self._new, *self._old))
            share_s = self.speed.seconds(call.lengths[0], waiting) / self.spec.engines
            seconds = min(seconds, max(share_s, self.spec.batch_s / _SMALLEST))
        return Batch(self.speed, seconds, now + seconds)

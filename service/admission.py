"""Admission: a request is taken or refused once, as a whole, by what it would cost and who else waits.

Requests share the engines by weight, so when each would be done can be worked out: while a flow needs `left / weight`
rounds, every other flow uses its weight a round, or less if it needs fewer. A request is refused when it would be late,
or when it would make one late that was on time. Suffix: F flows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from relevance.errors import OverloadError
from relevance.tokenization import N_SPECIAL
from service.scorer import Texts

CHARS_PER_TOKEN = 3.5
SHARE = 0.9
"""Of the time until a deadline that admission counts on; the rest is for errors of the estimate and for the answer."""
_HOPELESS_SHARE = 0.5
_WEIGHT = 0.05
_MOST_WAIT_S = 60.0


@dataclass(slots=True, eq=False)
class Ticket:
    """What admission knows of an admitted request.

    Args: left: tokens not yet computed, the engines count it down; hopeless: more than can be done until its deadline.
    """

    left: float
    weight: float
    deadline: float
    hopeless: bool = False

    def demand(self, now: float, speed: float) -> float:
        """Give the tokens that it will still take: all that is left, of a hopeless one half of what fits in time."""
        left = max(self.left, 0.0)
        if not self.hopeless:
            return left
        return min(left, _HOPELESS_SHARE * SHARE * speed * max(0.0, self.deadline - now))


class CostEstimator:
    """Tokens of texts from their characters, learnt for each policy locale; thread-safe in that a lost update is small.

    Args: max_pair_tokens: of a pair, whatever its texts.
    """

    def __init__(self, *, max_pair_tokens: int) -> None:
        self._most = max_pair_tokens
        self._chars_per_token: dict[str, float] = {}

    def tokens(self, texts: Texts, rows: list[int] | None = None) -> float:
        """Estimate the tokens of all pairs, or of some."""
        per_token = self._chars_per_token.get(texts.policy_locale, CHARS_PER_TOKEN)
        items = texts.items if rows is None else [texts.items[row] for row in rows]
        chars_B = np.fromiter(map(len, items), dtype=np.float64, count=len(items))
        tokens_B = (chars_B + len(texts.query)) / per_token + N_SPECIAL
        return float(np.minimum(tokens_B, self._most).sum())

    def learn(self, texts: Texts, rows: list[int], tokens: int) -> None:
        """Compare with what tokenising some rows gave, specials included; none of them cut to what the model reads."""
        chars = sum(len(texts.items[row]) for row in rows) + len(rows) * len(texts.query)
        real = tokens - N_SPECIAL * len(rows)
        if real > 0 and chars > 0:
            old = self._chars_per_token.get(texts.policy_locale, CHARS_PER_TOKEN)
            weight = min(1.0, _WEIGHT * len(rows))
            self._chars_per_token[texts.policy_locale] = old + weight * (chars / real - old)


class Admission:
    """The admitted requests; thread-safe.

    Args: tokens_per_s: of all engines together, 0 = not measured yet; max_requests: admitted at the same time.
    `closed` says that nothing is to come any more.
    """

    def __init__(self, tokens_per_s: Callable[[], float], *, max_requests: int) -> None:
        self._tokens_per_s = tokens_per_s
        self._max_requests = max_requests
        self._lock = Lock()
        self._tickets: set[Ticket] = set()
        self.closed = False

    def admit(self, tokens: float, *, weight: float, deadline: float) -> Ticket:
        """Take a request or refuse it.

        A request that could not be done in time even alone is counted with half of what fits until its deadline: it
        gets what there is time for. One request is always admitted when there is no other.

        Args: tokens: estimated; weight: of its share; deadline: on the `time.monotonic` clock.
        Raises: OverloadError: with the estimated wait.
        """
        now = monotonic()
        speed = self._tokens_per_s()
        most = max(0.0, deadline - now) * SHARE * speed if speed else tokens
        hopeless = tokens > most
        ticket = Ticket(tokens, weight, deadline, hopeless)
        with self._lock:
            if self._tickets and (excess_s := self._excess_s(ticket, now, speed)) > 0:
                wait_s = min(_MOST_WAIT_S, excess_s)
                raise OverloadError(
                    f"expected room before the deadline, found {len(self._tickets)} requests with "
                    f"{self._left(now, speed):.0f} tokens before this one of about {tokens:.0f}; estimated wait "
                    f"{wait_s:.2f} s",
                    wait_s,
                )
            self._tickets.add(ticket)
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Forget a request that was answered."""
        with self._lock:
            self._tickets.discard(ticket)

    def close(self) -> None:
        """Say that nothing is to be admitted any more."""
        self.closed = True

    @property
    def n_requests(self) -> int:
        """Admitted and not answered."""
        return len(self._tickets)

    @property
    def left(self) -> float:
        """Tokens that admitted requests will still take."""
        now, speed = monotonic(), self._tokens_per_s()
        with self._lock:
            return self._left(now, speed)

    @property
    def wait_s(self) -> float:
        """Seconds until the engines would be done with what is admitted."""
        speed = self._tokens_per_s()
        return self.left / speed if speed else 0.0

    def _left(self, now: float, speed: float) -> float:
        return sum(ticket.demand(now, speed) for ticket in self._tickets)

    def _excess_s(self, new: Ticket, now: float, speed: float) -> float:
        """Give by how much the new request, or one it delays, would be late; 0 or less admits it."""
        if len(self._tickets) >= self._max_requests:
            return max(0.001, self._left(now, speed) / speed / len(self._tickets)) if speed else 1.0
        if not speed:
            return 0.0
        flows = [*self._tickets, new]
        left_F = np.asarray([ticket.demand(now, speed) for ticket in flows])
        weight_F = np.asarray([ticket.weight for ticket in flows])
        slack_F = np.asarray([ticket.deadline - now for ticket in flows])
        finish_F = finish_times(left_F, weight_F, speed)
        before_F = finish_times(left_F[:-1], weight_F[:-1], speed)
        was_on_time_F = np.append(before_F <= slack_F[:-1], True)
        slack_F[-1] *= SHARE
        return float((finish_F - slack_F)[was_on_time_F].max())


def finish_times(left_F: NDArray[np.float64], weight_F: NDArray[np.float64], speed: float) -> NDArray[np.float64]:
    """Give the seconds after which each flow is done when all share the engines by weight, nobody else coming.

    Σ_j w_j · min(left_j / w_j, left_i / w_i) / speed, the fluid limit of deficit round-robin
    (Demers, Keshav and Shenker, SIGCOMM 1989).

    Args: left_F: tokens; weight_F: shares; speed: tokens a second.
    """
    rounds_F = left_F / weight_F
    order_F = np.argsort(rounds_F)
    done_F = np.cumsum(left_F[order_F])
    sharing_F = weight_F.sum() - np.cumsum(weight_F[order_F])
    finish_F = np.empty_like(rounds_F)
    finish_F[order_F] = (done_F + rounds_F[order_F] * sharing_F) / speed
    return finish_F

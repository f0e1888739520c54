"""Measured: seconds a padded token by length, tokens a second of all engines, and how long an answer takes to send."""

from __future__ import annotations

from bisect import bisect_left
from threading import Lock

from relevance.bundle import Precision

LENGTH_EDGES = (16, 32, 48, 64, 96, 128, 192, 256, 512)
MOST_TOKENS = 65_536
_WEIGHT = 0.1
"""Of a new measurement in the moving averages; less for a batch too small to show more than its fixed cost."""
_WHOLE_TOKENS = 256
_MOST_CHANGE = 2.0
"""A measurement counts as so many times the average at most, so that a stall is not taken for slowness."""

_S_PER_PAIR = 5e-6
_WAY_S = 0.001
_LEAST_S, _MOST_RESERVE_S = 0.0005, 0.05
_UP = 1.1
_DOWN = _UP ** (-0.05 / 0.95)


class Speed:
    """Moving averages of what batches cost; thread-safe.

    Padding is what a batch pays for, so batches are cut by padded tokens; real tokens are what is known of a request
    before it is batched, so waits are estimated in those.

    Args: engines: threads that run batches at the same time; precision: of the graph that is measured.
    """

    def __init__(self, precision: Precision, *, engines: int = 1) -> None:
        self.precision = precision
        self._engines = engines
        self._lock = Lock()
        self._s_per_padded: dict[int, float] = {}
        self._s_per_token = 0.0

    def observe(self, *, length: int, padded_tokens: int, tokens: int, seconds: float) -> None:
        """Learn from one batch; length: padded; tokens: real ones."""
        bucket = _bucket(length)
        weight = _WEIGHT * min(1.0, padded_tokens / _WHOLE_TOKENS)
        with self._lock:
            padded_s = seconds / padded_tokens
            self._s_per_padded[bucket] = _moved(self._s_per_padded.get(bucket, 0.0), padded_s, weight)
            self._s_per_token = _moved(self._s_per_token, seconds / tokens, weight)

    @property
    def tokens_per_s(self) -> float:
        """Real tokens a second of all engines together; 0 before the first batch."""
        return self._engines / self._s_per_token if self._s_per_token else 0.0

    def thread_seconds_per_padded(self, threads: int) -> float:
        """Give the seconds × threads of a padded token, over the lengths seen; 0 before the first batch."""
        with self._lock:
            known = list(self._s_per_padded.values())
        return threads * sum(known) / len(known) if known else 0.0

    def token_budget(self, length: int, seconds: float) -> int:
        """Give the padded tokens that one engine runs in some seconds at a padded length; the length if unmeasured.

        Never more than MOST_TOKENS, so that a very fast device does not take memory without bound.
        """
        if not self._s_per_padded:
            return length
        return max(length, min(MOST_TOKENS, int(seconds / self.seconds(length, 1))))

    def seconds(self, length: int, padded_tokens: int) -> float:
        """Give the seconds of a batch on one engine; 0 before the first batch."""
        with self._lock:
            if not self._s_per_padded:
                return 0.0
            bucket = _bucket(length)
            nearest = min(self._s_per_padded, key=lambda known: abs(known - bucket))
            return padded_tokens * self._s_per_padded[nearest]


class AnswerTime:
    """How long an answer takes from its last logits, or from its deadline, until it is sent; used on one thread.

    A running estimate of the 95 % quantile, since a late answer is worth nothing and an early one costs a few pairs.
    """

    def __init__(self) -> None:
        self._quantile_s = 0.002

    def reserve_s(self, n_pairs: int) -> float:
        """Give the seconds before a deadline at which the answer to so many pairs must be begun."""
        return min(_MOST_RESERVE_S, _WAY_S + self._quantile_s) + _S_PER_PAIR * n_pairs

    def observe(self, seconds: float, n_pairs: int) -> None:
        """Learn from one answer that was sent."""
        above = seconds - _S_PER_PAIR * n_pairs > self._quantile_s
        self._quantile_s = max(_LEAST_S, self._quantile_s * (_UP if above else _DOWN))


def _bucket(length: int) -> int:
    return bisect_left(LENGTH_EDGES, length)


def _moved(old: float, new: float, weight: float) -> float:
    return new if not old else old + weight * (min(max(new, old / _MOST_CHANGE), old * _MOST_CHANGE) - old)

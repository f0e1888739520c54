"""Measured speed: budgets in time, and tokens a second of all engines."""

from __future__ import annotations

import numpy as np
import pytest

from service.speed import AnswerTime, Speed


def observed(speed: Speed, *, length: int, tokens_per_s: float, times: int = 1) -> None:
    """Let some batches of 1,000 padded tokens without padding run."""
    for _ in range(times):
        speed.observe(length=length, padded_tokens=1000, tokens=1000, seconds=1000 / tokens_per_s)


def test_a_batch_gets_the_tokens_that_fit_its_time():
    """10,000 tokens/s × 40 ms = 400 tokens; a pair longer than that still gets its own batch."""
    speed = Speed("fp32")
    observed(speed, length=24, tokens_per_s=10_000)

    assert speed.token_budget(24, 0.04) == 400
    assert speed.token_budget(500, 0.04) == 500


def test_lengths_have_speeds_of_their_own_and_others_take_the_nearest():
    """Short pairs at 10,000, long ones at 5,000: a length between takes the nearer."""
    speed = Speed("fp32")
    observed(speed, length=16, tokens_per_s=10_000)
    observed(speed, length=256, tokens_per_s=5_000)

    assert [speed.token_budget(n, 0.1) for n in (16, 30, 200, 400)] == [1000, 1000, 500, 500]


def test_the_average_follows_a_change():
    """Half as fast from now on: after 50 batches the estimate is within 1 % of the new speed."""
    speed = Speed("fp32", engines=2)
    observed(speed, length=24, tokens_per_s=10_000)
    observed(speed, length=24, tokens_per_s=5_000, times=50)

    assert speed.tokens_per_s == pytest.approx(2 * 5_000, rel=0.01)


def test_nothing_is_pretended_before_the_first_batch():
    """Unmeasured: no speed, no time, and a batch of one pair."""
    speed = Speed("fp32")

    assert (speed.tokens_per_s, speed.seconds(24, 100), speed.token_budget(24, 0.04)) == (0, 0, 24)


def test_one_stall_does_not_look_like_a_slow_machine():
    """A batch that took 100 times as long moves the average by a tenth, not tenfold."""
    speed = Speed("fp32")
    observed(speed, length=24, tokens_per_s=10_000)
    observed(speed, length=24, tokens_per_s=100)

    assert speed.tokens_per_s == pytest.approx(10_000 / 1.1)


def test_the_reserve_for_an_answer_follows_its_95_percent_quantile():
    """Answers of 1 to 20 ms at random: about one in twenty takes longer than what is reserved, less the way."""
    rng = np.random.default_rng(0)
    times = rng.uniform(0.001, 0.020, 3000)
    answer_time = AnswerTime()
    late = 0
    for number, seconds in enumerate(times):
        late += number >= 1000 and seconds > answer_time.reserve_s(0) - 0.001
        answer_time.observe(seconds, 0)

    assert 0.03 < late / 2000 < 0.08


def test_the_reserve_grows_with_the_pairs_and_has_a_bound():
    """A thousand pairs add 5 ms; one answer that took a minute does not eat every later deadline."""
    answer_time = AnswerTime()
    small, large = answer_time.reserve_s(0), answer_time.reserve_s(1000)
    for _ in range(200):
        answer_time.observe(60, 0)

    assert large - small == pytest.approx(0.005)
    assert answer_time.reserve_s(0) == 0.05

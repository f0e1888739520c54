"""The fair queue: every row once, budgets kept, turns by weight, single flight; tried on random histories too."""

from __future__ import annotations

from time import monotonic

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relevance.errors import DeadlineError, EngineError
from relevance.tokenization import N_SPECIAL
from service.admission import Ticket
from service.flow import Batch, Flow
from service.model import Model
from service.queueing import FairQueue
from service.scorer import MAX_WASTE, MIN_BATCH_TOKENS, REASONS, Prepared, Scorer
from service.speed import Speed

TOKENS_PER_S = 10_000.0
BATCH_S = 0.04
BUDGET = 400


@pytest.fixture(scope="module")
def scorer(model: Model) -> Scorer:
    """The tiny bundle's scorer; its session is never run here."""
    return model.scorer


def fast() -> Speed:
    """10,000 tokens a second at any length."""
    speed = Speed("fp32")
    speed.observe(length=16, padded_tokens=100, tokens=100, seconds=100 / TOKENS_PER_S)
    return speed


SPEED = fast()


def flow_of(scorer: Scorer, lengths: list[int], *, weight: float = 1.0, seconds: float = 60, keys=None) -> Flow:
    """A flow whose rows have these lengths; the logits of a row will be its length."""
    n = len(lengths)
    query_ids = np.asarray([5], dtype=np.int32)
    items = [np.full(length - 1 - N_SPECIAL, 7, dtype=np.int32) for length in lengths]
    length_B = np.asarray(lengths, dtype=np.int64)
    prepared = Prepared("q", "pooled", query_ids, items, length_B, np.zeros(n, dtype=bool), 0.0)
    ticket = Ticket(float(sum(lengths)), weight, monotonic() + seconds)
    return Flow(scorer, SPEED, prepared, ticket=ticket, keys=keys)


def logits_of(batch: Batch) -> np.ndarray:
    """What a session would give: each row's own length, four times."""
    length_N = np.concatenate([flow.prepared.length_B[rows] for flow, rows in batch.parts])
    return np.repeat(length_N[:, None], 4, axis=1).astype(np.float32)


def run_all(queue: FairQueue) -> list[Batch]:
    """Take and complete batches until none is left."""
    batches = []
    while (batch := queue.take()) is not None:
        batches.append(batch)
        queue.complete(batch, logits_of(batch), 0.001)
    return batches


LENGTHS = st.lists(st.integers(5, 90), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(LENGTHS, min_size=1, max_size=8), weights=st.lists(st.sampled_from([0.25, 1, 4]), min_size=8))
def test_every_row_runs_once_within_budget_and_gets_its_own_logits(scorer: Scorer, requests, weights):
    """Any requests: each flow is answered once with the logits of its own rows; no batch costs more than its budget."""
    queue = FairQueue(batch_s=BATCH_S)
    flows = [flow_of(scorer, lengths, weight=w) for lengths, w in zip(requests, weights, strict=False)]
    for flow in flows:
        queue.submit(flow)

    batches = run_all(queue)

    for batch in batches:
        assert batch.padded_tokens <= max(BUDGET, batch.length)
        if batch.tokens - batch.length >= MIN_BATCH_TOKENS:
            assert batch.padded_tokens <= MAX_WASTE * batch.tokens
    assert sum(len(lengths) for lengths in requests) == sum(batch.n_rows for batch in batches)
    for flow, lengths in zip(flows, requests, strict=True):
        result = flow.future.result(0)
        assert result.logits_BK[:, 0].tolist() == lengths
        assert (result.tokens, flow.ticket.left, flow.waiting_tokens) == (sum(lengths), 0, 0)


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.tuples(
                st.lists(st.integers(0, 12), min_size=1, max_size=12),
                st.sampled_from([0.25, 1.0, 4.0]),
                st.sampled_from([60, 60, 0.003, 0.0]),
            ),
        ),
        st.tuples(st.just("take"), st.just(None)),
        st.tuples(st.sampled_from(["complete", "fail"]), st.integers(0, 3)),
        st.tuples(st.sampled_from(["close_flow", "expire"]), st.integers(0, 5)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_whatever_happens_each_flow_is_answered_exactly_once(scorer: Scorer, steps):
    """Random histories of shared pairs, weights, near deadlines, failures, cancellations, two batches under way: each
    future is set once, and nothing is left waiting anywhere."""
    queue = FairQueue(batch_s=0.004, engines=2)
    flows: list[Flow] = []
    running: list[Batch] = []
    for kind, what in steps:
        if kind == "submit":
            pairs, weight, seconds = what
            keys = [bytes([pair]) for pair in pairs]
            flows.append(flow_of(scorer, [10 + pair for pair in pairs], keys=keys, weight=weight, seconds=seconds))
            queue.submit(flows[-1])
        elif kind == "take" and len(running) < 2:
            running += filter(None, [queue.take()])
        elif kind in {"complete", "fail"} and running:
            _end(queue, running.pop(what % len(running)), kind)
        elif kind in {"close_flow", "expire"} and flows:
            getattr(queue, kind)(flows[what % len(flows)])
    for batch in running:
        _end(queue, batch, "complete")
    run_all(queue)

    for flow in flows:
        assert flow.future.done()
        if flow.future.exception(0) is None:
            result = flow.future.result(0)
            scored = result.reason_B == 0
            assert result.logits_BK[scored, 0].tolist() == flow.prepared.length_B[scored].tolist()
    assert (queue._leaders, len(queue._live), len(queue._new), len(queue._old)) == ({}, 0, 0, 0)


def _end(queue: FairQueue, batch: Batch, how: str) -> None:
    if how == "complete":
        queue.complete(batch, logits_of(batch), 0.001)
    else:
        queue.fail(batch, EngineError("on purpose"))


def test_a_small_request_waits_for_one_batch_of_a_large_one(scorer: Scorer):
    """3,000 rows queued first, then 8: all 8 are in the next batch, the large request has the rest of it."""
    queue = FairQueue(batch_s=BATCH_S)
    large, small = flow_of(scorer, [20] * 3000), flow_of(scorer, [20] * 8)
    queue.submit(large)
    first = queue.take()
    queue.submit(small)

    second = queue.take()

    assert list(first.rows) == [large]
    assert {flow: len(rows) for flow, rows in second.rows.items()} == {small: 8, large: 12}


def test_a_small_request_does_not_wait_behind_a_large_one_that_holds_the_same_pairs(scorer: Scorer):
    """400 rows wait, then 8 of the same pairs come: they are in the next batch, and the large request follows them."""
    keys = [row.to_bytes(2) for row in range(400)]
    queue = FairQueue(batch_s=BATCH_S)
    large, small = flow_of(scorer, [20] * 400, keys=keys), flow_of(scorer, [20] * 8, keys=keys[200:208])
    queue.submit(large)
    begun = queue.take()
    queue.submit(small)
    left = (large.ticket.left, small.ticket.left)
    second = queue.take()
    queue.complete(begun, logits_of(begun), 0.001)
    queue.complete(second, logits_of(second), 0.001)

    assert left == (392 * 20, 8 * 20)
    assert len(second.rows[small]) == 8
    assert small.future.done()
    assert not small.cached_B.any()
    assert np.flatnonzero(large.cached_B).tolist() == list(range(200, 208))
    run_all(queue)
    assert large.future.result(0).logits_BK[:, 0].tolist() == [20] * 400


def test_a_pair_in_a_running_batch_and_one_of_a_smaller_request_are_followed(scorer: Scorer):
    """Neither is computed again, and the smaller one keeps its place."""
    queue = FairQueue(batch_s=BATCH_S)
    first = flow_of(scorer, [20] * 20, keys=[bytes([row]) for row in range(20)])
    queue.submit(first)
    batch = queue.take()
    waiting = flow_of(scorer, [20, 20], keys=[b"a", b"b"])
    second = flow_of(scorer, [20] * 4, keys=[bytes([0]), b"a", b"b", b"c"])
    queue.submit(waiting)
    queue.submit(second)

    assert (second.rows, second.open_rows) == ([3], 4)
    queue.complete(batch, logits_of(batch), 0.001)
    assert run_all(queue)[0].n_rows == 3
    assert second.future.result(0).cached_B.tolist() == [True, True, True, False]


def test_a_row_handed_back_in_the_turn_that_emptied_its_flow_is_in_line_once(scorer: Scorer):
    """Its own rows were taken just before the one that it follows for another row is found late."""
    queue = FairQueue(batch_s=BATCH_S)
    leader = flow_of(scorer, [*[10] * 40, 11], keys=[*(bytes([row]) for row in range(40)), b"x"])
    heir = flow_of(scorer, [12, 11], keys=[b"own", b"x"])
    queue.submit(leader)
    assert queue.take().n_rows == 40
    queue.submit(heir)
    leader.ticket.deadline = monotonic()

    batch = queue.take()

    assert leader.future.done()
    assert sorted(batch.rows[heir]) == [0, 1]
    queue.complete(batch, logits_of(batch), 0.001)
    assert heir.future.result(0).logits_BK[:, 0].tolist() == [12, 11]


def test_new_requests_do_not_starve_an_old_one(scorer: Scorer):
    """Before every batch come as many new small requests as would fill it: the old one still has a turn in each."""
    queue = FairQueue(batch_s=BATCH_S)
    old = flow_of(scorer, [20] * 4000)
    queue.submit(old)
    queue.take()
    rows = 0
    for _ in range(40):
        for _ in range(4):
            queue.submit(flow_of(scorer, [20] * 5))
        rows += len(queue.take().rows.get(old, ()))

    assert 0.2 * 40 * 20 <= rows <= 0.55 * 40 * 20


def test_equal_requests_share_batches_equally(scorer: Scorer):
    """Four requests of the same size: after five batches of 20 rows each has had 25, give or take a turn."""
    queue = FairQueue(batch_s=BATCH_S)
    flows = [flow_of(scorer, [20] * 100) for _ in range(4)]
    for flow in flows:
        queue.submit(flow)
    for _ in range(5):
        queue.take()

    assert all(abs(100 - len(flow.rows) - 25) <= 5 for flow in flows)


def test_shares_follow_weights(scorer: Scorer):
    """Weights 4 and 1, both with plenty of rows: of 50 batches of 20 rows, 800 rows are the heavier one's."""
    queue = FairQueue(batch_s=BATCH_S)
    heavy, light = flow_of(scorer, [20] * 3000, weight=4), flow_of(scorer, [20] * 3000)
    queue.submit(light)
    queue.submit(heavy)

    rows = sum(len(queue.take().rows.get(heavy, ())) for _ in range(50))

    assert 760 <= rows <= 840


def test_a_low_priority_flow_gets_its_small_share_among_many(scorer: Scorer):
    """Ten flows of weight 1 and one of ¼: in 100 batches of 20 rows the light one has about 1/41 of the rows."""
    queue = FairQueue(batch_s=BATCH_S)
    light = flow_of(scorer, [20] * 3000, weight=0.25)
    queue.submit(light)
    for _ in range(10):
        queue.submit(flow_of(scorer, [20] * 3000))

    rows = sum(len(queue.take().rows.get(light, ())) for _ in range(100))

    assert 30 <= rows <= 80


def test_rows_that_nothing_else_fits_give_no_larger_share(scorer: Scorer):
    """One flow of long rows among nine of short ones has batches of its own, but a tenth of the tokens, not half."""
    queue = FairQueue(batch_s=BATCH_S)
    long = flow_of(scorer, [80] * 3000)
    queue.submit(long)
    for _ in range(9):
        queue.submit(flow_of(scorer, [20] * 3000))
    batches = [queue.take() for _ in range(100)]

    mixed = [batch for batch in batches if long in batch.rows and len(batch.rows) > 1]
    tokens = sum(80 * len(batch.rows.get(long, ())) for batch in batches)

    assert mixed == []
    assert 0.07 <= tokens / sum(batch.tokens for batch in batches) <= 0.16


def test_a_batch_is_cut_short_for_a_near_deadline(scorer: Scorer):
    """10 ms are left, a whole batch would take 40: only what fits in 10 ms is taken (100 tokens of 400)."""
    queue = FairQueue(batch_s=BATCH_S)
    queue.submit(flow_of(scorer, [20] * 100, seconds=0.01))

    assert queue.take().padded_tokens <= 100


def test_rows_that_cannot_be_done_in_time_are_not_begun(scorer: Scorer):
    """The deadline has passed: no batch, and the flow is answered with the deadline's error."""
    queue = FairQueue(batch_s=BATCH_S)
    flow = flow_of(scorer, [20] * 5, seconds=0)
    queue.submit(flow)

    assert queue.take() is None
    with pytest.raises(DeadlineError, match="5 items"):
        flow.future.result(0)


def test_what_was_scored_before_the_deadline_is_kept(scorer: Scorer):
    """Expired after its first batch: those rows have logits, the others the reason deadline."""
    queue = FairQueue(batch_s=BATCH_S)
    flow = flow_of(scorer, [20] * 50)
    queue.submit(flow)
    batch = queue.take()
    queue.complete(batch, logits_of(batch), 0.001)

    queue.expire(flow)

    reasons = flow.future.result(0).reason_B.tolist()
    assert [reasons.count(0), reasons.count(1 + REASONS.index("deadline"))] == [20, 30]


def test_a_failed_batch_loses_its_rows_only(scorer: Scorer):
    """One of three batches fails: 20 rows have the reason error, the other 30 their logits."""
    queue = FairQueue(batch_s=BATCH_S)
    flow = flow_of(scorer, [20] * 50)
    queue.submit(flow)
    queue.fail(queue.take(), EngineError("on purpose"))

    run_all(queue)

    reasons = flow.future.result(0).reason_B.tolist()
    assert [reasons.count(0), reasons.count(1 + REASONS.index("error"))] == [30, 20]


def test_what_little_waits_is_spread_over_the_engines(scorer: Scorer):
    """Two engines, 20 rows of 20 tokens, a budget of 20 rows: half, then half of the rest, down to an eighth."""
    queue = FairQueue(batch_s=BATCH_S, engines=2)
    queue.submit(flow_of(scorer, [20] * 20))

    assert [batch.n_rows for batch in run_all(queue)] == [10, 5, 2, 2, 1]


def test_where_much_waits_batches_are_whole(scorer: Scorer):
    """Two engines, 200 rows: the first batches have all the 20 rows that their time allows."""
    queue = FairQueue(batch_s=BATCH_S, engines=2)
    queue.submit(flow_of(scorer, [20] * 200))

    assert [queue.take().n_rows for _ in range(5)] == [20] * 5


def test_flows_of_different_models_never_share_a_batch(scorer: Scorer, model: Model):
    """After a reload old and new flows wait side by side: each batch has rows of one scorer only."""
    other = model.with_policy_of(model.bundle).scorer
    queue = FairQueue(batch_s=BATCH_S)
    for chosen in (scorer, other, scorer, other):
        queue.submit(flow_of(chosen, [20] * 5))

    batches = run_all(queue)

    assert all(len({flow.scorer for flow, _ in batch.parts}) == 1 for batch in batches)
    assert sum(batch.n_rows for batch in batches) == 20


def test_abort_answers_everyone_and_refuses_the_next(scorer: Scorer):
    """Waiting, running and coming flows all get the error."""
    queue = FairQueue(batch_s=BATCH_S)
    flows = [flow_of(scorer, [20] * 30), flow_of(scorer, [20] * 30)]
    for flow in flows:
        queue.submit(flow)
    batch = queue.take()

    queue.abort(EngineError("lost"))
    queue.complete(batch, logits_of(batch), 0.001)

    assert [str(flow.future.exception(0)) for flow in flows] == ["lost", "lost"]
    with pytest.raises(EngineError, match="lost"):
        queue.submit(flow_of(scorer, [20]))

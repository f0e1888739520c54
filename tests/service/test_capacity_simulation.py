"""The simulated replica: queueing theory where it has closed forms, and the service's own queue and admission."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relevance.errors import OverloadError
from relevance.pairs import Item
from service.admission import Admission, Ticket
from service.capacity_replica import Call, Replica, ReplicaSpec
from service.capacity_simulation import OUTCOMES, Answered, Demand, simulate
from service.flow import Flow
from service.model import load_model
from service.queueing import FairQueue
from service.settings import Settings

ROWS = ReplicaSpec(tokens_per_s=1000, batch_s=1e-6)
"""A batch of a microsecond holds the one row that it must hold."""


def demand_of(at, rows, length, *, deadline_s=1e6) -> Demand:
    """Give calls of so many rows of so many tokens each, of which none is cached."""
    rows, lengths = (np.broadcast_to(value, len(at)).astype(int).tolist() for value in (rows, length))
    return Demand(np.asarray(at), np.asarray(rows), [[n] * k for k, n in zip(rows, lengths, strict=True)], deadline_s)


def poisson(rate: float, n: int, *, seed: int = 1):
    """Give n arrivals of a Poisson stream."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, n))


def shares(answered: Answered) -> dict[str, float]:
    """Give the share of each outcome."""
    return {name: float((answered.outcome_R == code).mean()) for code, name in enumerate(OUTCOMES)}


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_calls_of_one_pair_wait_as_pollaczek_and_khinchine_say(load):
    """M/D/1: service D = 100 tokens / 1000 a second, mean wait ρ D / 2 (1 − ρ)."""
    service_s = 0.1
    answered = simulate(demand_of(poisson(load / service_s, 15_000), 1, 100), ROWS, replicas=1)

    wait_s = answered.latency_s_R.mean() - service_s

    assert wait_s == pytest.approx(load * service_s / (2 * (1 - load)), rel=0.08)


@pytest.mark.parametrize(("engines", "load"), [(1, 0.5), (3, 0.6)])
def test_calls_of_exponential_length_wait_as_erlang_says(engines, load):
    """M/M/c: mean wait C(c, a) / (c μ − λ) with a = λ / μ; one row a call, lengths exponential with mean 1,000."""
    n, mean = 20_000, 1000
    lengths = np.maximum(1, np.random.default_rng(2).exponential(mean, n)).astype(int)
    spec = ReplicaSpec(tokens_per_s=1e5 * engines, batch_s=1e-6, engines=engines)
    rate_of_one = 1e5 / mean
    rate = load * engines * rate_of_one
    answered = simulate(demand_of(poisson(rate, n), 1, lengths), spec, replicas=1)

    offered = rate / rate_of_one
    all_busy = offered**engines / math.factorial(engines) / (1 - load)
    erlang_c = all_busy / (sum(offered**k / math.factorial(k) for k in range(engines)) + all_busy)
    wait_s = (answered.latency_s_R - lengths / 1e5).mean()

    assert wait_s == pytest.approx(erlang_c / (engines * rate_of_one - rate), rel=0.1)


def test_calls_of_many_batches_share_the_engine_so_that_their_time_is_their_work_over_what_is_idle():
    """M/G/1 processor sharing: E[T(x)] = x / (1 − ρ) for each size x, the limit of fair turns."""
    n, load = 2500, 0.5
    rows = np.random.default_rng(3).choice([40, 200], n, p=[0.8, 0.2])
    spec = ReplicaSpec(tokens_per_s=1e4, batch_s=0.004)
    rate = load * spec.tokens_per_s / (rows.mean() * 10)
    answered = simulate(demand_of(poisson(rate, n), rows, 10), spec, replicas=1)

    for size in (40, 200):
        assert answered.latency_s_R[rows == size].mean() == pytest.approx(size * 10 / 1e4 / (1 - load), rel=0.12)


def test_a_poisson_stream_split_at_random_treats_each_replica_as_if_it_were_alone():
    """The thinning that lets a group stand for a fleet: mean latency of 1 replica at λ and of 6 at 6 λ are equal."""
    alone = simulate(demand_of(poisson(6, 6_000), 1, 100), ROWS, replicas=1)
    split = simulate(demand_of(poisson(36, 18_000), 1, 100), ROWS, replicas=6, balancer="random")

    assert split.latency_s_R.mean() == pytest.approx(alone.latency_s_R.mean(), rel=0.08)
    assert np.bincount(split.replica_R) == pytest.approx([3000] * 6, rel=0.08)


def test_the_less_a_balancer_leaves_to_chance_the_shorter_calls_wait():
    """Fewest calls under way beats taking turns, which beats chance; utilisation is the same."""
    demand = demand_of(poisson(34, 5_000), 1, 100)
    by = {kind: simulate(demand, ROWS, replicas=4, balancer=kind) for kind in ("least", "round_robin", "random")}

    means = [by[kind].latency_s_R.mean() for kind in ("least", "round_robin", "random")]
    assert means == sorted(means)
    assert {round(answered.busy_s, 6) for answered in by.values()} == {500.0}


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("load", [0.5, 1.0, 2.0, 5.0])
def test_every_call_is_answered_once_and_no_engine_works_more_than_its_time(load, prefetch):
    """Complete, partial, expired and shed add up to what was offered; only answered calls have a latency."""
    n = 2000
    rows = np.random.default_rng(4).choice([5, 50, 400], n, p=[0.6, 0.3, 0.1])
    spec = ReplicaSpec(tokens_per_s=1e4, batch_s=0.02, fixed_s=0.001, engines=2, prefetch=prefetch, call_s=0.002)
    rate = load * 2 * spec.tokens_per_s / (rows.mean() * 20)
    demand = demand_of(poisson(rate, n), rows, 20, deadline_s=2.0)
    answered = simulate(demand, spec, replicas=2)

    shed = answered.outcome_R == OUTCOMES.index("shed")
    assert sum(shares(answered).values()) == pytest.approx(1)
    assert (np.isnan(answered.latency_s_R) == shed).all()
    assert (answered.scored_R[answered.outcome_R == 0] == rows[answered.outcome_R == 0]).all()
    assert (answered.scored_R[~np.isin(answered.outcome_R, [0, 1])] == 0).all()
    assert np.nanmax(answered.latency_s_R) <= 2.0
    assert answered.busy_s <= 2 * 2 * (answered.span_s + 2.1)
    assert (shares(answered)["complete"] > 0.96) == (load == 0.5)


def test_more_load_is_shed_more_and_more_replicas_shed_less():
    """The share of complete calls falls with the rate and rises with the replicas."""
    rows = np.random.default_rng(5).choice([10, 100], 1000)
    unit = poisson(1, 1000)

    def complete(rate: float, replicas: int) -> float:
        """Give the share of complete calls."""
        demand = demand_of(unit / rate, rows, 20, deadline_s=1.0)
        return shares(simulate(demand, ReplicaSpec(tokens_per_s=2e4, batch_s=0.02), replicas=replicas))["complete"]

    by_rate = [complete(rate, 2) for rate in (20, 40, 80, 160)]
    by_replicas = [complete(80, replicas) for replicas in (1, 2, 4, 8)]
    assert by_rate == sorted(by_rate, reverse=True)
    assert by_replicas == sorted(by_replicas)
    assert by_rate[0] > 0.99 > 0.6 > by_rate[-1]


def test_cached_pairs_take_no_engine_time():
    """A call that is wholly cached is answered after what it costs outside the engines: 3 ms + 10 × 0.1 ms."""
    demand = Demand(np.arange(5.0), np.full(5, 10), [[]] * 5, 1.0)
    answered = simulate(demand, ReplicaSpec(1000, call_s=0.003, pair_s=1e-4), replicas=1)

    assert answered.latency_s_R == pytest.approx([0.004] * 5)
    assert (answered.busy_s, answered.scored_R.tolist()) == (0.0, [10] * 5)


@given(calls=st.lists(st.tuples(st.integers(1, 400), st.floats(0.05, 5.0), st.floats(0, 1)), min_size=1, max_size=12))
def test_admission_decides_as_the_services_own(calls):
    """The same tokens, deadlines and progress, one call after the other: the same ones are refused."""
    spec = ReplicaSpec(tokens_per_s=5000)
    replica = Replica(spec, pair_tokens=10)
    real = Admission(lambda: replica.speed.tokens_per_s, max_requests=1024)
    admitted: list[tuple[Call, Ticket]] = []
    start = time.monotonic() + 1000
    for number, (rows, slack_s, progress) in enumerate(calls):
        call = Call(number, [10] * rows, deadline=slack_s)
        taken = replica.admit(call, 0.0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.admission.monotonic", lambda: start)
            try:
                ticket = real.admit(float(rows * 10), weight=1.0, deadline=start + slack_s)
            except OverloadError:
                assert not taken
                continue
        assert taken
        assert ticket.left == pytest.approx(call.left, rel=1e-6)
        for other in (call, ticket):
            other.left *= progress
        admitted.append((call, ticket))
    assert len(admitted) == real.n_requests == len(replica.admitted)


@pytest.fixture(scope="module")
def model(tiny_bundle):
    """The tiny bundle's model, whose pairs the service's queue cuts into batches."""
    return load_model(Settings(bundle=tiny_bundle, threads=1))


@pytest.mark.parametrize(("engines", "batch_s"), [(1, 0.04), (2, 0.04), (2, 0.004)])
def test_batches_are_cut_as_the_services_own_queue_cuts_them(model, engines, batch_s):
    """300 random steps of calls that come and batches that are taken, texts of many lengths: the same rows."""
    rng = np.random.default_rng(6)
    queue = FairQueue(batch_s=batch_s, engines=engines)
    replica = Replica(ReplicaSpec(30_000, batch_s=batch_s, engines=engines), pair_tokens=20)
    numbers: dict[Flow, int] = {}
    n_batches = 0
    for number in range(300):
        if rng.random() < 0.25:
            words = rng.geometric(0.15, int(rng.choice([1, 3, 20, 150, 400])))
            prepared = model.scorer.prepare("steel kettle", [Item("matte " * int(n)) for n in words])
            flow = Flow(model.scorer, replica.speed, prepared, ticket=Ticket(1.0, 1.0, time.monotonic() + 1e6))
            numbers[flow] = number
            queue.submit(flow)
            replica.submit(Call(number, sorted(prepared.length_B.tolist()), deadline=1e6))
            continue
        real, simulated = queue.take(), replica.take(0.0, [])
        assert (real is None) == (simulated is None)
        if real is not None and simulated is not None:
            expected = {
                numbers[flow]: (len(rows), int(flow.prepared.length_B[rows].sum())) for flow, rows in real.rows.items()
            }
            assert {call.number: found for call, found in simulated.rows.items()} == expected
            assert (simulated.length, simulated.tokens) == (real.length, real.tokens)
            n_batches += 1
    assert n_batches > 100

"""The shadow: what it finds, what it costs, and that nothing of it reaches the primary."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from threading import Event

import numpy as np
import pytest

from relevance.metrics.agreement import quadratic_weighted_kappa, spearman
from relevance.metrics.classification import confusion_matrix
from relevance.pairs import Item
from service.model import Model
from service.scorer import Scored, Scorer
from service.shadow import MAX_WAITING_PAIRS, Shadow
from service.telemetry import Telemetry

TIMEOUT_S = 30
QUERIES = ("red running shoes", "steel water bottle", "wireless desk lamp", "large coffee maker", "kids phone case")


class _HalfNegated:
    """A session that gives about half of the pairs logits of the wrong sign: those whose token ids have an odd sum."""

    def __init__(self, session) -> None:
        self.session = session

    def run(self, batch):
        """Give the logits of the bundle's own session, some negated; padding has id 0 and changes nothing."""
        odd_B = batch.input_ids_BL.sum(axis=1) % 2 == 1
        return np.where(odd_B[:, None], -1, 1).astype(np.float32) * self.session.run(batch)


class _Flat:
    """A session that gives every pair the same logits."""

    def run(self, batch):
        """Give one row of logits to all."""
        return np.tile(np.array([3, 1, 1, 0], dtype=np.float32), (len(batch.input_ids_BL), 1))


class _Broken:
    """A session that fails on its first runs, then works."""

    def __init__(self, session, failures: int) -> None:
        self.session, self.failures = session, failures

    def run(self, batch):
        """Raise while there are failures left."""
        self.failures -= 1
        if self.failures >= 0:
            raise RuntimeError("device lost")
        return self.session.run(batch)


class _Sleepy:
    """A session that takes its time, and keeps a record of when it began and how long it took."""

    def __init__(self, session, seconds: float) -> None:
        self.session, self.seconds, self.runs = session, seconds, []

    def run(self, batch):
        """Sleep, then run."""
        began = time.perf_counter()
        time.sleep(self.seconds)
        logits = self.session.run(batch)
        self.runs.append((began, time.perf_counter() - began, len(logits)))
        return logits


class _Hanging:
    """A session that hangs until it is let go."""

    def __init__(self, session) -> None:
        self.session, self.entered, self.let_go = session, Event(), Event()

    def run(self, batch):
        """Wait, then run."""
        self.entered.set()
        self.let_go.wait(TIMEOUT_S)
        return self.session.run(batch)


class _NotANumber:
    """A session whose first pair of each batch is NaN."""

    def __init__(self, session) -> None:
        self.session = session

    def run(self, batch):
        """Give the logits with a NaN in them."""
        logits = self.session.run(batch).copy()
        logits[0] = np.nan
        return logits


def items_of(n: int) -> list[Item]:
    """Give n items of mixed kinds."""
    kinds = (
        "red running shoes",
        "steel bottle 2 pack",
        "desk lamp",
        "coffee maker with warranty",
        "phone case",
        "socks",
    )
    return [Item(f"{kinds[i % len(kinds)]} {i}") for i in range(n)]


def with_session(model: Model, session) -> Model:
    """Give a model of the same bundle over another session."""
    return dataclasses.replace(model, scorer=Scorer(model.bundle, session, token_budget=2048))


def wait_until_done(shadow: Shadow) -> None:
    """Wait until no sampled pair waits."""
    give_up = time.monotonic() + TIMEOUT_S
    while shadow.waiting_pairs and time.monotonic() < give_up:
        time.sleep(0.002)
    assert shadow.waiting_pairs == 0


def sample(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    """Give the value of one series as scraped."""
    return telemetry.registry.get_sample_value(f"relevance_shadow_{name}", labels)


@pytest.fixture
def start(model: Model):
    """Start a shadow of the tiny bundle, over another session if one is given; closed at the end."""
    shadows = []

    def begin(session=None, *, telemetry: Telemetry | None = None, budget: float = 1.0, primary_s: float = 1e-5):
        chosen = model if session is None else with_session(model, session)
        shadows.append(
            Shadow(
                chosen,
                telemetry or Telemetry(),
                rate=1.0,
                budget=budget,
                primary_seconds_per_token=lambda: primary_s,
            )
        )
        return shadows[-1]

    yield begin
    for shadow in shadows:
        shadow.close()


def offer_all(shadow: Shadow, model: Model, n_items: int = 40, locale: str | None = "us") -> list[Scored]:
    """Offer each query's scored items; gives what the primary said."""
    answers = []
    for query in QUERIES:
        items = items_of(n_items)
        answers.append(model.scorer.score(query, items, locale=locale))
        shadow.offer(query, items, locale=locale, scored=answers[-1])
    return answers


def test_a_shadow_equal_to_the_primary_never_flips(model: Model, start):
    """200 pairs of five requests: no flip, kappa and rank correlation 1, every pair counted as scored."""
    telemetry = Telemetry()
    shadow = start(telemetry=telemetry)
    offer_all(shadow, model)
    wait_until_done(shadow)

    assert sample(telemetry, "pairs_total", outcome="scored") == 200
    assert sample(telemetry, "tier_flips_total") == 0
    assert sample(telemetry, "tier_kappa") == 1
    assert sample(telemetry, "rank_correlation") == pytest.approx(1)
    window = shadow.report()["window"]
    assert (window["requests"], window["pairs"], window["keep_agreement"]) == (5, 200, 1.0)
    assert window["flip_rate"]["value"] == 0
    assert 0 < window["flip_rate"]["high"] < 0.05


def test_a_bad_bundle_is_found_within_a_few_requests(model: Model, start):
    """Half of the logits negated: flips, kappa, rank correlation and who filters what are those that numpy counts.

    Five requests are enough for the interval of the flip rate to exclude 10 %.
    """
    telemetry = Telemetry()
    bad = _HalfNegated(model.session)
    shadow = start(bad, telemetry=telemetry)
    primary = offer_all(shadow, model)
    wait_until_done(shadow)

    other = [with_session(model, bad).scorer.score(q, items_of(40), locale="us") for q in QUERIES]
    tier, wrong = (np.concatenate([s.tier_B for s in side]) for side in (primary, other))
    kept, kept_wrong = (np.concatenate([s.kept_B for s in side]) for side in (primary, other))
    window = shadow.report()["window"]
    assert window["flip_rate"]["value"] == pytest.approx((tier != wrong).mean())
    assert window["flip_rate"]["low"] > 0.1
    assert sample(telemetry, "tier_flips_total") == (tier != wrong).sum() > 0
    assert sample(telemetry, "tier_kappa") == pytest.approx(quadratic_weighted_kappa(confusion_matrix(tier, wrong, 5)))
    assert sample(telemetry, "tier_kappa") < 0.2
    expected = np.mean([spearman(a.score_B, b.score_B) for a, b in zip(primary, other, strict=True)])
    assert sample(telemetry, "rank_correlation") == pytest.approx(expected, abs=0.01)
    assert (kept & ~kept_wrong).sum() == window["filtered_by_shadow_only"]
    assert (~kept & kept_wrong).sum() == window["filtered_by_primary_only"]
    assert window["keep_agreement"] == pytest.approx((kept == kept_wrong).mean())


def test_a_bundle_that_says_the_same_of_everything_has_no_rank_correlation_left(model: Model, start):
    """Its scores are constant: counted as 0, not left out as undefined."""
    shadow = start(_Flat())
    offer_all(shadow, model)
    wait_until_done(shadow)

    assert shadow.report()["window"]["rank_correlation"] == 0


def test_flips_are_told_by_locale(model: Model, start):
    """Requests of us and of an unknown locale: one figure each, under the policy's names."""
    shadow = start(_HalfNegated(model.session))
    offer_all(shadow, model, locale="us")
    offer_all(shadow, model, locale="fr")
    wait_until_done(shadow)

    by_locale = shadow.report()["window"]["flip_rate_by_locale"]
    assert {"us", "pooled"} == set(by_locale)
    assert all(0 < rate["low"] < rate["value"] < rate["high"] <= 1 for rate in by_locale.values())


def test_the_callers_own_filter_tier_holds_for_both(model: Model, start):
    """With `min_tier` 4 the shadow filters by it too, so that nothing is filtered by one only."""
    shadow = start()
    scored = model.scorer.score(QUERIES[0], items_of(40), locale="us", min_tier=4)
    shadow.offer(QUERIES[0], items_of(40), locale="us", scored=scored, min_tier=4)
    wait_until_done(shadow)

    assert not scored.kept_B.all()
    assert shadow.report()["window"]["keep_agreement"] == 1


def test_only_pairs_scored_by_both_are_compared(model: Model, start):
    """The primary left 10 of 40 unscored, the shadow gives NaN to one of the first chunk: 29 compared, 1 failed."""
    telemetry = Telemetry()
    shadow = start(_NotANumber(model.session), telemetry=telemetry)
    scored = model.scorer.score(QUERIES[0], items_of(40), locale="us")
    reason_B = scored.reason_B.copy()
    reason_B[:10] = 1
    shadow.offer(QUERIES[0], items_of(40), locale="us", scored=dataclasses.replace(scored, reason_B=reason_B))
    wait_until_done(shadow)

    assert 29 == shadow.report()["window"]["pairs"] == sample(telemetry, "pairs_total", outcome="scored")
    assert sample(telemetry, "pairs_total", outcome="failed") == 1
    assert sample(telemetry, "tier_flips_total") == 0


def test_a_session_that_raises_is_counted_and_logged_once_and_the_thread_lives_on(
    model: Model, start, caplog: pytest.LogCaptureFixture
):
    """Three failures, one log record; the two requests after them are compared."""
    telemetry = Telemetry()
    shadow = start(_Broken(model.session, 3), telemetry=telemetry)
    with caplog.at_level(logging.ERROR, logger="relevance.service"):
        offer_all(shadow, model, n_items=20)
        wait_until_done(shadow)

    assert sample(telemetry, "pairs_total", outcome="failed") == 60
    assert sample(telemetry, "pairs_total", outcome="scored") == 40
    assert shadow.report()["failures"] == {"RuntimeError": 3}
    assert len([r for r in caplog.records if "shadow failure" in r.message]) == 1
    assert not any(word in caplog.text for word in ("shoes", "bottle"))


def test_offers_do_not_wait_while_the_session_hangs_and_what_has_no_room_is_dropped(model: Model, start):
    """Behind a hanging session 4,096 pairs and one request more are held; the rest is dropped, each pair counted."""
    telemetry = Telemetry()
    hanging = _Hanging(model.session)
    shadow = start(hanging, telemetry=telemetry)
    items = items_of(1000)
    scored = model.scorer.score(QUERIES[0], items, locale="us")
    shadow.offer(QUERIES[0], items, locale="us", scored=scored)
    assert hanging.entered.wait(TIMEOUT_S)

    for _ in range(9):
        shadow.offer(QUERIES[0], items, locale="us", scored=scored)

    assert 5000 == shadow.waiting_pairs < MAX_WAITING_PAIRS + 1000
    assert sample(telemetry, "pairs_total", outcome="dropped") == 5000
    assert shadow.report()["sampled_pairs"] == {"scored": 0, "dropped": 5000, "failed": 0}
    hanging.let_go.set()


def test_closing_does_not_wait_for_a_session_that_hangs(model: Model, start, caplog: pytest.LogCaptureFixture):
    """`close` comes back with a warning; later offers are dropped, and the thread ends when it is let go."""
    telemetry = Telemetry()
    hanging = _Hanging(model.session)
    shadow = start(hanging, telemetry=telemetry)
    scored = model.scorer.score(QUERIES[0], items_of(5))
    shadow.offer(QUERIES[0], items_of(5), locale=None, scored=scored)
    assert hanging.entered.wait(TIMEOUT_S)
    with caplog.at_level(logging.WARNING, logger="relevance.service"):
        shadow.close()
    shadow.offer(QUERIES[0], items_of(5), locale=None, scored=scored)

    assert "left alone" in caplog.text
    assert sample(telemetry, "pairs_total", outcome="dropped") == 5
    hanging.let_go.set()


def test_the_shadow_works_for_no_more_than_its_share_of_the_time(model: Model, start):
    """Budget 0.25, chunks of 10 ms: at the start of each chunk, the work before it is at most a quarter of the time.

    Rests are only ever longer than asked for, so this holds on a slow machine too. Items of one length make one batch
    of each chunk, and none has more than 32 pairs.
    """
    sleepy = _Sleepy(model.session, 0.01)
    shadow = start(sleepy, budget=0.25)
    for n_items in (1, 70, 7, 40):
        items = [Item("steel bottle")] * n_items
        shadow.offer(QUERIES[0], items, locale=None, scored=model.scorer.score(QUERIES[0], items))
    wait_until_done(shadow)

    began, took, pairs = (np.array(column) for column in zip(*sleepy.runs, strict=True))
    assert pairs.tolist() == [1, 32, 32, 6, 7, 32, 8]
    worked_before, elapsed = np.cumsum(took)[:-1], began[1:] - began[0]
    assert (worked_before <= 0.25 * elapsed + 1e-3).all()


def test_closing_interrupts_a_rest_and_takes_the_figures_away(model: Model, start, caplog: pytest.LogCaptureFixture):
    """A budget of 1e-6 would rest for hours after a chunk; the thread ends without a warning, the gauges are nan."""
    telemetry = Telemetry()
    shadow = start(telemetry=telemetry, budget=1e-6)
    scored = model.scorer.score(QUERIES[0], items_of(5))
    shadow.offer(QUERIES[0], items_of(5), locale=None, scored=scored)
    wait_until_done(shadow)
    assert sample(telemetry, "tier_flips_total") == 0 < shadow.report()["busy_share"]
    with caplog.at_level(logging.WARNING, logger="relevance.service"):
        shadow.close()

    assert caplog.text == ""
    assert np.isnan(sample(telemetry, "latency_ratio"))


def test_a_replaced_primary_starts_the_comparison_anew(model: Model, start):
    """Two requests wait behind the first when the primary changes: they are dropped, and the window is empty."""
    telemetry = Telemetry()
    hanging = _Hanging(model.session)
    shadow = start(hanging, telemetry=telemetry)
    scored = model.scorer.score(QUERIES[0], items_of(5))
    shadow.offer(QUERIES[0], items_of(5), locale=None, scored=scored)
    assert hanging.entered.wait(TIMEOUT_S)
    for _ in range(2):
        shadow.offer(QUERIES[0], items_of(5), locale=None, scored=scored)
    shadow.forget()
    hanging.let_go.set()
    wait_until_done(shadow)

    assert shadow.report()["window"]["requests"] == 0
    assert np.isnan(sample(telemetry, "tier_kappa"))
    assert shadow.report()["sampled_pairs"] == {"scored": 5, "dropped": 10, "failed": 0}


def test_requests_are_sampled_by_the_rate(model: Model):
    """Rate 0.25 of 2,000 requests of one pair: about 500 are looked at, 3 standard deviations being 58."""
    hanging = _Hanging(model.session)
    shadow = Shadow(
        with_session(model, hanging), Telemetry(), rate=0.25, budget=1.0, primary_seconds_per_token=lambda: 0.0
    )
    scored = model.scorer.score(QUERIES[0], items_of(1))
    for _ in range(2000):
        shadow.offer(QUERIES[0], items_of(1), locale=None, scored=scored)

    assert 400 < shadow.waiting_pairs < 600
    hanging.let_go.set()
    shadow.close()


def test_a_passthrough_answer_is_no_sample(model: Model, start):
    """Not one pair was scored, so there is nothing to compare and nothing to count."""
    telemetry = Telemetry()
    shadow = start(telemetry=telemetry)
    shadow.offer(QUERIES[0], items_of(5), locale=None, scored=model.scorer.unscored(5, "overload"))

    assert shadow.waiting_pairs == 0
    assert sample(telemetry, "pairs_total", outcome="dropped") == 0


def test_before_the_first_comparison_nothing_is_pretended(model: Model, start):
    """Gauges are nan, the report has None, and is JSON; an unknown speed of the primary leaves the ratio open."""
    telemetry = Telemetry()
    shadow = start(telemetry=telemetry, primary_s=0.0)
    gauges = [sample(telemetry, name) for name in ("tier_kappa", "rank_correlation", "latency_ratio")]
    assert np.isnan(gauges).all()
    report = shadow.report()
    assert [report["window"][name] for name in ("tier_kappa", "rank_correlation", "keep_agreement")] == [None] * 3

    offer_all(shadow, model)
    wait_until_done(shadow)
    assert shadow.report()["latency_ratio"] is None
    assert json.loads(json.dumps(shadow.report(), allow_nan=False))["bundle_id"] == model.bundle.manifest.bundle_id

"""The scorer: batches, equality across batchings, guards, flags."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from relevance.calibration import expected_gain
from relevance.errors import QueryTooLongError
from relevance.pairs import Item
from service.model import Model
from service.scorer import REASONS, Scorer, plan_batches

WORDS = st.sampled_from(
    ["kettle", "steel", "リュック", "zapatos", "usb-c", "13", "red", "👟", "lamp", "organic cotton"]
)
TITLES = st.lists(WORDS, min_size=1, max_size=60).map(" ".join)


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(64, 4096))
def test_every_pair_is_planned_exactly_once_and_within_the_budget(lengths: list[int], budget: int):
    """Batches partition the positions; pairs × longest length ≤ budget unless the batch is a single pair."""
    length_B = np.asarray(lengths, dtype=np.int64)

    batches = plan_batches(length_B, budget)

    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * length_B[rows].max() <= budget


def test_one_long_outlier_does_not_pad_the_short_ones():
    """50 pairs of 10 tokens and one of 250: the outlier runs alone, 500 + 250 padded tokens instead of 51 × 250."""
    length_B = np.asarray([10] * 50 + [250], dtype=np.int64)

    batches = plan_batches(length_B, 100_000)

    assert [len(rows) for rows in batches] == [50, 1]


@hypothesis_settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(titles=st.lists(TITLES, min_size=1, max_size=12), seed=st.integers(0, 999), budget=st.integers(64, 2000))
def test_a_pair_gets_the_same_logits_alone_and_in_any_batch_order_or_padding(model: Model, titles, seed, budget):
    """Logits agree to 1e-4 between one pair a call, one request, a shuffled request, and forced padding."""
    items = [Item(title) for title in titles]
    order = np.random.default_rng(seed).permutation(len(items))
    scorer = Scorer(model.bundle, model.session, token_budget=budget)

    prepared = scorer.prepare("red kettle", items)
    together_BK = scorer.run(prepared).logits_BK
    shuffled_BK = scorer.run(scorer.prepare("red kettle", [items[i] for i in order])).logits_BK
    alone_BK = np.concatenate([scorer.run(scorer.prepare("red kettle", [item])).logits_BK for item in items])
    tokenizer = model.bundle.tokenizer
    queries = [prepared.query_ids] * len(items)
    padded = tokenizer.collate(queries, prepared.item_ids, pad_to=tokenizer.max_pair_tokens)

    assert np.abs(together_BK - alone_BK).max() <= 1e-4
    assert np.abs(shuffled_BK - together_BK[order]).max() <= 1e-4
    assert np.abs(model.session.run(padded) - alone_BK).max() <= 1e-4


def test_score_tier_label_and_kept_follow_from_the_logits(model: Model):
    """score = expected gain of the calibrated probabilities, label = most probable class, kept = tier ≥ min_tier."""
    items = [Item("steel kettle"), Item("trail shoes"), Item("desk lamp")]
    bundle, scorer = model.bundle, model.scorer

    scored = scorer.score("kettle", items, min_tier=3)

    logits_BK = scorer.run(scorer.prepare("kettle", items)).logits_BK
    probabilities_BK = bundle.calibrator.probabilities(logits_BK)
    assert np.allclose(expected_gain(probabilities_BK, bundle.scheme), scored.score_B, atol=1e-4)
    assert probabilities_BK.argmax(axis=1).tolist() == scored.label_B.tolist()
    assert (scored.tier_B >= 3).tolist() == scored.kept_B.tolist()
    assert scored.tokens <= scored.padded_tokens


class _NanSession:
    """A session that gives NaN for the first row of each batch."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes

    def run(self, batch):
        """Give ones, NaN in row 0."""
        logits_BK = np.ones((len(batch.input_ids_BL), self.n_classes), dtype=np.float32)
        logits_BK[0, 1] = np.nan
        return logits_BK


@pytest.mark.parametrize("keep_unscored", [True, False])
def test_a_row_with_nan_becomes_unscored_and_its_neighbours_do_not(model: Model, keep_unscored: bool):
    """One NaN logit leaves its row without a score, kept as configured; the other rows are finite."""
    session = _NanSession(model.bundle.scheme.n_classes)
    scorer = Scorer(model.bundle, session, token_budget=4096, keep_unscored=keep_unscored)

    scored = scorer.score("kettle", [Item("kettle"), Item("lamp"), Item("shoe")], min_tier=0)

    assert (scored.reason_B == 1 + REASONS.index("nan")).sum() == 1
    assert [keep_unscored] == scored.kept_B[scored.reason_B != 0].tolist()
    assert np.isfinite(scored.score_B).all()


def test_rows_not_reached_are_unscored_with_reason_deadline(model: Model):
    """A stop after the first batch leaves the later batches' rows with reason deadline."""
    scorer = Scorer(model.bundle, model.session, token_budget=64)
    answers = iter([False, True])
    prepared = scorer.prepare("kettle", [Item("steel kettle " * (1 + i)) for i in range(12)])

    logits = scorer.run(prepared, stop=lambda: next(answers))
    scored = scorer.finish(prepared, logits)

    n_first = len(plan_batches(prepared.length_B, 64)[0])
    assert n_first == (scored.reason_B == 0).sum()
    assert {0, 1 + REASONS.index("deadline")} == set(scored.reason_B.tolist())


def test_truncation_is_flagged_for_too_many_tokens_and_too_many_characters(model: Model):
    """A title of more tokens than fit and a title of more characters than are read are flagged, a short one is not."""
    many_blanks = "lamp" + " " * (model.bundle.template.max_chars + 1) + "shade"

    scored = model.scorer.score("lamp", [Item("desk lamp"), Item("lamp " * 500), Item(many_blanks)])

    assert scored.truncated_B.tolist() == [False, True, True]


def test_a_warm_item_cache_changes_no_logit(model: Model):
    """The second call reads its item tokens from the cache and gives the same numbers."""
    items = [Item(f"ceramic mug number {i}") for i in range(20)]

    first, second = (model.scorer.score("mug", items) for _ in range(2))

    assert first.score_B.tolist() == second.score_B.tolist()
    assert "ceramic mug number 7" in model.bundle.tokenizer.item_cache


def test_a_query_over_the_token_limit_is_refused(model: Model):
    """Queries are never cut: one with too many tokens raises, naming the limit."""
    limit = model.bundle.manifest.limits.max_query_tokens

    with pytest.raises(QueryTooLongError, match=f"at most {limit} tokens"):
        model.scorer.score("kettle " * (limit + 1), [Item("kettle")])


def test_an_uncertified_locale_filters_nothing_by_itself(model: Model):
    """With `certified` False every row is kept, whatever its tier; the caller's min_tier still filters."""
    policy = model.bundle.policy
    uncertified = policy.model_copy(update={"pooled": policy.pooled.model_copy(update={"certified": False})})
    bundle = replace(model.bundle, policy=uncertified)
    scorer = Scorer(bundle, model.session, token_budget=2048)
    items = [Item("steel kettle"), Item("running shoes")]

    assert scorer.score("kettle", items).kept_B.tolist() == [True, True]
    scored = scorer.score("kettle", items, min_tier=4)
    assert (scored.tier_B == 4).tolist() == scored.kept_B.tolist()

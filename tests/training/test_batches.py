"""Batches: every pair once an epoch, in an order that the seed alone decides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from relevance.pairs import Item
from training.student.batches import bucketed, drop_fields


@given(st.lists(st.integers(1, 90), min_size=1, max_size=400), st.integers(1, 40), st.integers(0, 5))
def test_bucketing_holds_each_pair_exactly_once(lengths, batch_size, seed):
    """No pair is lost or doubled and no batch is too large, whatever the lengths."""
    batches = bucketed(np.array(lengths), batch_size, np.random.default_rng(seed))

    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size


def test_bucketing_puts_pairs_of_like_length_together():
    """On 1,000 random lengths the padding of bucketed batches is less than half of that of unsorted ones."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 1000)

    def padding(batches):
        return sum(lengths[b].max() * len(b) - lengths[b].sum() for b in batches)

    unsorted = [np.arange(i, min(i + 32, 1000)) for i in range(0, 1000, 32)]
    assert padding(bucketed(lengths, 32, rng)) < 0.5 * padding(unsorted)


def test_field_dropout_never_hides_the_title():
    """With certain dropout only the title is left; with none the item is untouched."""
    item = Item("linen shirt", brand="Norda", color="blue", text="soft")
    rng = np.random.default_rng(0)

    assert drop_fields(item, 1.0 - 1e-12, rng) == Item("linen shirt")
    assert drop_fields(item, 0.0, rng) is item


def test_grouped_bucketing_lets_pairs_of_one_query_meet():
    """20 queries of 40 pairs each: grouped batches of 32 hold many times the same-query pairs of ungrouped ones."""
    rng = np.random.default_rng(0)
    lengths, group = rng.integers(5, 60, 800), np.repeat(np.arange(20), 40)

    def meetings(batches):
        return sum(int((np.bincount(group[b]) ** 2).sum()) - len(b) for b in batches)

    grouped = bucketed(lengths, 32, rng, group)
    assert sorted(np.concatenate(grouped).tolist()) == list(range(800))
    assert meetings(grouped) > 3 * meetings(bucketed(lengths, 32, rng))

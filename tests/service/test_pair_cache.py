"""The pair cache: keys that cannot be confused, values that come back exactly, and a bound in bytes that holds."""

from __future__ import annotations

import os
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relevance.bundle import POLICY, Limits, open_bundle
from relevance.errors import BundleError
from service.pair_cache import ENTRY_BYTES, PairCache, pack, pair_keys, scoring_identity, unpack

IDENTITY = bytes(range(32))
ENTRY = 16 + 25 + ENTRY_BYTES
"""Estimated bytes of a pair of four classes: key, value and the rest."""


def filled(n: int, *, max_bytes: int = 10**6) -> tuple[PairCache, list[bytes]]:
    """Give a cache into which n pairs of 25 bytes each were put, one after another, and their keys."""
    keys = [i.to_bytes(16) for i in range(n)]
    cache = PairCache(max_bytes)
    cache.put_many(keys, [os.urandom(25) for _ in keys])
    return cache, keys


@given(first=st.tuples(st.text(), st.text()), second=st.tuples(st.text(), st.text()))
def test_two_pairs_have_the_same_key_only_if_both_texts_are_equal(first, second):
    """Whatever the texts hold, separators and empty texts included."""
    keys = [pair_keys(IDENTITY, query, [item])[0] for query, item in (first, second)]

    assert (keys[0] == keys[1]) == (first == second)


@given(text=st.text(min_size=1), cut=st.integers(min_value=0))
def test_moving_the_border_between_query_and_item_changes_the_key(text, cut):
    """("a", "bc") is not ("ab", "c")."""
    here, there = cut % len(text), cut % len(text) + 1

    assert pair_keys(IDENTITY, text[:here], [text[here:]]) != pair_keys(IDENTITY, text[:there], [text[there:]])


@given(query=st.text(), items=st.lists(st.text()), identity=st.binary(min_size=32, max_size=32))
def test_another_identity_changes_every_key(query, items, identity):
    """So that no bundle reads what another one computed."""
    same = identity == IDENTITY

    assert all(
        (a == b) == same for a, b in zip(*(pair_keys(i, query, items) for i in (IDENTITY, identity)), strict=True)
    )


def test_the_keys_of_many_items_are_the_keys_of_each():
    """In the order given, 16 bytes each."""
    items = ["trail running shoes", "desk lamp", "", "スニーカー"]
    keys = pair_keys(IDENTITY, "running shoes", items)

    assert keys == [pair_keys(IDENTITY, "running shoes", [item])[0] for item in items]
    assert {len(key) for key in keys} == {16}


def test_another_policy_keeps_the_identity(tiny_bundle, tmp_path):
    """A cut-point change flushes nothing."""
    policy = tmp_path / "policy.toml"
    text = (tiny_bundle / POLICY).read_text(encoding="utf-8")
    policy.write_text(text.replace("0.45, 0.65", "0.5, 0.7"), encoding="utf-8")
    plain, changed = open_bundle(tiny_bundle), open_bundle(tiny_bundle, policy)

    assert plain.policy != changed.policy
    assert scoring_identity(plain, "fp32") == scoring_identity(changed, "fp32")


@pytest.mark.parametrize("name", ["model.fp32.onnx", "template.json", "tokenizer.json"])
def test_another_graph_template_or_tokenizer_changes_the_identity(tiny_bundle, name):
    """Each of the three decides logits."""
    bundle = open_bundle(tiny_bundle)
    entry = bundle.manifest.files[name].model_copy(update={"sha256": "0" * 64})
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, name: entry}})

    assert scoring_identity(bundle, "fp32") != scoring_identity(replace(bundle, manifest=manifest), "fp32")


def test_another_precision_or_token_limit_changes_the_identity(tiny_bundle):
    """The same texts give other logits, or are cut elsewhere."""
    bundle = open_bundle(tiny_bundle)
    limits = Limits(max_query_tokens=32, max_pair_tokens=95)
    shorter = replace(bundle, manifest=bundle.manifest.model_copy(update={"limits": limits}))
    identities = [
        scoring_identity(bundle, "fp32"),
        scoring_identity(bundle, "int8w"),
        scoring_identity(shorter, "fp32"),
    ]

    assert len(set(identities)) == 3


def test_a_precision_the_bundle_has_not_is_refused(tiny_bundle):
    """An identity without a graph would name nothing."""
    with pytest.raises(BundleError, match="fp16"):
        scoring_identity(open_bundle(tiny_bundle), "fp16")


@pytest.mark.parametrize("n_classes", [3, 4, 6])
def test_values_come_back_exactly(rng, n_classes):
    """Logits bit for bit, lengths and truncation flags; pairs that were not there are NaN and 0."""
    logits_BK = rng.standard_normal((5, n_classes)).astype(np.float32)
    length_B, truncated_B = np.array([7, 96, 12, 512, 9]), np.array([False, True, False, True, False])
    values = pack(logits_BK, length_B, truncated_B)
    found = unpack([*values[:2], None, *values[3:]], n_classes)

    np.testing.assert_array_equal(found.found_B, [True, True, False, True, True])
    np.testing.assert_array_equal(found.logits_BK[found.found_B], logits_BK[[0, 1, 3, 4]])
    np.testing.assert_array_equal(found.length_B, [7, 96, 0, 512, 9])
    np.testing.assert_array_equal(found.truncated_B, [False, True, False, True, False])
    assert np.isnan(found.logits_BK[2]).all()
    assert found.n_garbage == 0


def test_no_values_unpack_to_nothing():
    """A request whose pairs are all unknown, and one of no pairs."""
    assert unpack([None, None], 4).found_B.tolist() == [False, False]
    assert unpack([], 4).logits_BK.shape == (0, 4)
    assert pack(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)) == []


def test_logits_that_are_not_finite_are_never_held():
    """NaN and infinity give no value, and a cache passes over it."""
    logits_BK = np.array([[1, 2], [np.nan, 2], [1, np.inf], [3, 4]], dtype=np.float32)
    values = pack(logits_BK, np.full(4, 9), np.zeros(4, bool))
    cache = PairCache(10**6)
    cache.put_many([b"a", b"b", b"c", b"d"], values)

    assert [value is None for value in values] == [False, True, True, False]
    assert [value is None for value in cache.get_many([b"a", b"b", b"c", b"d"])] == [False, True, True, False]


@given(position=st.integers(0, 24), flip=st.integers(1, 255))
def test_one_damaged_byte_makes_a_value_garbage(position, flip):
    """Wherever it is; the values beside it are still found."""
    values = pack(np.ones((2, 4), np.float32), np.full(2, 9), np.zeros(2, bool))
    damaged = bytearray(values[0] or b"")
    damaged[position] ^= flip
    found = unpack([bytes(damaged), values[1]], 4)

    assert found.found_B.tolist() == [False, True]
    assert found.n_garbage == 1


@given(value=st.binary(max_size=60))
def test_other_bytes_are_garbage(value):
    """Of any size, the right one and none at all included."""
    found = unpack([value, None], 4)

    assert not found.found_B.any()
    assert found.n_garbage == 1


def test_a_value_of_another_number_of_classes_is_garbage():
    """Its size tells."""
    values = pack(np.ones((1, 6), np.float32), np.full(1, 9), np.zeros(1, bool))

    assert unpack(values, 4).n_garbage == 1


def test_the_least_recently_used_pair_goes_first():
    """Three pairs fit, the first is read before a fourth comes: the second is gone."""
    cache, keys = filled(3, max_bytes=3 * ENTRY)
    cache.get_many(keys[:1])
    cache.put_many([b"x" * 16], [bytes(25)])

    assert [value is None for value in cache.get_many(keys)] == [False, True, False]


def test_a_pair_put_again_counts_once_and_is_the_most_recent():
    """Its old bytes are taken off; the other of two pairs goes first."""
    cache, keys = filled(2, max_bytes=2 * ENTRY)
    cache.put_many(keys[:1], [bytes(25)])
    cache.put_many([b"x" * 16], [bytes(25)])

    assert cache.get_many(keys) == [bytes(25), None]
    assert cache.n_bytes == 2 * ENTRY


def test_the_estimate_never_exceeds_the_bound():
    """1,000 pairs into room for 100; a pair larger than everything is not held at all."""
    cache, keys = filled(1000, max_bytes=100 * ENTRY)

    assert (len(cache), cache.n_bytes) == (100, 100 * ENTRY)
    assert cache.get_many(keys[899:901])[0] is None
    cache.put_many([b"x" * 16], [bytes(200 * ENTRY)])
    assert (len(cache), cache.n_bytes) == (0, 0)


def test_clearing_lets_go_of_everything():
    """Entries and bytes."""
    cache, keys = filled(10)
    cache.clear()

    assert (len(cache), cache.n_bytes) == (0, 0)
    assert cache.get_many(keys) == [None] * 10


@pytest.mark.parametrize("max_bytes", [3_000_000, 4_000_000, 5_000_000, 6_000_000])
def test_the_estimate_is_within_a_quarter_of_the_real_bytes(max_bytes):
    """Once full and replacing entries: a map's table grows by doubling, hence several sizes."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    cache = PairCache(max_bytes)
    for _ in range(0, 3 * max_bytes // ENTRY, 1000):
        cache.put_many([os.urandom(16) for _ in range(1000)], [os.urandom(25) for _ in range(1000)])
    real = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert 0.75 * real < cache.n_bytes < 1.25 * real
    assert cache.n_bytes > 0.99 * max_bytes


def test_threads_that_share_a_cache_leave_its_count_right():
    """Four threads put and get overlapping pairs into a small cache."""
    cache = PairCache(200 * ENTRY)
    keys = [i.to_bytes(16) for i in range(400)]

    def work(start: int) -> None:
        for round_ in range(50):
            chosen = [keys[(start + round_ * 7 + i) % 400] for i in range(60)]
            cache.put_many(chosen, [key + bytes(9) for key in chosen])
            for key, value in zip(chosen, cache.get_many(chosen), strict=True):
                assert value is None or value == key + bytes(9)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(0, 400, 100)))

    assert len(cache) == 200
    assert cache.n_bytes == 200 * ENTRY

"""The feature-based teacher: what it reads, which pairs it annotates, and that it never sees a pair's own label."""

import math
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sentence_transformers import SentenceTransformer

from relevance.errors import InputError
from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query
from training.recipe import load_recipe
from training.runs import Run
from training.soft_labels import SoftLabels, read_soft_labels, write_soft_labels
from training.teacher.annotate import CrossFittedTeacher, _queries, sample_pairs
from training.teacher.features import FEATURES, OF_TITLE, TAUGHT, PairFeatures, TokenEncoder
from training.words import same_words_key

TITLES = ("copper kettle", "copper kettle lid", "steel kettle 2 l", "garden hose", "paper lantern", "wool blanket")


@pytest.fixture(scope="module")
def encoder(minilm_path):
    """A small real sentence encoder."""
    return TokenEncoder(SentenceTransformer(str(minilm_path)))


@pytest.fixture(scope="module")
def features(encoder):
    """Features over a handful of titles."""
    return PairFeatures(encoder, TITLES)


def test_features_see_words_brand_numbers_and_meaning(features):
    """The right kettle beats the hose in cosine and coverage; brand and number matches are told; gaps are nan."""
    query = Query("norda copper kettle 2 l")
    right = Item("copper kettle 2 l", brand="Norda", attributes={"bullets": "boils fast"})
    hose = Item("garden hose")
    rows = features.of([Pair(query, right), Pair(query, hose)])
    column = {name: rows[:, i].tolist() for i, name in enumerate(FEATURES)}

    assert column["cosine"][0] > column["cosine"][1]
    assert column["coverage"] == [pytest.approx(4 / 5), 0.0]
    assert column["brand"][0] == 1.0
    assert math.isnan(column["brand"][1])
    assert column["numbers"] == [1.0, 0.0]
    assert not math.isnan(column["bullets_cosine"][0])
    assert math.isnan(column["bullets_cosine"][1])


def test_the_features_of_a_title_see_no_hidden_field(features):
    """Whatever stands in brand, colour, bullets, description and category; the others do see it."""
    hidden = {"bullets": "copper 2 l", "description": "norda copper kettle 2 l", "category": "kettle"}
    query, bare = Query("norda copper kettle 2 l"), Item("steel kettle 1 l")
    full = Item("steel kettle 1 l", brand="Norda", color="copper", attributes=hidden)
    rows = features.of([Pair(query, bare), Pair(query, full)])
    same = (rows[0] == rows[1]) | np.isnan(rows).all(axis=0)

    assert {name for name, alike in zip(FEATURES, same, strict=True) if alike} == set(OF_TITLE)


def test_negations_are_noticed(features):
    """Queries of the kind "kettle without lid" are marked."""
    rows = features.of(
        [Pair(Query("kettle without lid"), Item("copper kettle")), Pair(Query("kettle"), Item("kettle"))]
    )

    assert rows[:, FEATURES.index("negated")].tolist() == [1.0, 0.0]


def test_sampled_pairs_come_from_the_asked_ranks_and_are_distinct(encoder):
    """The first rank is the nearest title, the last range holds the farther ones."""
    items = [Item(title, id=i) for i, title in enumerate(TITLES)]
    drawn = sample_pairs(encoder, items, [([Query("copper kettle", "q")], ((0, 1, 1), (3, 10**9, 2)))], seed=0)
    titles = {first: [p.item.title for p, r in drawn if r == first] for first in (0, 3)}

    assert titles[0] == ["copper kettle"]
    assert len(set(titles[3])) == 2
    assert not {"copper kettle", "copper kettle lid", "steel kettle 2 l"} & set(titles[3])


def test_texts_of_one_length_are_encoded_in_an_order_of_their_own():
    """Batches, and so the padding that sixteen-bit arithmetic feels, do not follow the order of a set."""
    seen = []

    class Model:
        """Remembers the first batch."""

        def preprocess(self, texts):
            """Stop before anything is encoded."""
            seen.extend(texts)
            raise InterruptedError

    texts = {f"{n:03}" for n in range(90)} | {"a", "zz"}
    with suppress(InterruptedError):
        TokenEncoder(Model()).encode(texts)

    assert seen == ["a", "zz", *(f"{n:03}" for n in range(90))]


def test_further_queries_are_of_no_other_split_in_any_order_of_their_words(tmp_path, tiny_pairs):
    """`shoes red` is the held-out `red shoes`; a training query is not taken twice, one of the test part never."""
    texts = {"1": "shoes red", "2": "Red Shoes", "3": "tall oak vase", "4": "glass jar", "5": "kept by test"}
    splits = {"5": "test"}
    rows = [
        {"query_id": n, "query": text, "query_locale": "us", "split": splits.get(n, "train")}
        for n, text in texts.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "esci_label_ids.parquet")
    overrides = [f"annotate.queries={tmp_path}", "data.cal_fraction=1e-6"]
    run = Run(load_recipe("tiny", overrides), tmp_path)
    known = [LabelledPair(Pair(Query("vase oak tall", "t", "us"), Item("vase", "v")), "E")]
    own, extra = _queries(run, known, {same_words_key("red shoes")})

    assert [query.text for query in own] == ["vase oak tall"]
    assert [query.text for query in extra] == ["glass jar"]


@pytest.mark.parametrize("labels", ["EEEE", "EESS"])
def test_a_teacher_needs_two_classes_outside_every_fold(labels):
    """One class in all, and one query alone with the other class: an error that says so, not scikit-learn's."""
    texts = ["a lamp", "a mug"] if labels == "EEEE" else ["a lamp"]
    labelled = [LabelledPair(Pair(Query(texts[n % len(texts)]), Item("t", n)), label) for n, label in enumerate(labels)]
    with pytest.raises(InputError, match="expected pairs of two classes outside each of 2 folds"):
        CrossFittedTeacher(ESCI, labelled, np.zeros((4, 2), np.float32), folds=2, seed=0)


def test_a_pairs_own_label_never_reaches_its_soft_label():
    """Flipping one label changes other folds' probabilities, but not those of the pair's own fold."""
    rng = np.random.default_rng(0)
    features_NF = rng.standard_normal((60, 5)).astype(np.float32)
    labelled = [
        LabelledPair(Pair(Query(f"query {i // 3}", f"q{i // 3}"), Item("t", i)), ESCI.classes[int(rng.integers(4))])
        for i in range(60)
    ]
    flipped = list(labelled)
    flipped[0] = replace(labelled[0], label="I" if labelled[0].label != "I" else "E")
    before, after = (
        CrossFittedTeacher(ESCI, pairs, features_NF, folds=2, seed=0).out_of_fold_NK for pairs in (labelled, flipped)
    )

    assert np.allclose(before[:3], after[:3], rtol=0, atol=1e-9)
    assert np.abs(before - after).max() > 1e-3
    assert np.allclose(before.sum(axis=1), 1)


def test_a_feature_that_no_pair_has_does_not_stop_the_teacher():
    """Labelled pairs of one's own may all lack brand, colour or text; such a column teaches nothing."""
    rng = np.random.default_rng(0)
    labelled = [
        LabelledPair(Pair(Query(f"q{n}", id=f"q{n}"), Item(f"title {n}")), ESCI.classes[n % 4]) for n in range(80)
    ]
    features_NF = rng.normal(size=(80, 3)).astype(np.float32)
    features_NF[:, 1] = np.nan

    teacher = CrossFittedTeacher(ESCI, labelled, features_NF, folds=2, seed=0)

    assert np.isfinite(teacher.out_of_fold_NK).all()
    assert np.isfinite(teacher.probabilities(rng.normal(size=(5, 3)).astype(np.float32))).all()


def test_soft_labels_round_trip(tmp_path):
    """Pairs, probabilities and missing features come back as they were."""
    pair = Pair(Query("kettle", "q1", "us"), Item("copper kettle", "i1", brand="Norda", attributes={"bullets": "b"}))
    taught = np.full((1, len(TAUGHT)), np.nan, dtype=np.float32)
    soft = SoftLabels([pair], np.array([[0.7, 0.2, 0.05, 0.05]], dtype=np.float32), taught)
    write_soft_labels(tmp_path / "soft.parquet", soft)
    back = read_soft_labels(tmp_path / "soft.parquet", 4)

    assert back.pairs == [pair]
    assert np.array_equal(back.probabilities_NK, soft.probabilities_NK)
    assert np.isnan(back.features_NF).all()

"""The feature-based teacher: what it reads, which pairs it annotates, and that it never sees a pair's own label."""

import math
from dataclasses import replace

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query
from training.soft_labels import SoftLabels, read_soft_labels, write_soft_labels
from training.teacher.annotate import CrossFittedTeacher, sample_pairs
from training.teacher.features import FEATURES, OF_TITLE, TAUGHT, PairFeatures, TokenEncoder

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

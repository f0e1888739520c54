"""The lexical baseline: its features, its fit, and the stage on a handful of pairs with the real bi-encoder."""

import numpy as np
import pytest

from relevance.cli import main
from relevance.errors import InputError
from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.lexical_baseline import embed_texts, fit, lexical_overlap, logits, words
from training.predictions import read_predictions

RECIPE = 'name = "few"\n[data]\nsource = "pairs"\npath = "none.jsonl"\n'


def labelled(query, title, label, *, exact_only=False):
    """Give a labelled pair of an invented shop."""
    return LabelledPair(Pair(Query(query, id=query, locale="us"), Item(title, id=title)), label, "own", exact_only)


PAIRS = [
    labelled("red mug", "Red mug of tin, 350 ml", "E"),
    labelled("red mug", "Blue mug of tin, 350 ml", "S"),
    labelled("red mug", "Mug rack for six mugs", "C"),
    labelled("red mug", "Bicycle pump", "I"),
    labelled("bike pump", "Bicycle pump with gauge", "E"),
    labelled("bike pump", "Garden hose", "I"),
    labelled("赤いマグカップ", "マグカップ 赤 350ml", "E"),
]


def test_words_are_folded_and_lose_a_plural_s():
    """Case, width and a plural s do not matter; short words and other scripts stay whole."""
    assert words("Red MUGS, ３５０ml gas 赤い") == ["red", "mug", "350", "ml", "gas", "赤い"]


def test_overlap_counts_query_words_trigrams_and_sets():
    """red mug in 'Blue mug': coverage 1/2, Jaccard 1/3, three of seven trigrams (' mu', 'mug', 'ug ')."""
    coverage, jaccard, trigrams, ratio = lexical_overlap("red mug", "Blue mug")
    assert (coverage, jaccard) == (0.5, pytest.approx(1 / 3))
    assert trigrams == pytest.approx(3 / 7)
    assert 0 < ratio < 1


@pytest.mark.parametrize(("query", "title"), [("", ""), ("the", "the"), ("!!", "mug"), ("🎁", "🎁")])
def test_overlap_of_odd_texts_lies_in_the_unit_interval(query, title):
    """Stop words alone, punctuation, emoji and nothing at all."""
    assert all(0 <= value <= 1 for value in lexical_overlap(query, title))


def test_a_class_that_train_lacked_gets_the_floor():
    """Fitted on Exact and Irrelevant: the two others have log-probability -20."""
    features = np.array([[0.9], [0.8], [0.1], [0.2]])
    found = logits(fit(features, np.array([0, 0, 3, 3]), list("abcd")), features, ESCI)
    assert (found[:, 1:3] == -20).all()
    assert found.argmax(axis=1).tolist() == [0, 0, 3, 3]


def test_a_long_list_of_one_query_does_not_decide_alone():
    """Query a says four times that 1 is Irrelevant, b and c once each that it is Exact: weights 4 / √4 = 2 and 2. Of 0
    query d, e and f say the opposite, so nothing is learned either way.
    """
    features, labels = np.array([[1.0]] * 6 + [[0.0]] * 6), np.array([3, 3, 3, 3, 0, 0, 0, 0, 0, 0, 3, 3])
    found = logits(fit(features, labels, ["a", "a", "a", "a", "b", "c", "d", "d", "d", "d", "e", "f"]), features, ESCI)
    assert found[:, 0] == pytest.approx(found[:, 3], abs=1e-3)


def test_one_class_is_not_enough():
    """A regression needs two."""
    with pytest.raises(InputError, match="two classes or more, found 1"):
        fit(np.zeros((3, 1)), np.zeros(3, dtype=np.int64), list("abc"))


def test_similar_texts_have_similar_vectors():
    """The packaged bi-encoder, offline; vectors have length 1."""
    vectors = embed_texts(["bike pump", "bicycle pump", "red mug", "bike pump"])
    assert len(vectors) == 3
    assert vectors["bike pump"] @ vectors["bike pump"] == pytest.approx(1, abs=1e-5)
    assert vectors["bike pump"] @ vectors["bicycle pump"] > 0.3 + vectors["bike pump"] @ vectors["red mug"]


def test_the_stage_writes_predictions_of_every_other_split(tmp_path):
    """Same pairs, same order, as many logits as classes; a second start has nothing to do."""
    out = tmp_path / "run"
    (out / "data").mkdir(parents=True)
    for split in ("train", "dev", "cal", "test"):
        write_labelled_pairs(out / "data" / f"pairs.{split}.parquet", PAIRS if split == "train" else PAIRS[::-1])
    (out / "data" / "DONE.json").write_text('{"inputs": ""}\n')
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    assert main(["baseline", "--recipe", str(recipe), "--out", str(out)]) == 0
    found = read_predictions(out / "lexical" / "predictions.test.parquet")
    assert found.pair_id.tolist() == [p.pair.pair_id for p in PAIRS[::-1]]
    assert found.logits_NK.shape == (7, 4)
    assert np.exp(found.logits_NK).sum(axis=1) == pytest.approx(np.ones(7))
    assert not (out / "lexical" / "predictions.train.parquet").exists()
    written = (out / "lexical" / "predictions.dev.parquet").stat().st_mtime_ns
    assert main(["baseline", "--recipe", str(recipe), "--out", str(out)]) == 0
    assert (out / "lexical" / "predictions.dev.parquet").stat().st_mtime_ns == written

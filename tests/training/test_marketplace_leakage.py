"""Each leak of rationales or embeddings, planted, fails the run; a clean run passes with its figures."""

import json

import numpy as np
import pytest

from relevance.errors import RunError
from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs
from training.cot_store import CotStore
from training.data import stage as data_stage
from training.leakage import Targets, check_embeddings, check_probe, check_rationales, check_targets, probe_accuracy
from training.predictions import predictions_of, write_predictions
from training.rationale_rows import rationale_line, read_rationales
from training.recipe import PERSPECTIVES, load_recipe
from training.runs import Run
from training.soft_labels import SoftLabels, write_soft_labels
from training.teacher import rationales

RECIPE = """\
name = "t"
[data]
source = "marketplace"
[data.marketplace]
queries = { train = 30, dev = 2, cal = 2, test = 20 }
[rationales]
generator = "marketplace"
splits = ["train", "test"]
"""
WIDTH = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with pairs and rationales."""
    path = tmp_path_factory.mktemp("world")
    (path / "recipe.toml").write_text(RECIPE)
    arguments = ["--recipe", str(path / "recipe.toml"), "--out", str(path)]
    assert (data_stage.main(arguments), rationales.main(arguments)) == (0, 0)
    return Run(load_recipe(str(path / "recipe.toml")), path)


def planted(run, path, change, split="train"):
    """Give a run that shares the data but whose rationales of one split are changed."""
    (path / "rationales").mkdir()
    (path / "rationales" / "DONE.json").write_text("{}")
    for name in ("train", "test"):
        rows = list(read_rationales(run.path / f"rationales/rationales.{name}.jsonl"))
        rows = change(rows) if name == split else rows
        (path / f"rationales/rationales.{name}.jsonl").write_text("".join(map(rationale_line, rows)), encoding="utf-8")
    return Run(run.recipe, path, shared=run.path)


def test_clean_rationales_pass(run):
    """With how many there are and who wrote them."""
    figures = check_rationales(run)

    assert tuple(figures["train"].values()) == (1800, ["marketplace-1/train"])
    assert figures["test"]["generators"] == ["marketplace-1/test"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "found 1 missing"),
        (lambda rows: [*rows, rows[0]], "found 1 more than one"),
        (lambda rows: [*rows, rows[0].model_copy(update={"pair_id": "x"})], "found 1 for no pair"),
        (
            lambda rows: [rows[0].model_copy(update={"rationale": "So it is an Exact fit."}), *rows[1:]],
            "expected no class names, found 'Exact'",
        ),
    ],
)
def test_planted_faults_of_a_rationale_file_fail(run, tmp_path, change, message):
    """A pair missed, written twice, unknown; a class named. The file is named too."""
    with pytest.raises(RunError, match=rf"rationales\.train\.jsonl: .*{message}"):
        check_rationales(planted(run, tmp_path, change))


def test_one_family_of_paraphrases_on_both_sides_fails(run, tmp_path):
    """Test rationales that come from train's family."""
    spoiled = planted(
        run, tmp_path, lambda rows: [r.model_copy(update={"generator": "marketplace-1/train"}) for r in rows], "test"
    )

    with pytest.raises(RunError, match=r"found both from \['marketplace-1/train'\]"):
        check_rationales(spoiled)


def embedded(run, path, vector_of, *, splits=("train", "test"), teacher=None):
    """Give a run whose embeddings are a function of (label index, random vector); optionally a teacher's accuracy."""
    rng = np.random.default_rng(0)
    rows, row_of, labelled = [], {}, {}
    for split in splits:
        labelled[split] = read_labelled_pairs(run.path / f"data/pairs.{split}.parquet", ESCI)
        for one in labelled[split]:
            for perspective in PERSPECTIVES:
                row_of[one.pair.pair_id, perspective] = len(rows)
                rows.append(vector_of(ESCI.index(one.label), rng.normal(size=WIDTH)))
    for stage in ("embed", "annotate") if teacher is not None else ("embed",):
        (path / stage).mkdir()
        (path / stage / "DONE.json").write_text("{}")
    CotStore(PERSPECTIVES, np.array(rows, dtype=np.float32), row_of, "m").save(path / "embed")
    if teacher is not None:
        logits = {}
        for split in ("train", "test"):
            label_N = np.array([ESCI.index(one.label) for one in labelled[split]])
            right_N = rng.random(len(label_N)) < teacher
            logits[split] = 5.0 * np.eye(4)[np.where(right_N, label_N, (label_N + 1) % 4)]
        test = predictions_of(labelled["test"], logits["test"], ESCI)
        write_predictions(path / "annotate/predictions.test.parquet", test)
        train = [one.pair for one in labelled["train"]]
        soft = SoftLabels(train, logits["train"] / 5.0, np.zeros((len(train), 0), dtype=np.float32))
        write_soft_labels(path / "annotate/soft_labels.parquet", soft)
    return Run(run.recipe, path, shared=run.path)


def test_embeddings_that_hold_no_label_pass_with_their_figures(run, tmp_path):
    """Random vectors: the probe is about as good as the commonest class."""
    figures = check_embeddings(embedded(run, tmp_path, lambda _, noise: noise, teacher=0.9))

    assert figures["probes"]["test"]["teacher_accuracy"] == pytest.approx(0.9, abs=0.05)
    for probe in figures["probes"].values():
        assert probe["majority_accuracy"] == pytest.approx(probe["probe_accuracy"], abs=0.06)
    assert json.loads(json.dumps(figures))["stripped"] is True


def test_embeddings_that_hold_the_label_fail(run, tmp_path):
    """A direction of its own for each class, under noise, against a teacher who is right in 70 of 100."""
    leaky = embedded(run, tmp_path, lambda k, noise: 9 * np.eye(WIDTH)[k] + noise, teacher=0.7)

    with pytest.raises(RunError, match="expected a linear probe at most 2% above the teacher"):
        check_embeddings(leaky)


def test_targets_that_are_the_class_fail(run, tmp_path):
    """One vector a class, as one-hot labels would be."""
    with pytest.raises(RunError, match="to have one target, found 100%"):
        check_embeddings(embedded(run, tmp_path, lambda k, _: np.eye(WIDTH)[k]))


def test_without_test_embeddings_the_probe_is_scored_on_queries_of_train_it_never_saw(run, tmp_path):
    """And without a teacher its accuracy is a figure only; half of the pairs have no embedding and are left out."""
    half = embedded(run, tmp_path, lambda k, noise: 9 * np.eye(WIDTH)[k] + noise, splits=("train",))
    store = CotStore.load(tmp_path / "embed")
    kept = {key: row for n, (key, row) in enumerate(store.row_of.items()) if n % 6 < 3}
    CotStore(store.perspectives, store.embedding_ND, kept, "m").save(tmp_path / "embed")
    figures = check_embeddings(half)

    assert figures["probes"].keys() == {"train"}
    assert figures["probes"]["train"]["teacher_accuracy"] is None
    assert figures["probes"]["train"]["probe_accuracy"] > 0.95


def test_the_probe_learns_what_is_linear_and_the_limits_are_where_they_are_said(rng):
    """Separable classes give 1; two points above the teacher pass, more do not; half of a class may share a target."""
    label_N = rng.integers(4, size=400)
    targets = Targets(
        tuple(map(str, range(400))), (9 * np.eye(4)[label_N] + rng.normal(size=(400, 4))).astype(np.float32), label_N
    )
    half = np.repeat(np.arange(5.0), [5, 2, 1, 1, 1])[:, None].astype(np.float32)

    assert probe_accuracy(targets.rows(label_N >= 0), targets) == pytest.approx(1.0, abs=0.01)
    check_probe(0.9199, 0.9)
    with pytest.raises(RunError):
        check_probe(0.9201, 0.9)
    assert check_targets(Targets(tuple("abcdefghij"), half, np.zeros(10, dtype=np.int64))) == {0: 0.5}
    with pytest.raises(RunError, match="found 60%"):
        check_targets(Targets(tuple("abcde"), np.float32([[1], [1], [1], [2], [3]]), np.zeros(5, dtype=np.int64)))

"""Each leak of rationales or embeddings, planted, fails the run; a clean run passes with its figures."""

import json
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from relevance.errors import RunError
from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs
from training.cot_store import CotStore
from training.data import stage as data_stage
from training.leakage import (
    Targets,
    check_embeddings,
    check_probe,
    check_rationales,
    check_targets,
    probe_accuracy,
    told_of_data,
)
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
queries = { train = 30, dev = 20, cal = 2, test = 2 }
[rationales]
generator = "marketplace"
splits = ["train", "dev", "test"]
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
    for name in run.recipe.rationales.splits:
        rows = list(read_rationales(run.path / f"rationales/rationales.{name}.jsonl"))
        rows = change(rows) if name == split else rows
        (path / f"rationales/rationales.{name}.jsonl").write_text("".join(map(rationale_line, rows)), encoding="utf-8")
    return Run(run.recipe, path, shared=run.path)


def test_what_stage_data_found_is_told(run, tmp_path):
    """Queries, items and near-duplicate titles that splits share, class shares, noise, and what test alone names."""
    told = told_of_data(run)
    labelled = read_labelled_pairs(run.path / "data" / "pairs.dev.parquet", ESCI)
    exact = sum(one.label == "E" for one in labelled) / len(labelled)

    assert told["shared"]["train|test"]["titles_compared"] > 0
    assert {pair: (own["same_query"], own["near_duplicate_titles"]) for pair, own in told["shared"].items()} == {
        f"{a}|{b}": (0, 0) for a, b in combinations(("train", "dev", "cal", "test"), 2)
    }
    assert told["class_shares"]["dev"]["E"] == pytest.approx(exact, abs=1e-4)
    assert (told["marketplace"]["fact_noise"], told["marketplace"]["label_noise"]) == (0.1, 0.08)
    assert told["marketplace"]["held_out_categories"].endswith("in test alone")
    assert told_of_data(Run(run.recipe, tmp_path)) == {}


def test_clean_rationales_pass(run):
    """With how many there are and who wrote them."""
    figures = check_rationales(run)

    assert tuple(figures["train"].values()) == (1800, ["marketplace-1/train"])
    assert figures["dev"]["generators"] == figures["test"]["generators"] == ["marketplace-1/probe"]


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


@pytest.mark.parametrize("split", ["dev", "test"])
def test_one_family_of_paraphrases_on_both_sides_fails(run, tmp_path, split):
    """Rationales of a split that a probe is scored on come from train's family."""
    spoiled = planted(
        run, tmp_path, lambda rows: [r.model_copy(update={"generator": "marketplace-1/train"}) for r in rows], split
    )

    with pytest.raises(RunError, match=rf"in {split} than in train, found both from \['marketplace-1/train'\]"):
        check_rationales(spoiled)


def embedded(run, path, vector_of, *, splits=("train", "dev"), teacher=0.9):
    """Give a run whose embeddings are a function of (label index, random vector), and a teacher's accuracy or None."""
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
        for split in ("train", "dev"):
            labelled[split] = read_labelled_pairs(run.path / f"data/pairs.{split}.parquet", ESCI)
            label_N = np.array([ESCI.index(one.label) for one in labelled[split]])
            right_N = rng.random(len(label_N)) < teacher
            logits[split] = 5.0 * np.eye(4)[np.where(right_N, label_N, (label_N + 1) % 4)]
        dev = predictions_of(labelled["dev"], logits["dev"], ESCI)
        write_predictions(path / "annotate/predictions.dev.parquet", dev)
        train = [one.pair for one in labelled["train"]]
        soft = SoftLabels(train, logits["train"] / 5.0, np.zeros((len(train), 0), dtype=np.float32))
        write_soft_labels(path / "annotate/soft_labels.parquet", soft)
    return Run(run.recipe, path, shared=run.path)


def one_hot(k, noise):
    """Give a direction of its own for each class, under noise."""
    return 9 * np.eye(WIDTH)[k] + noise


def no_label(_, noise):
    """Give noise alone."""
    return noise


def test_embeddings_that_hold_no_label_pass_with_their_figures(run, tmp_path):
    """Random vectors: the probe is about as good as the commonest class, on dev's paraphrases too."""
    figures = check_embeddings(embedded(run, tmp_path, no_label))

    assert figures["probes"].keys() == {"train", "dev"}
    assert figures["probes"]["dev"]["teacher_accuracy"] == pytest.approx(0.9, abs=0.05)
    for probe in figures["probes"].values():
        assert probe["majority_accuracy"] == pytest.approx(probe["probe_accuracy"], abs=0.06)
    assert json.loads(json.dumps(figures)) is not None


def test_embeddings_that_hold_the_label_fail(run, tmp_path):
    """Against a teacher who is right in 70 of 100."""
    with pytest.raises(RunError, match="expected a linear probe at most 2% above the teacher"):
        check_embeddings(embedded(run, tmp_path, one_hot, teacher=0.7))


def test_targets_that_are_the_class_fail(run, tmp_path):
    """One vector a class, as one-hot labels would be."""
    with pytest.raises(RunError, match="to have one target, found 100%"):
        check_embeddings(embedded(run, tmp_path, lambda k, _: np.eye(WIDTH)[k]))


@pytest.mark.parametrize("vector_of", [one_hot, no_label])
def test_without_a_teacher_no_embeddings_pass(run, tmp_path, vector_of):
    """Nothing would bound the probe, and a code of the label would go through."""
    with pytest.raises(RunError, match="expected stage 'annotate', whose teacher bounds the probe"):
        check_embeddings(embedded(run, tmp_path, vector_of, teacher=None))


def test_without_another_split_no_embeddings_pass_but_a_controls(run, tmp_path):
    """Train's paraphrases alone leave open what a probe reads of them; the control still has its train queries."""
    alone = embedded(run, tmp_path, no_label, splits=("train",))

    with pytest.raises(RunError, match=r"of another split to score a probe on .*, found \['train'\]"):
        check_embeddings(alone)
    assert check_embeddings(alone, train_only=True)["probes"].keys() == {"train"}


def test_without_train_no_embeddings_pass(run, tmp_path):
    """There is nothing to fit a probe on."""
    with pytest.raises(RunError, match=r"expected those of train.*found \['dev'\]"):
        check_embeddings(embedded(run, tmp_path, no_label, splits=("dev",)))


def test_training_pairs_of_one_query_are_too_few_to_hold_some_out(run, tmp_path):
    """The embeddings of all other queries are missing."""
    one_query = embedded(run, tmp_path, no_label)
    store = CotStore.load(tmp_path / "embed")
    kept = {
        key: row
        for key, row in store.row_of.items()
        if not key[0].startswith("train-") or key[0].startswith("train-main-00000")
    }
    CotStore(store.perspectives, store.embedding_ND, kept, "m").save(tmp_path / "embed")

    with pytest.raises(RunError, match="expected training queries to fit and to score a probe on, found 20 pairs"):
        check_embeddings(one_query)


def test_pairs_without_an_embedding_are_left_out(run, tmp_path):
    """Half of them; the teacher is asked about the others."""
    half = embedded(run, tmp_path, one_hot, teacher=1.0)
    store = CotStore.load(tmp_path / "embed")
    kept = {key: row for n, (key, row) in enumerate(store.row_of.items()) if n % 6 < 3}
    CotStore(store.perspectives, store.embedding_ND, kept, "m").save(tmp_path / "embed")
    figures = check_embeddings(half)

    assert figures["probes"]["train"]["teacher_accuracy"] == 1.0
    assert figures["probes"]["train"]["probe_accuracy"] > 0.95


def test_a_teacher_who_left_pairs_out_fails(run, tmp_path):
    """Its accuracy on some of the pairs bounds nothing on the rest."""
    partial = embedded(run, tmp_path, no_label)
    path = tmp_path / "annotate/predictions.dev.parquet"
    labelled = read_labelled_pairs(run.path / "data/pairs.dev.parquet", ESCI)[1:]
    write_predictions(path, predictions_of(labelled, np.zeros((len(labelled), 4)), ESCI))

    with pytest.raises(RunError, match=r"prediction of 400 embedded pairs of dev, found none for 1, first 'dev-main"):
        check_embeddings(partial)


def test_stripping_changes_no_text_of_the_marketplace_and_real_ones_are_counted(run, tmp_path):
    """Its texts are masked as they are written; three rationales that end in a verdict are told of."""
    clean = check_embeddings(embedded(run, tmp_path, no_label))["stripping"]
    judged = [" So the rating is low.", " The verdict is clear.", " This would be the answer."]
    (tmp_path / "other").mkdir()
    other = planted(
        run,
        tmp_path / "other",
        lambda rows: [
            *(r.model_copy(update={"rationale": r.rationale + end}) for r, end in zip(rows, judged, strict=False)),
            *rows[len(judged) :],
        ],
    )
    for stage in ("embed", "annotate"):
        (tmp_path / "other" / stage).symlink_to(tmp_path / stage)
    changed = check_embeddings(other)["stripping"]

    assert (clean["applied"], clean["rationales"], clean["changed"]) == (True, 3000, 0)
    assert clean["meaning"] == "stripping changes no text; the probes are the same with and without it"
    assert changed["changed"] == 3
    assert changed["meaning"] == "stripping changes some texts; the probes read them stripped"


def test_a_control_is_checked_in_a_folder_of_its_own_with_the_parents_teacher(run, tmp_path):
    """The visible rationales of train: clean ones pass, a missing one and coded embeddings fail."""
    parent, folder = tmp_path / "grid", tmp_path / "grid" / "visible"
    folder.mkdir(parents=True)
    embedded(run, parent, no_label)
    (parent / "data").symlink_to(run.path / "data")
    (folder / "data").symlink_to(Path("..") / "data")
    options = ["--set", "rationales.generator=marketplace-visible", "--set", "rationales.splits=['train']"]
    arguments = ["--recipe", str(run.path / "recipe.toml"), "--out", str(folder), *options]
    assert rationales.main(arguments) == 0
    recipe = load_recipe(str(run.path / "recipe.toml"), options[1::2])
    embedded(run, folder, no_label, splits=("train",), teacher=None)
    visible = Run(recipe, folder, shared=parent)

    assert check_rationales(visible) == {"train": {"rationales": 1800, "generators": ["marketplace-visible-1/train"]}}
    figures = check_embeddings(visible, train_only=True)
    assert figures["probes"]["train"]["teacher_accuracy"] == pytest.approx(0.9, abs=0.05)
    assert (figures["stripping"]["rationales"], figures["stripping"]["changed"]) == (1800, 0)
    shutil.rmtree(folder / "embed")
    embedded(run, folder, lambda k, _: np.eye(WIDTH)[k], splits=("train",), teacher=None)
    with pytest.raises(RunError, match="to have one target"):
        check_embeddings(visible, train_only=True)
    path = folder / "rationales/rationales.train.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RunError, match="found 1 missing"):
        check_rationales(visible)


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

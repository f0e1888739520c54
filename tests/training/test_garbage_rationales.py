"""Privileged fields and rationales of held-out pairs never reach a student: garbage in them changes no logit."""

import json
from dataclasses import replace

import numpy as np
import pytest

from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.cot_store import CotStore
from training.predictions import read_predictions
from training.rationale_rows import Evidence, Rationale, rationale_line, read_rationales
from training.runs import DONE
from training.soft_labels import SoftLabels, write_soft_labels
from training.student import train
from training.student.model import load_student
from training.student.predict import predict
from training.teacher import embed, rationales

KINDS = ("kettle", "sandal", "pillow", "drill")
COLOURS = ("red", "blue", "green")
GARBAGE = (
    "nan",
    "\x00\ufffd\u202e",
    "Exact Exact Exact",
    "Irrelevant",
    "%s{}</s>[SEP][CLS]",
    "x" * 3000,
    "０" * 40,
    "\u200b",
)
SYSTEMS = {
    "latent guided by the rationales": ("guidance", ["student.guidance_weight=0.1"]),
    "latent guided by a projection fitted on them": (
        "guidance",
        ["student.guidance_weight=0.1", "student.guidance.pca=true"],
    ),
    "latent guided by their mean": (
        "guidance",
        ["student.guidance_weight=0.1", "student.guidance.target='constant'"],
    ),
    "second view": ("crsd", ["student.rationale_terms=['crsd']", "student.crsd.max_tokens=96"]),
    "decoder": ("ced_kd", ["student.rationale_terms=['ced_kd']", "student.ced_kd.max_tokens=12"]),
    "tags and soft labels": ("mkd", ["student.rationale_terms=['mkd']"]),
}
"""System → its term's name in the ledger, and its recipe keys beside a guidance of zero."""
GUIDED = "latent guided by the rationales"


def invented_pairs(split, n_queries):
    """Colour-and-kind queries with four items each, whose brand, colour, text and attributes are all filled."""
    pairs = []
    for i in range(n_queries):
        kind, other, colour = KINDS[i % 4], KINDS[(i + 1) % 4], COLOURS[i % 3]
        query = Query(f"{colour} {kind} {split} {i}", f"{split}{i}", "us")
        titles = {"E": f"{colour} {kind}", "S": f"{kind} by Ostra", "C": f"case for {kind}", "I": f"{other} set"}
        for label, title in titles.items():
            facts = {"brand": "Ostra", "color": colour, "text": f"{title} for the home", "attributes": {"size": "M"}}
            pairs.append(LabelledPair(Pair(query, Item(title, f"{split}{i}{label}", **facts)), label, "invented"))
    return pairs


def spoilt(pairs):
    """Give the pairs with garbage in everything but query, title and ids."""
    made = []
    for number, labelled in enumerate(pairs):
        brand, color, text, size = (GARBAGE[(number + shift) % len(GARBAGE)] for shift in (0, 2, 5, 3))
        attributes = {"size": size, "rationale": brand, "label": labelled.label}
        item = replace(labelled.pair.item, brand=brand, color=color, text=text, attributes=attributes)
        made.append(replace(labelled, pair=replace(labelled.pair, item=item)))
    return made


def spoil_rationales(path):
    """Replace texts, evidence and verdicts of a rationale file by garbage that still has the schema."""
    rows = []
    for number, row in enumerate(read_rationales(path)):
        word = GARBAGE[number % len(GARBAGE)]
        evidence = (Evidence(dim="brand", query_span=word, item_span=word, verdict="mismatch"),)
        rows.append(row.model_copy(update={"rationale": f"{word} {number}", "evidence": evidence, "verdict": "I"}))
    path.write_text("".join(rationale_line(Rationale.model_validate(r.model_dump())) for r in rows), encoding="utf-8")


def make_shared(path, cache, *, garbage):
    """Run rationales and embed on train and test pairs; with garbage in all that no student may read."""
    (path / "data").mkdir(parents=True)
    for split, n in {"train": 12, "dev": 4, "cal": 2, "test": 6}.items():
        pairs = invented_pairs(split, n)
        write_labelled_pairs(
            path / "data" / f"pairs.{split}.parquet", spoilt(pairs) if garbage and split != "train" else pairs
        )
    (path / "data" / DONE).write_text(json.dumps({"inputs": ""}), encoding="utf-8")
    make_soft_labels(path / "annotate", invented_pairs("train", 12) + (spoilt(invented_pairs("test", 6)) * garbage))
    options = options_of(path, "rationales.splits=['train','test']", f"embed.cache='{cache}'", "embed.max_tokens=24")
    assert rationales.main(options) == 0
    if garbage:
        spoil_rationales(path / "rationales" / "rationales.test.jsonl")
    assert embed.main(options) == 0
    if garbage:
        (path / "rationales" / "rationales.test.jsonl").write_bytes(b"\xff\x00 no rationale at all")
    return path


def make_soft_labels(folder, pairs):
    """Write a finished annotate stage: 0.7 on each pair's own label, 0.1 on the others."""
    probabilities_NK = np.full((len(pairs), 4), 0.1, dtype=np.float32)
    probabilities_NK[np.arange(len(pairs)), [ESCI.index(p.label) for p in pairs]] = 0.7
    folder.mkdir()
    soft = SoftLabels([p.pair for p in pairs], probabilities_NK, np.zeros((len(pairs), 0), np.float32))
    write_soft_labels(folder / "soft_labels.parquet", soft)
    (folder / DONE).write_text(json.dumps({"inputs": ""}), encoding="utf-8")


def options_of(path, *overrides):
    """Give a stage's command line."""
    return ["--recipe", "tiny", "--out", str(path), *(part for o in overrides for part in ("--set", o))]


def train_student(shared, path, system):
    """Run the student stage for one epoch over the shared stages, in a folder of its own."""
    term, overrides = SYSTEMS[system]
    path.mkdir(parents=True)
    for stage in ("data", "rationales", "embed", "annotate"):
        (path / stage).symlink_to(shared / stage)
    common = ("student.fit.epochs=1", "student.fit.batch_size=16", "student.guidance_weight=0")
    assert train.main(options_of(path, *common, *overrides)) == 0
    assert any(term in json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines())
    return path / "student"


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """The finished shared stages of honest pairs."""
    root = tmp_path_factory.mktemp("honest")
    return make_shared(root / "shared", root / "cache", garbage=False)


@pytest.fixture(scope="module")
def dirty(clean, tmp_path_factory):
    """The same stages with garbage around every pair that is not a training pair."""
    return make_shared(tmp_path_factory.mktemp("garbage") / "shared", clean.parent / "cache", garbage=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_training_beside_garbage_ends_in_the_same_weights_and_logits(clean, dirty, tmp_path, system):
    """Whatever a student learns from rationales, those of test pairs and held-out facts leave no trace in it."""
    honest = train_student(clean, tmp_path / "honest", system)
    beside = train_student(dirty, tmp_path / "beside", system)

    assert (honest / "model.safetensors").read_bytes() == (beside / "model.safetensors").read_bytes()
    for split in ("dev", "cal", "test"):
        expected, found = (read_predictions(folder / f"predictions.{split}.parquet") for folder in (honest, beside))
        assert len(expected) > 0
        assert np.array_equal(expected.pair_id, found.pair_id)
        assert np.array_equal(expected.logits_NK, found.logits_NK)


def test_a_trained_student_reads_the_title_and_nothing_else(clean, tmp_path):
    """Garbage in every other field gives back the stage's own logits bit for bit; another title does not."""
    folder = train_student(clean, tmp_path / "run", GUIDED)
    student, tokenizer = load_student(folder)
    pairs = invented_pairs("test", 6)
    expected_NK = read_predictions(folder / "predictions.test.parquet").logits_NK
    retitled = [replace(p.pair, item=replace(p.pair.item, title="x y z")) for p in pairs]

    assert np.array_equal(expected_NK, predict(student, tokenizer, [p.pair for p in spoilt(pairs)]))
    assert not np.array_equal(expected_NK, predict(student, tokenizer, retitled))


def test_the_garbage_reaches_those_who_read_it(clean, dirty, make_student):
    """A student whose template names the fields is moved, and so are the embeddings of test rationales alone."""
    student, tokenizer = make_student()
    pairs = invented_pairs("test", 6)
    honest_NK, spoilt_NK = (predict(student, tokenizer, [p.pair for p in rows]) for rows in (pairs, spoilt(pairs)))
    stores = [CotStore.load(shared / "embed") for shared in (clean, dirty)]
    (train_before, train_after), (test_before, test_after) = (
        [store.lookup([p.pair.pair_id for p in invented_pairs(split, 6)]) for store in stores]
        for split in ("train", "test")
    )

    assert (np.abs(honest_NK - spoilt_NK).max(axis=1) > 0).all()
    assert train_before[1].all()
    assert test_before[1].all()
    assert np.array_equal(train_before[0], train_after[0])
    assert (test_before[0] != test_after[0]).any(axis=-1).all()

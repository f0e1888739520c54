"""Pre-training from texts: what is asked is true of the visible text, it is learned, and students start from it."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from relevance.errors import RecipeError, RunError
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.recipe import load_recipe
from training.runs import DONE, Run
from training.student import pretrain
from training.student.inputs import make_tokenizer
from training.student.train import train

KINDS = ("lamp", "shirt", "kettle", "backpack", "drill", "pillow", "sandal", "notebook")
COLOURS = ("red", "blue", "green", "black")


@pytest.fixture
def run(tmp_path):
    """A run over invented pairs, with a finished data stage."""
    folder = tmp_path / "data"
    folder.mkdir()
    pairs = [
        LabelledPair(
            Pair(Query(f"{colour} {kind}", f"q{i}{j}", "us"), Item(f"{kind} by Norda {colour} set", f"{i}{j}")),
            "E",
            "x",
        )
        for i, kind in enumerate(KINDS)
        for j, colour in enumerate(COLOURS)
    ]
    for split in ("train", "dev", "cal", "test"):
        write_labelled_pairs(folder / f"pairs.{split}.parquet", pairs)
    (folder / DONE).write_text(json.dumps({"inputs": ""}))
    overrides = [
        "student.pretrain.steps=60",
        "student.pretrain.learning_rate=3e-3",
        "student.guidance_weight=0",
        "student.fit.epochs=1",
        "student.fit.learning_rate=1e-9",
    ]
    return Run(load_recipe("tiny", overrides), tmp_path)


def test_what_is_asked_of_a_query_token_is_true_of_the_visible_title(run):
    """Present means that the token stands unmasked in the title; the masked ones are what stood there."""
    tokenizer = make_tokenizer(run)
    batch = pretrain.PretrainingTexts(run, tokenizer).batch(64, np.random.default_rng(0))
    mask_id = tokenizer.token_id("[MASK]")

    for ids, types, present, masked in zip(
        batch.input_ids_BL, batch.token_type_ids_BL, batch.present_BL, batch.masked_BL, strict=True
    ):
        title = set(ids[types == 1].tolist())
        asked = present >= 0
        assert asked.any()
        assert not asked[types == 1].any()
        assert [int(i) in title for i in ids[asked]] == (present[asked] == 1).tolist()
        assert (ids[masked >= 0] == mask_id).all()
        assert (types[masked >= 0] == 1).all()
    assert {0, 1} <= set(batch.present_BL[batch.present_BL >= 0].tolist())


def test_pretraining_learns_and_students_start_from_it(run):
    """All three losses fall, and a student that hardly trains has the encoder's weights."""
    options = ["--recipe", "tiny", "--out", str(run.path)]
    for override in ("student.pretrain.steps=60", "student.pretrain.learning_rate=3e-3"):
        options += ["--set", override]
    assert pretrain.main(options) == 0
    told = run.inputs_of("pretrain")["tokenizer"]
    assert told == hashlib.sha256(make_tokenizer(run).to_bytes()).hexdigest(), "one of the same size is another"
    notes = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]
    notes = [note for note in notes if "masked" in note]
    for name in ("present", "share", "masked"):
        assert notes[-1][name] < notes[0][name]

    train(run)
    encoder = load_file(run.path / "pretrain" / "encoder.safetensors")
    student = load_file(run.path / "student" / "model.safetensors")
    for name, tensor in encoder.items():
        torch.testing.assert_close(student[f"encoder.{name}"], tensor, atol=1e-5, rtol=0)


def test_a_student_that_asks_for_pretraining_needs_it(run):
    """The message says what to run first."""
    with pytest.raises(RunError, match="run `relevance pretrain`"):
        train(run)


def test_the_stage_needs_its_section(run):
    """A recipe without student.pretrain is refused."""
    with pytest.raises(RecipeError, match=r"expected a section student\.pretrain"):
        pretrain.main(["--recipe", "tiny", "--out", str(run.path)])

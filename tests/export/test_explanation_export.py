"""A bundle that explains: prototypes from their stage, graphs with latents, logits as without."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from export.build import main
from export.onnx_graph import export_graph
from export.parity import MAX_LATENT_DIFFERENCE, draw_gate_pairs, output_differences
from relevance.bundle import PROTOTYPES, open_bundle
from relevance.errors import ParityError, RunError
from relevance.pairs import LabelledPair
from relevance.prototypes import Prototypes
from training.prototypes.provenance import STUDENT_FILES
from training.runs import hash_file

LATENT_WIDTH = 64


def few_prototypes() -> Prototypes:
    """Give two prototypes of one perspective for the tiny student's latents."""
    return Prototypes(
        perspectives=("user",),
        texts=("It is the kind of thing the shopper asks for.", "It is another kind of thing."),
        perspective_M=np.zeros(2, np.int64),
        share_MK=np.full((2, 4), 0.25, np.float32),
        size_M=np.array([30, 20]),
        direction_MD=np.array([[1, 0], [0, 1]], np.float32),
        map_PRD=np.ones((1, LATENT_WIDTH, 2), np.float32),
        offset_PD=np.zeros((1, 2), np.float32),
        floor_P=np.zeros(1, np.float32),
    )


@pytest.fixture(scope="module")
def explaining_run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run with a finished stage `prototypes`, exported."""
    run = tmp_path_factory.mktemp("explaining") / "run"
    shutil.copytree(tiny_run, run, ignore=shutil.ignore_patterns("export"))
    (run / "prototypes").mkdir()
    (run / "prototypes" / PROTOTYPES).write_bytes(few_prototypes().to_bytes())
    (run / "prototypes" / "DONE.json").write_text("{}")
    files = {f"student/{name}": hash_file(run / "student" / name) for name in STUDENT_FILES}
    (run / "prototypes" / "inputs.json").write_text(json.dumps({"inputs": {"files": files}}))
    assert main(["--recipe", str(run / "recipe.toml"), "--out", str(run)]) == 0
    return run


def test_the_bundle_holds_the_prototypes_and_its_graphs_give_latents(explaining_run: Path):
    """All graphs that are shipped, with the differences from the torch student in the export's figures."""
    bundle = open_bundle(explaining_run / "export" / "bundle")
    outputs = json.loads((explaining_run / "export" / "export.json").read_text())["outputs"]

    assert bundle.prototypes is not None
    assert bundle.prototypes.texts == few_prototypes().texts
    for graph in bundle.manifest.graphs.values():
        assert graph.outputs == dict.fromkeys(("logits", "latent", "token_weights"), "float32")
    assert set(outputs) == {"fp32", "int8w"}
    assert outputs["fp32"]["latent"] < 1e-4
    assert 1e-4 < outputs["int8w"]["latent"] < MAX_LATENT_DIFFERENCE


def test_the_logits_are_bit_for_bit_those_of_the_graphs_without_latents(explaining_run: Path, tiny_bundle: Path):
    """Of the golden pairs, in both precisions, whichever outputs are asked for."""
    plain, explaining = open_bundle(tiny_bundle), open_bundle(explaining_run / "export" / "bundle")

    assert [pair.logits for pair in plain.golden] == [pair.logits for pair in explaining.golden]
    session = ort.InferenceSession(str(explaining.graph_path("fp32")), providers=["CPUExecutionProvider"])
    batch = explaining.tokenizer.collate([np.array([100, 101])] * 2, [np.array([102]), np.array([103, 104, 105])])
    alone = session.run(["logits"], batch.inputs())[0]
    logits, latent_BR, weight_BL = session.run(["logits", "latent", "token_weights"], batch.inputs())
    assert (alone == logits).all()
    assert latent_BR.shape == (2, LATENT_WIDTH)
    assert weight_BL.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_prototypes_of_another_student_are_refused(explaining_run: Path, tmp_path: Path):
    """A student that was trained again leaves the prototypes of the one before behind."""
    run = tmp_path / "run"
    shutil.copytree(explaining_run, run, ignore=shutil.ignore_patterns("export"))
    (run / "prototypes" / "inputs.json").unlink()

    with pytest.raises(RunError, match=r"expected the prototypes of the student in .*run `relevance prototypes`"):
        main(["--recipe", str(run / "recipe.toml"), "--out", str(run)])


def test_a_graph_of_another_student_is_refused(make_student, tiny_pairs: list[LabelledPair], tmp_path: Path):
    """Its latents are far from those that the maps were fitted to."""
    student, tokenizer = make_student()
    other, _ = make_student(seed=1)
    export_graph(other, tmp_path / "other.onnx", latent_outputs=True)
    pairs = draw_gate_pairs(tiny_pairs, tokenizer, student.config.template, limit=40, seed=0)

    with pytest.raises(ParityError, match=r"export, fp32: expected latents within 0.05"):
        output_differences(student, tmp_path / "other.onnx", "fp32", pairs)

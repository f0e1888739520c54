"""Where a graph's work runs: floating-point operations by provider, from profiles of real sessions."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from relevance.bundle import open_bundle
from relevance.errors import SettingsError
from service.placement import CPU, TENSORRT, graph_flops, placement, placement_of, watch
from service.session import OnnxSession, check_placement
from service.settings import DEFAULT_BUNDLE

CUDA = "CUDAExecutionProvider"
LAYERS, WIDTH, PAIRS, TOKENS = 2, 64, 3, 16
ENCODER_FLOPS = LAYERS * PAIRS * TOKENS * (24 * WIDTH**2 + 4 * TOKENS * WIDTH)
"""Of a BERT layer: 8 D² a token for four projections, 16 D² for the wide layer, 4 L D for tokens among each other."""


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Path:
    """The fused fp32 graph of the tiny student: two layers, 64 wide."""
    return tiny_bundle / "model.fp32.onnx"


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """Three pairs of 16 tokens."""
    ones = np.ones((PAIRS, TOKENS), dtype=np.int64)
    return {"input_ids": ones, "attention_mask": ones, "token_type_ids": ones}


@pytest.fixture(scope="module")
def events(graph: Path, inputs, tmp_path_factory) -> list[dict]:
    """The nodes of one profiled batch."""
    options = ort.SessionOptions()
    watch(options, str(tmp_path_factory.mktemp("profile")))
    session = ort.InferenceSession(str(graph), options, providers=[CPU])
    session.run(["logits"], inputs)
    found = json.loads(Path(session.end_profiling()).read_text())
    return [event for event in found if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]


def moved(events: list[dict], provider: str, *operators: str) -> list[dict]:
    """Give the same profile with the nodes of some operators on another provider, of all when none is named."""
    changed = copy.deepcopy(events)
    for event in changed:
        if not operators or event["args"]["op_name"] in operators:
            event["args"]["provider"] = provider
    return changed


def compiled(provider: str) -> dict:
    """Give a node that is a whole compiled subgraph."""
    shapes = {"input_type_shape": [{"int64": [PAIRS, TOKENS]}], "output_type_shape": [{"float": [PAIRS, 4]}]}
    return {"args": {"op_name": "TRTKernel_graph_main_graph_1_0", "provider": provider, **shapes}}


def test_the_flops_of_a_graph_are_those_of_its_encoder_and_a_small_tail(graph, inputs):
    """Worked out by hand from widths and lengths; extractor and head are a few percent of so narrow an encoder."""
    assert ENCODER_FLOPS < graph_flops(graph, inputs) < 1.1 * ENCODER_FLOPS


def test_fused_and_unfused_graphs_have_the_same_flops(make_student, inputs, tmp_path):
    """Attention as one operator counts what its parts count."""
    from export.onnx_graph import export_graph, fuse_graph

    student, _ = make_student()
    export_graph(student, tmp_path / "unfused.onnx")
    fuse_graph(tmp_path / "unfused.onnx", tmp_path / "fused.onnx", heads=4, width=WIDTH)

    unfused, fused = (graph_flops(tmp_path / f"{name}.onnx", inputs) for name in ("unfused", "fused"))
    assert fused == pytest.approx(unfused, rel=0.01)


def test_a_session_on_the_cpu_runs_everything_there(graph, inputs, tmp_path):
    """One provider, one share, and the profile ends with the first batch."""
    options = ort.SessionOptions()
    watch(options, str(tmp_path))
    session = ort.InferenceSession(str(graph), options, providers=[CPU])

    placed = placement(session, inputs, graph)

    assert set(placed.nodes) == {CPU}
    assert placed.share(CPU) == 1.0
    assert placed.share(CUDA) == 0.0
    check_placement(placed, "cpu")
    (written,) = tmp_path.iterdir()
    size = written.stat().st_size
    session.run(["logits"], inputs)
    assert written.stat().st_size == size


def test_many_nodes_elsewhere_without_products_are_no_reason_to_refuse(events):
    """Casts, normalisation and the like on the CPU: all FLOPs are still on the device."""
    products = ("MatMul", "Gemm", "FusedMatMul", "Attention", "MultiHeadAttention")
    placed = placement_of(moved(moved(events, CUDA), CPU, *{e["args"]["op_name"] for e in events} - {*products}))

    assert placed.nodes[CPU] > placed.nodes[CUDA]
    assert placed.share(CUDA) == 1.0
    check_placement(placed, "cuda")


def test_a_session_whose_products_fell_back_is_refused_with_its_share(events):
    """Attention alone is a few nodes, and more than a percent of the work."""
    placed = placement_of(moved(moved(events, CUDA), CPU, "Attention"))

    assert 0.5 < placed.share(CUDA) < 0.9
    with pytest.raises(SettingsError, match=r"at least 99% of the graph's FLOPs on CUDAExecutionProvider, found \d\d"):
        check_placement(placed, "cuda")


def test_a_compiled_subgraph_counts_for_what_no_other_node_ran(events):
    """TensorRT's one node has all FLOPs of the graph but those of nodes that another provider was seen to run."""
    total = placement_of(events).total
    left = [e for e in moved(events, CUDA) if e["args"]["op_name"] == "Attention"]

    whole = placement_of([compiled(TENSORRT)], total)
    part = placement_of([compiled(TENSORRT), *left], total)

    assert (whole.share(TENSORRT), whole.nodes) == (1.0, {TENSORRT: 1})
    assert part.share(TENSORRT) == pytest.approx(1 - placement_of(left).total / total)
    check_placement(whole, "tensorrt")
    with pytest.raises(SettingsError, match="on TensorrtExecutionProvider"):
        check_placement(part, "tensorrt")


def test_a_session_asked_for_tensorrt_that_runs_on_cuda_alone_is_refused(events):
    """No compiled subgraph at all: nothing is left over to be counted for TensorRT."""
    with pytest.raises(SettingsError, match=r"found 0\.0%"):
        check_placement(placement_of(moved(events, CUDA)), "tensorrt")


def test_the_service_s_session_was_watched_and_goes_on_without_a_profile():
    """The embedded default: all on the CPU, no shapes that it is bound to, no other provider if that one fails."""
    session = OnnxSession(open_bundle(DEFAULT_BUNDLE), precision="auto", provider="cpu", threads=1)

    assert session.flops_share == 1.0
    assert set(session.nodes) == {CPU}
    assert session.profiles == ()
    assert not session._opened[0].session._enable_fallback

"""Precisions: what is stored how, and how far each graph is from fp32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import export.precision
from export.onnx_graph import export_graph, fuse_graph
from export.parity import open_graph
from export.precision import write_fp16, write_int8, write_int8w
from relevance.tokenization import PairBatch
from training.student.rounding import quantize_channels, row_factors


@pytest.fixture(scope="module")
def graphs(make_student, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], PairBatch]:
    """Every precision of one student whose weights are on no grid, and a batch of mixed lengths."""
    folder = tmp_path_factory.mktemp("precisions")
    student, tokenizer = make_student("gat")
    paths = {name: folder / f"{name}.onnx" for name in ("unfused", "fp32", "fp16", "int8w", "int8")}
    queries = [tokenizer.encode_query(text) for text in ("red shoes", "usb cable", "x")]
    items = tokenizer.encode_items(("Red running shoes", "Braided cable " * 30, "Y"))
    batch = tokenizer.collate(queries, items)
    export_graph(student, paths["unfused"])
    fuse_graph(paths["unfused"], paths["fp32"], heads=4, width=64)
    write_fp16(paths["fp32"], paths["fp16"])
    write_int8w(paths["fp32"], paths["int8w"])
    write_int8(paths["fp32"], paths["int8"], [batch])
    return paths, batch


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 2e-2), ("int8w", 1e-1), ("int8", 1e-1)])
def test_a_precision_stays_near_fp32(graphs, precision: str, tolerance: float):
    """fp16 keeps three digits; int8 rounds each weight by at most 1/254 of its channel's largest."""
    paths, batch = graphs
    expected_BK = open_graph(paths["fp32"], "fp32")(batch)
    found_BK = open_graph(paths[precision], precision)(batch)

    assert expected_BK == pytest.approx(found_BK, abs=tolerance)
    assert np.float32 == found_BK.dtype


def test_int8w_is_a_quarter_and_fp16_half_of_the_file(graphs):
    """Scales, biases and the graph itself add a little."""
    paths, _ = graphs
    size = {name: path.stat().st_size for name, path in paths.items()}

    assert 0.25 < size["int8w"] / size["fp32"] < 0.28
    assert 0.50 < size["fp16"] / size["fp32"] < 0.52


def test_int8w_runs_as_fp32_after_loading(graphs, tmp_path: Path):
    """With `session.disable_quant_qdq` the optimised graph has fp32 products and no DequantizeLinear left."""
    paths, _ = graphs
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(paths["int8w"], options)
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    fp32 = Counter(node.op_type for node in onnx.load(paths["fp32"]).graph.node)

    assert operators["Mul"] <= fp32["Mul"]
    assert operators["DequantizeLinear"] + operators["MatMulNBits"] + operators["MatMulIntegerToFloat"] == 0
    assert operators["Attention"] == 2


def test_int8_has_static_ranges_only(graphs):
    """Integer products with constant scales; nothing measures a range at run time."""
    paths, _ = graphs
    graph = onnx.load(paths["int8"]).graph
    operators = Counter(node.op_type for node in graph.node)
    constants = {tensor.name for tensor in graph.initializer}

    assert operators["QLinearMatMul"] == 6
    assert operators["DynamicQuantizeLinear"] + operators["MatMulInteger"] + operators["DynamicQuantizeMatMul"] == 0
    assert all(set(n.input[1:]) <= constants for n in graph.node if n.op_type == "QuantizeLinear")


def test_there_is_no_dynamic_quantisation():
    """No function of the module and no precision of the recipe offers it."""
    offered = [name for name in dir(export.precision) if "dynamic" in name.lower()]

    assert offered == []


def test_channels_are_rounded_to_the_nearest_step(rng: np.random.Generator):
    """Each value is off by at most half a step of its channel, and a channel of zeros stays zero."""
    weight = rng.normal(size=(5, 40)).astype(np.float32)
    weight[2] = 0
    stored, scale = quantize_channels(weight, 0)
    error = np.abs(stored * scale[:, None] - weight)

    assert (error <= scale[:, None] * 0.5001).all()
    assert scale.shape == (5,)
    assert scale[2] == 1
    assert np.abs(stored).max() == 127


def test_row_factors_are_half_powers_of_two_near_each_rows_size():
    """Rows of size 1, 3 (nearest 2^1.5 in logarithms) and 0.1 (2^-3.5); a row of zeros is left alone."""
    weight = np.array([[1, -1], [3, 3], [0.1, -0.1], [0, 0]], dtype=np.float32)

    assert row_factors(weight)[:, 0].tolist() == pytest.approx([1.0, 2**1.5, 2**-3.5, 1.0])

"""Smaller and faster graphs from the fused fp32 one: fp16, int8 weights only (int8w), integer matmuls (int8).

There is no dynamic quantisation: its activation scale spans the batch, so a pair's score would depend on the others.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST
from onnxruntime.transformers.onnx_model import OnnxModel

from relevance.tokenization import PairBatch
from training.student.rounding import quantize_channels, row_factors

FP32_OPERATORS = ("LayerNormalization", "SkipLayerNormalization", "EmbedLayerNormalization", "Softmax", "ReduceSum")
"""Operators that stay fp32 in the fp16 graph: sums over many terms, where half precision loses or overflows."""
MIN_STORED_ELEMENTS = 1024
"""Smaller weights stay fp32 in int8w: they are no saving, and biases and normalisation are sensitive."""
_MIN_INT8_WIDTH = 32
"""Narrower products (the extractor's and the head's) are cheap and sensitive: they stay fp32 in int8."""
_EMBEDDINGS = ("Gather", "EmbedLayerNormalization")


class _Batches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self, batches: Sequence[PairBatch]) -> None:
        self._left: Iterator[PairBatch] = iter(batches)

    def get_next(self) -> dict[str, NDArray[np.int64]] | None:
        """Give the next batch's inputs, None after the last."""
        batch = next(self._left, None)
        return None if batch is None else batch.inputs()


def write_fp16(source: Path, target: Path) -> None:
    """Write a graph with half-precision weights and products, fp32 outputs and the operators of `FP32_OPERATORS` fp32.

    Args: source: the fused fp32 graph.
    """
    model = OnnxModel(onnx.load(source))
    model.convert_float_to_float16(keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FP32_OPERATORS])
    _store_weights_fp16(model.model)
    model.save_model_to_file(str(target))


def write_int8w(source: Path, target: Path) -> None:
    """Write a graph whose big weights are stored as int8 with a scale a channel, restored by DequantizeLinear.

    A session with `session.disable_quant_qdq` = "1" folds them at load: fp32 arithmetic, a quarter of the file.

    Args: source: the fused (or any) fp32 graph.
    """
    model = onnx.load(source)
    _store_weights_int8(model)
    onnx.save(model, target)


def write_int8(source: Path, target: Path, batches: Sequence[PairBatch]) -> None:
    """Write a graph whose dense layers are integer matmuls with static ranges; attention and embeddings stay fp32.

    Weights have seven bits: CPUs without VNNI add two products of uint8 and int8 in 16 bits, where eight overflow
    (onnxruntime, "Quantize ONNX models"), and a bundle must mean the same on every CPU.

    Args: source: the fused fp32 graph; batches: of train pairs, on which the ranges of activations are measured.
    """
    model = onnx.load(source)
    weights = {t.name for t in model.graph.initializer if len(t.dims) == 2 and min(t.dims) >= _MIN_INT8_WIDTH}
    dense = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights]
    names = {name for node in dense for name in (node.input[0], node.output[0])}
    # type inference stops at onnxruntime's own operators, so the quantiser is told what flows between them
    model.graph.value_info.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    with tempfile.TemporaryDirectory() as folder:
        typed = Path(folder) / "typed.onnx"
        onnx.save(model, typed)
        quantize_static(
            str(typed),
            str(target),
            _Batches(batches),
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[node.name for node in dense],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )


def _store_weights_fp16(model: Any) -> None:  # noqa: ANN401 - onnx ships no types for mypy
    graph = model.graph
    casts = []
    for tensor in graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.dtype == np.float32 and weight.size >= MIN_STORED_ELEMENTS:
            name, stored = tensor.name, f"{tensor.name}_fp16"
            tensor.CopyFrom(numpy_helper.from_array(weight.astype(np.float16), stored))
            casts.append(
                onnx.helper.make_node("Cast", [stored], [name], name=f"{name}_cast", to=onnx.TensorProto.FLOAT)
            )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _store_weights_int8(model: Any) -> None:  # noqa: ANN401 - onnx ships no types for mypy
    graph = model.graph
    axis_of = {
        name: 0 if node.op_type in _EMBEDDINGS or _is_transposed_gemm(node) else 1
        for node in graph.node
        for name in node.input
    }
    kept, restore = [], []
    for tensor in graph.initializer:
        weight, name = numpy_helper.to_array(tensor), tensor.name
        if weight.dtype != np.float32 or weight.ndim != 2 or weight.size < MIN_STORED_ELEMENTS:
            kept.append(tensor)
            continue
        axis = axis_of[name]
        factor = row_factors(weight) if axis == 1 else None
        stored, scale = quantize_channels(weight if factor is None else weight / factor, axis)
        inputs = [f"{name}_int8", f"{name}_scale", f"{name}_zero"]
        values = (stored, scale, np.zeros(len(scale), dtype=np.int8))
        kept.extend(numpy_helper.from_array(v, n) for v, n in zip(values, inputs, strict=True))
        channels = name if factor is None else f"{name}_channels"
        restore.append(
            onnx.helper.make_node("DequantizeLinear", inputs, [channels], name=f"{name}_dequantize", axis=axis)
        )
        if factor is not None:
            kept.append(numpy_helper.from_array(factor, f"{name}_rows"))
            restore.append(onnx.helper.make_node("Mul", [channels, f"{name}_rows"], [name], name=f"{name}_restore"))
    nodes = [*restore, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _is_transposed_gemm(node: Any) -> bool:  # noqa: ANN401 - onnx ships no types for mypy
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i == 1 for a in node.attribute)

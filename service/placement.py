"""Placement: which execution provider really ran a graph's matrix products, read from the profile of one batch.

onnxruntime gives a node to another provider without a word where the one asked for cannot run it. Node counts alone
would not show it: what counts is where the floating-point operations are, and in a BERT those are matrix products.
Every other operator counts as none.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Event = dict[str, Any]
Inputs = Mapping[str, NDArray[np.int64]]
CPU = "CPUExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
_MATRIX_PRODUCTS = (
    "MatMul",
    "FusedMatMul",
    "Gemm",
    "FusedGemm",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QGemm",
)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one batch ran.

    Args: nodes: by provider; a subgraph that a provider compiled is one node; flops: by provider, of matrix products;
        total: FLOPs of the whole graph on that batch.
    """

    nodes: dict[str, int]
    flops: dict[str, float]
    total: float

    def share(self, provider: str) -> float:
        """Give the share of the graph's FLOPs that ran on a provider; 1 for a graph without any."""
        return self.flops.get(provider, 0.0) / self.total if self.total else 1.0


def watch(options: ort.SessionOptions, folder: str) -> None:
    """Have a session that is opened with these options write a profile into a folder, until `placement` ends it."""
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "warm-up")


def placement(session: ort.InferenceSession, inputs: Inputs, graph: Path) -> Placement:
    """Run one batch on a watched session, end its profile, and tell where the batch ran.

    Args: graph: the session's file, run once more on the CPU where a provider has compiled subgraphs, since what is in
        them cannot be seen: they hold what no visible node ran.
    """
    events = _profile(session, inputs)
    compiled = any(event["args"]["provider"] == TENSORRT for event in events)
    return placement_of(events, graph_flops(graph, inputs) if compiled else None)


def placement_of(events: Iterable[Event], total: float | None = None) -> Placement:
    """Add the nodes of a profile up.

    Args: events: of the category Node; total: FLOPs of the graph, where nodes of TensorRT are compiled subgraphs.
    """
    nodes: Counter[str] = Counter()
    flops: defaultdict[str, float] = defaultdict(float)
    for event in events:
        provider = event["args"]["provider"]
        nodes[provider] += 1
        flops[provider] += _flops(event)
    seen = sum(flops.values())
    if total is None:
        return Placement(dict(nodes), dict(flops), seen)
    flops[TENSORRT] = max(0.0, total - (seen - flops[TENSORRT]))
    return Placement(dict(nodes), dict(flops), total)


def graph_flops(graph: Path, inputs: Inputs) -> float:
    """Give the FLOPs of a graph's matrix products on one batch, found by running it on the CPU."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory() as folder:
        watch(options, folder)
        session = ort.InferenceSession(str(graph), options, providers=[CPU])
        return placement_of(_profile(session, inputs)).total


def _profile(session: ort.InferenceSession, inputs: Inputs) -> list[Event]:
    session.run(["logits"], dict(inputs))
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def _flops(event: Event) -> float:
    """Give the FLOPs of a node; weights that were packed beforehand are missing among its inputs' shapes."""
    operator = event["args"]["op_name"]
    if operator not in _MATRIX_PRODUCTS and operator not in ("Attention", "MultiHeadAttention"):
        return 0.0
    first, output = (_first_shape(event["args"][key]) for key in ("input_type_shape", "output_type_shape"))
    if operator in _MATRIX_PRODUCTS:
        return 2.0 * math.prod(first) * output[-1]
    batch, length, width = output
    among_tokens = 4.0 * batch * length * length * width
    return among_tokens + (6.0 * math.prod(first) * width if operator == "Attention" else 0.0)


def _first_shape(tensors: list[dict[str, list[int]]]) -> list[int]:
    """Give the shape of the first of a node's tensors, each of which is {element type: shape}."""
    (shape,) = tensors[0].values()
    return shape

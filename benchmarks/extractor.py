"""What the latent reasoning extractor costs at inference: per-node profile time with it over without it.

Both graphs have the same encoder (MiniLM-L6 sizes, random weights) and head; the nodes after the encoder's last
normalisation are the tail. The ratio is (encoder + tail with extractor) / (encoder + tail without), both tails measured
against the encoder time of their own session, round by round.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.measure import bootstrap, machine
from export.onnx_graph import export_graph, fuse_graph
from relevance.labels import ESCI
from relevance.text import TextTemplate
from training.student.encoder import load_encoder
from training.student.model import Student, StudentConfig
from training.student_recipe import EncoderRecipe, ExtractorRecipe

VOCABULARY = 30522
LAYERS, WIDTH, HEADS = 6, 384, 12
BOUND = 1.02


def make_graph(kind: str, folder: Path) -> Path:
    """Write the fused fp32 graph of a student with random weights."""
    encoder = load_encoder(EncoderRecipe(name="scratch", layers=LAYERS, width=WIDTH, heads=HEADS), VOCABULARY)
    config = StudentConfig(
        encoder=encoder.config.to_dict(),
        extractor=ExtractorRecipe(kind=kind),
        pooling="cls",
        scheme=ESCI.to_dict(),
        template=TextTemplate(),
        max_query_tokens=64,
        max_pair_tokens=128,
    )
    plain, fused = folder / f"{kind}.plain.onnx", folder / f"{kind}.onnx"
    export_graph(Student(config, encoder).eval(), plain)
    fuse_graph(plain, fused, heads=HEADS, width=WIDTH)
    return fused


def profile(path: Path, inputs: dict[str, NDArray[np.int64]], folder: Path, runs: int) -> tuple[float, float]:
    """Run a graph some times; give (encoder, tail) node time in microseconds a run, the first run left out."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(runs + 1):
        session.run(["logits"], inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    per_run = len(nodes) // (runs + 1)
    nodes = nodes[per_run:]
    order = [node.name for node in onnx.load(path, load_external_data=False).graph.node]
    last = max(i for i, e in enumerate(nodes[:per_run]) if e["args"]["op_name"] == "SkipLayerNormalization")
    encoder = sum(e["dur"] for i, e in enumerate(nodes) if i % per_run <= last)
    total = sum(e["dur"] for e in nodes)
    if per_run > len(order):
        raise SystemExit(f"expected at most {len(order)} nodes a run, found {per_run}")
    return encoder / runs, (total - encoder) / runs


def main(argv: list[str]) -> int:
    """Measure and write results/extractor.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "extractor.json")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    rng = np.random.default_rng(0)
    shape = (arguments.pairs, arguments.tokens)
    inputs = {
        "input_ids": rng.integers(999, VOCABULARY, shape),
        "attention_mask": np.ones(shape, dtype=np.int64),
        "token_type_ids": (np.arange(arguments.tokens) >= 12).astype(np.int64)[None, :].repeat(arguments.pairs, 0),
    }
    kinds = ("none", "gat", "poly", "mlp")
    tails: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs = {kind: make_graph(kind, folder) for kind in kinds}
        for _ in tqdm(range(arguments.rounds), desc="rounds"):
            for kind in kinds:
                encoder, tail = profile(graphs[kind], inputs, folder, runs=2)
                tails[kind].append(tail / encoder)
    plain = np.array(tails["none"])
    ratios = {}
    for kind in kinds[1:]:
        ratio = (1 + np.array(tails[kind])) / (1 + plain)
        low, high = bootstrap(ratio)
        verdict = "met" if high <= BOUND else "missed" if low > BOUND else "undecided"
        ratios[kind] = {"median": float(np.median(ratio)), "low": low, "high": high, "bound": BOUND, "verdict": verdict}
    result = {"machine": machine(), "pairs": shape[0], "tokens": shape[1], "rounds": arguments.rounds, "ratios": ratios}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

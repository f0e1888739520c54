"""The GPU bench without a GPU: the same code on tiny models on the CPU, and what it says where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import KINDS, NOT_RUN, ORT, TENSORRT, TORCH, WAYS, main

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")


def test_a_quick_run_on_the_cpu_fills_every_row_that_can_run_here(tmp_path: Path, capsys):
    """Torch and onnxruntime agree, all of a graph runs where it should, TensorRT reads `not run`, `/score` answers."""
    out = tmp_path / "gpu.json"

    assert main(["--device", "cpu", "--quick", "--work", str(tmp_path), "--out", str(out)]) == 0

    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    shown = capsys.readouterr()
    assert json.loads(shown.out) == figures
    assert figures["rows"][TENSORRT] == NOT_RUN
    for way in (TORCH, ORT):
        for kind in KINDS:
            row = figures["rows"][way][kind]
            assert row["latency_ms_median"]["low"] <= row["latency_ms_median"]["value"]
            assert row["flops_share"] == 1.0
            assert row["max_abs_difference"] < 2e-2
            assert row["utilisation"] > 0
            assert ("over_bert_median" in row) == (kind != "none")
    assert figures["model_gflops"]["none"] < figures["model_gflops"]["gat"] < figures["model_gflops"]["mlp"]
    assert figures["score"]["cpu"]["latency_ms_p99"]["n"] == figures["requests"]
    lines = [line for line in shown.err.splitlines() if line.startswith("| BERT")]
    assert len(lines) == len(WAYS) * len(KINDS)
    assert sum(NOT_RUN in line for line in lines) == len(KINDS)
    manifest = json.loads(next(tmp_path.rglob("manifest.json")).read_text(encoding="utf-8"))
    assert {"fp32", "fp16", "unfused"} == set(manifest["graphs"])


@needs_no_gpu
def test_without_a_gpu_every_row_reads_not_run(tmp_path: Path, capsys):
    """Status 0 and a sentence; the report has the same rows as a measured one."""
    out = tmp_path / "gpu.json"

    assert main(["--out", str(out)]) == 0

    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert figures == {"rows": dict.fromkeys(WAYS, NOT_RUN), "score": dict.fromkeys(("cuda", "tensorrt"), NOT_RUN)}
    assert "expected a GPU that torch can use, found none" in capsys.readouterr().err


@needs_no_gpu
def test_without_a_gpu_results_that_were_measured_elsewhere_stay(tmp_path: Path):
    """A report that is there is not replaced by one of nothing."""
    out = tmp_path / "gpu.json"
    out.write_text("measured", encoding="utf-8")

    assert main(["--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == "measured"

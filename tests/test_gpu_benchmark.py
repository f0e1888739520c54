"""The GPU bench without a GPU: the same code on tiny models on the CPU, and what it says where there is none."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import onnxruntime as ort
import pytest
import torch

from benchmarks.gpu import (
    COLD,
    GPU_PROVIDERS,
    KINDS,
    NO_GPU,
    NOT_RUN,
    ORT,
    TENSORRT,
    TORCH,
    WARM,
    WAYS,
    attempt,
    main,
    measure_score,
    missed,
)
from benchmarks.gpu_models import QUICK, Device
from benchmarks.measure import figure

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which would be measured")


def test_a_quick_run_on_the_cpu_fills_every_row_that_can_run_here(tmp_path: Path, capsys):
    """Torch and onnxruntime agree, all of a graph runs where it should, TensorRT reads `not run`, `/score` answers."""
    out = tmp_path / "gpu.json"

    assert main(["--device", "cpu", "--quick", "--work", str(tmp_path), "--out", str(out)]) == 0

    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    shown = capsys.readouterr()
    assert json.loads(shown.out) == figures
    reason = f"{NOT_RUN}: provider 'tensorrt': expected a GPU, found that none is asked for"
    assert figures["rows"][TENSORRT] == dict.fromkeys(KINDS, reason)
    assert shown.err.count(reason) == 1
    for way in (TORCH, ORT):
        for kind in KINDS:
            row = figures["rows"][way][kind]
            assert row["latency_ms_median"]["low"] <= row["latency_ms_median"]["value"]
            assert row["flops_share"] == 1.0
            assert row["max_abs_difference"] < 2e-2
            assert row["utilisation"] > 0
            assert ("over_bert_median" in row) == (kind != "none")
    assert figures["model_gflops"]["none"] < figures["model_gflops"]["gat"] < figures["model_gflops"]["mlp"]
    for titles, entries in ((COLD, 0), (WARM, 50_000)):
        score = figures["score"]["cpu"][titles]
        assert (score["latency_ms_p99"]["n"], score["server"]["item_cache_entries"]) == (figures["requests"], entries)
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
    assert figures["rows"] == {way: dict.fromkeys(KINDS, NO_GPU) for way in WAYS}
    assert figures["score"] == {provider: dict.fromkeys((COLD, WARM), NO_GPU) for provider in GPU_PROVIDERS}
    assert "expected a GPU that torch can use, found none" in capsys.readouterr().err


@needs_no_gpu
def test_without_a_gpu_results_that_were_measured_elsewhere_stay(tmp_path: Path):
    """A report that is there is not replaced by one of nothing."""
    out = tmp_path / "gpu.json"
    out.write_text("measured", encoding="utf-8")

    assert main(["--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == "measured"


def test_a_file_that_onnxruntime_refuses_is_a_row_that_was_not_run(tmp_path: Path, capsys):
    """Its errors have no root of their own; the reason is one line."""
    graph = tmp_path / "broken.onnx"
    graph.write_bytes(b"no graph")

    reason = attempt("BERT", lambda: ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"]))

    assert isinstance(reason, str)
    assert reason.startswith(f"{NOT_RUN}: ")
    assert "broken.onnx" in reason
    assert capsys.readouterr().err == f"BERT: {reason}\n"


def test_a_server_that_does_not_start_is_a_row_that_was_not_run(tmp_path: Path):
    """Its own line says why."""
    arguments = Namespace(bundle=tmp_path / "nowhere", data=None, work=tmp_path, requests=1, quick=True)

    reason = attempt("/score", lambda: measure_score(arguments, Device("cpu"), QUICK, "cpu", COLD))

    assert isinstance(reason, str)
    assert reason.startswith(f"{NOT_RUN}: the service did not start: ")


def test_a_fault_of_the_program_is_no_row():
    """Only what a machine or a file can do wrong is."""
    with pytest.raises(KeyError):
        attempt("BERT", lambda: {}["none"])


def test_one_missed_bound_among_the_figures_is_found():
    """However deep it lies; one that is met or undecided is none."""
    met, undecided, late = (asdict(figure(ms, at_most=5.0)) for ms in ([4.0, 5.0], [4.0, 6.0], [6.0, 7.0]))

    assert not missed({"rows": {TORCH: {"gat": met, "mlp": undecided, "none": NOT_RUN}}, "rounds": 3})
    assert missed({"rows": {TORCH: {"gat": met}}, "score": {"cuda": {COLD: {"latency_ms_p99": late}}}})

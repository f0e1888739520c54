"""The gpu target without a container engine and without a GPU: its build replayed on the base of the cpu target.

It downloads a wheel of 255 MB and takes a minute, so it runs only where RELEVANCE_REPLAY_GPU is set, as `make
check-gpu-image` does. Not covered, because the CUDA base cannot be had here: Ubuntu's Python and its apt-get line,
cuBLAS and cuDNN, a session on a device.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from image_replay import ROOT, Replay, enter, needs_namespaces, read_stages


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> Iterator[Path]:
    """The root folder of the stage gpu-build on another base; gone at the end, for it is large."""
    if not os.environ.get("RELEVANCE_REPLAY_GPU"):
        pytest.skip("RELEVANCE_REPLAY_GPU is not set: a download of 255 MB")
    stages = read_stages(ROOT / "Dockerfile")
    folder = tmp_path_factory.mktemp("gpu")
    yield Replay(folder, stages | {"gpu-build": replace(stages["gpu-build"], base="cpu-base")}).build("gpu-build")
    shutil.rmtree(folder)


@needs_namespaces
def test_the_gpu_build_installs_one_onnxruntime_and_verifies_the_default_bundle(build: Path):
    """Its RUN lines end well: the pinned extra, pip check, no torch, the golden pairs replayed (on the CPU)."""
    packages = {path.name.split("-")[0] for path in build.glob("opt/relevance/lib/python*/site-packages/*.dist-info")}

    assert {name for name in packages if name.startswith("onnxruntime")} == {"onnxruntime_gpu"}
    assert "torch" not in packages


@needs_namespaces
def test_a_session_that_would_fall_back_to_the_cpu_is_refused(build: Path):
    """The build knows CUDA, the machine has neither device nor libraries: the command names both and ends with 2."""
    command = ["/opt/relevance/bin/relevance", "serve", "--bundle", "/opt/relevance/default_bundle"]
    command = enter(build, [*command, "--provider", "cuda", "--precision", "int8w"], mounts=[])
    if Path("/dev/nvidiactl").exists():
        pytest.skip("needs a machine without a GPU")

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 2, done.stdout + done.stderr
    assert "expected a session on CUDAExecutionProvider, found ['CPUExecutionProvider']" in done.stderr

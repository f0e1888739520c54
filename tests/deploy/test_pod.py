"""The pod of the CPU overlay, lived through here: init container, settings, probes, kill switch, hook, end; and Redis.

Commands and settings are those that `kubectl kustomize` renders; folders, ports and the hook's wait are replaced.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from rendering import ROOT, of_kind, pod_specs, server_pods, settings_of

from service.settings import DEFAULT_BUNDLE

ENTRY = "overlays/cpu"
RUNBOOK = ROOT / "docs" / "runbook.md"
KEY = "a-key-for-this-test-only"
PATIENCE_S = 60
BODY = {"query": "trail running shoes", "items": [{"id": 1, "title": "trail running shoes for women"}]}


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    ports = [free.getsockname()[1] for free in sockets]
    for free in sockets:
        free.close()
    return ports


class Pod:
    """The rendered pod with this machine's folders and free ports in its settings.

    Args: folder: stands for the pod's volumes; bundle_id: ordered instead of the manifest's.
    """

    def __init__(self, folder: Path, bundle_id: str | None = None) -> None:
        [(_, _, spec)] = server_pods(ENTRY)
        [self.server] = spec["containers"]
        self.init = spec["initContainers"][0]
        (folder / "keys").write_text(KEY + "\n")
        self._places = {
            "/opt/relevance/default_bundle": str(DEFAULT_BUNDLE),
            "/bundles": str(folder / "bundles"),
            "/etc/relevance": str(folder),
        }
        given = {name: self._here(value) for name, value in settings_of(ENTRY, self.server).items()}
        self.ports = dict(zip(("http", "admin"), _free_ports(2), strict=True))
        given |= {"RELEVANCE_PORT": str(self.ports["http"]), "RELEVANCE_ADMIN_PORT": str(self.ports["admin"])}
        given |= {"RELEVANCE_HOST": "127.0.0.1"}
        if bundle_id is not None:
            given["RELEVANCE_BUNDLE_ID"] = bundle_id
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)} | given

    def _here(self, text: str) -> str:
        for place, here in self._places.items():
            text = re.sub(f"^{place}(?=/|$)", here, text)
        return text

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a command of the pod: `$(NAME)` is filled in as the kubelet does, `relevance` is this checkout's."""
        filled = [re.sub(r"\$\((\w+)\)", lambda found: self.environment[found[1]], self._here(word)) for word in words]
        return subprocess.Popen(
            [sys.executable, "-m", "relevance.cli", *filled],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, words: list[str]) -> tuple[int, str]:
        """Run a command of the pod to its end; gives its status and what it wrote."""
        process = self.start(words)
        output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    def turn_kill_switch(self, mode: str) -> dict:
        """Run the line of Python that the runbook has run in each pod; gives the answer."""
        [line] = re.findall(r"-- python -c '(.+)'$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
        assert line.count('"passthrough"') == 1
        command = [sys.executable, "-c", line.replace("passthrough", mode)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def probe(self, name: str) -> int:
        """Do what the kubelet does for a probe; gives the status, 0 when nothing answers."""
        get = self.server[name]["httpGet"]
        try:
            return httpx.get(f"http://127.0.0.1:{self.ports[get['port']]}{get['path']}", timeout=5).status_code
        except httpx.TransportError:
            return 0


@contextmanager
def _running(pod: Pod):
    process = pod.start(pod.server["args"])
    try:
        give_up = time.monotonic() + PATIENCE_S
        while pod.probe("readinessProbe") != 200:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < give_up
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_rendered_pod_starts_answers_drains_and_ends(tmp_path):
    """Init container, probes, score with a key, scrape, kill switch; hook: readiness goes, liveness stays; SIGTERM."""
    pod = Pod(tmp_path)
    assert pod.run(pod.init["args"]) == (0, pod.environment["RELEVANCE_BUNDLE_ID"] + "\n")

    with _running(pod) as process:
        assert [pod.probe(name) for name in ("startupProbe", "livenessProbe")] == [200, 200]
        http, admin = (f"http://127.0.0.1:{pod.ports[name]}" for name in ("http", "admin"))
        headers = {"Authorization": f"Bearer {KEY}"}
        assert httpx.post(f"{http}/score", json=BODY, timeout=PATIENCE_S).status_code == 401
        answer = httpx.post(f"{http}/score", json=BODY, headers=headers, timeout=PATIENCE_S)
        assert answer.json()["counts"]["scored"] == 1
        [monitor] = of_kind(ENTRY, "ServiceMonitor")
        scraped = monitor["spec"]["endpoints"][0]["path"]
        assert "relevance_estimated_wait_seconds" in httpx.get(admin + scraped).text
        assert httpx.get(http + scraped).status_code == 404

        for mode in ("passthrough", "score"):
            assert pod.turn_kill_switch(mode) == {"mode": mode}
            answer = httpx.post(f"{http}/score", json=BODY, headers=headers, timeout=PATIENCE_S)
            assert answer.json()["counts"]["scored"] == (mode == "score")

        hook = pod.server["lifecycle"]["preStop"]["exec"]["command"]
        assert pod.run([*hook[1:-1], "0.1"]) == (0, "")
        assert [pod.probe(name) for name in ("readinessProbe", "livenessProbe")] == [503, 200]
        process.terminate()
        output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output


def test_a_pod_with_another_bundle_than_the_one_ordered_stays_in_its_init_container(tmp_path):
    """The id in the settings is not that of the bundle at hand: status 2, both ids named, no store to serve from."""
    pod = Pod(tmp_path, bundle_id="0" * 16)

    status, output = pod.run(pod.init["args"])

    assert status == 2
    assert f"expected bundle {'0' * 16}, found" in output
    assert not (tmp_path / "bundles" / "current").exists()


def test_a_service_given_another_bundle_than_the_one_ordered_does_not_start(tmp_path):
    """The second look at the id, should the volume hold something else: status 2."""
    pod = Pod(tmp_path)
    assert pod.run(pod.init["args"])[0] == 0
    pod.environment["RELEVANCE_BUNDLE_ID"] = "0" * 16

    status, output = pod.run(pod.server["args"])

    assert status == 2
    assert "0" * 16 in output


def test_redis_starts_with_the_manifest_s_arguments(tmp_path):
    """A real one: a password is needed, keys are evicted at the bound, nothing is written to disk."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian: redis-server)")
    [(_, _, spec)] = [pod for pod in pod_specs("examples/redis") if pod[0] == "relevance-redis"]
    [container] = spec["containers"]
    [port] = _free_ports(1)
    words = [KEY if word == "$(REDIS_PASSWORD)" else word for word in container["args"]]
    words[words.index("--port") + 1] = str(port)
    assert container["command"] == ["redis-server"]

    process = subprocess.Popen([program, *words], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        with Redis(port=port, password=KEY, decode_responses=True) as client:
            give_up = time.monotonic() + PATIENCE_S
            while not _answers(client):
                assert process.poll() is None
                assert time.monotonic() < give_up
                time.sleep(0.02)
            found = client.config_get("maxmemory*", "save", "appendonly", "requirepass")
    finally:
        process.kill()
        process.wait()
    assert found["maxmemory-policy"] == "allkeys-lru"
    assert int(found["maxmemory"]) == 768 * 1024**2
    assert (found["save"], found["appendonly"], found["requirepass"]) == ("", "no", KEY)
    assert list(tmp_path.iterdir()) == []


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False

"""The wheel with the `service` extra alone, in a fresh environment, away from the source tree."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    """Run a command to its end; a failure shows what it printed."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(source, folder):
    """Give the wheel of a distribution, built from the checkout."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The project's wheel."""
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of a fresh environment that holds the wheel with its `service` extra."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    run(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, f"{wheel}[service]")
    return python


def test_the_wheel_holds_our_four_packages_and_nothing_else(wheel):
    """Tests, benchmarks and documents stay out; the embedded bundle and the playground are in."""
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}

    assert top == {"relevance", "service", "training", "export"}
    assert {"service/default_bundle/manifest.json", "service/playground/index.html"} <= set(names)


def test_the_client_is_a_wheel_of_its_own(tmp_path):
    """One typed package with its licence, and the four things that it needs."""
    with zipfile.ZipFile(build(ROOT / "clients" / "python", tmp_path)) as client:
        names = client.namelist()
        (about,) = (client.read(name).decode() for name in names if name.endswith(".dist-info/METADATA"))

    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"relevance_tiers_client"}
    assert "relevance_tiers_client/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    needed = [line for line in about.splitlines() if line.startswith("Requires-Dist: ")]
    assert [line.split(" ")[1].split(">")[0] for line in needed] == [
        "httpx",
        "pydantic",
        "tenacity",
        "typing-extensions",
    ]


def test_serving_needs_neither_torch_nor_transformers(python, tmp_path):
    """The modules are not even installed, and the service's own modules import without them."""
    code = "import importlib.util as u, service.app; print([m for m in ('torch', 'transformers') if u.find_spec(m)])"

    assert run(python, "-c", code, cwd=tmp_path).strip() == "[]"


def test_the_embedded_bundle_verifies_and_serves_from_the_wheel(python, tmp_path):
    """`relevance verify` and `relevance serve` work from the installed wheel alone, and /score gives tiers."""
    bundle = run(python, "-c", "import service, pathlib; print(pathlib.Path(service.__file__).parent)", cwd=tmp_path)
    run(python, "-m", "relevance.cli", "verify", Path(bundle.strip()) / "default_bundle", cwd=tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [python, "-m", "relevance.cli", "serve", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RELEVANCE_")}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        wait_until_ready(server, port)
        body = {"query": "trail running shoes", "items": [{"id": 1, "title": "trail running shoes for women"}]}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/score", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            answer = json.load(response)
    finally:
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=30)

    assert answer["counts"]["scored"] == 1
    assert server.returncode == 0, log


def wait_until_ready(server, port):
    """Ask /readyz until it answers 200; the server's own log is shown if it never does."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1) as response:
                if response.status == 200:
                    return
        except OSError:
            if server.poll() is not None:
                break
        try:
            server.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    server.kill()
    pytest.fail(f"the service did not become ready: {server.communicate()[1][-3000:]}")


def test_a_missing_extra_is_named_with_the_command_that_installs_it(python, tmp_path):
    """A training stage in a service environment says what to install instead of showing a traceback."""
    done = subprocess.run(
        [python, "-m", "relevance.cli", "student"], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert done.returncode == 2
    assert "pip install 'relevance-tiers[training]'" in done.stderr

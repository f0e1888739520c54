"""The pre-stop hook: whom it asks, with which key, what it answers, and how little it loads."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread, Timer
from time import perf_counter

import pytest

from relevance.errors import InputError
from service.drain import main

KEY = "spring-catalogue-key"


class Stand(ThreadingHTTPServer):
    """Answers each POST with the next of its statuses and notes who came."""

    def __init__(self, *statuses: int, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.statuses = list(statuses)
        self.asked: list[tuple[str, str | None]] = []
        self.thread = Thread(target=self.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    def stop(self) -> None:
        """Close the port."""
        self.shutdown()
        self.server_close()
        self.thread.join()


class Handler(BaseHTTPRequestHandler):
    """One request to the stand."""

    server: Stand

    def do_POST(self) -> None:
        """Answer with problem details."""
        self.server.asked.append((self.path, self.headers["authorization"]))
        body = json.dumps({"detail": "expected a caller on the loopback interface"}).encode()
        self.send_response(self.server.statuses.pop(0))
        self.send_header("content-length", str(len(body)))
        self.send_header("location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    """Take no setting from the machine."""
    for name in ("RELEVANCE_PORT", "RELEVANCE_ADMIN_PORT", "RELEVANCE_API_KEYS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def stand() -> Iterator[Stand]:
    """A service that agrees once."""
    made = Stand(200)
    yield made
    made.stop()


@pytest.fixture
def key_file(tmp_path):
    """Two active keys, the new one first."""
    path = tmp_path / "keys"
    path.write_text(f"# rotated in May\n\n{KEY}\nwinter-catalogue-key\n", encoding="utf-8")
    return path


def refusing(status):
    """Run against a service that answers with a status; gives the exit status and what was asked."""
    made = Stand(status)
    try:
        return main(["--wait", "0", "--url", made.url]), made.asked
    finally:
        made.stop()


def test_it_asks_once_then_waits_then_succeeds(stand):
    """The wait is what gives load balancers time, so it follows the answer."""
    began = perf_counter()
    status = main(["--wait", "0.3", "--url", stand.url + "/"])

    assert status == 0
    assert perf_counter() - began >= 0.3
    assert stand.asked == [("/admin/drain", None)]


def test_the_first_key_of_the_file_is_sent(stand, key_file):
    """Comments and empty lines are no keys."""
    assert main(["--wait", "0", "--url", stand.url, "--api-keys", str(key_file)]) == 0
    assert stand.asked == [("/admin/drain", f"Bearer {KEY}")]


def test_it_finds_the_service_by_the_variables_of_the_container(stand, key_file, monkeypatch):
    """The admin port goes before the port, and a proxy is never asked."""
    monkeypatch.setenv("RELEVANCE_PORT", "1")
    monkeypatch.setenv("RELEVANCE_ADMIN_PORT", str(stand.server_port))
    monkeypatch.setenv("RELEVANCE_API_KEYS", str(key_file))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    assert main(["--wait", "0"]) == 0
    assert stand.asked == [("/admin/drain", f"Bearer {KEY}")]


@pytest.mark.parametrize("status", [302, 401, 403, 404, 503])
def test_any_other_answer_fails_with_one_line(status, capsys):
    """The line holds the status and the service's own words; no redirect is followed."""
    assert refusing(status) == (1, [("/admin/drain", None)])

    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"expected 200, found {status}: expected a caller on the loopback interface" in told


def test_a_service_that_begins_to_listen_is_waited_for():
    """Its port refuses at first; a later try reaches it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made: list[Stand] = []
    late = Timer(0.3, lambda: made.append(Stand(200, port=port)))
    late.start()
    status = main(["--wait", "0", "--url", f"http://127.0.0.1:{port}"])
    late.join()
    made[0].stop()

    assert status == 0


def test_without_a_service_it_fails_with_one_line(capsys):
    """Nothing listens on the port of a socket that is bound only."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        status = main(["--wait", "600", "--url", f"http://127.0.0.1:{bound.getsockname()[1]}"])

    assert status == 1
    assert capsys.readouterr().err.endswith("expected a service that listens, found connection refused 5 times\n")


def test_what_is_no_http_answer_fails_with_one_line(capsys):
    """Something else listens on the port."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            connection, _ = other.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"welcome\r\n")

        thread = Thread(target=answer)
        thread.start()
        status = main(["--wait", "0", "--url", f"http://127.0.0.1:{other.getsockname()[1]}"])
        thread.join()

    assert status == 1
    assert "expected an answer, found" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--url", "ftp://127.0.0.1:8000"),
        ("--url", "127.0.0.1:8000"),
        ("--url", "http://127.0.0.1:port"),
        ("--url", "http://127.0.0.1:8000/score"),
        ("--wait", "-1"),
        ("--wait", "nan"),
        ("--wait", "inf"),
        ("--api-keys", "/nowhere/keys"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_asked(option, value):
    """The message names the option or the file."""
    with pytest.raises(InputError, match=f"^{option.replace('--api-keys', '/nowhere/keys')}: expected"):
        main([option, value])


@pytest.mark.parametrize("content", [b"", b"# none yet\n", "clé-du-catalogue\n".encode(), b"\xff\xfe"])
def test_a_file_without_a_key_is_refused_without_showing_it(tmp_path, content):
    """Its text may be a key in another encoding."""
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(InputError) as refused:
        main(["--api-keys", str(path)])

    assert str(refused.value).startswith(f"{path}: expected")
    assert "catalogue" not in str(refused.value)


def test_it_loads_nothing_heavy(stand):
    """It runs on the cores of a busy service: seen from a fresh interpreter, by way of the `relevance` command."""
    heavy = {"numpy", "pydantic", "pydantic_core", "tokenizers", "onnxruntime", "fastapi", "uvicorn"}
    script = (
        "import sys; from relevance.cli import main\n"
        f"status = main(['drain', '--wait', '0', '--url', {stand.url!r}])\n"
        f"print(status, sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "0 []"


def test_a_drained_service_is_unready_and_still_answers(launch):
    """What the hook is for."""
    server = launch()
    address = str(server.client.base_url).rstrip("/")
    command = [sys.executable, "-m", "relevance.cli", "drain", "--wait", "0", "--url", address]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    body = {"query": "rain jacket", "items": [{"id": 1, "title": "light rain jacket with hood"}]}

    assert (done.returncode, done.stderr) == (0, "")
    assert server.client.get("/readyz").status_code == 503
    assert server.client.post("/score", json=body).json()["counts"]["scored"] == 1

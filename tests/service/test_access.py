"""Who is let in, through which port, with which body: keys, the admin port, callers from elsewhere, gzip, headers."""

from __future__ import annotations

import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

OLD, NEW, NEXT = "spring-key-0123456789", "summer-key-0123456789", "autumn-key-0123456789"
PATIENCE_S = 30
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory) -> Path:
    """A file of two active keys."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(f"# rotated in May\n{OLD}\n{NEW}\n")
    return path


@pytest.fixture(scope="module")
def locked(launch_shared, key_file: Path):
    """A server that asks for a key."""
    return launch_shared(api_keys=str(key_file))


@pytest.fixture(scope="module")
def open_to_all(launch_shared):
    """A server without keys that listens on every interface; its environment tells uvicorn to believe every proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FORWARDED_ALLOW_IPS", "*")
        return launch_shared(host="0.0.0.0", max_body_bytes="1000000")  # noqa: S104 - what is tested


@pytest.fixture(scope="module")
def from_elsewhere(open_to_all) -> Callable[..., httpx.Response]:
    """Ask it from this machine's own address, which is not the loopback interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            address = probe.getsockname()[0]
        except OSError:
            address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("this machine has the loopback interface only")

    def ask(method: str, path: str, **options) -> httpx.Response:
        return httpx.request(method, f"http://{address}:{open_to_all.port}{path}", timeout=PATIENCE_S, **options)

    return ask


def statuses(client: httpx.Client, *keys: str, body: dict) -> list[int]:
    """Give the status of a request with each key."""
    return [client.post("/score", json=body, headers={"authorization": f"Bearer {key}"}).status_code for key in keys]


def test_without_a_key_only_probes_and_scrapers_are_answered(locked, fresh_body):
    """A 401 says how to ask; it is the same for a path that does not exist."""
    asked = [("POST", "/score"), ("GET", "/info"), ("POST", "/admin/drain"), ("GET", "/docs"), ("GET", "/nothing-here")]
    refused = [locked.client.request(method, path, json=fresh_body()) for method, path in asked]
    opened = [locked.client.get(path).status_code for path in ("/livez", "/readyz", "/startupz", "/metrics")]

    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(401, "unauthorised")}
    assert {answer.headers["www-authenticate"] for answer in refused} == {"Bearer"}
    assert opened == [200] * 4


def test_two_keys_are_active_and_the_file_is_read_again(locked, key_file: Path, fresh_body):
    """Old and new are both let in; once the file holds the next one instead of the old, so does the server."""
    body = fresh_body()
    before = statuses(locked.client, OLD, NEW, NEXT, body=body)
    key_file.write_text(f"{NEW}\n{NEXT}\n")
    give_up = time.monotonic() + PATIENCE_S
    while statuses(locked.client, NEXT, body=body) != [200]:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    after = statuses(locked.client, OLD, NEW, NEXT, body=body)

    assert (before, after) == ([200, 200, 401], [401, 200, 200])
    assert locked.client.get("/info", headers={"x-api-key": NEXT}).status_code == 200
    written = "\n".join(locked.lines())
    assert [key for key in (OLD, NEW, NEXT) if key in written] == []


def test_the_admin_port_alone_has_metrics_and_administration(launch):
    """Scoring and self-description stay where they were; health and /info are on both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = launch(admin_port=str(port), drain_s="0")
    asked = [("GET", p) for p in ("/metrics", "/admin/shadow", "/livez", "/readyz", "/info", "/docs", "/openapi.json")]
    asked += [("POST", "/admin/mode"), ("POST", "/score")]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as admin:
        found = {path: [c.request(m, path, json={}).status_code for c in (server.client, admin)] for m, path in asked}
        drained = admin.post("/admin/drain").json()

    assert found == {
        "/metrics": [404, 200],
        "/admin/shadow": [404, 404],
        "/admin/mode": [404, 422],
        "/score": [422, 404],
        "/docs": [200, 404],
        "/openapi.json": [200, 404],
        "/livez": [200, 200],
        "/readyz": [200, 200],
        "/info": [200, 200],
    }
    assert drained == {"phase": "draining"}
    assert server.terminate() == 0


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_compressed_body_is_read(open_to_all, fresh_body, coding: str, compress):
    """As the client says in its header."""
    content = compress(json.dumps(fresh_body(200)).encode())

    answer = open_to_all.client.post("/score", content=content, headers=JSON | {"content-encoding": coding})

    assert answer.json()["counts"]["scored"] == 200


def test_a_gzip_bomb_is_a_413(open_to_all):
    """100 kB that would be 100 MB: refused at the limit, and the server goes on."""
    bomb = gzip.compress(b" " * 100_000_000)

    answer = open_to_all.client.post("/score", content=bomb, headers=JSON | {"content-encoding": "gzip"})

    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "at most 1000000 bytes" in answer.json()["detail"]
    assert open_to_all.client.get("/livez").status_code == 200


@pytest.mark.parametrize("headers", [{}, {"x-forwarded-for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/admin/drain"), ("POST", "/admin/reload"), ("POST", "/admin/mode"), ("GET", "/admin/shadow")],
)
def test_without_keys_administration_is_for_this_machine_only(from_elsewhere, method: str, path: str, headers):
    """Whatever a caller says of himself is not believed; scoring is open to him."""
    refused = from_elsewhere(method, path, headers=headers, json={"mode": "passthrough"})

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    assert from_elsewhere("GET", "/info").json()["mode"] == "score"
    assert from_elsewhere("GET", "/readyz").status_code == 200


def test_a_proxy_on_this_machine_does_not_lend_its_address(open_to_all):
    """It says for whom it asks: someone elsewhere, whatever he had put there himself."""
    for chain in ("203.0.113.9", "127.0.0.1, 203.0.113.9"):
        answer = open_to_all.client.post("/admin/drain", headers={"x-forwarded-for": chain})

        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


def test_every_answer_has_sane_headers_and_none_for_other_origins(open_to_all, fresh_body):
    """Sound, refused and unknown alike; a preflight gets no permission."""
    origin = {"origin": "https://shop.example", "access-control-request-method": "POST"}
    answers = [
        open_to_all.client.request(method, path, json=fresh_body(), headers=origin)
        for method, path in [("POST", "/score"), ("GET", "/score"), ("OPTIONS", "/score"), ("GET", "/nothing-here")]
    ]

    assert [answer.status_code for answer in answers] == [200, 405, 405, 404]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert [name for name in answer.headers if name.startswith("access-control-")] == []

"""The request boundary over real sockets: who is let in where, which headers go out, what is logged, who has gone."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from relevance.errors import ClientGoneError, RelevanceError
from service import bodies
from service.api_keys import ApiKeys
from service.middleware import RequestBoundary
from service.problems import on_error
from service.telemetry import Telemetry

TIMEOUT_S = 20
KEY = "an-invented-key-0123456789"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
MAX_BYTES = 10_000


def _app(telemetry: Telemetry, **options) -> FastAPI:
    """An app of one scoring, one self-describing, one breaking and a few small routes, behind the boundary."""
    app = FastAPI(openapi_url=None)

    @app.post("/score")
    async def score(request: Request) -> Response:
        """Give the length of the body and what the boundary has found out."""
        body = await bodies.read_json_body(request, max_bytes=MAX_BYTES)
        request.state.n_items = 3
        request.state.log = {"items": 3}
        request.state.server_timing = {"queue": 1.25, "infer": 12.0}
        state = request.state
        found = {"bytes": len(body), "trace_id": state.trace_id, "deadline_ms": state.deadline_ms}
        return Response(json.dumps(found), media_type="application/json")

    @app.get("/info")
    async def info() -> Response:
        """Be cachable."""
        return Response("{}", headers={"Cache-Control": "max-age=60"})

    @app.get("/docs")
    async def docs(request: Request) -> Response:
        """Wait until the client goes, then say so as the scoring route does."""
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        raise ClientGoneError("expected a client, found it gone")

    @app.get("/openapi.json")
    async def broken() -> Response:
        """Break."""
        raise KeyError("a title that must not get out")

    @app.post("/admin/drain")
    @app.get("/metrics")
    @app.get("/livez")
    @app.get("/readyz")
    @app.get("/startupz")
    async def fine() -> Response:
        """Be fine."""
        return Response("fine")

    for kind in (RelevanceError, HTTPException):
        app.add_exception_handler(kind, on_error)
    app.add_middleware(RequestBoundary, telemetry=telemetry, **options)
    return app


@contextmanager
def _listening(app: FastAPI, listener: socket.socket) -> Iterator[None]:
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    _until(lambda: server.started)
    yield
    server.should_exit = True
    thread.join(TIMEOUT_S)


def _until(condition) -> None:
    give_up = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < give_up, "waited for in vain"
        time.sleep(0.005)


def _bound() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    return listener


@dataclass
class Edge:
    """A running boundary: clients of its ports, its port, its telemetry and the log records of requests."""

    client: httpx.Client
    admin: httpx.Client
    port: int
    telemetry: Telemetry
    caplog: pytest.LogCaptureFixture

    def request(self) -> dict:
        """Give the fields of the last request line, once there is one: it is written after the response is sent."""
        lines: list[dict] = []
        _until(lambda: lines.extend(r.fields for r in list(self.caplog.records) if r.message == "request") or lines)
        return lines[-1]

    def post(self, content: bytes = b"{}", **headers: str) -> httpx.Response:
        """Send a body to /score."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/score", content=content, headers={"content-type": "application/json"} | named)

    def connect(self) -> socket.socket:
        """Give a bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_S)


@pytest.fixture
def start(caplog):
    """Start boundaries with options of their own; `admin_port=True` opens a second port."""
    caplog.set_level(logging.DEBUG, "relevance.service")
    with ExitStack() as stack:

        def run(*, admin_port: bool = False, **options) -> Edge:
            telemetry = Telemetry()
            listeners = [_bound() for _ in range(1 + admin_port)]
            ports = [listener.getsockname()[1] for listener in listeners]
            app = _app(telemetry, admin_port=ports[1] if admin_port else None, **options)
            for listener in listeners:
                stack.enter_context(listener)
                stack.enter_context(_listening(app, listener))
            clients = [
                stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S))
                for port in ports
            ]
            return Edge(clients[0], clients[-1], ports[0], telemetry, caplog)

        yield run


@pytest.fixture
def edge(start) -> Edge:
    """A boundary without keys and with one port."""
    return start()


@pytest.fixture
def locked(start, tmp_path) -> Edge:
    """A boundary that wants a key."""
    (tmp_path / "keys").write_text(KEY)
    return start(keys=ApiKeys(tmp_path / "keys"))


def _count(edge: Edge, route: str, code: str, outcome: str) -> float:
    labels = {"route": route, "code": code, "outcome": outcome}
    return edge.telemetry.registry.get_sample_value("relevance_requests_total", labels) or 0.0


def test_every_answer_carries_the_plain_headers_and_no_server_name(edge):
    """Good, refused, not found and broken ones alike."""
    answers = [
        edge.post(),
        edge.post(content_type="text/plain"),
        edge.client.get("/no"),
        edge.client.get("/openapi.json"),
    ]

    assert [answer.status_code for answer in answers] == [200, 415, 404, 500]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
        assert "server" not in answer.headers


def test_a_route_may_say_itself_how_long_it_is_cached(edge):
    """There is one Cache-Control then, the route's."""
    assert edge.client.get("/info").headers.get_list("cache-control") == ["max-age=60"]


def test_a_preflight_gets_no_cross_origin_headers(edge):
    """CORS is off: a browser of another origin learns nothing."""
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    answers = [edge.client.options("/score", headers=asked), edge.post(origin="https://shop.example")]

    assert [answer.status_code for answer in answers] == [405, 200]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control")]


def test_server_timing_tells_the_stages(edge):
    """As the route left them."""
    assert edge.post().headers["server-timing"] == "queue;dur=1.25, infer;dur=12"
    assert "server-timing" not in edge.client.get("/livez").headers


def test_one_line_a_request_with_ids_outcome_and_the_fields_of_the_route(edge):
    """And nothing of the body."""
    edge.post(b'{"query":"steel kettle"}', x_request_id="cart-7", traceparent=TRACEPARENT)

    line = edge.request()
    assert line.pop("ms") > 0
    assert line == {
        **{"request_id": "cart-7", "trace_id": TRACE, "method": "POST", "route": "/score"},
        **{"status": 200, "outcome": "ok", "items": 3},
    }
    assert "kettle" not in edge.caplog.text


INVALID_TRACEPARENTS = {
    "upper case": TRACEPARENT.upper(),
    "no trace": TRACEPARENT.replace(TRACE, "0" * 32),
    "no parent": TRACEPARENT.replace("b7ad6b7169203331", "0" * 16),
    "version ff": f"ff{TRACEPARENT[2:]}",
    "version 00 with more": f"{TRACEPARENT}-00",
    "one digit short": TRACEPARENT[:-1],
    "a later version, run on": f"01{TRACEPARENT[2:]}00",
    "blank in front": f"00 {TRACEPARENT}",
    "empty": "",
}


@pytest.mark.parametrize("name", INVALID_TRACEPARENTS)
def test_an_invalid_traceparent_is_ignored(edge, name: str):
    """The request is answered, without a trace id."""
    answer = edge.post(traceparent=INVALID_TRACEPARENTS[name])

    assert answer.json()["trace_id"] is None
    assert "trace_id" not in edge.request()


@pytest.mark.parametrize("later", [f"01{TRACEPARENT[2:]}", f"cc{TRACEPARENT[2:]}-what-comes-later"])
def test_a_traceparent_of_a_later_version_is_read_as_far_as_it_is_known(edge, later: str):
    """As the W3C text asks of parsers."""
    assert edge.post(traceparent=later).json()["trace_id"] == TRACE


def test_two_traceparents_are_none(edge):
    """Which one to believe is not known."""
    two = [("content-type", "application/json"), ("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)]

    assert edge.client.post("/score", content=b"{}", headers=two).json()["trace_id"] is None


def test_a_deadline_header_reaches_the_route(edge):
    """None without it."""
    assert edge.post(x_request_deadline_ms="80").json()["deadline_ms"] == 80
    assert edge.post().json()["deadline_ms"] is None


@pytest.mark.parametrize("value", ["0", "-5", "80ms", "1.5", "", "1e3", "600001", "9" * 400, "80, 90"])
def test_a_malformed_deadline_header_is_a_400_that_names_it(edge, value: str):
    """A problem like any other."""
    answer = edge.post(x_request_deadline_ms=value)

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"].startswith("header X-Request-Deadline-Ms: expected a whole number from 1 to 600000")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics"])
def test_probes_and_scrapers_need_no_key(locked, path: str):
    """They have none."""
    assert locked.client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/score"), ("GET", "/info"), ("POST", "/admin/drain"), ("GET", "/nothing-here")]
)
def test_without_a_valid_key_everything_else_is_a_401(locked, method: str, path: str):
    """A path that does not exist is not told apart."""
    answers = [locked.client.request(method, path, headers=h) for h in ({}, {"authorization": f"Bearer {KEY}0"})]

    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorised")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
        assert KEY not in answer.text


def test_with_a_key_requests_are_answered_and_the_key_is_not_logged(locked):
    """In either header."""
    assert locked.post(authorization=f"Bearer {KEY}").status_code == 200
    assert locked.post(x_api_key=KEY).status_code == 200
    assert KEY not in "".join(str(vars(record)) for record in locked.caplog.records)


def test_with_an_admin_port_each_path_has_its_place(start):
    """Metrics and administration there, scoring here, health and self-description on both; elsewhere a 404."""
    edge = start(admin_port=True)

    def statuses(client: httpx.Client) -> dict[str, int]:
        asked = [("GET", "/metrics"), ("POST", "/admin/drain"), ("POST", "/score"), ("GET", "/livez"), ("GET", "/info")]
        headers = {"content-type": "application/json"}
        return {path: client.request(method, path, headers=headers).status_code for method, path in asked}

    assert statuses(edge.client) == {"/metrics": 404, "/admin/drain": 404, "/score": 200, "/livez": 200, "/info": 200}
    assert statuses(edge.admin) == {"/metrics": 200, "/admin/drain": 200, "/score": 404, "/livez": 200, "/info": 200}
    assert edge.client.get("/metrics").json()["code"] == "not_found"


def test_a_compressed_body_comes_through_a_real_server(edge):
    """gzip as any HTTP client sends it; a bomb is a 413."""
    assert edge.post(gzip.compress(b" " * 9000), content_encoding="gzip").json()["bytes"] == 9000

    bomb = edge.post(gzip.compress(b" " * 9_000_000), content_encoding="gzip")
    assert (bomb.status_code, bomb.json()["code"]) == (413, "too_large")


def test_a_body_that_trickles_in_is_a_408_and_the_connection_is_closed(edge, monkeypatch):
    """A byte now and then does not buy more time; nobody else waits for it."""
    monkeypatch.setattr(bodies, "BODY_TIMEOUT_S", 0.3)
    with edge.connect() as slow:
        slow.sendall(
            b"POST /score HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n"
        )
        slow.settimeout(0.02)
        answer, give_up = b"", time.monotonic() + TIMEOUT_S
        while not answer and time.monotonic() < give_up:
            slow.sendall(b" ")
            assert edge.client.get("/livez").status_code == 200
            try:
                answer = slow.recv(65536)
            except TimeoutError:
                continue
        slow.settimeout(TIMEOUT_S)
        while part := slow.recv(65536):
            answer += part

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["code"] == "body_timeout"


def test_a_client_that_leaves_while_it_sends_is_a_499_without_a_stack_trace(edge):
    """Recorded as cancelled; no response, no error."""
    with edge.connect() as leaving:
        leaving.sendall(
            b"POST /score HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"
        )
        _until(lambda: edge.telemetry.registry.get_sample_value("relevance_inflight_requests") == 1)

    assert (edge.request()["status"], edge.request()["outcome"]) == (499, "cancelled")
    assert _count(edge, "/score", "499", "cancelled") == 1
    assert [record.levelname for record in edge.caplog.records if record.exc_info or record.levelno > 20] == []


def test_a_client_that_leaves_while_it_waits_is_a_499_too(edge):
    """The route notices and raises ClientGoneError."""
    with edge.connect() as leaving:
        leaving.sendall(b"GET /docs HTTP/1.1\r\nhost: a\r\n\r\n")
        _until(lambda: edge.telemetry.registry.get_sample_value("relevance_inflight_requests") == 1)

    assert (edge.request()["status"], edge.request()["outcome"]) == (499, "cancelled")
    assert [record.levelname for record in edge.caplog.records if record.exc_info or record.levelno > 20] == []


def test_an_unexpected_failure_is_a_500_that_says_nothing_and_a_stack_trace_in_the_log(edge):
    """The log has it under the request id."""
    answer = edge.client.get("/openapi.json", headers={"x-request-id": "cart-8"})

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "get out" not in answer.text
    [failure] = [record for record in edge.caplog.records if record.exc_info]
    assert failure.fields == {"request_id": "cart-8"}
    assert edge.request()["outcome"] == "failed"
    assert edge.telemetry.registry.get_sample_value("relevance_inflight_requests") == 0

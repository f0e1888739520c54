"""A small HTTP server over real sockets that answers by a script and notes what it was asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Reply = tuple[int, dict[str, str], bytes]
LIMITS = {
    "max_items": 2,
    "max_body_bytes": 100_000,
    "max_query_tokens": 32,
    "max_pair_tokens": 96,
    "max_chars_per_field": 1000,
    "max_queued_requests": 8,
}
CUTS = {"cut_points": [0.1, 0.25, 0.45, 0.65], "certified": False}
INFO = {
    "bundle": "68451eac1e7074d1",
    "model": "scripted",
    "precision": "fp32",
    "provider": "cpu",
    "calibration": "c1",
    "policy": "p1",
    "scheme": {},
    "fields": ["title"],
    "filter_tier": 2,
    "locales": {"us": CUTS},
    "pooled": CUTS,
    "aliases": {},
    "limits": LIMITS,
    "default_deadline_ms": 1000,
    "keep_unscored": True,
    "mode": "score",
    "versions": {},
    "a_field_of_a_later_version": 1,
}


def answer(asked: dict[str, Any], *, model: str = "scripted", **changes: object) -> Reply:
    """Give the answer to a request: every item kept, scores that fall with the place in the request."""
    n = len(asked["items"])
    rows = [
        {
            "id": item["id"],
            "index": index,
            "score": 1 / (1 + index),
            "tier": 4,
            "label": "E",
            "kept": True,
            "truncated": False,
            "source": "model",
        }
        for index, item in enumerate(asked["items"])
    ]
    body = {
        "request_id": "scripted",
        "model": model,
        "calibration": "c1",
        "policy": "p1",
        "results": rows,
        "policy_locale": "us",
        "fields_used": ["title"],
        "filtered": [],
        "counts": {"items": n, "scored": n, "kept": n, "filtered": 0, "by_tier": {"0": 0, "4": n}},
        "partial": False,
        "usage": {"pairs": n, "tokens": 10 * n, "padded_tokens": 12 * n},
        "timing_ms": {"queue": 1.0, "tokenize": 2.0, "infer": 3.0, "total": 7.0},
    }
    return 200, {"content-type": "application/json"}, json.dumps(body | changes).encode()


def problem(status: int, code: str, *, retry_after: str | None = None, **fields: object) -> Reply:
    """Give an error as the service sends it."""
    headers = {"content-type": "application/problem+json"}
    if retry_after is not None:
        headers["retry-after"] = retry_after
    return status, headers, json.dumps({"code": code, "detail": f"a scripted {code}", "errors": [], **fields}).encode()


Step = Reply | Callable[[dict[str, Any]], Reply] | None
"""An answer, what makes one of a request's body, or None to close the connection without one."""


class ScriptedServer(ThreadingHTTPServer):
    """Answers `/score` and `/readyz` with the next step, `answer` when there is none left; `/info` likewise, the last
    for ever."""

    def __init__(self, *steps: Step, infos: tuple[dict[str, Any], ...] = (INFO,)) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.steps = list(steps)
        self.infos = list(infos)
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.thread = Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [path for path, _, _ in self.asked]

    def stop(self) -> None:
        """Close the port."""
        self.shutdown()
        self.server_close()
        self.thread.join()

    def next_reply(self, path: str, body: dict[str, Any]) -> Reply | None:
        """Give what the script says."""
        if path == "/info":
            info = self.infos.pop(0) if len(self.infos) > 1 else self.infos[0]
            return 200, {}, json.dumps(info).encode()
        step = self.steps.pop(0) if self.steps else answer
        return step(body) if callable(step) else step


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        """Answer by the script."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        asked = json.loads(body) if body else {}
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, asked))
        reply = self.server.next_reply(self.path, asked)
        if reply is None:
            return
        status, headers, content = reply
        self.send_response(status)
        for name, value in (headers | {"content-length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Stay silent."""

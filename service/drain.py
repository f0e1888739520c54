"""`relevance drain`: a pre-stop hook. Turns readiness off, then waits until load balancers have noticed.

Runs beside a busy service at every rollout, so it loads nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from relevance.errors import InputError

TRIES = 5
PAUSE_S = 0.2
TIMEOUT_S = 5.0
_EXCERPT_CHARS = 200


def main(argv: list[str]) -> int:
    """Drain the service on this host, then wait.

    Returns: 0 once the wait is over, 1 when the service did not agree: the one line says why.
    Raises: InputError: an address, a wait or a key file that cannot be used.
    """
    parser = argparse.ArgumentParser(prog="relevance drain", description=__doc__)
    parser.add_argument("--wait", type=float, default=8.0, help="seconds to wait afterwards (default 8)")
    parser.add_argument("--url", default=_default_url(), help="address of the service (default %(default)s)")
    parser.add_argument(
        "--api-keys",
        type=Path,
        default=os.environ.get("RELEVANCE_API_KEYS") or None,
        help="key file of the service, default RELEVANCE_API_KEYS; its first key is sent",
    )
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.wait < float("inf"):
        raise InputError(f"--wait: expected seconds from 0, found {arguments.wait}")
    problem = _ask(*_address(arguments.url), _first_key(arguments.api_keys))
    if problem is not None:
        sys.stderr.write(f"relevance drain: {arguments.url}: {problem}\n")
        return 1
    time.sleep(arguments.wait)
    return 0


def _default_url() -> str:
    port = os.environ.get("RELEVANCE_ADMIN_PORT") or os.environ.get("RELEVANCE_PORT") or "8000"
    return f"http://127.0.0.1:{port}"


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError:
        host = None
    if host is None or parts.scheme != "http" or parts.path.strip("/"):
        raise InputError(f"--url: expected http://HOST:PORT, found {url!r}")
    return host, port


def _first_key(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a readable key file, found {type(error).__name__}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys or not (keys[0].isascii() and keys[0].isprintable()):
        raise InputError(f"{path}: expected a key of printable ASCII on a line, found none")
    return keys[0]


def _ask(host: str, port: int, key: str | None) -> str | None:
    """Post to the service; a refused connection is tried again, for it may be about to listen.

    Returns: None when it drains, else what was expected and found.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE_S)
        connection = HTTPConnection(host, port, timeout=TIMEOUT_S)
        try:
            connection.request("POST", "/admin/drain", headers=headers)
            response = connection.getresponse()
            body = response.read()
        except ConnectionRefusedError:
            continue
        except (OSError, HTTPException) as error:
            return f"expected an answer, found {error or type(error).__name__}"
        finally:
            connection.close()
        return None if response.status == HTTPStatus.OK else f"expected 200, found {response.status}: {_detail(body)}"
    return f"expected a service that listens, found connection refused {TRIES} times"


def _detail(body: bytes) -> str:
    try:
        return str(json.loads(body)["detail"])[:_EXCERPT_CHARS]
    except (ValueError, KeyError, TypeError):
        return "no problem details"

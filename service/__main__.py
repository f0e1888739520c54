"""`relevance serve`: one uvicorn process, ready in seconds, drained on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from relevance.errors import RelevanceError
from service.app import create_app
from service.lifecycle import Service
from service.logs import configure_logging
from service.settings import Settings, load_settings

log = logging.getLogger("relevance.service")
EXIT_NOT_STARTED = 2


class DrainingServer(uvicorn.Server):
    """A uvicorn server whose SIGTERM first turns readiness off, then finishes what is in flight and exits 0.

    SIGINT skips the drain window; a second signal of either kind ends the wait for requests in flight.
    """

    def __init__(self, config: uvicorn.Config, service: Service, *, drain_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_s = drain_s

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the event loop; unlike uvicorn's own, does not raise them again at the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_signal, self._drain_s)
        loop.add_signal_handler(signal.SIGINT, self._on_signal, 0.0)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _on_signal(self, drain_s: float) -> None:
        if self.should_exit:
            self.force_exit = True
        elif self._service.phase != "ready" or not drain_s:
            self._service.drain()
            self.should_exit = True
        else:
            self._service.drain()
            asyncio.get_running_loop().call_later(drain_s, self._exit)

    def _exit(self) -> None:
        self.should_exit = True


def main(argv: list[str]) -> int:
    """Serve until a signal.

    Returns: 0 after a drained stop, 2 when the bundle or a setting is refused.
    """
    settings = _arguments(argv)
    configure_logging()
    os.environ.setdefault("RAYON_NUM_THREADS", str(settings.threads))
    failures: list[RelevanceError] = []

    def on_failure(error: RelevanceError) -> None:
        failures.append(error)
        server.should_exit = True

    app = create_app(settings, on_failure=on_failure)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=settings.shutdown_s,
    )
    server = DrainingServer(config, app.state.service, drain_s=settings.drain_s)
    server.run()
    if failures:
        sys.stderr.write(f"relevance serve: {failures[0]}\n")
        return EXIT_NOT_STARTED
    return 0


def _arguments(argv: list[str]) -> Settings:
    parser = argparse.ArgumentParser(
        prog="relevance serve",
        description="Run the service. Every setting can also be an environment variable RELEVANCE_….",
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000)")
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the embedded one)")
    parser.add_argument("--policy", type=Path, help="policy.toml to use instead of the bundle's own")
    parser.add_argument("--precision", help="auto, fp32, fp16, int8w or int8 (default auto)")
    parser.add_argument("--provider", help="cpu or cuda (default cpu)")
    parser.add_argument("--threads", type=int, help="intra-op threads (default: the CPU quota)")
    return load_settings(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RelevanceError as error:
        sys.stderr.write(f"relevance serve: {error}\n")
        sys.exit(EXIT_NOT_STARTED)

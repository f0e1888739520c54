"""`relevance serve`: one uvicorn process, ready in seconds, drained on SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Literal

import uvicorn
from fastapi import FastAPI

from relevance.errors import RelevanceError, ServiceError
from service.app import create_app
from service.http_protocol import TimedProtocol
from service.lifecycle import EXIT_ENGINE_LOST, EXIT_NOT_STARTED, Service
from service.logs import configure_logging
from service.settings import Settings, default_threads, load_settings

log = logging.getLogger("relevance.service")
_LAST_WORDS_S = 2.0
_TRUSTED_PROXIES = "127.0.0.1,::1"
"""Whose X-Forwarded-For counts, whatever the environment says: from these it can take loopback rights, never give."""
_SWITCH_S = 0.001
"""How long a thread may hold the interpreter while the event loop waits for it."""


class DrainingServer(uvicorn.Server):
    """A uvicorn server whose SIGTERM first turns readiness off, then finishes what is in flight and exits 0.

    SIGINT skips the drain window; a second signal of either kind ends the wait for requests in flight. SIGHUP reads
    bundle and policy again.
    """

    def __init__(self, config: uvicorn.Config, service: Service, *, drain_s: float) -> None:
        super().__init__(config)
        self._service = service
        self._drain_s = drain_s
        self._reloads: set[asyncio.Task[None]] = set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals on the event loop; unlike uvicorn's own, does not raise them again at the end."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_signal, self._drain_s)
        loop.add_signal_handler(signal.SIGINT, self._on_signal, 0.0)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _on_signal(self, drain_s: float) -> None:
        if self.should_exit:
            self.force_exit = True
        elif self._service.phase != "ready" or not drain_s:
            self._service.drain()
            self.should_exit = True
        else:
            self._service.drain()
            asyncio.get_running_loop().call_later(drain_s, self.exit_soon)

    def _on_hangup(self) -> None:
        task = asyncio.get_running_loop().create_task(self._reload())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    async def _reload(self) -> None:
        try:
            await self._service.reload()
        except ServiceError as error:
            log.error("SIGHUP: %s", error)

    def exit_soon(self) -> None:
        """Leave the main loop at its next turn."""
        self.should_exit = True


class AdminServer(uvicorn.Server):
    """The same app on a port of its own; signals and lifespan are the first server's."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class _End:
    """How the process is to end, told by any thread.

    Args: flush: writes the log lines that wait.
    """

    def __init__(self, flush: Callable[[], None]) -> None:
        self.status, self.reason = 0, ""
        self._flush = flush
        self.server: DrainingServer | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, status: int, reason: str) -> None:
        """Take a status and ask the server to stop; a lost engine may not let it, so the process is ended then."""
        self.status, self.reason = status, reason
        if status == EXIT_ENGINE_LOST:
            timer = Timer(_LAST_WORDS_S, self.now)
            timer.daemon = True
            timer.start()
        if self.loop is not None and self.server is not None:
            self.loop.call_soon_threadsafe(self.server.exit_soon)

    def now(self) -> None:
        """End the process without waiting for its threads."""
        self._flush()
        os._exit(self.status)


def main(argv: list[str]) -> int:
    """Serve until a signal.

    Returns: 0 after a drained stop, 2 when the bundle or a setting is refused; a lost engine ends the process with 70.
    """
    settings = _arguments(argv)
    end = _End(configure_logging())
    sys.setswitchinterval(_SWITCH_S)
    os.environ.setdefault("RAYON_NUM_THREADS", str(default_threads()))
    app = create_app(settings, on_end=end)
    server = DrainingServer(_config(settings, app, settings.port), app.state.service, drain_s=settings.drain_s)
    admin = None
    if settings.admin_port is not None:
        admin = AdminServer(_config(settings, app, settings.admin_port, lifespan="off"))
    end.server = server
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(_serve(server, admin, end))
    if end.status == EXIT_ENGINE_LOST:
        end.now()
    if end.status:
        sys.stderr.write(f"relevance serve: {end.reason}\n")
    return end.status


async def _serve(server: DrainingServer, admin: AdminServer | None, end: _End) -> None:
    end.loop = asyncio.get_running_loop()
    if admin is None:
        await _listen(server, end)
        return
    beside = asyncio.create_task(_listen(admin, end))
    try:
        await _listen(server, end)
    finally:
        admin.should_exit = True
        await beside


async def _listen(server: uvicorn.Server, end: _End) -> None:
    try:
        await server.serve()
    except SystemExit:
        # uvicorn's way to say that it cannot listen, after it has logged why.
        end(EXIT_NOT_STARTED, f"expected a free port, found {server.config.port} taken or not to be had; see the log")


def _config(settings: Settings, app: FastAPI, port: int, *, lifespan: Literal["on", "off"] = "on") -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.host,
        port=port,
        lifespan=lifespan,
        http=TimedProtocol,
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=_TRUSTED_PROXIES,
        timeout_graceful_shutdown=settings.shutdown_s,
    )


def _arguments(argv: list[str]) -> Settings:
    parser = argparse.ArgumentParser(
        prog="relevance serve",
        description="Run the service. Every setting can also be an environment variable RELEVANCE_….",
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on (default 8000)")
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the embedded one)")
    parser.add_argument("--policy", type=Path, help="policy.toml to use instead of the bundle's own")
    parser.add_argument("--precision", help="auto, fp32, fp16, int8w, int8 or unfused (default auto)")
    parser.add_argument("--provider", help="cpu, cuda or tensorrt (default cpu)")
    parser.add_argument("--threads", type=int, help="intra-op threads of an engine (default: 1)")
    parser.add_argument("--engines", type=int, help="engine threads (default: the CPU quota)")
    return load_settings(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RelevanceError as error:
        sys.stderr.write(f"relevance serve: {error}\n")
        sys.exit(EXIT_NOT_STARTED)

"""Logs: one JSON object a line on standard error, never with a query or an item text, never waited for.

Whoever logs only puts a line into a bounded queue; a thread writes. While nobody reads standard error, lines are
dropped and counted, and the count is told in the next line that finds room.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from logging.handlers import QueueHandler, QueueListener
from queue import Full, Queue

MAX_WAITING_LINES = 4096
FLUSH_S = 2.0
_LEVELS = {
    "relevance": logging.INFO,
    "uvicorn": logging.WARNING,
    "asyncio": logging.WARNING,
    "opentelemetry": logging.WARNING,
}


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON; `extra={"fields": {…}}` adds fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Give the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, object] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class LineQueue(QueueHandler):
    """Formats records and queues them; a full queue drops them and counts."""

    queue: Queue[logging.LogRecord]

    def __init__(self, lines: Queue[logging.LogRecord]) -> None:
        super().__init__(lines)
        self.setFormatter(JsonFormatter())
        self._dropped = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Queue a formatted record, before it the count of those lost since the last one."""
        try:
            if self._dropped:
                self.queue.put_nowait(self.prepare(self._loss()))
                self._dropped = 0
            self.queue.put_nowait(record)
        except Full:
            self._dropped += 1

    def _loss(self) -> logging.LogRecord:
        told = {"name": "relevance.service", "msg": "log lines dropped", "fields": {"dropped": self._dropped}}
        return logging.makeLogRecord(told | {"levelno": logging.WARNING, "levelname": "WARNING"})


class LineWriter(QueueListener):
    """Writes formatted records straight to a file descriptor, on a thread of its own.

    Not through a `StreamHandler` on `sys.stderr`: the handler's lock and the stream's, held by a thread that waits for
    a reader, would hang or abort the interpreter at exit.
    """

    def __init__(self, lines: Queue[logging.LogRecord], descriptor: int) -> None:
        super().__init__(lines)
        self._descriptor = descriptor

    def handle(self, record: logging.LogRecord) -> None:
        """Write one line; a descriptor that takes no more loses it."""
        rest = f"{record.getMessage()}\n".encode(errors="replace")
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            return


def configure_logging() -> Callable[[], None]:
    """Send the service's, uvicorn's and asyncio's logs through the queue; uvicorn's access log is off.

    Returns: waits until what is queued is written, FLUSH_S at most; is called at exit, and must be called before
        `os._exit`.
    """
    lines: Queue[logging.LogRecord] = Queue(MAX_WAITING_LINES)
    handler = LineQueue(lines)
    for name, level in _LEVELS.items():
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("uvicorn.access").disabled = True
    LineWriter(lines, sys.stderr.fileno()).start()

    def flush() -> None:
        """Wait until what is queued is written, FLUSH_S at most."""
        with lines.all_tasks_done:
            lines.all_tasks_done.wait_for(lambda: not lines.unfinished_tasks, FLUSH_S)

    atexit.register(flush)
    return flush

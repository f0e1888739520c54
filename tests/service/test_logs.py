"""Log lines never make anybody wait: a reader of standard error that stops reading costs lines, not time."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

TIMEOUT_S = 60
FLOOD = """
import logging, sys
from service.logs import configure_logging
configure_logging()
log = logging.getLogger("relevance.service")
for number in range(20_000):
    log.info("flood", extra={"fields": {"number": number}})
print("done", flush=True)
sys.stdin.readline()
log.info("after")
"""


@pytest.fixture
def flooding():
    """A process that logs 20,000 lines into a pipe, says so, waits for a line, logs once more and ends."""
    with subprocess.Popen(
        [sys.executable, "-c", FLOOD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def test_lines_lost_to_a_stalled_reader_are_counted_in_a_later_line(flooding):
    """20,000 = lines read + lines told as dropped, once the reader is back; the order is kept."""
    assert flooding.stdout.readline() == b"done\n"
    read = [json.loads(flooding.stderr.readline()) for _ in range(1000)]
    flooding.stdin.write(b"\n")
    flooding.stdin.flush()
    read.extend(map(json.loads, flooding.stderr))

    numbers = [line["number"] for line in read if line["message"] == "flood"]
    dropped = sum(line["dropped"] for line in read if line["message"] == "log lines dropped")
    assert dropped > 0
    assert len(numbers) + dropped == 20_000
    assert numbers == sorted(numbers)
    assert read[-1]["message"] == "after"
    assert flooding.wait(TIMEOUT_S) == 0


def test_a_process_ends_cleanly_although_nobody_reads_its_lines(flooding):
    """Neither hanging nor aborting at exit."""
    assert flooding.stdout.readline() == b"done\n"
    flooding.stdin.write(b"\n")
    flooding.stdin.flush()

    assert flooding.wait(TIMEOUT_S) == 0

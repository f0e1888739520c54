"""The service with faults on purpose: run instead of `python -m service`, it obeys files of the folder FAULTS.

`engine`: a step for each run of a session, the last one for ever: ok, raise, hang, nan (in the first row),
slow:SECONDS or drag:SECONDS (for each padded token); no file is ok. `clock`: by how many seconds the wall clock is
wrong. RELEVANCE_BODY_TIMEOUT_S replaces the time limits on receiving a request.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from threading import Event, Lock

import numpy as np

from service import bodies, http_protocol
from service.__main__ import main
from service.session import OnnxSession


class Faults:
    """What the folder says now."""

    def __init__(self, folder: Path) -> None:
        self._engine, self._clock = folder / "engine", folder / "clock"
        self._lock = Lock()
        self._seen: int | None = None
        self._steps: list[str] = []

    def next_step(self) -> str:
        """Give what the next run of a session is to do."""
        with self._lock:
            try:
                seen = self._engine.stat().st_ino
            except FileNotFoundError:
                return "ok"
            if seen != self._seen:
                self._seen, self._steps = seen, self._engine.read_text().split()
            return self._steps.pop(0) if len(self._steps) > 1 else self._steps[0]

    def clock_error_s(self) -> float:
        """Give by how much the wall clock is wrong."""
        try:
            return float(self._clock.read_text())
        except FileNotFoundError:
            return 0.0


def install(faults: Faults) -> None:
    """Put the faults between the service and its sessions and clock."""
    run, now = OnnxSession._run, time.time

    def faulty_run(session, batch, names):
        """Run a batch, or do what the next step says."""
        kind, _, seconds = faults.next_step().partition(":")
        if kind == "raise":
            raise RuntimeError("a device that is gone")
        if kind == "hang":
            Event().wait()
        if kind == "slow":
            time.sleep(float(seconds))
        if kind == "drag":
            time.sleep(float(seconds) * batch.input_ids_BL.size)
        outputs = run(session, batch, names)
        if kind == "nan":
            outputs[0][0] = np.nan
        return outputs

    OnnxSession._run = faulty_run
    time.time = lambda: now() + faults.clock_error_s()
    if limit_s := os.environ.get("RELEVANCE_BODY_TIMEOUT_S"):
        bodies.BODY_TIMEOUT_S = float(limit_s)
        http_protocol.REQUEST_TIMEOUT_S = 1.5 * float(limit_s)


if __name__ == "__main__":
    install(Faults(Path(os.environ["FAULTS"])))
    sys.exit(main(sys.argv[1:]))

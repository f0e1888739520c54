"""The service with sessions that sleep what a batch takes instead of computing it; all else is the same.

The model is loaded and its golden pairs are replayed for real, then nothing is computed any more: many replicas can
share a few cores, and every batch takes what it is told to take. Scores mean nothing.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

import service.lifecycle
import service.model
from relevance.tokenization import PairBatch
from service.__main__ import main
from service.model import Model
from service.session import OnnxSession
from service.settings import Settings
from service.speed import Speed

FIXED_MS, TOKENS_PER_S = "SLEEP_FIXED_MS", "SLEEP_TOKENS_PER_S"
"""Environment variables: milliseconds of each batch, and padded tokens a second beside them."""


def run_asleep(session: OnnxSession, batch: PairBatch) -> NDArray[np.float32]:
    """Sleep as long as a session would compute."""
    wake_at = time.perf_counter() + float(os.environ[FIXED_MS]) / 1000
    wake_at += batch.input_ids_BL.size / float(os.environ[TOKENS_PER_S])
    time.sleep(max(0.0, wake_at - time.perf_counter()))
    return np.zeros((len(batch.input_ids_BL), session.n_classes), dtype=np.float32)


def load_asleep(settings: Settings) -> Model:
    """Load a model, put its sessions to sleep, and measure its speed again."""
    loaded = service.model.load_model(settings)
    OnnxSession.run = run_asleep
    Model.canary = lambda model, number: None
    model = replace(loaded, speed=Speed(loaded.speed.precision, engines=settings.n_engines))
    service.model._warm_up(model)
    return model


if __name__ == "__main__":
    service.lifecycle.load_model = load_asleep
    sys.exit(main(sys.argv[1:]))

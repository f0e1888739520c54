"""What each client script is given, and how it tells what it found: one line of JSON each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

URL = os.environ["RERANK_URL"]
BUSY_URL = os.environ["RERANK_BUSY_URL"]
"""A server that has no room for another call; empty where refusals are not asked for."""
KEY = os.environ["RERANK_KEY"]
QUERY, DOCUMENTS = json.loads(os.environ["RERANK_CALL"])


def ranking(name: str, rows: Sequence[tuple[int, float]]) -> None:
    """Tell (index, score) of what came back, in its order."""
    sys.stdout.write(json.dumps({"name": name, "rows": rows}) + "\n")


def refusal(message: str) -> None:
    """Tell the message that a typed error of the client carried."""
    sys.stdout.write(json.dumps({"refusal": message}) + "\n")

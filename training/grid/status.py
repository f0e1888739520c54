"""How a job ended: status.json in its folder, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STATUS = "status.json"


def write_status(folder: Path, status: Mapping[str, Any]) -> None:
    """Put a status in place, so that a reader sees the old one or the new one."""
    partial = folder / f"{STATUS}.new"
    partial.write_text(json.dumps(dict(status)) + "\n", encoding="utf-8")
    os.replace(partial, folder / STATUS)


def read_status(folder: Path) -> dict[str, Any] | None:
    """Give the status in a folder, None without a readable one: the job's process ended before it could tell."""
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return status if isinstance(status, dict) else None

"""An environment of its own for each rerank client, kept between runs: they do not install together."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

CLIENTS = Path(__file__).parent / "clients"
ENVIRONMENTS = Path(__file__).parents[2] / ".venv-clients"


def environment(name: str) -> Path:
    """Make a client's environment, or find the one made before, and give its interpreter."""
    requirements = CLIENTS / f"{name}.txt"
    digest = hashlib.sha256(sys.version.encode() + requirements.read_bytes()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{name}-{digest}"
    python = folder / "bin" / "python"
    if not (folder / "whole").exists():
        venv.create(folder, with_pip=True, clear=True)
        options = ["--quiet", "--disable-pip-version-check"]
        command = [str(python), "-m", "pip", "install", *options, "-r", str(requirements)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
        assert done.returncode == 0, done.stderr[-2000:]
        (folder / "whole").touch()
    return python

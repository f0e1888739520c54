"""The examples of a page of documentation, run as a reader would, and what they print compared with what is shown."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

from client_environments import environment
from sybil import Document, Example, Region
from sybil.parsers.markdown import CodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
WRITTEN_FOR = re.compile(r"(localhost|127\.0\.0\.1):8000")
IN_ENVIRONMENT = re.compile(r"<!-- in the environment of: (\w+) -->")
FROM_RUN_TO_RUN = {"created", "queue", "tokenize", "infer", "total", "padded_tokens", "tokens_per_second"}
"""Numbers that are only compared by being numbers."""
MORE = "…"
"""As a key or a last element: the page leaves out the rest."""
_HASH = re.compile(r"[0-9a-f]{8}[0-9a-f-]{4,}")
_NUMBER = re.compile(r"\d+\.\d+")
_TOLERANCE = 0.005


class Examples:
    """The examples of one page: `sh` and `python` blocks run, a `json` or `text` block is what the last one printed.

    Args: port: of the server that the examples ask instead of port 8000.
    """

    def __init__(self, page: Path, port: int) -> None:
        self._address = f"127.0.0.1:{port}"
        self._printed: str | None = None
        self._python = Path(sys.executable)
        blocks = {"sh": self._run_sh, "python": self._run_python, "json": self._see_json, "text": self._see_text}
        parsers = [CodeBlockParser(language, evaluate) for language, evaluate in blocks.items()]
        self.document = Document.parse(str(page), *parsers, SkipParser(), self._environments)

    def faults(self) -> Iterator[str]:
        """Run every example, and give each that did not do what the page says."""
        for example in self.document.examples():
            try:
                example.evaluate()
            except SkipTest:
                self._printed = None
            except AssertionError as error:
                yield f"{Path(example.path).name}, line {example.line}: {error}"

    def _environments(self, document: Document) -> Iterator[Region]:
        for found in IN_ENVIRONMENT.finditer(document.text):
            yield Region(found.start(), found.end(), found[1], self._enter)

    def _enter(self, example: Example) -> None:
        self._python = environment(example.parsed)

    def _run_sh(self, example: Example) -> None:
        self._run(["bash", "-euo", "pipefail", "-c"], example)

    def _run_python(self, example: Example) -> None:
        command, self._python = [str(self._python), "-c"], Path(sys.executable)
        self._run(command, example)

    def _run(self, command: list[str], example: Example) -> None:
        code = WRITTEN_FOR.sub(self._address, example.parsed)
        environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        done = subprocess.run([*command, code], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120)
        self._printed = done.stdout
        assert done.returncode == 0, f"exit status {done.returncode}: {(done.stderr or done.stdout)[-2000:]}"

    def _see_json(self, example: Example) -> None:
        assert self._printed is not None, "JSON is shown, and no example before it was run"
        found = list(differences(_json(example.parsed, "shown"), _json(self._printed, "printed")))
        assert not found, f"{'; '.join(found)}; printed was {self._printed}"

    def _see_text(self, example: Example) -> None:
        assert self._printed is not None, "an output is shown, and no example before it was run"
        shown, printed = example.parsed.strip(), self._printed.strip()
        figures = [list(map(float, _NUMBER.findall(text))) for text in (shown, printed)]
        same = [abs(a - b) < _TOLERANCE for a, b in zip(*figures, strict=False)]
        assert _NUMBER.sub("#", shown) == _NUMBER.sub("#", printed), f"printed was {printed}"
        assert all(same), f"printed was {printed}"


def _json(text: str, what: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise AssertionError(f"what is {what} is no JSON: {error}: {text[:500]}") from error


def differences(shown: object, found: object, name: str = "", place: str = "") -> Iterator[str]:
    """Give each place where an answer is not as shown: keys, types, values; scores roughly, hashes as hashes."""
    if isinstance(shown, dict) and isinstance(found, dict):
        more, missing = found.keys() - shown.keys(), shown.keys() - found.keys() - {MORE}
        if missing or (more and MORE not in shown):
            yield f"{place or '/'}: shown without {sorted(more)}, with {sorted(missing)}"
        for key in sorted(shown.keys() & found.keys()):
            yield from differences(shown[key], found[key], key, f"{place}/{key}")
    elif isinstance(shown, list) and isinstance(found, list):
        whole = shown[-1:] != [MORE]
        if whole and len(shown) != len(found):
            yield f"{place}: shown {len(shown)} elements, found {len(found)}"
        for number, (one, other) in enumerate(zip(shown if whole else shown[:-1], found, strict=False)):
            yield from differences(one, other, name, f"{place}/{number}")
    elif not _same(shown, found, name):
        yield f"{place}: shown {shown!r}, found {found!r}"


def _same(shown: object, found: object, name: str) -> bool:
    if isinstance(shown, bool) or isinstance(found, bool):
        return shown is found
    if isinstance(shown, int | float) and isinstance(found, int | float):
        close = abs(shown - found) < _TOLERANCE if isinstance(found, float) else shown == found
        return close or name in FROM_RUN_TO_RUN
    if isinstance(shown, str) and isinstance(found, str):
        return _HASH.sub("#", shown) == _HASH.sub("#", found)
    return shown is found is None

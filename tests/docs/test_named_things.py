"""What the documentation names exists: commands and their options, settings, instruments, make targets, programs."""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import product

import pytest
from markdown_pages import GUIDES, ROOT, Code, code, name_of

from relevance import cli
from service.settings import Settings
from service.telemetry import Telemetry
from training.studies.stage import STUDIES

SETTINGS = {f"RELEVANCE_{name.upper()}" for name in Settings.model_fields}
ACTIONS = {"bundle": ("add", "use", "rollback", "list"), "study": tuple(STUDIES)}
"""Commands whose first argument chooses a parser of its own."""
COMMAND = re.compile(r"(?:^|(?<=[\s`]))relevance ([a-z_]+)\b(?!-)([^\n#|]*)")
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ASSIGNED = re.compile(r"^([A-Z]+)=(?:'([^']*)'|\"([^\"]*)\")", re.MULTILINE)
SETTING = re.compile(r"\bRELEVANCE_[A-Z_]*[A-Z]\b(?!_)")
INSTRUMENT = re.compile(r"\brelevance_[a-z_]+(?:\{[a-z_,]+\}[a-z_]*)*")
BRACES = re.compile(r"\{([a-z_,]+)\}")
NOT_INSTRUMENTS = {"relevance_tiers_client", "relevance_tiers_track"}
"""A Python package, and a label that the manifests give."""


class _ParsedError(Exception):
    """A command has read its arguments and would begin its work."""


@cache
def help_of(command: str, action: str) -> str:
    """Give what `relevance COMMAND [ACTION] --help` prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        cli.main([command, *([action] if action else []), "--help"])
    return printed.getvalue()


def said(code: Code) -> str:
    """Give code with its own shell variables filled in and broken lines joined."""
    text = code.text.replace("\\\n", " ")
    for name, quoted, double in ASSIGNED.findall(text):
        text = re.sub(rf"\${name}\b", (quoted or double).replace("\\", r"\\"), text)
    return text


def commands(codes: Iterator[Code]) -> Iterator[tuple[str, list[str], bool]]:
    """Give each command line: the command, its words, whether it stands in a block."""
    for one in codes:
        if one.block and one.language not in {"", "sh"}:
            continue
        for command, rest in COMMAND.findall(said(one)):
            with contextlib.suppress(ValueError):
                yield command, shlex.split(re.split(r"[;)&]| {2,}", rest)[0]), one.block


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_command_and_option_of_a_page_exists(page):
    """As the command's own help has it."""
    unknown = []
    for command, words, _ in commands(code(page)):
        if command not in cli.COMMANDS:
            unknown.append(command)
            continue
        actions = ACTIONS.get(command, ("",))
        chosen = [word for word in words[:1] if word in actions] or actions
        known = {option for action in chosen for option in OPTION.findall(help_of(command, action))}
        unknown += [f"{command} {option}" for word in words for option in OPTION.findall(word) if option not in known]
    assert unknown == []


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_command_line_in_a_block_parses(page, monkeypatch):
    """By the command's own parser, up to where its work would begin; lines with … are not whole and left out."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    refused = []
    for command, words, in_block in commands(code(page)):
        if in_block and command in cli.COMMANDS and not any(mark in word for word in words for mark in "…$<"):
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors), contextlib.suppress(_ParsedError, SystemExit):
                cli.main([command, *words])
            if errors.getvalue():
                refused.append(f"relevance {command} {shlex.join(words)}: {errors.getvalue()}")
    assert refused == []


def test_every_setting_of_the_service_is_documented():
    """In the table of docs/operations.md, where `…_NAME` stands for the rest of the name before it."""
    rows = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8").splitlines()
    documented = set()
    for cell in (row.split("|")[1] for row in rows if row.startswith("| `RELEVANCE_")):
        first, *others = re.findall(r"`([^`]+)`", cell)
        documented.add(first)
        stems = [first[: place.start()] for place in re.finditer("_", first)]
        for name in others:
            whole = [stem + name[1:] for stem in [*stems, first]] if name.startswith("…") else [name]
            documented |= SETTINGS & set(whole)

    assert sorted(SETTINGS - documented) == []


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_setting_that_a_page_names_exists(page):
    """Variables of the service; those of make and of the tests are named in no page."""
    assert set(SETTING.findall(page.read_text(encoding="utf-8"))) - SETTINGS == set()


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_instrument_that_a_page_names_exists(page):
    """`{a,b}` within a name stands for several, at its end for labels, which exist too."""
    instruments = {metric.name: labels_of(metric.name) for metric in Telemetry().registry.collect()}
    unknown = []
    for written in INSTRUMENT.findall(" ".join(one.text for one in code(page))):
        names, labels = spelt_out(written)
        for name in names - NOT_INSTRUMENTS:
            family = re.sub(r"_(total|bucket|count|sum)$", "", name)
            if family not in instruments or not labels <= (instruments[family] or labels):
                unknown.append(written)
    assert unknown == []


def labels_of(family: str) -> set[str]:
    """Give the labels of an instrument as the golden list has them; those of a series computed on reading are not."""
    for line in (ROOT / "tests" / "golden" / "instruments.txt").read_text(encoding="utf-8").splitlines():
        if line.split(" ", 1)[0] == family:
            return set(re.findall(r"\w+", line[line.index("[") : line.index("]")]))
    return set()


def spelt_out(written: str) -> tuple[set[str], set[str]]:
    """Give the names and the labels of `relevance_cache_{hits,misses}_total{tier}` and the like."""
    labels: set[str] = set()
    if (last := re.search(r"(?<!_)\{([a-z_,]+)\}$", written)) is not None:
        labels, written = set(last[1].split(",")), written[: last.start()]
    parts = BRACES.split(written)
    choices = [part.split(",") if number % 2 else [part] for number, part in enumerate(parts)]
    return {"".join(choice) for choice in product(*choices)}, labels


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_every_make_target_and_program_of_a_page_exists(page):
    """`make NAME` and `python -m NAME`, of ours."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    texts = [one.text for one in code(page)]
    asked = {name for text in texts for name in re.findall(r"^ *make ([a-z-]+)", text, re.MULTILINE)}
    modules = {name for text in texts for name in re.findall(r"-m ((?:benchmarks|k8s|relevance|service)[.\w]*)", text)}

    assert asked - targets == set()
    assert [name for name in modules if name.islower() and find_spec(name) is None] == []

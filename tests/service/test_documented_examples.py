"""The examples of the documentation against a live server with the embedded default.

One that cannot run says why in an HTML comment before it, `<!-- skip: next "reason" -->`.
"""

from __future__ import annotations

import re
import shutil

import pytest
from documented_examples import ROOT, Examples, differences

from service.settings import DEFAULT_BUNDLE

PAGES = ("README.md", "docs/quickstart.md", "docs/api.md", "docs/inspect.md", "clients/python/README.md")
LANGUAGES = {"sh", "python", "json", "text", "toml", "mermaid"}
"""Of the blocks of these pages; all but TOML and pictures are run or compared."""


@pytest.fixture(scope="module")
def served(launch_shared):
    """A server of the embedded default without a cache, so that answers do not depend on what was asked before."""
    return launch_shared(DEFAULT_BUNDLE, pair_cache_bytes="0")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_the_examples_of_a_page_do_what_it_shows(served, page):
    """Every command, program and answer of it."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed (Debian: curl)")

    assert list(Examples(ROOT / page, served.port).faults()) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_block_has_a_language_and_every_skip_a_reason(page):
    """A block without a language would be neither run nor excused."""
    text = (ROOT / page).read_text(encoding="utf-8")
    openings = re.findall(r"^ *```(.*)$", text, re.MULTILINE)[::2]

    assert set(openings) <= LANGUAGES
    assert re.findall(r"<!-- skip: (?!next \"[^\"]+\" -->).*", text) == []


@pytest.mark.parametrize(
    ("shown", "found", "n_differences"),
    [
        ({"score": 0.5, "tier": 2}, {"score": 0.5001, "tier": 2}, 0),
        ({"score": 0.5, "tier": 2}, {"score": 0.51, "tier": 3}, 2),
        ({"request_id": "d0669c8b323e48fc"}, {"request_id": "0123456789abcdef"}, 0),
        ({"request_id": "d0669c8b323e48fc"}, {"request_id": None}, 1),
        ({"timing_ms": {"queue": 1}}, {"timing_ms": {"queue": 0.25}}, 0),
        ({"a": 1}, {"a": 1, "b": 2}, 1),
        ({"a": 1, "…": "…"}, {"a": 1, "b": 2}, 0),
        ({"a": 1, "b": 2}, {"a": 1}, 1),
        ([1, "…"], [1, 2, 3], 0),
        ([1], [1, 2], 1),
        (True, 1, 1),
    ],
)
def test_an_answer_that_is_not_as_shown_is_noticed(shown, found, n_differences):
    """Keys, types, lengths and values, but not what changes from run to run."""
    assert len(list(differences(shown, found))) == n_differences

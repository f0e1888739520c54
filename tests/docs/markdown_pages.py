"""Every Markdown page of the project, read as a code host reads it: links, headings, code."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
        ROOT / "clients" / "python" / "README.md",
        ROOT / "service" / "default_bundle" / "CARD.md",
    ]
)
GUIDES = [path for path in PAGES if path.name != "CHANGELOG.md"]
"""Pages about what is; the changelog also names what was."""


@dataclass(frozen=True, slots=True)
class Code:
    """Code of a page: a block, or a span within a sentence."""

    text: str
    language: str
    block: bool


@cache
def tokens_of(path: Path) -> list[Token]:
    """Parse a page, the children of inline tokens included."""
    flat: list[Token] = []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        flat += [token, *(token.children or [])]
    return flat


def name_of(path: Path) -> str:
    """Give a page as a test id."""
    return path.relative_to(ROOT).as_posix()


def links(path: Path) -> Iterator[str]:
    """Give the target of every link and picture."""
    for token in tokens_of(path):
        target = token.attrGet("href") or token.attrGet("src")
        if isinstance(target, str):
            yield target


def anchors(path: Path) -> set[str]:
    """Give the anchors of a page's headings as code hosts make them: repeated ones are numbered."""
    tokens = tokens_of(path)
    found: Counter[str] = Counter()
    names = set()
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            text = "".join(child.content for child in inline.children or [])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            names.add(slug if not found[slug] else f"{slug}-{found[slug]}")
            found[slug] += 1
    return names


def code(path: Path) -> Iterator[Code]:
    """Give the code of a page."""
    for token in tokens_of(path):
        if token.type in {"fence", "code_block"}:
            yield Code(token.content, token.info.strip(), block=True)
        elif token.type == "code_inline":
            yield Code(token.content, "", block=False)

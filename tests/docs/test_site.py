"""The documentation site: it builds strictly, and what it shows comes from itself alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from markdown_pages import ROOT

LOADED_BY = {
    "audio": "src",
    "embed": "src",
    "form": "action",
    "iframe": "src",
    "img": "src",
    "input": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}
ELSEWHERE = re.compile(r"^\s*(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
IN_STYLES = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:[a-z][a-z0-9+.-]*:)?//[^\"')\s]+)", re.IGNORECASE)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
READ = ("index.html", "quickstart.html", "concepts.html", "decisions/0007-grid.html")


class _Loads(HTMLParser):
    """Collects what a page loads by itself: addresses of elements, and of styles in it."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element loads; a link to another page or to the canonical one loads nothing."""
        values = dict(attrs)
        if tag == "link" and values.get("rel") in {"canonical", "prev", "next"}:
            return
        names = {LOADED_BY.get(tag, ""), "srcset", "poster", "background"}
        self.addresses += [value for name, value in attrs if name in names and value]
        self.addresses += IN_STYLES.findall(values.get("style") or "")

    def handle_data(self, data: str) -> None:
        """Note what a style element loads."""
        if self.lasttag == "style":
            self.addresses += IN_STYLES.findall(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it, in another folder."""
    if find_spec("material") is None:
        assert "RELEVANCE_CI" not in os.environ, "mkdocs-material is missing, and nothing may be skipped here"
        pytest.skip("mkdocs-material is not installed (make docs)")
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, "--site-dir", str(folder))
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


def build(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Build the site of a folder as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", *options]
    environ = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False, timeout=120)


def test_every_page_of_the_project_is_on_the_site(site: Path):
    """Strict: no page outside of the navigation, no link or anchor that leads nowhere (mkdocs.yml, `validation`)."""
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}

    assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}


def test_no_page_loads_anything_from_elsewhere(site: Path):
    """Scripts, styles, pictures, fonts, frames: all relative, so that the site also opens from disk."""
    foreign = {}
    for path in site.rglob("*.html"):
        page = _Loads()
        page.feed(path.read_text(encoding="utf-8"))
        foreign[path.name] = [a for a in page.addresses if ELSEWHERE.match(a)]
    for path in [*site.rglob("*.css"), *site.rglob("*.svg")]:
        foreign[path.name] = IN_STYLES.findall(path.read_text(encoding="utf-8"))

    assert {name: found for name, found in foreign.items() if found} == {}


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site behind a plain file server."""
    handler = partial(_QuietFiles, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class _QuietFiles(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_sees_pictures_and_finds_pages_without_asking_elsewhere(address: str, scheme: str):
    """In a real browser: what the theme's program does counts, the search above all."""
    if CHROMIUM is None:
        assert "RELEVANCE_CI" not in os.environ, "expected Chromium in CI, found none"
        pytest.skip("Chromium is not installed (Debian: chromium)")
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        page = browser.new_page(color_scheme=scheme)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        for name in READ:
            page.goto(f"{address}/{name}")
            shown = page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
            assert shown, name
        page.keyboard.press("/")
        page.keyboard.type("cut points")
        page.locator(".md-search-result__item").first.wait_for()
        browser.close()

    assert [url for url in asked if not url.startswith(address)] == []
    assert said == []


def test_a_broken_link_ends_the_build(tmp_path: Path, site: Path):
    """So that what the first test says is really asked: a page that is missing, and a heading that is."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Here\n\n[no page](nowhere.md) [no heading](#nothing)\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shortened = re.sub(r"^(nav|hooks|not_in_nav|theme|extra_css):.*?(?=^\S|\Z)", "", settings, flags=re.M | re.S)
    (tmp_path / "mkdocs.yml").write_text(shortened)
    done = build(tmp_path)

    assert site.is_dir()
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr
    assert "#nothing" in done.stderr

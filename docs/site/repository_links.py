"""Links that a code host understands, on the site too: pages may point at files outside of docs/.

Some of those files are pages of the site (`PAGES`), any other that is linked is copied beside them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmark-programs.md",
    "clients/python/README.md": "python-client.md",
    "service/default_bundle/CARD.md": "default-bundle.md",
}
"""File of the repository → page of the site."""
FRONT_PAGE = {"README.md": "index.md"}
"""What only a code host shows → the page that stands for it."""
COPIES = "repository"
_LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of docs/."""
    root = _root(config)
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(root / path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point every relative link at where its target stands on the site; what does not exist is left to mkdocs."""
    if page.file.abs_src_path is None:
        return markdown
    folder = Path(page.file.abs_src_path).parent

    def rewritten(link: re.Match[str]) -> str:
        if "://" in link[1] or link[1].startswith("mailto:"):
            return link[0]
        uri = _uri_of((folder / link[1]).resolve(), config, files)
        here = posixpath.dirname(page.file.src_uri)
        return link[0] if uri is None else posixpath.relpath(uri, here) + (link[2] or "")

    return _LINK.sub(rewritten, markdown)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path).resolve().parent


def _uri_of(path: Path, config: MkDocsConfig, files: Files) -> str | None:
    """Give the place of a file on the site, which is made if need be; None if there is no such file."""
    root, docs = _root(config), Path(config.docs_dir).resolve()
    if not path.is_file() or not path.is_relative_to(root):
        return None
    if path.is_relative_to(docs):
        return path.relative_to(docs).as_posix()
    name = path.relative_to(root).as_posix()
    if uri := (PAGES | FRONT_PAGE).get(name):
        return uri
    uri = f"{COPIES}/{name}"
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return uri

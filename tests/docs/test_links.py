"""Links between pages lead somewhere, on a code host; tests/docs/test_site.py asks the same of the site."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

import pytest
from markdown_pages import PAGES, anchors, links, name_of


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_project_leads_to_a_file_and_a_heading(page):
    """Relative, so that it works in any copy of the project; an anchor is that of a heading of the page it names."""
    lost = []
    for link in links(page):
        parts = urlsplit(link)
        if parts.scheme:
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        found = not parts.netloc and target.exists()
        if not found or (parts.fragment and parts.fragment not in anchors(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_elsewhere_are_whole_addresses(page):
    """Only their form: nothing is asked of the network here."""
    addresses = [urlsplit(link) for link in links(page) if urlsplit(link).scheme]
    wrong = [a.geturl() for a in addresses if a.scheme != "https" or "." not in a.netloc or a.username is not None]
    assert wrong == []

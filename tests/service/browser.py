"""A page of the real headless Chromium, and what the tests of the playground ask of each."""

from __future__ import annotations

import time
from typing import Any

PATIENCE_MS = 20_000
POLL_MS = 15
EXPECTED = "Failed to load resource: "
"""How the console reports an answer with an error status or none: the page shows those itself."""


CAPPING = """
[[rules]]
name = "capped"
class_at_least = { E = 0.8 }
cap_tier = 1
"""
"""A business rule that fires on some pairs of the tiny model."""


def address(server: Any) -> str:
    """Give the playground's address on a server."""
    return f"http://127.0.0.1:{server.port}/"


class Tab:
    """One page in a context of its own, with all that its console said and every address it asked for."""

    def __init__(self, browser: Any, **options: object) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.said: list[str] = []
        self.asked: list[Any] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request))

    def open(self, address: object, fragment: str = "") -> None:
        """Load the playground and wait until it has asked what is served."""
        self.page.goto(f"{address}{fragment}")
        self.wait_until("!document.getElementById('about').textContent.includes('Asking')")

    def close(self) -> None:
        """Close it; its console must have been clean, so no script failed and no content policy was broken."""
        self.context.close()
        assert [text for text in self.said if not text.startswith(EXPECTED)] == []

    def fill(self, query: str, items: str, **fields: str) -> None:
        """Type a query and items; other fields by their ids.

        Items are put in at once, as a paste does: typing thousands of lines takes the browser half a minute.
        """
        self.page.locator("#items").evaluate(
            "(field, text) => { field.value = text; field.dispatchEvent(new Event('input')); }", items
        )
        for name, text in {"query": query, **fields}.items():
            if name in {"key", "deadline", "min-tier"}:
                self.page.evaluate("document.getElementById('more').open = true")
            field = self.page.locator(f"#{name}")
            field.select_option(text) if name == "min-tier" else field.fill(text)

    def score(self) -> None:
        """Press the button and wait for an answer or a problem."""
        self.page.evaluate("document.getElementById('status').textContent = ''")
        self.page.click("#send")
        self.settled()

    def settled(self) -> None:
        """Wait until an answer or a problem is shown."""
        self.wait_until(
            "document.getElementById('stop').hidden && (document.querySelector('.problem') !== null ||"
            " /kept|Stopped/.test(document.getElementById('status').textContent))"
        )

    def wait_until(self, condition: str) -> None:
        """Wait for an expression to be true; Playwright's own way needs the `eval` that the page's policy forbids."""
        give_up = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(condition):
            assert time.monotonic() < give_up, f"expected {condition}; the page says {self.text('body')[:2000]}"
            self.page.wait_for_timeout(POLL_MS)

    def says(self, name: str, text: str) -> None:
        """Wait until an element, by its id, says something."""
        self.wait_until(f"document.getElementById({name!r}).textContent.includes({text!r})")

    def rows(self, group: str) -> list[dict[str, str]]:
        """Give what a group's table says of each item, in its order."""
        return self.page.locator(f"#{group} tbody tr[data-index]").evaluate_all(
            "rows => rows.map(row => ({index: Number(row.dataset.index), tier: row.querySelector('.chip').textContent,"
            " score: row.querySelector('.number').textContent,"
            " title: row.querySelector('th').firstChild.textContent,"
            " notes: row.querySelector('.notes')?.textContent ?? ''}))"
        )

    def text(self, selector: str) -> str:
        """Give an element's text."""
        return str(self.page.locator(selector).inner_text())

    def problem(self) -> str:
        """Give the shown problem's text."""
        return self.text(".problem")

    def focused(self) -> str:
        """Give the id of what has the focus."""
        return str(self.page.evaluate("document.activeElement.id"))

    def tab_to(self, name: str) -> None:
        """Press Tab until something has the focus; each stop on the way must be visibly marked."""
        for _ in range(60):
            if self.focused() == name:
                return
            self.page.keyboard.press("Tab")
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            stopped = "document.activeElement !== document.body"
            assert self.page.evaluate(f"!({stopped}) || {outline} !== 'none'"), self.focused()
        raise AssertionError(f"expected Tab to reach {name}, found the focus on {self.focused()}")

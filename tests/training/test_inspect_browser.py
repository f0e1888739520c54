"""The page of `relevance inspect` in a real headless Chromium: it sorts, hides, asks for nothing and can be read."""

import pytest
from inspected import COMPLEMENT, IRRELEVANT, inspected, pair


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A page with one large category, two small ones, mistakes and doubtful labels."""
    folder = tmp_path_factory.mktemp("inspected")
    rows = [pair(f"q{n % 12}", f"desk lamp with clamp {n}", "E" if n % 3 else "S", category="lamps") for n in range(60)]
    rows += [pair("rug", f"wool rug red {n}", "E", chances=IRRELEVANT, category="rugs") for n in range(3)]
    rows += [pair("鍋", f"片手鍋 {n}", "I", locale="jp", category="鍋") for n in range(2)]
    rows += [pair("kettle", "kettle lid steel", "C", chances=COMPLEMENT, category="lamps")]
    inspected(folder, rows)
    return folder / "out" / "inspect.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_sorts_hides_small_lines_and_fetches_nothing(browser, written, scheme):
    """By a click and by the keyboard; the console stays silent, and axe finds nothing that bars a reader."""
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written.as_uri())

    def first():
        return page.locator("table.sortable tbody tr").first.locator("td").nth(1).inner_text()

    assert first() == "lamps"
    page.get_by_role("button", name="accuracy").click()
    assert first() == "lamps"
    page.get_by_role("button", name="accuracy").press("Enter")
    assert first() in {"rugs", "鍋"}
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("accuracy")
    page.get_by_role("checkbox").check()
    assert page.locator("table.sortable tbody tr:visible").count() == 1
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    found = Axe().run(page)
    context.close()

    assert found.violations_count == 0, found.generate_report()
    assert said == []
    assert asked == [written.as_uri()]

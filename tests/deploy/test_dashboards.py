"""Grafana dashboards: as their code makes them, complete, and asking for instruments that exist."""

from __future__ import annotations

import json

import pytest
from promql_reading import EXPRESSIONS, RECORDED, grouping, selectors

from benchmarks.watched import TARGET_LABELS
from k8s.monitoring.__main__ import FOLDER, monitoring_files
from k8s.monitoring.dashboards import DASHBOARDS
from k8s.monitoring.objectives import LATENCY_BOUNDS
from k8s.monitoring.panels import Board
from service.telemetry import SIZE_CLASSES, Telemetry

FILES = [path for path in monitoring_files() if path.suffix == ".json"]
UIDS = [
    "relevance-slo",
    "relevance-golden",
    "relevance-batcher",
    "relevance-engine",
    "relevance-relevance",
    "relevance-shadow",
]


def dashboard(board: Board) -> dict:
    """Give the committed JSON of a dashboard."""
    return json.loads((FOLDER / "grafana" / f"{board.uid}.json").read_text(encoding="utf-8"))


def panels(board: Board) -> list[dict]:
    """Give its panels, rows left out."""
    return [panel for panel in dashboard(board)["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def labels_of() -> dict[str, set[str]]:
    """The labels of each sample that the service exposes, the target's included, by the sample's name; and of `up`."""
    telemetry = Telemetry()
    telemetry.declare_locales(["pooled"])
    telemetry.drift_psi.labels("tier", "pooled")
    telemetry.model_info.labels("bundle", "model", "int8w", "cpu", "1", "1")
    found: dict[str, set[str]] = {}
    for family in telemetry.registry.collect():
        for sample in family.samples:
            found.setdefault(sample.name, set(TARGET_LABELS)).update(sample.labels)
    return found | {"up": {"job", *TARGET_LABELS}}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_committed_dashboard_is_what_its_code_makes(path):
    """`make dashboards` writes it."""
    assert (FOLDER / path).read_text(encoding="utf-8") == monitoring_files()[path]


def test_a_dashboard_keeps_its_address():
    """Links and bookmarks name the uid, which is also the file's name."""
    assert [board.uid for board in DASHBOARDS] == UIDS
    assert [dashboard(board)["uid"] for board in DASHBOARDS] == UIDS
    assert sorted(path.stem for path in (FOLDER / "grafana").iterdir()) == sorted(UIDS)


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_every_panel_says_what_it_shows_in_which_unit_and_from_when_on_it_is_bad(board):
    """Title, description, unit, thresholds, the chosen data source, and a legend for each query."""
    for panel in panels(board):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all(target["legendFormat"] and target["expr"] for target in panel["targets"]), panel["title"]


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_panels_do_not_lie_on_each_other(board):
    """Every cell of the grid belongs to one panel, and the grid is 24 wide."""
    cells = [
        (x, y)
        for panel in dashboard(board)["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize("board", DASHBOARDS, ids=lambda board: board.uid)
def test_the_variables_of_a_dashboard_are_those_its_queries_use(board):
    """Data source, namespace, track and pod everywhere; size class and locale where something has them."""
    names = [variable["name"] for variable in dashboard(board)["templating"]["list"]]
    used = {
        name for name in ("size_class", "locale") if any(f"${name}" in q for c in board.charts for _, q in c.queries)
    }

    assert names == ["datasource", "namespace", "track", "pod", *board.variables]
    assert set(board.variables) == used


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_an_expression_names_instruments_that_exist_with_labels_that_they_have(expr, labels_of):
    """In rules and dashboards: the registry of the service, and what rules record."""
    recorded = {"slo", "size_class", "locale", *TARGET_LABELS}
    known = set()
    for selector in selectors(expr):
        labels = recorded if selector.name in RECORDED else labels_of[selector.name]
        assert selector.labels <= labels, selector
        known |= labels

    assert grouping(expr) <= known


def test_size_classes_of_the_objectives_are_those_of_the_service():
    """A class of another name would be a promise about nothing."""
    assert {size for bounds in LATENCY_BOUNDS.values() for size in bounds} <= set(SIZE_CLASSES)

"""Dashboards as data, and their way through Grafana's own builders to JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_model
from grafana_foundation_sdk.models import dashboard as model

from k8s.monitoring.objectives import SCORING

Unit = Literal["s", "reqps", "percentunit", "short", "bytes", "ops", "bool", "none"]
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
_LABELS = {
    "namespace": ("namespace", "relevance_ready"),
    "track": ("relevance_tiers_track", 'relevance_ready{namespace=~"$namespace"}'),
    "pod": ("pod", 'relevance_ready{namespace=~"$namespace",relevance_tiers_track=~"$track"}'),
    "size_class": (
        "size_class",
        f'relevance_request_duration_seconds_count{{{SCORING},namespace=~"$namespace"}}',
    ),
    "locale": ("locale", 'relevance_tier_total{namespace=~"$namespace"}'),
}
"""The label whose values a variable offers and the series that they are read from, by variable."""
_HEIGHT = 8
_Panel = TypeVar("_Panel", stat.Panel, timeseries.Panel)


@dataclass(frozen=True, slots=True)
class Chart:
    """One panel.

    Args: queries: legend and PromQL of each; limit: where it turns red; bad_below: whether red is below the limit
        instead of above; number: show the last value, large, instead of lines.
    """

    title: str
    description: str
    unit: Unit
    queries: tuple[tuple[str, str], ...]
    limit: float | None = None
    bad_below: bool = False
    number: bool = False
    span: int = 8


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard: titled rows of charts; variables: those it has beside namespace, track and pod."""

    uid: str
    title: str
    description: str
    rows: tuple[tuple[str, tuple[Chart, ...]], ...]
    variables: tuple[str, ...] = ()

    @property
    def charts(self) -> tuple[Chart, ...]:
        """All its charts."""
        return tuple(chart for _, charts in self.rows for chart in charts)


def dashboard_text(board: Board) -> str:
    """Give the JSON that Grafana imports; the same for the same board, whenever it is made."""
    builder = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["relevance-tiers"])
        .timezone("utc")
        .time("now-6h", "now")
        .refresh("30s")
        .readonly()
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    for name in ("namespace", "track", "pod", *board.variables):
        builder = builder.with_variable(_variable(name))
    for title, charts in board.rows:
        builder = builder.with_row(dashboard.Row(title))
        for chart in charts:
            builder = builder.with_panel(_panel(chart))
    return JSONEncoder(sort_keys=True, indent=1).encode(builder.build()) + "\n"


def _variable(name: str) -> dashboard.QueryVariable:
    label, series = _LABELS[name]
    return (
        dashboard.QueryVariable(name)
        .label(name.replace("_", " ").capitalize())
        .datasource(_SOURCE)
        .query(f"label_values({series}, {label})")
        .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(model.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(model.VariableOption(selected=True, text="All", value="$__all"))
    )


def _panel(chart: Chart) -> stat.Panel | timeseries.Panel:
    if chart.number:
        numbers = stat.Panel().graph_mode(common_model.BigValueGraphMode.AREA)
        return _described(numbers, chart)
    lines = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(8)
        .show_points(common_model.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .placement(common_model.LegendPlacement.BOTTOM)
            .display_mode(common_model.LegendDisplayMode.LIST)
        )
        .tooltip(common.VizTooltipOptions().mode(common_model.TooltipDisplayMode.MULTI))
    )
    if chart.limit is not None:
        style = common.GraphThresholdsStyleConfig().mode(common_model.GraphThresholdsStyleMode.LINE)
        lines = lines.thresholds_style(style)
    return _described(lines, chart)


def _described(panel: _Panel, chart: Chart) -> _Panel:
    panel = (
        panel.title(chart.title)
        .description(chart.description)
        .unit(chart.unit)
        .datasource(_SOURCE)
        .thresholds(_thresholds(chart))
        .height(_HEIGHT)
        .span(chart.span)
    )
    for number, (legend, expr) in enumerate(chart.queries):
        query = prometheus.Dataquery().datasource(_SOURCE).expr(expr).legend_format(legend).ref_id(chr(65 + number))
        panel = panel.with_target(query.instant() if chart.number else query.range())
    return panel


def _thresholds(chart: Chart) -> dashboard.ThresholdsConfig:
    first, then = ("red", "green") if chart.bad_below else ("green", "red")
    steps = [model.Threshold(value=None, color="green")]
    if chart.limit is not None:
        steps = [model.Threshold(value=None, color=first), model.Threshold(value=chart.limit, color=then)]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(steps)

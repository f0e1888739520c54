"""ab.json as one Markdown page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

_NAMES = {"rpm": "RPM", "ctr": "CTR", "rs": "RS"}


def page(report: dict[str, Any]) -> str:
    """Give the page of an analysis.

    Args: report: as `training.ab.analysis.analyse` gives it.
    """
    lines = [f"# {_cell(report['control'])} against {', '.join(map(_cell, report['treatments']))}", ""]
    lines += _head(report)
    for name, result in report["treatments"].items():
        lines += ["", f"## {_cell(name)}: {result['verdict']}", "", *_metrics(report, result)]
        if result["looks"] is not None:
            lines += ["", *_looks(report, result)]
        if result["latency_p99_ms"] is not None:
            p99 = {arm: _plain(figure) for arm, figure in result["latency_p99_ms"].items()}
            lines += [
                "",
                f"p99 latency in ms: control {p99['control']}, treatment {p99['treatment']}, difference "
                f"{p99['difference']} (bootstrap of users).",
            ]
    if report["segments"] or report["segments_with_too_few_users"]:
        lines += ["", "## Segments", "", *_segments(report)]
    return "\n".join(lines) + "\n"


def _head(report: dict[str, Any]) -> list[str]:
    check, days, left_out = report["sample_ratio"], report["days"], report["left_out"]
    users = ", ".join(f"{_cell(name)} {n}" for name, n in report["users"].items())
    when = f", {days['first']} to {days['last']} ({days['n']} days)" if days["first"] else ""
    lines = [
        f"{report['rows']} rows of {sum(report['users'].values())} users ({users}){when}. Ratios are per "
        f"{_cell(report['denominator'])}; users are the unit of every interval ({100 * report['confidence']:g} %). "
        "Left out: "
        f"{left_out['users_of_several_variants']} users seen in several variants, {left_out['users_never_exposed']} "
        f"never in the experiment.",
        "",
    ]
    planned = ", ".join(f"{_cell(name)} {share:.3g}" for name, share in check["shares"].items())
    if check["alarm"]:
        lines.append(
            f"**Sample ratio mismatch: p = {check['p']:.2g} against the planned shares ({planned}). No winner is "
            f"named; find the cause (assignment, logging, filtering) first.**"
        )
    else:
        lines.append(f"Sample ratio check: p = {check['p']:.3f} against the planned shares ({planned}).")
    return lines


def _metrics(report: dict[str, Any], result: dict[str, Any]) -> Iterable[str]:
    yield from _table(
        "metric",
        ["control", "treatment", "lift", "lift, CUPED", "variance removed", "p", "p, Holm", "lift it could find"],
        (
            [
                _NAMES[name] + (" (primary)" if name == report["primary"] else ""),
                _plain(metric["control"]),
                _plain(metric["treatment"]),
                _relative(metric["lift"]),
                _relative(metric["lift_cuped"]),
                _number(metric["variance_removed"], ".0%"),
                _number(metric["p"], ".3g"),
                _number(metric["p_holm"], ".3g"),
                _number(metric["detectable_lift"], "+.1%"),
            ]
            for name, metric in result["metrics"].items()
        ),
    )
    yield ""
    yield (
        f"p and the last column are of the CUPED estimate where there is one; the last column is the smallest lift "
        f"found with {report['power']:.0%} power by an experiment this precise. These intervals hold at one look, "
        f"planned in advance."
    )
    for name, metric in result["metrics"].items():
        if metric["note"] is not None:
            yield ""
            yield f"{_NAMES[name]}: {metric['note']}."


def _looks(report: dict[str, Any], result: dict[str, Any]) -> Iterable[str]:
    yield (
        f"Always-valid reading of {_NAMES[report['primary']]}, for stopping at any look (mixture about a planned lift "
        f"of {report['planned_lift']:.1%}); the verdict rests on it:"
    )
    yield ""
    yield from _table(
        "day",
        ["users", "lift", "p so far"],
        ([look["day"], str(look["users"]), _relative(look), f"{look['p']:.3g}"] for look in result["looks"]),
    )


def _segments(report: dict[str, Any]) -> Iterable[str]:
    yield from _table(
        "segment",
        ["treatment", "metric", "users", "lift", "p", "p, Holm", "sample ratio p"],
        (
            [
                f"{_cell(row['segment'])} = {_cell(row['value'])}",
                _cell(row["treatment"]),
                _NAMES[row["metric"]],
                str(row["users"]),
                _relative(row["lift"]) + (" (CUPED)" if row["cuped"] else ""),
                _number(row["p"], ".3g"),
                _number(row["p_holm"], ".3g"),
                f"{row['srm_p']:.3f}",
            ]
            for row in report["segments"]
        ),
    )
    yield ""
    yield "One Holm family over the whole table. A segment that the treatment itself can move is no segment."
    for row in report["segments"]:
        if row["lift"] is None:
            of = f"{_cell(row['segment'])} = {_cell(row['value'])}, {_cell(row['treatment'])}"
            yield ""
            yield f"{of}, {_NAMES[row['metric']]}: {row['note']}."
    if report["segments_with_too_few_users"]:
        yield ""
        yield f"Too few users or events: {'; '.join(map(_cell, report['segments_with_too_few_users']))}."


def _table(first: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join([first, *columns])} |"
    yield f"|---|{'---:|' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _plain(figure: dict[str, float]) -> str:
    return f"{figure['value']:.4g} ({figure['low']:.4g} to {figure['high']:.4g})"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _relative(figure: dict[str, float] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['value']:+.2%} ({figure['low']:+.2%} to {figure['high']:+.2%})"


def _cell(text: str) -> str:
    """Keep a name from the file from breaking the table or becoming markup."""
    return "".join("\\" + c if c in "\\`*_[]<>|#~&" else c for c in " ".join(text.split()))

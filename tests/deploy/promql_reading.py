"""What the expressions of rules and dashboards name, read from their syntax trees."""

from __future__ import annotations

from dataclasses import dataclass

import promql_parser as promql
import yaml

from benchmarks.watched import shortened
from k8s.monitoring.__main__ import FOLDER
from k8s.monitoring.dashboards import DASHBOARDS

RULE_FILES = sorted((FOLDER / "rules").glob("*.yaml"))
RULES = [
    (path, rule)
    for path in RULE_FILES
    for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"] for _, rule in RULES if "record" in rule}
QUERIES = [
    (f"{board.uid}: {chart.title}", expr) for board in DASHBOARDS for chart in board.charts for _, expr in chart.queries
]
EXPRESSIONS = sorted({rule["expr"] for _, rule in RULES} | {expr for _, expr in QUERIES})
_COMPARED = {">", "<", ">=", "<=", "==", "!=", "and", "or", "unless"}


@dataclass(frozen=True)
class Selector:
    """A series that an expression asks for: its name, as it is asked, and the labels it is restricted by."""

    name: str
    text: str
    labels: frozenset[str]


def selectors(expr: str) -> list[Selector]:
    """Give every selector of an expression."""
    found = []

    def visit(node):
        if isinstance(node, promql.VectorSelector):
            matchers = node.matchers.matchers
            found.append(Selector(node.name, str(node), frozenset(matcher.name for matcher in matchers)))
        if isinstance(node, promql.MatrixSelector):
            visit(node.vector_selector)

    promql.walk(promql.parse(shortened(expr)), visit)
    return list(dict.fromkeys(found))


def grouping(expr: str) -> set[str]:
    """Give the labels that an expression aggregates by."""
    found = set()

    def visit(node):
        if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)

    promql.walk(promql.parse(shortened(expr)), visit)
    return found


def operands(expr: str) -> list[str]:
    """Give what an expression compares and combines: an alert that is not firing gives nothing as a whole."""
    return _operands(promql.parse(shortened(expr)))


def _operands(node) -> list[str]:
    if isinstance(node, promql.BinaryExpr) and str(node.op) in _COMPARED:
        return _operands(node.lhs) + _operands(node.rhs)
    return [] if isinstance(node, promql.NumberLiteral) else [str(node)]

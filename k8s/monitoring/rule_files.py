"""Rules as data: what a Prometheus rule file holds, and the same groups inside a PrometheusRule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from k8s.monitoring.objectives import RELEASE

Rule = dict[str, Any]
Group = dict[str, Any]


def record(name: str, expr: str, **labels: str) -> Rule:
    """Give a recording rule."""
    return {"record": name, "expr": expr, **({"labels": labels} if labels else {})}


def alert(
    name: str,
    expr: str,
    *,
    severity: str,
    texts: tuple[str, str],
    runbook: str,
    **options: str,
) -> Rule:
    """Give an alerting rule.

    Args: texts: summary and description; runbook: address of the page with an anchor for each alert; options: `after`,
        how long it must hold, and further labels.
    """
    after = options.pop("after", "")
    summary, description = texts
    return {
        "alert": name,
        "expr": expr,
        **({"for": after} if after else {}),
        "labels": {"severity": severity, **options},
        "annotations": {
            "summary": summary,
            "description": description,
            "runbook_url": f"{runbook}#{name.lower()}",
        },
    }


def group(name: str, rules: list[Rule], *, interval_s: int | None = None) -> Group:
    """Give a group, which is evaluated in its order; interval_s: how often, or as often as the server evaluates."""
    return {"name": name, **({"interval": f"{interval_s}s"} if interval_s else {}), "rules": rules}


def rule_file(groups: list[Group]) -> Mapping[str, Any]:
    """Give the content of a rule file, as Prometheus and promtool read it."""
    return {"groups": groups}


def prometheus_rule(name: str, groups: list[Group]) -> Mapping[str, Any]:
    """Give the manifest through which the Prometheus operator loads the same groups."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "relevance-tiers", "release": RELEASE}},
        "spec": {"groups": groups},
    }

"""`python -m k8s.monitoring`: write rules, their manifests and dashboards beside this file (`make dashboards`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from k8s.monitoring.cause_rules import cause_groups, waiting_groups
from k8s.monitoring.dashboards import DASHBOARDS
from k8s.monitoring.objectives import LATENCY_BOUNDS, RUNBOOK
from k8s.monitoring.panels import dashboard_text
from k8s.monitoring.rule_files import prometheus_rule, rule_file
from k8s.monitoring.slo_rules import latency_groups, slo_groups

FOLDER = Path(__file__).parent
_HEADER = "# Made by `make dashboards` from k8s/monitoring/*.py; edit those.\n"


def monitoring_files(runbook: str = RUNBOOK) -> dict[Path, str]:
    """Give the text of every generated file by its path below this folder."""
    slo, causes = slo_groups(runbook), cause_groups(runbook)
    files: dict[Path, object] = {
        Path("rules/slo.yaml"): rule_file(slo),
        Path("rules/causes.yaml"): rule_file(causes),
        Path("prometheusrule.yaml"): prometheus_rule("relevance-tiers", slo + causes),
    }
    for machine in LATENCY_BOUNDS:
        groups = latency_groups(machine, runbook) + waiting_groups(machine, runbook)
        files[Path(f"rules/latency-{machine}.yaml")] = rule_file(groups)
        files[Path(f"latency-{machine}/prometheusrule.yaml")] = prometheus_rule("relevance-tiers-latency", groups)
    texts = {path: _HEADER + _yaml(content) for path, content in files.items()}
    return texts | {Path(f"grafana/{board.uid}.json"): dashboard_text(board) for board in DASHBOARDS}


class _Plain(yaml.SafeDumper):
    """Writes each value in full, so that a reader finds no anchors, and texts of several lines as blocks."""

    def ignore_aliases(self, data: object) -> bool:
        """Never refer back to an equal value."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _text)


def _yaml(content: object) -> str:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=10_000)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="python -m k8s.monitoring", description=__doc__)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder to write to (default: beside the code)")
    arguments = parser.parse_args(argv)
    for path, text in monitoring_files().items():
        (arguments.out / path).parent.mkdir(parents=True, exist_ok=True)
        (arguments.out / path).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Prometheus rules: as their code makes them, correct by the real promtool, each alert with a page in the runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from string import Template

import pytest
import yaml
from promql_reading import RULE_FILES, RULES

from k8s.monitoring.__main__ import FOLDER, main, monitoring_files
from k8s.monitoring.objectives import CPU_PAIRS_PER_S, DEADLINES_S, LATENCY_BOUNDS, RUNBOOK
from service.telemetry import Telemetry, size_class

ROOT = Path(__file__).parents[2]
UNIT_TESTS = sorted(Path(__file__).with_name("rules").glob("*.yaml"))
ALERTS = [rule for _, rule in RULES if "alert" in rule]
NAMES = sorted({rule["alert"] for rule in ALERTS})
HEADING = re.compile(r"^## (Relevance\w+)$", re.MULTILINE)


def promtool(*arguments: object) -> None:
    """Run promtool, which must agree."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kustomize(folder: Path) -> list[dict]:
    """Give the manifests that kubectl renders."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (Debian: kubernetes-client)")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.mark.parametrize("path", [path for path in monitoring_files() if path.suffix == ".yaml"], ids=str)
def test_a_committed_rule_file_is_what_its_code_makes(path):
    """`make dashboards` writes it."""
    assert (FOLDER / path).read_text(encoding="utf-8") == monitoring_files()[path]


@pytest.mark.parametrize("path", RULE_FILES, ids=lambda path: path.name)
def test_promtool_accepts_a_rule_file(path):
    """Every expression and template parses, and no rule stands there twice."""
    promtool("check", "rules", "--lint=all", "--lint-fatal", path)


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_stop_as_promised(path, tmp_path):
    """By promtool on invented series: the file says which; bounds, waits and the runbook's address are filled in."""
    bounds = {f"{machine}_{size}": s for machine, sizes in LATENCY_BOUNDS.items() for size, s in sizes.items()}
    waits = {
        f"{machine}_{name}": f"{share * deadline_s:g}"
        for machine, deadline_s in DEADLINES_S.items()
        for name, share in (("long", 0.6), ("short", 0.4))
    }
    text = Template(path.read_text(encoding="utf-8")).substitute(bounds, **waits, RUNBOOK=RUNBOOK)
    (tmp_path / path.name).write_text(text.replace("../../..", str(ROOT)), encoding="utf-8")

    promtool("test", "rules", tmp_path / path.name)


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_is_tested_to_fire_and_not_to_fire(name):
    """In some unit test the alert is expected, in some it is expected not to be there."""
    tests = [
        case
        for path in UNIT_TESTS
        for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]
        for case in test["promql_expr_test"]
        if f'alertname="{name}"' in case["expr"]
    ]

    assert {bool(case["exp_samples"]) for case in tests} == {True, False}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels'].get('burn_rate', '')}")
def test_an_alert_says_how_bad_it_is_what_it_is_and_where_to_read_on(rule):
    """Severity page or ticket; summary, description, runbook_url."""
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{rule['alert'].lower()}"
    assert (
        "$value" in rule["annotations"]["description"]
        or "$labels" in rule["annotations"]["description"]
        or (rule["alert"] == "RelevanceAbsent")
    )


def test_the_runbook_has_a_section_for_each_alert_and_none_besides():
    """Its headings are the anchors that `runbook_url` points to; each has the four parts."""
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    sections = dict(zip(HEADING.findall(text), HEADING.split(text)[2::2], strict=True))

    assert sorted(sections) == sorted({rule["alert"] for rule in ALERTS})
    for name, section in sections.items():
        parts = re.findall(r"^\*\*(\w[\w ]*)\*\*:", section, re.MULTILINE)
        assert parts == ["Symptom", "Likely causes", "Look at", "Do"], name


def test_the_runbook_names_only_series_that_exist():
    """Instruments of the service, or what the rules record."""
    known = {family.name for family in Telemetry().registry.collect()}
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    named = {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in re.findall(r"\brelevance_[a-z_]+", text)}

    assert named - known == set()


@pytest.mark.parametrize("machine", LATENCY_BOUNDS)
def test_a_latency_bound_is_an_edge_of_the_histogram(machine):
    """Only there are the requests within it counted."""
    edges = {sample.labels.get("le") for family in Telemetry().duration.collect() for sample in family.samples}

    assert set(LATENCY_BOUNDS[machine].values()) <= edges


def test_a_cpu_bound_holds_for_the_largest_request_of_its_class_at_the_measured_speed():
    """Items over pairs a second, within the bound and within the default deadline."""
    largest = {size_class(n): n for n in range(1, 1001)}

    for size, bound in LATENCY_BOUNDS["cpu"].items():
        assert largest[size] / CPU_PAIRS_PER_S <= float(bound) <= DEADLINES_S["cpu"]


@pytest.mark.parametrize("folder", ["latency-cpu", "latency-gpu"])
def test_the_operator_gets_the_same_rules_as_a_plain_prometheus(folder):
    """Rendered by the real kubectl: the groups of the PrometheusRules are those of the rule files."""
    rendered = kustomize(FOLDER) + kustomize(FOLDER / folder)
    groups = [
        group for manifest in rendered if manifest["kind"] == "PrometheusRule" for group in manifest["spec"]["groups"]
    ]
    names = ("slo.yaml", "causes.yaml", f"{folder}.yaml")
    plain = [
        group
        for name in names
        for group in yaml.safe_load((FOLDER / "rules" / name).read_text(encoding="utf-8"))["groups"]
    ]

    assert groups == plain


def test_grafana_gets_every_dashboard():
    """Rendered by the real kubectl: one ConfigMap with the label that Grafana's sidecar looks for."""
    (dashboards,) = [manifest for manifest in kustomize(FOLDER) if manifest["kind"] == "ConfigMap"]

    assert dashboards["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert dashboards["data"] == {
        path.name: text for path, text in monitoring_files().items() if path.suffix == ".json"
    }


def test_everything_can_be_written_to_another_folder(tmp_path):
    """`--out` names it; each file as beside the code."""
    assert main(["--out", str(tmp_path)]) == 0

    assert {path: (tmp_path / path).read_text(encoding="utf-8") for path in monitoring_files()} == monitoring_files()


def test_the_address_of_the_runbook_can_be_another():
    """It stands before the anchor of each alert."""
    rules = monitoring_files("https://docs.example/runbook")[Path("rules/slo.yaml")]

    assert "runbook_url: https://docs.example/runbook#relevanceavailabilityburn" in rules
    assert f"runbook_url: {RUNBOOK}" not in rules

"""What entries add to the base: autoscalers, and the examples canary, delivery and shadow."""

from __future__ import annotations

import re
import shutil

import pytest
import yaml
from prometheus_client import generate_latest
from rendering import (
    DELIVERY,
    ENTRIES,
    EXAMPLES,
    K8S,
    KUSTOMIZATION,
    fits,
    of_kind,
    pod_specs,
    render,
    server_pods,
    settings_of,
)

from k8s.monitoring.objectives import DEADLINES_S, MIN_REPLICAS
from service.telemetry import Telemetry


def _quantity(text: str) -> float:
    return float(text.removesuffix("m")) / 1000 if text.endswith("m") else float(text)


def test_the_shadow_s_init_container_puts_its_bundle_where_the_setting_points():
    """A store of its own, named once."""
    [(_, _, spec)] = server_pods("examples/shadow")
    [server] = spec["containers"]
    shadow = spec["initContainers"][1]

    assert settings_of("examples/shadow", server)["RELEVANCE_SHADOW_BUNDLE"] == "/shadow/current"
    assert shadow["args"][shadow["args"].index("--store") + 1] == "/shadow"
    assert shadow["args"].count("$(SHADOW_ID)") == 1
    assert set(settings_of("examples/shadow", shadow)) == {"SHADOW_ID"}
    assert shadow["image"] == server["image"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_one_autoscaler_owns_the_number_of_stable_replicas(entry: str):
    """Its target names no number itself; it aims at 20 % of the deadline that alerts know, up at once, down slowly."""
    [scaler] = of_kind(entry, "HorizontalPodAutoscaler", "ScaledObject")
    [target] = [d for d in of_kind(entry, "Deployment") if d["metadata"]["name"] == "relevance-tiers"]
    [server] = target["spec"]["template"]["spec"]["containers"]
    deadline_s = int(settings_of(entry, server)["RELEVANCE_DEFAULT_DEADLINE_MS"]) / 1000
    spec = scaler["spec"]

    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "relevance-tiers"}
    assert "replicas" not in target["spec"]
    if scaler["kind"] == "ScaledObject":
        trigger, cpu = spec["triggers"]
        behaviour = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        aim = float(trigger["metadata"]["threshold"])
        assert MIN_REPLICAS <= spec["minReplicaCount"] <= spec["fallback"]["replicas"] <= spec["maxReplicaCount"]
        assert cpu["metadata"]["containerName"] == server["name"]
        assert trigger["metadata"]["query"].startswith("sum(")
    else:
        waits, cpu = spec["metrics"]
        behaviour, aim = spec["behavior"], _quantity(waits["pods"]["target"]["averageValue"])
        assert cpu["containerResource"]["container"] == server["name"]
        assert MIN_REPLICAS <= spec["minReplicas"] < spec["maxReplicas"]
    assert aim == pytest.approx(0.2 * deadline_s)
    assert deadline_s == DEADLINES_S["gpu" if entry.endswith("gpu") else "cpu"]
    assert behaviour["scaleUp"]["stabilizationWindowSeconds"] == 0
    assert behaviour["scaleDown"]["stabilizationWindowSeconds"] >= 300


def test_autoscalers_read_an_instrument_of_the_service():
    """The names in the adapter's rule, in the HPA and in KEDA's query are series of /metrics."""
    exported = {line.split()[0] for line in generate_latest(Telemetry().registry).decode().splitlines()}
    [rule] = yaml.safe_load((K8S / "components/hpa/prometheus-adapter-rules.yaml").read_text())
    [hpa] = of_kind("overlays/cpu", "HorizontalPodAutoscaler")
    [keda] = of_kind("examples/keda", "ScaledObject")
    asked = {
        *re.findall(r"relevance_\w+", rule["seriesQuery"]),
        rule["name"]["as"],
        hpa["spec"]["metrics"][0]["pods"]["metric"]["name"],
        *re.findall(r"relevance_\w+", keda["spec"]["triggers"][0]["metadata"]["query"]),
    }

    assert asked == {"relevance_estimated_wait_seconds"}
    assert asked <= exported


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_renders_over_the_claim(example: str, tmp_path):
    """In a copy where the CPU overlay is replaced by its form with the claim, as the examples' comments say."""
    tree = shutil.copytree(K8S, tmp_path / "k8s")
    path = tree / example / KUSTOMIZATION
    content = yaml.safe_load(path.read_text())
    if "../../base" in content["resources"]:
        content["resources"].append("../../base/claim")
        content["components"].insert(0, "../../components/bundle-claim")
    content["resources"] = [re.sub("overlays/cpu$", "overlays/cpu-claim", name) for name in content["resources"]]
    path.write_text(yaml.safe_dump(content))

    documents = render(example, tree)

    stable = next(d for d in documents if d["kind"] == "Deployment" and d["metadata"]["name"] == "relevance-tiers")
    assert [d["metadata"]["name"] for d in documents if d["kind"] == "PersistentVolumeClaim"] == ["relevance-bundles"]
    assert stable["spec"]["template"]["spec"]["initContainers"][0]["args"][2] == "/source/$(RELEVANCE_BUNDLE_ID)"


def test_the_canary_takes_part_in_the_service_and_is_told_apart():
    """The same Service selects both; their own selectors do not overlap, and each has its own settings."""
    stable, canary = sorted(of_kind("examples/canary", "Deployment"), key=lambda d: len(d["metadata"]["name"]))
    [service] = of_kind("examples/canary", "Service")
    labels = [d["spec"]["template"]["metadata"]["labels"] for d in (stable, canary)]

    assert all(fits(service["spec"]["selector"], found) for found in labels)
    for own, other in ((stable, labels[1]), (canary, labels[0])):
        assert not fits(own["spec"]["selector"]["matchLabels"], other)
    assert canary["metadata"]["name"] == "relevance-tiers-canary"
    assert canary["spec"]["replicas"] == 1
    assert len(of_kind("examples/canary", "ConfigMap")) == 2


def test_the_delivery_pod_writes_to_the_claim_that_the_others_read():
    """As the same user and group, so that what it leaves can be read; the claim comes with it, whoever is first."""
    assert of_kind(DELIVERY, "PersistentVolumeClaim") == of_kind("overlays/gpu", "PersistentVolumeClaim")
    [(_, _, deliver)] = pod_specs(DELIVERY)
    [(_, _, reader)] = server_pods("overlays/gpu")
    claims = [
        [v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v]
        for spec in (deliver, reader)
    ]

    assert claims == [[{"claimName": "relevance-bundles"}], [{"claimName": "relevance-bundles", "readOnly": True}]]
    assert deliver["securityContext"] == reader["securityContext"]

"""The manifests as the real `kubectl kustomize` renders them: valid, tied together, and as strict as they claim."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from rendering import (
    DELIVERY,
    ENTRIES,
    K8S,
    KUSTOMIZATION,
    OLDEST_WITH_COMPONENTS,
    containers,
    copy_for_old_kustomize,
    fits,
    kubectl,
    kustomize,
    of_kind,
    pod_specs,
    render,
    server_pods,
    settings_of,
    sorted_documents,
)

from k8s.monitoring.objectives import JOB, RELEASE
from relevance.bundle import open_bundle
from service.settings import DEFAULT_BUNDLE, Settings, load_settings

OLDEST_KUBERNETES = "1.31"
SCHEMAS = {
    schema["properties"]["kind"]["const"]: schema
    for schema in (json.loads(path.read_text()) for path in Path(__file__).with_name("schemas").glob("*.json"))
}
EXTRA = 5
"""Seconds that the grace period has beyond the hook and the longest request."""
LOGS_MI = 128
"""What a pod may log, beside its volumes."""
UNITS_MI = {"Mi": 1, "Gi": 1024}
every_entry = pytest.mark.parametrize("entry", ENTRIES)
every_folder = pytest.mark.parametrize("entry", [*ENTRIES, DELIVERY])


def _mebibytes(text: str) -> int:
    return int(text[:-2]) * UNITS_MI[text[-2:]]


def _validate(document) -> None:
    if document["kind"] in SCHEMAS:
        jsonschema.validate(document, SCHEMAS[document["kind"]])
        return
    for version in (OLDEST_KUBERNETES, kubernetes_validate.latest_version()):
        kubernetes_validate.validate(document, version, strict=True)


@every_folder
def test_every_document_is_valid(entry: str):
    """Against the schemas of Kubernetes, oldest supported and newest, or ours for the kinds of operators."""
    documents = render(entry)
    for document in documents:
        _validate(document)

    assert documents


@pytest.mark.parametrize("path", sorted(K8S.rglob("prometheusrule.yaml")), ids=lambda p: str(p.relative_to(K8S)))
def test_rule_manifests_are_valid(path: Path):
    """The PrometheusRule files hold what the operator reads."""
    manifest = yaml.safe_load(path.read_text(encoding="utf-8"))
    _validate(manifest)

    assert manifest["spec"]["groups"]


@pytest.mark.parametrize("field", ["spec", "kind"])
def test_a_schema_of_ours_refuses_what_the_operator_would(field: str):
    """A field too many or one missing."""
    [monitor] = of_kind("overlays/cpu", "ServiceMonitor")

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(monitor | {"extra": 1}, SCHEMAS["ServiceMonitor"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({key: v for key, v in monitor.items() if key != field}, SCHEMAS["ServiceMonitor"])


def test_the_copy_for_an_old_kubectl_has_old_words_only(tmp_path):
    """No component, no patch without its old name, no directory under resources."""
    for path in copy_for_old_kustomize(K8S, tmp_path / "k8s").rglob(KUSTOMIZATION):
        content = yaml.safe_load(path.read_text())
        if content["kind"] == "Kustomization":
            assert not {"components", "patches"} & set(content)
            assert all((path.parent / name).is_file() for name in content.get("resources", []))


def test_the_copy_for_an_old_kubectl_renders_to_the_same(tmp_path):
    """Bases, patchesJson6902 and layers mean what resources, patches and components mean."""
    copy = copy_for_old_kustomize(K8S, tmp_path / "k8s")

    if kubectl()[1] < OLDEST_WITH_COMPONENTS:
        pytest.skip(f"this kubectl (1.{kubectl()[1]}) renders the copy only, so there is nothing to compare it with")
    for entry in (*ENTRIES, DELIVERY):
        original = [d for d in render(entry) if d["kind"] != "PriorityClass"]
        copied = [d for d in kustomize(copy / entry) if d["kind"] != "PriorityClass"]
        assert sorted_documents(original) == sorted_documents(copied)


def test_kustomizations_use_today_s_words_and_every_file_is_used():
    """No `bases`, no `patchesJson6902`; no manifest that nothing names."""
    files = {p for p in K8S.rglob("*.yaml") if "monitoring" not in p.parts and p.name != KUSTOMIZATION}
    named = set()
    for path in K8S.rglob(KUSTOMIZATION):
        content = yaml.safe_load(path.read_text())
        assert not {"bases", "patchesJson6902", "patchesStrategicMerge", "commonLabels", "vars"} & set(content)
        named |= {path.parent / name for name in content.get("resources", [])}
        named |= {path.parent / patch["path"] for patch in content.get("patches", [])}

    assert {str(p.relative_to(K8S)) for p in files - named} == {"components/hpa/prometheus-adapter-rules.yaml"}


@every_folder
def test_no_container_runs_as_root_or_may_become_it(entry: str):
    """The restricted profile, a numbered user, a read-only root, no capabilities, no token."""
    for name, _, spec in pod_specs(entry):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert min(pod["runAsUser"], pod["runAsGroup"]) >= 10_000
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        for container in containers(spec):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@every_entry
def test_the_namespace_lets_no_other_pod_in(entry: str):
    """The cluster itself enforces the restricted profile there, and the account has no token to give away."""
    [namespace] = of_kind(entry, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert [d["automountServiceAccountToken"] for d in of_kind(entry, "ServiceAccount")] == [False]


@every_folder
def test_every_container_has_a_pinned_image_requests_and_limits(entry: str):
    """Never `latest`, ours as components/image says, which comes last; memory requested is memory granted."""
    component = yaml.safe_load((K8S / "components/image" / KUSTOMIZATION).read_text())
    ours = {image["name"]: f"{image['newName']}:{image['newTag']}" for image in component["images"]}
    assert set(ours) == {"relevance-tiers", "relevance-tiers-gpu"}
    for _, _, spec in pod_specs(entry):
        for container in containers(spec):
            name, _, tag = container["image"].rpartition(":")
            assert name
            assert tag not in {"", "latest"}
            if container["name"] != "redis":
                assert container["image"] == ours[f"relevance-tiers{'-gpu' if entry.endswith('gpu') else ''}"]
            wanted, granted = container["resources"]["requests"], container["resources"]["limits"]
            assert {"cpu", "memory", "ephemeral-storage"} <= set(wanted)
            assert set(wanted) == set(granted)
            assert wanted["memory"] == granted["memory"]


@every_folder
def test_a_pod_s_volumes_and_logs_fit_into_its_ephemeral_storage(entry: str):
    """What emptyDirs may hold counts against the sum of the containers' limits: beyond it the kubelet evicts."""
    for name, _, spec in pod_specs(entry):
        volumes = [volume["emptyDir"] for volume in spec.get("volumes", []) if "emptyDir" in volume]
        held = sum(_mebibytes(volume["sizeLimit"]) for volume in volumes)
        granted = sum(_mebibytes(c["resources"]["limits"]["ephemeral-storage"]) for c in spec["containers"])
        assert granted >= held + (LOGS_MI if volumes else 0), name


@every_entry
def test_the_service_gets_whole_cores_because_the_limit_sets_its_threads(entry: str):
    """Requests equal limits, so the pod is Guaranteed; a GPU pod asks for one device."""
    for _, _, spec in server_pods(entry):
        [server] = spec["containers"]
        assert server["resources"]["requests"] == server["resources"]["limits"]
        assert server["resources"]["limits"]["cpu"].isdigit()
        assert (server["resources"]["limits"].get("nvidia.com/gpu") == "1") is entry.endswith("gpu")


@every_entry
def test_every_setting_in_a_manifest_is_one_that_the_service_reads(entry: str):
    """By name, and the values are accepted; secrets come by reference, never as text."""
    for _, _, spec in server_pods(entry):
        [server] = spec["containers"]
        given = settings_of(entry, server)
        names = {*given, *(entry["name"] for entry in server.get("env", []))}
        fields = {name.removeprefix("RELEVANCE_").lower() for name in names}
        assert all(name.startswith("RELEVANCE_") for name in names)
        assert fields <= set(Settings.model_fields)
        loaded = load_settings(**{name.removeprefix("RELEVANCE_").lower(): value for name, value in given.items()})
        assert loaded.bundle_id == given["RELEVANCE_BUNDLE_ID"]
        assert not {"RELEVANCE_REDIS_URL"} & set(given)


@every_entry
def test_probes_ask_the_service_s_own_routes_on_a_port_it_has(entry: str):
    """startupz, livez, readyz, each on the named port; port numbers are those of the settings."""
    for _, _, spec in server_pods(entry):
        [server] = spec["containers"]
        ports = {port["name"]: port["containerPort"] for port in server["ports"]}
        given = settings_of(entry, server)
        assert ports == {"http": int(given["RELEVANCE_PORT"]), "admin": int(given["RELEVANCE_ADMIN_PORT"])}
        for probe, route in (("startupProbe", "/startupz"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
            assert server[probe]["httpGet"] == {"path": route, "port": "http"}


@every_entry
def test_a_pod_has_time_to_drain_and_a_rollout_never_takes_one_away_first(entry: str):
    """Grace ≥ the hook's wait + the longest request + 5 s, the service's own window equals the hook's."""
    for deployment in of_kind(entry, "Deployment"):
        if deployment["metadata"]["labels"]["app.kubernetes.io/component"] != "server":
            continue
        assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
        spec = deployment["spec"]["template"]["spec"]
        [server] = spec["containers"]
        given = settings_of(entry, server)
        command = server["lifecycle"]["preStop"]["exec"]["command"]
        wait, longest = float(command[-1]), float(given["RELEVANCE_SHUTDOWN_S"])
        assert command[:-1] == ["relevance", "drain", "--wait"]
        assert wait == float(given["RELEVANCE_DRAIN_S"])
        assert longest >= int(given["RELEVANCE_DEFAULT_DEADLINE_MS"]) / 1000
        assert spec["terminationGracePeriodSeconds"] >= wait + longest + EXTRA


@every_entry
def test_the_bundle_is_ordered_by_id_and_the_service_may_only_read_it(entry: str):
    """The init container insists on the id in the settings; writable are its scratch and engines."""
    for _, _, spec in server_pods(entry):
        [server] = spec["containers"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in containers(spec):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        given = settings_of(entry, server)
        engines = {given["RELEVANCE_ENGINE_CACHE"]} if given.get("RELEVANCE_PROVIDER") == "tensorrt" else set()
        assert {m["mountPath"] for m in server["volumeMounts"] if not m.get("readOnly")} == {"/tmp", *engines}
        first = spec["initContainers"][0]
        assert first["args"][:2] == ["bundle", "add"]
        assert first["args"][first["args"].index("--id") + 1] == "$(RELEVANCE_BUNDLE_ID)"
        assert "--use" in first["args"]
        assert settings_of(entry, first) == given
        if first["args"][2] == "/opt/relevance/default_bundle":
            assert given["RELEVANCE_BUNDLE_ID"] == open_bundle(DEFAULT_BUNDLE).manifest.bundle_id
        else:
            assert first["args"][2] == "/source/$(RELEVANCE_BUNDLE_ID)"
            assert re.fullmatch("[0-9a-f]{16}", given["RELEVANCE_BUNDLE_ID"])


@every_entry
def test_services_budgets_and_spreads_select_pods_that_exist(entry: str):
    """Each selector fits a pod template, and each named port is one of its containers'."""
    pods = pod_specs(entry)
    for service in of_kind(entry, "Service"):
        chosen = [spec for _, labels, spec in pods if fits(service["spec"]["selector"], labels)]
        assert chosen
        for spec in chosen:
            names = {port["name"] for container in spec["containers"] for port in container["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for budget in of_kind(entry, "PodDisruptionBudget"):
        assert any(fits(budget["spec"]["selector"]["matchLabels"], labels) for _, labels, _ in pods)
        assert budget["spec"]["maxUnavailable"] == 1
    for _, labels, spec in server_pods(entry):
        spreads = spec["topologySpreadConstraints"]
        assert {s["topologyKey"] for s in spreads} == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        assert all(fits(s["labelSelector"]["matchLabels"], labels) for s in spreads)
        assert spec["priorityClassName"] in {d["metadata"]["name"] for d in of_kind(entry, "PriorityClass")}
        assert spec["serviceAccountName"] in {d["metadata"]["name"] for d in of_kind(entry, "ServiceAccount")}


@every_entry
def test_the_monitor_finds_the_service_s_admin_port(entry: str):
    """By labels of the Service and the name of one of its ports; the path is the service's."""
    [monitor] = of_kind(entry, "ServiceMonitor")
    selector = monitor["spec"]["selector"]["matchLabels"]
    [service] = [s for s in of_kind(entry, "Service") if fits(selector, s["metadata"]["labels"])]

    [endpoint] = monitor["spec"]["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["path"] == "/metrics"
    assert service["metadata"]["labels"][monitor["spec"]["jobLabel"]] == JOB
    assert monitor["metadata"]["labels"]["release"] == RELEASE


@every_entry
def test_network_policies_close_everything_and_open_what_is_named(entry: str):
    """All is denied by default; the ads backend reaches http, Prometheus admin, the service Redis or nothing."""
    policies = {d["metadata"]["name"]: d["spec"] for d in of_kind(entry, "NetworkPolicy")}
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for policy in policies.values():
        chosen = [spec for _, labels, spec in pod_specs(entry) if fits(policy["podSelector"]["matchLabels"], labels)]
        assert chosen
        names = {port["name"] for container in chosen[0]["containers"] for port in container["ports"]}
        assert {port["port"] for rule in policy["ingress"] for port in rule["ports"]} <= names
        assert policy["policyTypes"] == ["Ingress", "Egress"]
    own = policies["relevance-tiers"]
    assert [port["port"] for rule in own["ingress"] for port in rule["ports"]] == ["http", "admin"]
    for rule in own["ingress"]:
        [peer] = rule["from"]
        assert set(peer["namespaceSelector"]["matchLabels"]) == {"kubernetes.io/metadata.name"}
    opened = [port["port"] for rule in own["egress"] for port in rule["ports"]]
    assert opened == (["redis", 53, 53] if entry == "examples/redis" else [])


@every_entry
def test_secrets_and_claims_are_the_documented_ones_and_none_is_in_the_tree(entry: str):
    """Two Secrets that the operator makes by hand; a claim is rendered where a pod wants one."""
    text = json.dumps(render(entry))
    secrets = set(re.findall(r'"secretName": "([^"]+)"', text)) | {
        found["secretKeyRef"]["name"]
        for _, _, spec in pod_specs(entry)
        for container in containers(spec)
        for found in (variable.get("valueFrom", {}) for variable in container.get("env", []))
        if "secretKeyRef" in found
    }
    claims = set(re.findall(r'"claimName": "([^"]+)"', text))

    assert secrets <= {"relevance-api-keys", "relevance-redis"}
    assert claims == {d["metadata"]["name"] for d in of_kind(entry, "PersistentVolumeClaim")}
    assert of_kind(entry, "Secret") == []

"""Kustomizations rendered by the real `kubectl kustomize`, and a copy of them for a kubectl older than 1.27.

Older ones (Debian's 1.20 holds kustomize 2.0) know neither directories under `resources`, nor components, nor
`patches`. For them `copy_for_old_kustomize` moves directories to `bases`, patches to `patchesJson6902`, and turns each
component into a layer of its own between a kustomization and its bases. It is for these tests alone.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
KUSTOMIZATION = "kustomization.yaml"
OLDEST_WITH_COMPONENTS = 27
EXAMPLES = ("examples/canary", "examples/keda", "examples/redis", "examples/shadow")
ENTRIES = ("overlays/cpu", "overlays/cpu-claim", "overlays/gpu", "overlays/tensorrt-gpu", *EXAMPLES)
DELIVERY = "examples/deliver"
Document = dict[str, Any]


@cache
def kubectl() -> tuple[str, int]:
    """Give kubectl's path and its minor version; skips the test where there is none."""
    path = shutil.which("kubectl")
    if path is None:
        pytest.skip("kubectl is not installed (Debian: kubernetes-client)")
    done = subprocess.run([path, "version", "--client", "-o", "json"], capture_output=True, text=True, check=True)
    return path, int(json.loads(done.stdout)["clientVersion"]["gitVersion"].split(".")[1])


def kustomize(folder: Path) -> list[Document]:
    """Give what `kubectl kustomize` makes of a folder."""
    done = subprocess.run([kubectl()[0], "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{folder}: expected kubectl kustomize to render it, found: {done.stderr}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def sorted_documents(documents: list[Document]) -> list[Document]:
    """Order documents by kind and name."""
    return sorted(documents, key=lambda d: (d["kind"], d["metadata"]["name"]))


def copy_for_old_kustomize(source: Path, target: Path) -> Path:
    """Copy a tree of kustomizations and turn every one into what kustomize 2.0 reads; gives the copy."""
    shutil.copytree(source, target)
    kinds = {path: yaml.safe_load(path.read_text()) for path in sorted(target.rglob(KUSTOMIZATION))}
    for path, content in kinds.items():
        if content["kind"] == "Kustomization":
            _convert(path.parent, content)
    return target


def _convert(folder: Path, content: Document) -> None:
    """Rewrite one kustomization; each of its components becomes a layer folder beside it."""
    components = content.pop("components", [])
    below = None
    for number, component in enumerate([None, *components]) if components else []:
        layer = folder.with_name(f"{folder.name}.layer{number}")
        layer.mkdir()
        if component is None:
            part = {"resources": content.pop("resources", [])}
            origin = folder
        else:
            origin = (folder / component).resolve()
            part = yaml.safe_load((origin / KUSTOMIZATION).read_text())
        _write(layer, part, origin=origin, below=below, namespace=content.get("namespace"))
        below = layer
    _write(folder, content, origin=folder, below=below, namespace=content.get("namespace"))


def _write(folder: Path, part: Document, *, origin: Path, below: Path | None, namespace: str | None) -> None:
    bases = [f"../{below.name}"] if below is not None else []
    files = []
    for resource in part.get("resources", []):
        if (origin / resource).is_dir():
            bases.append(os.path.relpath((origin / resource).resolve(), folder.resolve()))
        else:
            files.append(resource)
    patches = part.get("patches", [])
    for name in (*files, *(patch["path"] for patch in patches)):
        if origin != folder:
            shutil.copyfile(origin / name, folder / name)
    made: Document = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    made |= {key: part[key] for key in ("configMapGenerator", "images", "nameSuffix") if key in part}
    if namespace is not None:
        made["namespace"] = namespace
    made |= {"bases": bases, "resources": files, "patchesJson6902": patches}
    (folder / KUSTOMIZATION).write_text(yaml.safe_dump({key: value for key, value in made.items() if value}))


@cache
def render(name: str, tree: Path = K8S) -> tuple[Document, ...]:
    """Give the documents of a folder of k8s/ or of a copy of it, once; converted first where kubectl is before 1.27."""
    if kubectl()[1] >= OLDEST_WITH_COMPONENTS:
        return tuple(kustomize(tree / name))
    with tempfile.TemporaryDirectory() as folder:
        documents = kustomize(copy_for_old_kustomize(tree, Path(folder) / "k8s") / name)
    for document in documents:
        if document["kind"] == "PriorityClass":
            document["metadata"].pop("namespace")
    return tuple(documents)


def of_kind(name: str, *kinds: str) -> list[Document]:
    """Give the documents of these kinds in a folder of k8s/."""
    return [document for document in render(name) if document["kind"] in kinds]


def pod_specs(name: str) -> list[tuple[str, dict[str, str], Document]]:
    """Give (name, labels, spec) of each pod and pod template in a folder of k8s/."""
    pods = [(d["metadata"]["name"], d) for d in of_kind(name, "Pod")]
    pods += [(d["metadata"]["name"], d["spec"]["template"]) for d in of_kind(name, "Deployment")]
    return [(found, pod["metadata"]["labels"], pod["spec"]) for found, pod in pods]


def fits(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Say whether a selector chooses what has these labels."""
    return selector.items() <= labels.items()


def server_pods(name: str) -> list[tuple[str, dict[str, str], Document]]:
    """Give (name, labels, spec) of the pod templates that run the service."""
    return [pod for pod in pod_specs(name) if pod[1]["app.kubernetes.io/component"] == "server"]


def containers(spec: Document) -> list[Document]:
    """Give the containers of a pod, the init containers first."""
    return [*spec.get("initContainers", []), *spec["containers"]]


def settings_of(name: str, container: Document) -> dict[str, str]:
    """Give the literal environment of a container: its ConfigMaps, then its own values."""
    data = {d["metadata"]["name"]: d["data"] for d in of_kind(name, "ConfigMap")}
    given: dict[str, str] = {}
    for source in container.get("envFrom", []):
        given |= data[source["configMapRef"]["name"]]
    return given | {entry["name"]: entry["value"] for entry in container.get("env", []) if "value" in entry}

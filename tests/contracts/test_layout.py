"""The two worlds: what each package may load, and what the wheel holds."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"relevance", "training", "export", "service"}
OFFLINE = {"torch", "transformers", "sklearn", "scipy", "sentence_transformers", "accelerate", "training", "export"}
CORE = {"numpy", "pydantic", "tokenizers", "re2", "pyarrow", "relevance"}


def imported(path, *, at_load_only=False):
    """Give the top-level names a file imports, those inside functions too unless told otherwise."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_load_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").split(".")[0])
    return names


def files_of(package):
    """Give the Python files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files_of("relevance"), ids=lambda path: path.name)
def test_the_core_imports_its_four_dependencies_and_pyarrow_only_inside_functions(path):
    """numpy, pydantic, tokenizers and google-re2, beside the standard library."""
    foreign = imported(path) - set(sys.stdlib_module_names)
    assert foreign <= CORE
    assert "pyarrow" not in imported(path, at_load_only=True)


@pytest.mark.parametrize("path", files_of("service"), ids=lambda path: path.name)
def test_the_service_imports_nothing_of_the_offline_world(path):
    """Not even inside a function."""
    assert not imported(path) & OFFLINE


@pytest.mark.parametrize("path", files_of("clients/python/src"), ids=lambda path: path.name)
def test_the_client_imports_its_dependencies_and_itself(path):
    """Nothing of ours: it is installed where the service is not."""
    foreign = imported(path) - set(sys.stdlib_module_names)
    assert foreign <= {"httpx", "pydantic", "pydantic_core", "tenacity", "typing_extensions", "relevance_tiers_client"}


def test_loading_the_core_loads_neither_torch_nor_pyarrow_nor_a_web_framework():
    """Seen from a fresh interpreter, with every module of the core loaded."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in files_of("relevance")
        if path.stem != "__init__"
    ]
    script = (
        f"import sys, importlib\nfor name in {modules!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'transformers', 'pyarrow', 'fastapi', 'onnxruntime', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_the_wheel_holds_exactly_the_four_packages():
    """The client library is a distribution of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES
    assert {path.parent.name for path in ROOT.glob("*/py.typed")} == PACKAGES


def test_the_export_extra_names_no_runtime_and_the_two_service_extras_differ_in_theirs():
    """onnxruntime and onnxruntime-gpu exclude each other, so only the service extras may bring one."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    runtimes = {
        extra: [name.split(">")[0] for name in names if name.startswith("onnxruntime")]
        for extra, names in extras.items()
    }
    assert {extra: names for extra, names in runtimes.items() if names} == {
        "service": ["onnxruntime"],
        "service-gpu": ["onnxruntime-gpu"],
    }

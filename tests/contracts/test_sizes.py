"""Sizes and names that keep the code readable (CONTRIBUTING: files, functions, parameters)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("relevance", "training", "export", "service", "clients/python/src/relevance_tiers_client")
OURS = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FORBIDDEN = {"utils", "helpers", "common", "base", "misc"}


def name_of(path):
    """Give a path as a test id."""
    return str(path.relative_to(ROOT))


def functions(path):
    """Give every function of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def too_many(function):
    """Say whether a function has more than six parameters, the instance or class it belongs to not counted."""
    arguments = function.args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in names if name not in {"self", "cls"}]) > 6


@pytest.mark.parametrize("path", [*OURS, *TESTS], ids=name_of)
def test_a_file_has_at_most_400_lines(path):
    """What does not fit is two things."""
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_function_has_at_most_60_lines_and_6_parameters(path):
    """Decorators and docstrings count as lines."""
    found = functions(path)
    assert [f"{f.name}: {f.end_lineno - f.lineno + 1} lines" for f in found if f.end_lineno - f.lineno >= 60] == []
    assert [f.name for f in found if too_many(f)] == []


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_a_module_says_what_it_is_for(path):
    """By its docstring and by a name that is not a drawer for everything."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert path.stem not in FORBIDDEN
    assert not FORBIDDEN & {part.name for part in path.relative_to(ROOT).parents}


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_every_test_has_a_sentence(path):
    """A test's docstring states the behaviour."""
    silent = [f.name for f in functions(path) if f.name.startswith("test_") and not ast.get_docstring(f)]
    assert silent == []

"""Starts that must fail: one clear line and a status that is not 0."""

from __future__ import annotations

import json
import shutil
import socket

import pytest

from service.verify import main as verify


@pytest.fixture
def copy(tiny_bundle, tmp_path):
    """A copy of the tiny bundle to damage."""
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def _flip_a_byte(copy):
    file = max(copy.glob("*.onnx"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def _truncate(copy):
    file = copy / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:-10])


def _remove(copy):
    (copy / "calibration.json").unlink()


def _newer_schema(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 2}))


def _edit_policy(copy):
    with (copy / "policy.toml").open("a") as file:
        file.write("\n# looser\n")


def _remove_all(copy):
    shutil.rmtree(copy)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_flip_a_byte, "it was edited"),
        (_truncate, "it was truncated"),
        (_remove, "calibration.json: expected a file"),
        (_newer_schema, "expected schema_version 1, found 2"),
        (_edit_policy, "policy.toml"),
        (_remove_all, "expected a bundle directory"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_damaged_bundle_is_not_served(copy, damage, line: str, launch_failing):
    """The last line on standard error says which file and what is wrong; the status is 2."""
    damage(copy)

    assert line in launch_failing("--bundle", str(copy))


def test_a_policy_that_is_not_there_is_named(tiny_bundle, launch_failing, tmp_path):
    """A wrong --policy ends the start."""
    missing = tmp_path / "none.toml"

    assert str(missing) in launch_failing("--bundle", str(tiny_bundle), "--policy", str(missing))


def test_a_wrong_option_is_refused_by_name(tiny_bundle, launch_failing):
    """A port out of range."""
    assert "port" in launch_failing("--bundle", str(tiny_bundle), "--port", "70000")


@pytest.mark.parametrize("admin", [False, True])
def test_a_port_that_is_taken_ends_the_start(tiny_bundle, launch_failing, admin):
    """The status is that of every refused start; the other port's server ends too."""
    with socket.socket() as taken, socket.socket() as free:
        for one in (taken, free):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        ports = [str(one.getsockname()[1]) for one in ((free, taken) if admin else (taken, free))]
        free.close()
        settings = {"admin_port": ports[1]} if admin else {}

        assert "expected a free port" in launch_failing("--bundle", str(tiny_bundle), "--port", ports[0], **settings)


def test_verify_prints_what_it_checked(tiny_bundle, capsys):
    """Files, and one line for each graph that may be served."""
    assert verify([str(tiny_bundle)]) == 0

    out = capsys.readouterr().out
    assert "every sha256 right" in out
    assert "token ids exact" in out

"""Settings: where they come from and what is refused."""

from __future__ import annotations

import onnxruntime
import pytest

from relevance.bundle import open_bundle
from relevance.errors import SettingsError
from service.session import check_runtime, check_session
from service.settings import DEFAULT_BUNDLE, cpu_quota, default_threads, load_settings


def test_the_quota_is_read_from_cgroup_v2(tmp_path):
    """150000 of 100000 µs are 1.5 cores."""
    (tmp_path / "cpu.max").write_text("150000 100000\n")

    assert cpu_quota(tmp_path) == 1.5


def test_the_quota_is_read_from_cgroup_v1(tmp_path):
    """200000 of 100000 µs are 2 cores."""
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("200000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")

    assert cpu_quota(tmp_path) == 2.0


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/pods/one/main\n", {"pods/cpu.max": "300000 100000", "pods/one/cpu.max": "150000 100000"}),
        (
            "4:cpuset:/other\n3:cpu,cpuacct:/pods/one\n",
            {"cpu/pods/one/cpu.cfs_quota_us": "150000", "cpu/pods/one/cpu.cfs_period_us": "100000"},
        ),
    ],
)
def test_the_least_quota_of_the_own_group_and_those_above_counts(tmp_path, line, files):
    """A process in a group below the mount: version 2 walks up, version 1 takes the cpu controller's group."""
    own = tmp_path / "cgroup"
    own.write_text(line)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    assert cpu_quota(tmp_path, own) == 1.5


@pytest.mark.parametrize("content", ["max 100000\n", "nonsense\n", ""])
def test_no_limit_or_an_unreadable_one_is_no_quota(tmp_path, content):
    """`max` means unlimited; anything else unreadable is not taken for a number."""
    (tmp_path / "cpu.max").write_text(content)

    assert cpu_quota(tmp_path) is None


def test_there_is_always_a_thread():
    """The default is at least 1."""
    assert default_threads() >= 1


def test_options_win_over_the_environment(monkeypatch):
    """--port 9 beats RELEVANCE_PORT; an option that is None does not count."""
    monkeypatch.setenv("RELEVANCE_PORT", "8111")
    monkeypatch.setenv("RELEVANCE_HOST", "127.0.0.2")

    settings = load_settings(port=9, host=None)

    assert (settings.port, settings.host) == (9, "127.0.0.2")


def test_a_wrong_setting_is_refused_by_name(monkeypatch):
    """The message names the setting and what was found."""
    monkeypatch.setenv("RELEVANCE_MAX_ITEMS", "many")

    with pytest.raises(SettingsError, match=r"max_items.*'many'"):
        load_settings()


def test_both_onnxruntime_builds_at_once_are_refused(monkeypatch):
    """The message names both builds."""
    monkeypatch.setattr("service.session.metadata.version", lambda name: "1.0")

    with pytest.raises(SettingsError, match=r"onnxruntime 1\.0 and onnxruntime-gpu 1\.0"):
        check_runtime("cpu")


def test_a_provider_this_build_lacks_is_refused(monkeypatch):
    """The message names the provider and what there is."""
    monkeypatch.setattr("service.session.ort.get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(SettingsError, match="CUDAExecutionProvider"):
        check_runtime("cuda")


def test_a_session_that_runs_elsewhere_than_asked_is_refused():
    """A real session on the CPU, said to be one on CUDA: onnxruntime falls back to it without a word."""
    graph = open_bundle(DEFAULT_BUNDLE).graph_path("int8w")
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    check_session(session, "cpu")
    with pytest.raises(SettingsError, match=r"on CUDAExecutionProvider, found \['CPUExecutionProvider'\]"):
        check_session(session, "cuda")


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        ({}, (8, 1)),
        ({"threads": 2}, (4, 2)),
        ({"engines": 2}, (2, 4)),
        ({"engines": 3, "threads": 5}, (3, 5)),
        ({"provider": "cuda"}, (1, 8)),
    ],
)
def test_engines_times_threads_is_the_quota_unless_both_are_set(monkeypatch, options, layout):
    """Eight cores: as many engines of one thread on a CPU, one engine on a GPU; one of the two decides the other."""
    monkeypatch.setattr("service.settings.default_threads", lambda: 8)

    settings = load_settings(**options)

    assert (settings.n_engines, settings.session_threads) == layout

"""In CI (`.ci/run` sets RELEVANCE_CI) a test of the deployment that would be skipped fails: CI installs every tool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

MAY_BE_SKIPPED = {
    "test_the_copy_for_an_old_kubectl_renders_to_the_same",
    "test_the_gpu_build_installs_one_onnxruntime_and_verifies_the_default_bundle",
    "test_a_session_that_would_fall_back_to_the_cpu_is_refused",
}
"""The first needs a newer kubectl than some Debian has; the others are asked for, as they download much."""
NOT_ALLOWED_HERE = "mount namespaces"
"""Part of the reason of tests that a kernel may forbid, in CI too: no program that could be installed is missing."""
_FOLDER = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip into a failure where nothing may be skipped."""
    report = yield
    missed = report.skipped and not hasattr(report, "wasxfail") and item.name not in MAY_BE_SKIPPED
    missed = missed and NOT_ALLOWED_HERE not in str(report.longrepr)
    if missed and os.environ.get("RELEVANCE_CI") and _FOLDER in item.path.parents:
        report.outcome = "failed"
        report.longrepr = f"RELEVANCE_CI: expected the test to run, found it skipped: {report.longrepr}"
    return report

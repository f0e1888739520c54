"""Settings of the service: environment variables `RELEVANCE_…`, command-line options over them, defaults below."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from relevance.bundle import Precision
from relevance.errors import SettingsError
from service.schemas import MOST_ITEMS

DEFAULT_BUNDLE = Path(__file__).parent / "default_bundle"


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Give the CPU quota of this process in cores: the least of its control group and those above, or None.

    Args: root: where the control groups are mounted (version 2: `cpu.max`, version 1: `cpu/cpu.cfs_quota_us`); own:
        the list of this process's groups.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    quotas = []
    for line in ["0::/", "1:cpu:/", *lines]:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "cpu" if controllers else root
        inside = PurePosixPath(group.lstrip("/"))
        for folder in (inside, *inside.parents):
            quota = _quota_of(mount / folder)
            quotas += [quota] if quota is not None else []
    return min(quotas, default=None)


def _quota_of(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (group / "cpu.cfs_quota_us").read_text().strip()
            period = (group / "cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)


def default_threads() -> int:
    """Give the threads this process may really use: the smaller of CPU affinity and quota, at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = cpu_quota()
    return max(1, allowed if quota is None else min(allowed, int(quota)))


class Settings(BaseSettings):
    """Everything that can be configured; unknown `RELEVANCE_` names are left alone, wrong values refused.

    What each means, with its unit, is in docs/operations.md; the names say it shortly. `None` turns an option off.
    """

    model_config = SettingsConfigDict(env_prefix="RELEVANCE_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    admin_port: int | None = Field(default=None, ge=1, le=65535)
    api_keys: Path | None = None

    bundle: Path = DEFAULT_BUNDLE
    bundle_id: str | None = None
    policy: Path | None = None
    precision: Literal["auto"] | Precision = "auto"
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    engine_cache: Path | None = None
    mode: Literal["score", "passthrough"] = "score"
    playground: bool = True

    threads: int | None = Field(default=None, ge=1, le=1024)
    engines: int | None = Field(default=None, ge=1, le=64)
    prefetch: bool | None = None
    batch_ms: float | None = Field(default=None, gt=0)
    max_items: int = Field(default=4096, ge=1, le=MOST_ITEMS)
    explain_max_items: int = Field(default=256, ge=0, le=MOST_ITEMS)
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    max_queued_requests: int = Field(default=1024, ge=1)
    default_deadline_ms: int = Field(default=30_000, ge=1)
    keep_unscored: bool = True

    item_cache_entries: int = Field(default=50_000, ge=0)
    item_cache_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    pair_cache_bytes: int = Field(default=128 * 1024 * 1024, ge=0)
    redis_url: SecretStr | None = None
    redis_timeout_ms: float = Field(default=10, gt=0)
    redis_ttl_s: int = Field(default=86_400, ge=1)

    shadow_bundle: Path | None = None
    shadow_rate: float = Field(default=0.05, gt=0, le=1)
    shadow_budget: float = Field(default=0.1, gt=0, le=1)

    pair_log: Path | None = None
    pair_log_rate: float = Field(default=0.01, gt=0, le=1)
    pair_log_bytes: int = Field(default=1024**3, ge=1024**2)
    pair_log_redact: str | None = Field(default=None, pattern=r"^[\w.]+:\w+$")
    tracing: bool = False

    hang_s: float = Field(default=30, gt=0)
    canary_s: float = Field(default=15, gt=0)
    drain_s: float = Field(default=2.0, ge=0)
    shutdown_s: int = Field(default=30, ge=1)

    @property
    def on_gpu(self) -> bool:
        """Whether the provider runs on a GPU."""
        return self.provider != "cpu"

    @property
    def batch_s(self) -> float:
        """Seconds of a batch: as set, else 40 ms on a CPU and 8 ms on a GPU."""
        return (self.batch_ms or (8.0 if self.on_gpu else 40.0)) / 1000

    @property
    def n_engines(self) -> int:
        """Engine threads: as set, else one a GPU, and on a CPU as many as the quota has room for at `threads` each."""
        if self.engines is not None:
            return self.engines
        return 1 if self.on_gpu else max(1, default_threads() // (self.threads or 1))

    @property
    def session_threads(self) -> int:
        """Intra-op threads of each engine's session: as set, else the CPU quota shared by the engines."""
        return self.threads or max(1, default_threads() // self.n_engines)


def load_settings(**options: Any) -> Settings:  # noqa: ANN401 - values of any field
    """Read the environment and put the given options over it; options that are None do not count.

    Raises: SettingsError: naming every setting that is wrong.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors())
        raise SettingsError(f"settings (RELEVANCE_… or option): {faults}") from error

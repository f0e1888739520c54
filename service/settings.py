"""Settings of the service: environment variables `RELEVANCE_…`, command-line options over them, defaults below."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from relevance.bundle import Precision
from relevance.errors import SettingsError
from service.schemas import MOST_ITEMS

DEFAULT_BUNDLE = Path(__file__).parent / "default_bundle"


def cpu_quota(root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """Give the CPU quota of this process's control group in cores, None if there is none.

    Args: root: where the control groups are mounted (version 2: `cpu.max`, version 1: `cpu/cpu.cfs_quota_us`).
    """
    try:
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text().strip()
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

    Args: policy: a policy.toml instead of the bundle's own; precision: auto takes the first of the provider's order
        that passed its gate; threads: intra-op threads of the session, default from the CPU quota; max_items: of one
        request; max_queued_pairs: pairs that may wait for the engine before requests are shed; batch_tokens: token
        budget of a batch (pairs × padded length); keep_unscored: whether items that could not be scored are kept
        (fail-open); item_cache_entries, item_cache_bytes: bounds of the item-token cache, 0 entries turn it off;
        drain_s: how long SIGTERM keeps serving while readiness says 503; shutdown_s: how long in-flight requests may
        take after that.
    """

    model_config = SettingsConfigDict(env_prefix="RELEVANCE_", frozen=True, extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    bundle: Path = DEFAULT_BUNDLE
    policy: Path | None = None
    precision: Literal["auto"] | Precision = "auto"
    provider: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default_factory=default_threads, ge=1, le=1024)
    max_items: int = Field(default=4096, ge=1, le=MOST_ITEMS)
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    max_queued_pairs: int = Field(default=4 * 4096, ge=1)
    default_deadline_ms: int = Field(default=30_000, ge=1)
    batch_tokens: int = Field(default=2048, ge=64)
    keep_unscored: bool = True
    item_cache_entries: int = Field(default=50_000, ge=0)
    item_cache_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    drain_s: float = Field(default=2.0, ge=0)
    shutdown_s: int = Field(default=30, ge=1)


def load_settings(**options: Any) -> Settings:  # noqa: ANN401 - values of any field
    """Read the environment and put the given options over it; options that are None do not count.

    Raises: SettingsError: naming every setting that is wrong.
    """
    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in error.errors())
        raise SettingsError(f"settings (RELEVANCE_… or option): {faults}") from error

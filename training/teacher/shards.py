"""Many workers ask at once: shards of a run, each a process of its own, or one call over a Ray cluster.

Both give the rows of a single process: shards are unbroken ranges of the pairs, whose files are joined in order, and
Ray hands its results back in order.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from relevance.errors import InputError
from relevance.pairs import LabelledPair
from training.teacher.samples import Sample, sample_line

Ask = Callable[[Sequence[LabelledPair]], Iterable[Sample]]
"""Gives the samples of pairs, in order; the same ones wherever and in whatever company a pair is asked about."""

LOCAL = "local"
_PAIRS_A_TASK = 128
_Row = TypeVar("_Row")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of `count` unbroken ranges of the pairs; `number` counts from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read `i/n`.

        Raises: InputError: if the text is not two numbers with 1 ≤ i ≤ n.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        shard = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= shard.number <= shard.count:
            raise InputError(f"--shard: expected i/n with 1 ≤ i ≤ n, found {text!r}")
        return shard

    @property
    def name(self) -> str:
        """Name of the shard's folder."""
        return f"shard-{self.number}-of-{self.count}"

    def of(self, rows: Sequence[_Row]) -> Sequence[_Row]:
        """Give the shard's range of rows; sizes differ by one at most."""
        start, end = ((number * len(rows)) // self.count for number in (self.number - 1, self.number))
        return rows[start:end]


class _Worker:
    """What a Ray actor runs: it builds its own way of asking, once, and then asks task by task."""

    def __init__(self, make: Callable[[], Ask], tasks: Sequence[Any]) -> None:
        self._ask, self._tasks = make(), tasks

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Give the samples of the batch's tasks as JSONL lines."""
        import ray

        lines: list[str] = []
        for task in batch["id"]:
            lines += map(sample_line, self._ask(ray.get(self._tasks[int(task)])))
        return {"line": lines}


def ask_over_ray(
    make: Callable[[], Ask],
    labelled: Sequence[LabelledPair],
    address: str,
    *,
    workers: int | None = None,
) -> Iterator[Sample]:
    """Ask about pairs over a Ray cluster, as Ray Data; actors with a GPU each where the cluster has GPUs.

    Args: make: builds the way of asking inside each actor; address: of a running cluster, or `local` for one of this
        machine's own that ends with the call; workers: actors, None for one a GPU, or else one a CPU.
    Returns: samples in the pairs' order.
    Raises: InputError: if Ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise InputError("--ray: expected the package 'ray'; pip install 'relevance-tiers[scale]'") from error

    settings: dict[str, Any] = {"include_dashboard": False, "num_cpus": workers} if address == LOCAL else {}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **settings)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_options.preserve_order = True
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = int(resources.get("GPU", 0))
        starts = range(0, len(labelled), _PAIRS_A_TASK)
        tasks = [ray.put(list(labelled[start : start + _PAIRS_A_TASK])) for start in starts]
        answered = ray.data.from_items(
            [{"id": n} for n in range(len(tasks))], override_num_blocks=len(tasks)
        ).map_batches(
            _Worker,
            batch_size=1,
            concurrency=min(len(tasks), workers or gpus or int(resources["CPU"])),
            num_gpus=1 if gpus else 0,
            num_cpus=1,
            fn_constructor_args=(make, tasks),
        )
        for row in answered.iter_rows():
            yield Sample.model_validate_json(row["line"])
    finally:
        ray.shutdown()

"""Offline scoring over a Ray cluster: one scorer an actor, answers in the order in which the groups were read.

Actors and not Ray Data: groups are read, scored and appended as a stream, so that a killed run goes on where it was,
and a file larger than memory passes through; Ray Data hands its results back when it has planned all of its input.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from relevance.errors import EngineError, InputError
from relevance.pairs import Pair
from service.model import load_model
from service.score_group import ScoredGroup, policy_hash, score_group
from service.settings import Settings, default_threads

LOCAL = "local"
_PAIRS_A_TASK = 512
_TASKS_AHEAD = 3
"""Waiting for each actor beside the one it runs, so that it is never idle while answers are written."""
_RETRIES = 3


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to score.

    Args: address: of a running cluster, or `local` for one of this machine's own that ends with the call; workers:
        actors, None for one a GPU on CUDA, else as many as the cluster has CPUs for.
    """

    address: str
    workers: int | None = None


class _Worker:
    """What an actor runs: it loads the model once, then scores task by task.

    Raises: InputError: if this node's policy is not the caller's.
    """

    def __init__(self, settings: Settings, expected_policy: str, probabilities: bool) -> None:
        model = load_model(settings)
        if policy_hash(model) != expected_policy:
            raise InputError(f"{settings.policy}: expected the caller's policy on every node, found another one")
        self._scorer = model.scorer
        self._probabilities = probabilities

    def score(self, groups: Sequence[list[Pair]]) -> list[ScoredGroup]:
        """Score some groups."""
        return [score_group(self._scorer, group, probabilities=self._probabilities) for group in groups]


def score_over_ray(
    groups: Iterable[list[Pair]], cluster: Cluster, settings: Settings, *, policy: str, probabilities: bool = False
) -> Generator[ScoredGroup]:
    """Score groups on a cluster and give the answers in order; Ray starts a lost worker again, elsewhere.

    Args: settings: of each scorer; its paths are the same on every node; policy: hash that its policy must have;
        probabilities: write those of the classes too.
    Raises: InputError: if Ray is not installed; EngineError: if a worker fails.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        from ray.exceptions import RayError
    except ModuleNotFoundError as error:
        raise InputError("--ray: expected the package 'ray'; pip install 'relevance-tiers[scale]'") from error

    threads = settings.session_threads
    cpus = threads * (cluster.workers or max(1, default_threads() // threads))
    local: dict[str, Any] = {"include_dashboard": False, "num_cpus": cpus} if cluster.address == LOCAL else {}
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR, **local)
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus = 1 if settings.provider == "cuda" else 0
        room = int(resources.get("GPU", 0)) if gpus else int(resources["CPU"]) // threads
        remote = ray.remote(_Worker).options(
            num_cpus=threads, num_gpus=gpus, max_restarts=_RETRIES, max_task_retries=_RETRIES
        )
        workers: list[Any] = [
            remote.remote(settings, policy, probabilities) for _ in range(max(1, cluster.workers or room))
        ]
        waiting: deque[Any] = deque()
        for worker, task in zip(cycle(workers), _tasks(groups), strict=False):
            if len(waiting) > _TASKS_AHEAD * len(workers):
                yield from ray.get(waiting.popleft())
            waiting.append(worker.score.remote(task))
        while waiting:
            yield from ray.get(waiting.popleft())
    except RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise EngineError(f"--ray: expected every worker to score, found {type(error).__name__}: {reason}") from error
    finally:
        ray.shutdown()


def _tasks(groups: Iterable[list[Pair]]) -> Iterator[list[list[Pair]]]:
    """Give runs of groups that are large enough to be worth a task."""
    task: list[list[Pair]] = []
    n_pairs = 0
    for group in groups:
        task.append(group)
        n_pairs += len(group)
        if n_pairs >= _PAIRS_A_TASK:
            yield task
            task, n_pairs = [], 0
    if task:
        yield task

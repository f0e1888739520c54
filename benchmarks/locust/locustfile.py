"""An open model for Locust: calls are sent when they are due, whatever became of the ones before.

Locust's users are closed loops: one that waits for a slow answer sends nothing meanwhile, so a slow service is asked
less and looks better than it is (coordinated omission). Here one user is only the dispatcher. It measures the capacity
(or is told it), draws every arrival of the test, and starts a greenlet at each scheduled time; the dispatcher waits for
the clock and for nothing else, connections are as many as it takes, and a latency counts from the scheduled time,
however late the call was sent. How late that was is in the figures.

    locust -f benchmarks/locust/locustfile.py --headless --host http://HOST --html report.html --figures load.json
"""

from __future__ import annotations

import json
import logging
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import gevent
import numpy as np
from gevent.pool import Group
from locust import FastHttpUser, LoadTestShape, events, task
from locust.exception import StopUser
from locust.runners import LocalRunner

from benchmarks.load import ClientCost
from benchmarks.locust import outcomes as told
from benchmarks.locust.arrivals import PHASES, Arrival, Bodies, Mix, default_limits_s, schedule
from benchmarks.locust.outcomes import Outcome, Thresholds
from benchmarks.measure import p99, write_report

CONNECTIONS = 8
"""Of the closed loop that measures capacity."""
_MOST_CONNECTIONS = 4096
_TIMEOUT_S = 300
_DESCRIBED = ("model", "bundle", "precision", "provider")
_SCORED, _COMPUTED = re.compile(rb'"scored":(\d+)'), re.compile(rb'"padded_tokens":(\d+)')
log = logging.getLogger("relevance.load")


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Add what this load test can be told to Locust's own options."""
    parser.add_argument("--data", type=Path, help="Parquet file with texts; default: generated")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 500, 3000], help="items of the calls")
    parser.add_argument("--shares", type=float, nargs="+", default=[80, 15, 5], help="of the sizes, in parts")
    parser.add_argument("--schedule-s", type=float, default=100, help="seconds of all phases together")
    parser.add_argument("--calibrate-s", type=float, default=10, help="seconds that capacity is measured for")
    parser.add_argument("--capacity", type=float, help="scored pairs a second, instead of measuring them")
    parser.add_argument("--zipf", type=float, default=1.0, help="exponent of the law by which calls are repeated")
    parser.add_argument("--p99-ms", type=float, nargs="+", help="limit of each size; default: by capacity")
    parser.add_argument("--max-error-ratio", type=float, default=0.01, help="of the calls outside overload")
    parser.add_argument("--min-goodput", type=float, default=0.8, help="under overload, of capacity")
    parser.add_argument("--min-cached", type=float, help="share of the repeats that come wholly from the cache")
    parser.add_argument("--seed", type=int, default=0, help="another one gives calls that the service has not seen")
    parser.add_argument("--api-keys", type=Path, help="key file of the service, its first key is sent")
    parser.add_argument("--figures", type=Path, default=Path("runs/load/load.json"), help="where the figures go")


@events.init.add_listener
def prepare(environment: Any, **_: object) -> None:
    """Refuse options that contradict each other and read the texts, before anything is sent."""
    given = environment.parsed_options
    environment.catch_exceptions = False
    problem = None
    if not isinstance(environment.runner, LocalRunner):
        problem = "expected one process, which draws one schedule, found --master or --worker"
    elif len(given.sizes) != len(given.shares):
        problem = f"--shares: expected {len(given.sizes)}, one a size, found {len(given.shares)}"
    elif given.p99_ms is not None and len(given.p99_ms) != len(given.sizes):
        problem = f"--p99-ms: expected {len(given.sizes)}, one a size, found {len(given.p99_ms)}"
    elif min(given.sizes + given.shares) <= 0 or (given.capacity is not None and given.capacity <= 0):
        problem = "--sizes, --shares, --capacity: expected numbers above 0"
    if problem:
        raise SystemExit(problem)
    Dispatcher.mix = Mix({s: share / sum(given.shares) for s, share in zip(given.sizes, given.shares, strict=True)})
    Dispatcher.bodies = Bodies(given.data, Dispatcher.mix, exponent=given.zipf, seed=given.seed)


class OpenModel(LoadTestShape):
    """Keeps the one dispatcher until its schedule is over; the shape of the load itself is in `arrivals.PHASES`."""

    _started = False

    def tick(self) -> tuple[int, float] | None:
        """Ask for one user, once."""
        if self._started and self.get_current_user_count() == 0:
            return None
        self._started = True
        return 1, 1


class Dispatcher(FastHttpUser):
    """Calibrates, sends every call at its time, waits for all answers, writes the figures, sets the exit status."""

    concurrency = _MOST_CONNECTIONS
    network_timeout = _TIMEOUT_S
    connection_timeout = _TIMEOUT_S
    mix: Mix
    bodies: Bodies

    def on_start(self) -> None:
        """Read the options; until the figures are written the run counts as failed."""
        self.environment.process_exit_code = 1
        self.given = self.environment.parsed_options
        self.headers = {"Content-Type": "application/json", **_authorization(self.given.api_keys)}
        self.outcomes: list[Outcome] = []
        self.backlog_s = 0.0

    @task
    def run_all(self) -> None:
        """Run the whole test once."""
        given = self.given
        capacity = given.capacity or self.calibrate(given.calibrate_s)
        limits_s = default_limits_s(given.sizes, capacity)
        if given.p99_ms is not None:
            limits_s = {size: ms / 1000 for size, ms in zip(given.sizes, given.p99_ms, strict=True)}
        thresholds = Thresholds(limits_s, given.max_error_ratio, given.min_goodput, given.min_cached)
        cost = ClientCost()
        arrivals = schedule(capacity, self.mix, given.schedule_s, np.random.default_rng(given.seed))
        log.info("capacity %.0f pairs/s; %d calls in %.0f s", capacity, len(arrivals), given.schedule_s)
        with cost.measured():
            self.dispatch(arrivals, limits_s)
        self.report(capacity, thresholds, cost)
        raise StopUser

    def calibrate(self, seconds: float) -> float:
        """Give the scored pairs a second of a closed loop of new calls of the smallest size."""
        began, size = perf_counter(), self.mix.smallest
        scored: list[int] = []

        def loop() -> None:
            """Call until the time is over."""
            while perf_counter() < began + seconds:
                now = perf_counter()
                outcome = self.call("calibration", self.bodies.new(size, None), size, now, now)
                scored.append(outcome.scored)

        gevent.joinall([gevent.spawn(loop) for _ in range(CONNECTIONS)], raise_error=True)
        if not sum(scored):
            log.error("%s: expected scored pairs to measure capacity by, found none", self.host)
            raise StopUser
        return sum(scored) / (perf_counter() - began)

    def dispatch(self, arrivals: list[Arrival], limits_s: dict[int, float]) -> None:
        """Start every call at its time, and wait for the answers when all are sent.

        A phase that wants a settled service begins later by what the calls before it take, and so does all after it.
        """
        calls = Group()
        started, before = perf_counter(), None
        for arrival in arrivals:
            if arrival.phase is not before and arrival.phase.settled:
                gevent.sleep(max(0.0, started + arrival.began_s - perf_counter()))
                calls.join(raise_error=True)
                self.backlog_s = perf_counter() - started - arrival.began_s
                started += self.backlog_s
            before = arrival.phase
            body = self.bodies.repeat(arrival.size) if arrival.phase.repeats else None
            kind = told.WARM if body is not None else "cold" if arrival.phase.repeats else arrival.phase.name
            body = body or self.bodies.new(arrival.size, limits_s[arrival.size])
            gevent.sleep(max(0.0, started + arrival.at_s - perf_counter()))
            began = started + arrival.began_s
            calls.start(gevent.Greenlet(self.send, kind, body, arrival.size, started + arrival.at_s, began))
        calls.join(raise_error=True)

    def send(self, kind: str, body: bytes, size: int, scheduled: float, began: float) -> None:
        """Make a call of the schedule, whose phase began then; one whose pairs were all scored may be repeated."""
        outcome = self.call(kind, body, size, scheduled, began)
        self.outcomes.append(outcome)
        if outcome.whole and kind != told.WARM:
            self.bodies.answered(size, body)

    def call(self, kind: str, body: bytes, size: int, scheduled: float, began: float) -> Outcome:
        """Make one call and tell Locust of it under a name that holds its kind and size."""
        name, late_s = f"{kind}, {size} items", perf_counter() - scheduled
        post: Callable[..., Any] = self.client.post
        with post("/score", data=body, headers=self.headers, name=name, catch_response=True) as response:
            ended = perf_counter()
            latency_s = ended - scheduled
            response.request_meta["response_time"] = 1000 * latency_s
            status, content = response.status_code, response.content or b""
            retry_after = response.headers is not None and "retry-after" in response.headers
            scored, computed = (int(m[1]) if (m := p.search(content)) else 0 for p in (_SCORED, _COMPUTED))
            outcome = Outcome(kind, size, late_s, latency_s, status, retry_after, scored, computed, ended - began)
            if outcome.shed_as_expected:
                response.request_meta["name"] = f"{name}, shed (429)"
                response.success()
            elif outcome.failed:
                found = f"{status} and {scored} of {size} scored" if status else "no answer"
                response.failure(f"expected 200 and all pairs scored, found {found}")
        return outcome

    def report(self, capacity: float, thresholds: Thresholds, cost: ClientCost) -> None:
        """Write the figures, say which thresholds were broken, and set the exit status by them."""
        given = self.given
        overload_s = sum(phase.share for phase in PHASES if phase.name == told.OVERLOAD_PHASE) * given.schedule_s
        over = told.overload(self.outcomes, thresholds, capacity=capacity, seconds=overload_s)
        verdicts = told.verdicts(self.outcomes, thresholds, over)
        figures = {
            "capacity_pairs_per_s": capacity,
            "capacity_measured": given.capacity is None,
            "mix": {str(size): share for size, share in self.mix.shares.items()},
            "zipf": given.zipf,
            "phases": {p.name: {"seconds": p.share * given.schedule_s, "load": [p.start, p.end]} for p in PHASES},
            "calls": told.by_kind(self.outcomes, thresholds),
            "overload": {**over, "backlog_s": self.backlog_s},
            "sent_late_ms_p99": 1000 * float(p99(np.array([o.late_s for o in self.outcomes]))),
            "client_share_of_cores": cost.share,
            "thresholds": verdicts,
        }
        arguments = Namespace(program="locust", data=given.data, out=given.figures)
        write_report(arguments, sys.argv[1:], server=_description(str(self.host), self.headers), figures=figures)
        broken = [v for v in verdicts if not v["kept"]]
        for one in broken:
            log.error("threshold broken: %s: bound %.4g, found %.4g", one["about"], one["bound"], one["found"])
        self.environment.process_exit_code = 1 if broken else 0


def _authorization(keys: Path | None) -> dict[str, str]:
    def lines() -> Iterator[str]:
        """Give the keys of the file."""
        for line in keys.read_text(encoding="utf-8").splitlines() if keys else ():
            if line.strip() and not line.startswith("#"):
                yield line.strip()

    key = next(lines(), None)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _description(host: str, headers: dict[str, str]) -> dict[str, Any]:
    """Give what the service says of itself; nothing, if it does not."""
    try:
        with urlopen(Request(f"{host}/info", headers=headers), timeout=_TIMEOUT_S) as answer:
            info = json.load(answer)
    except (URLError, ValueError) as error:
        log.warning("%s/info: expected a description, found %s", host, error)
        return {}
    return {name: info.get(name) for name in _DESCRIBED}

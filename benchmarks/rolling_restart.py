"""Two replicas behind haproxy under load: restarted in turn, which no call may notice, then one killed in the middle.

Poisson arrivals of 50-item calls at a share of what one replica can do, through the haproxy of `haproxy.cfg`. A round
of restarts drains each replica (`relevance drain`), sends SIGTERM, waits for its end and starts it again, with the load
going on; p99 then stands against p99 of the quiet stretch before. A kill is a SIGKILL to one replica: no more calls may
fail than haproxy had sent it and not had answered, and only such as were in flight when it died. The pair cache is off.

The load is `benchmarks.load`'s and not Locust's: it sends each call once, never again, and holds for each when it was
sent and what came back when, which a death is set against.
"""

from __future__ import annotations

import asyncio
import csv
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.load import Call, Client, ClientCost, Reply, connected, score_call
from benchmarks.measure import block_ratio, options, p99, requests_of, write_report
from benchmarks.servers import PROJECT, START_TIMEOUT_S, STOP_TIMEOUT_S, Server, free_port, running

CONFIG = Path(__file__).with_name("haproxy.cfg")
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")
NAMES = ("one", "two")
"""Of the replicas in the configuration."""
DRAIN_WAIT_S = 3.0
_LEAVE_S = 10.0
"""After the wait, within which haproxy must have taken a drained replica out; how long it took is in the figures."""
CONNECTIONS = 8
"""Of the closed loop that measures what one replica can do."""
_N_CALLS = 200
_SETTLE_S = 2.0
"""Before and after a kill; no longer than the quiet stretches."""
_LOOK_S = 0.002


@dataclass(frozen=True, slots=True)
class Sent:
    """What haproxy has sent a replica: calls that are in flight there now, and all since it started."""

    now: int
    ever: int


class Proxy:
    """The haproxy of `haproxy.cfg` before two replicas; a context manager that listens inside.

    Raises: RuntimeError: on entering, if it does not start; carries what it wrote.
    """

    def __init__(self, ports: Sequence[int]) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory()
        self._socket = Path(self._folder.name) / "stats"
        variables = {f"REPLICA_{name.upper()}": f"127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)}
        variables |= {"LISTEN": f"127.0.0.1:{self.port}", "STATS_SOCKET": str(self._socket)}
        self._environment = os.environ | variables

    def __enter__(self) -> Proxy:
        self._log = (Path(self._folder.name) / "log").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [HAPROXY or "haproxy", "-db", "-f", str(CONFIG)], env=self._environment, stdout=self._log, stderr=self._log
        )
        give_up = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up and self._process.poll() is None:
            with suppress(OSError):  # no socket yet, or one that is bound and not listened on yet
                if self.states():
                    return self
            time.sleep(0.05)
        self._log.seek(0)
        written = self._log.read()
        self.__exit__()
        raise RuntimeError(f"haproxy did not start: {written}")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()
        self._folder.cleanup()

    def states(self) -> dict[str, str]:
        """Give what haproxy holds of each replica: UP, DOWN, or on its way from one to the other."""
        return {row["svname"]: row["status"] for row in self._statistics()}

    def sent(self, name: str) -> Sent:
        """Give the calls that a replica has now and has had."""
        row = next(row for row in self._statistics() if row["svname"] == name)
        return Sent(int(row["scur"]), int(row["stot"]))

    def wait_for(self, name: str, state: str, within_s: float = START_TIMEOUT_S) -> float:
        """Return when haproxy holds a replica to be UP or DOWN; gives how many seconds that took.

        Raises: RuntimeError: if it takes too long.
        """
        began = time.monotonic()
        while (found := self.states()[name]) != state:
            if time.monotonic() > began + within_s:
                raise RuntimeError(f"expected haproxy to find replica {name} {state} in {within_s} s, found {found}")
            time.sleep(0.05)
        return time.monotonic() - began

    def _statistics(self) -> list[dict[str, str]]:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(self._socket))
            stream.sendall(b"show stat replicas 4 -1\n")
            text = b"".join(iter(lambda: stream.recv(65536), b"")).decode()
        return list(csv.DictReader(text.lstrip("# ").splitlines()))


@dataclass(frozen=True, slots=True)
class Death:
    """What a replica had in flight when it was killed, and when it was sent the signal and gone (`perf_counter`).

    Args: on_it: calls that haproxy had there a moment before the signal; sent_it: those that it sent there from then on
        until the replica was gone.
    """

    on_it: int
    sent_it: int
    killed: float
    gone: float


class Pair:
    """Two replicas and their proxy; `out_s` holds how long after each drain's wait the proxy still sent calls there."""

    def __init__(self, *replicas: Server) -> None:
        self.replicas = dict(zip(NAMES, replicas, strict=True))
        self.out_s: list[float] = []

    @contextmanager
    def started(self) -> Iterator[Proxy]:
        """Run the replicas and the proxy."""
        ports = [replica.port for replica in self.replicas.values()]
        with held(ports), running(list(self.replicas.values())), Proxy(ports) as self.proxy:
            for name in NAMES:
                self.proxy.wait_for(name, "UP")
            yield self.proxy

    def restart_in_turn(self) -> None:
        """Restart both, one after the other is back."""
        for name in NAMES:
            self.drain_and_restart(name)

    def drain_and_restart(self, name: str) -> None:
        """Do what a rollout does to a replica: hook, SIGTERM, its end with 0, a new start, back behind the proxy.

        Raises: RuntimeError: if a step does not go well.
        """
        replica = self.replicas[name]
        command = [sys.executable, "-m", "relevance.cli", "drain", "--wait", str(DRAIN_WAIT_S)]
        subprocess.run([*command, "--url", f"http://127.0.0.1:{replica.port}"], cwd=PROJECT, check=True)
        self.out_s.append(self.proxy.wait_for(name, "DOWN", _LEAVE_S))
        replica.process.send_signal(signal.SIGTERM)
        if (status := replica.process.wait(STOP_TIMEOUT_S)) != 0:
            raise RuntimeError(f"expected replica {name} to end with 0, found {status}")
        self.start_again(name)

    def start_dead(self) -> None:
        """Start the replicas that have ended."""
        for name, replica in self.replicas.items():
            if replica.process.poll() is not None:
                self.start_again(name)

    def start_again(self, name: str) -> None:
        """Start a replica that has ended, on its port, and wait until the proxy sends calls there."""
        self.replicas[name].spawn()
        self.replicas[name].__enter__()
        self.proxy.wait_for(name, "UP")

    def kill(self, name: str) -> Death:
        """End a replica with SIGKILL while calls are in flight on it.

        Raises: RuntimeError: if no call comes.
        """
        process = self.replicas[name].process
        give_up = time.monotonic() + START_TIMEOUT_S
        while not (before := self.proxy.sent(name)).now:
            if time.monotonic() > give_up:
                raise RuntimeError(f"expected calls in flight on replica {name}, found none")
            time.sleep(_LOOK_S)
        killed = perf_counter()
        process.kill()
        process.wait()
        gone = perf_counter()
        return Death(before.now, self.proxy.sent(name).ever - before.ever, killed, gone)


@contextmanager
def held(ports: Sequence[int]) -> Iterator[None]:
    """Keep ports from becoming the near end of some outgoing connection while their server is away.

    A socket that is bound and never listens does it: with SO_REUSEADDR on both, the server can be bound beside it, and
    a connection to the port is refused while the server is away.
    """
    with ExitStack() as stack:
        for port in ports:
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("127.0.0.1", port))
        yield


@dataclass(frozen=True, slots=True)
class Stream:
    """Calls that arrive at random, whatever becomes of them.

    Args: rate: calls a second.
    """

    client: Client
    calls: Sequence[Call]
    rate: float
    rng: np.random.Generator

    async def during(self, work: Callable[[], Any]) -> tuple[Any, list[Reply]]:
        """Send calls while something runs on a thread; gives what it gave, and all replies once they are there."""
        pending: list[asyncio.Task[Reply]] = []
        sending = asyncio.create_task(self._send(pending))
        try:
            given = await asyncio.to_thread(work)
        finally:
            sending.cancel()
        return given, list(await asyncio.gather(*pending))

    async def _send(self, pending: list[asyncio.Task[Reply]]) -> None:
        due = perf_counter()
        for call in cycle(self.calls):
            due += self.rng.exponential(1 / self.rate)
            await asyncio.sleep(max(0.0, due - perf_counter()))
            pending.append(asyncio.create_task(self.client.call(call, due)))


def kill_of(death: Death, replies: Sequence[Reply]) -> dict[str, int]:
    """Count what a kill did to the calls around it; `failed_elsewhere`: more than were on the replica that died."""
    failed = [reply for reply in replies if reply.status != 200]
    sent_later = sum(reply.sent > death.gone for reply in failed)
    before = sum(reply.done < death.killed for reply in failed)
    in_flight = len(failed) - sent_later - before
    return {
        "calls": len(replies),
        "in_flight": sum(reply.sent <= death.gone and reply.done >= death.killed for reply in replies),
        "in_flight_on_it": death.on_it,
        "sent_it_meanwhile": death.sent_it,
        "failed": len(failed),
        "failed_but_sent_later": sent_later,
        "failed_before": before,
        "failed_elsewhere": max(0, in_flight - death.on_it - death.sent_it),
    }


def lost(kill: Mapping[str, int]) -> int:
    """Give the calls that failed around a kill though they were not on the replica that died."""
    return kill["failed_but_sent_later"] + kill["failed_before"] + kill["failed_elsewhere"]


async def measure(arguments: Namespace, pair: Pair, proxy: Proxy) -> dict[str, Any]:
    """Quiet, restarts, quiet, restarts, …, then the kills, all under the same load."""
    requests = requests_of(arguments.data, [arguments.items] * _N_CALLS, seed=6)
    calls = [score_call(query, titles) for query, titles in requests]
    rate = arguments.rate
    if rate is None:
        async with connected(pair.replicas["one"].port) as client:
            capacity = await client.capacity(calls, seconds=arguments.capacity_s, connections=CONNECTIONS)
        rate = arguments.share * capacity / arguments.items
    quiet: list[list[Reply]] = []
    restarts: list[list[Reply]] = []
    kills: list[dict[str, int]] = []
    cost = ClientCost()
    async with connected(proxy.port) as client:
        stream = Stream(client, calls, rate, np.random.default_rng(0))
        with cost.measured():
            for _ in tqdm(range(arguments.rounds), file=sys.stderr, desc="restarts"):
                quiet.append((await stream.during(lambda: time.sleep(arguments.quiet_s)))[1])
                restarts.append((await stream.during(pair.restart_in_turn))[1])
            for number in tqdm(range(arguments.kills), file=sys.stderr, desc="kills"):
                await asyncio.to_thread(pair.start_dead)
                kills.append(await _kill(stream, pair, NAMES[number % 2], min(_SETTLE_S, arguments.quiet_s)))
    return {
        "calls_per_s": rate,
        "items": arguments.items,
        "restarts": _restarts(quiet, restarts) | {"out_later_than_the_wait_s": max(pair.out_s)},
        "kills": kills,
        "kills_lost_beyond_those_in_flight": sum(map(lost, kills)),
        "client_share_of_cores": cost.share,
    }


async def _kill(stream: Stream, pair: Pair, name: str, settle_s: float) -> dict[str, int]:
    def kill_and_settle() -> Death:
        """Kill, with some time for calls before and after it."""
        time.sleep(settle_s)
        death = pair.kill(name)
        time.sleep(settle_s)
        return death

    return kill_of(*await stream.during(kill_and_settle))


def _restarts(quiet: Sequence[Sequence[Reply]], restarts: Sequence[Sequence[Reply]]) -> dict[str, Any]:
    of_restarts, of_quiet = (
        [np.array([reply.latency_s for reply in replies]) for replies in blocks] for blocks in (restarts, quiet)
    )
    replies = [reply for block in restarts for reply in block]
    return {
        "replicas_restarted": len(NAMES) * len(restarts),
        "calls": len(replies),
        "answers": {str(status): n for status, n in sorted(Counter(reply.status for reply in replies).items())},
        "failed": sum(reply.status != 200 for reply in replies),
        "p99_over_quiet": asdict(block_ratio(of_restarts, of_quiet)),
        "p99_ms": 1000 * float(p99(np.concatenate(of_restarts))),
        "p99_ms_quiet": 1000 * float(p99(np.concatenate(of_quiet))),
    }


def main(argv: list[str]) -> int:
    """Measure and write results/rolling_restart.json; gives 1 if a call was lost that must not be."""
    parser = options(__doc__, "rolling_restart")
    parser.add_argument("--rounds", type=int, default=6, help="of restarts of both replicas")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--quiet-s", type=float, default=30, help="before each round")
    parser.add_argument("--capacity-s", type=float, default=10)
    parser.add_argument("--items", type=int, default=50, help="of a call")
    parser.add_argument("--share", type=float, default=0.3, help="of what one replica can do, measured first")
    parser.add_argument("--rate", type=float, help="calls a second, instead of --share")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.kills, arguments.quiet_s, arguments.rate, arguments.items = 1, 1, 1, 4, 150
    pair = Pair(*(Server(arguments.bundle, pair_cache_bytes=0) for _ in NAMES))
    with pair.started() as proxy:
        described = pair.replicas["one"].description()
        figures = asyncio.run(measure(arguments, pair, proxy))
    write_report(arguments, argv, server=described, figures=figures)
    return 1 if figures["restarts"]["failed"] or figures["kills_lost_beyond_those_in_flight"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

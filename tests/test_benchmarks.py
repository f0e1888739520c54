"""The measuring programs: their arithmetic, their clients, and each of them for a few seconds on the tiny bundle."""

import asyncio
import json
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import numpy as np
import psutil
import pytest

from benchmarks.fifo_server import FifoQueue
from benchmarks.http_saturated import layouts_of
from benchmarks.load import Call, Reply, connected, http_post, poisson_times, score_call
from benchmarks.measure import block_ratio, figure, requests_of, verdict
from benchmarks.overload import block_of
from benchmarks.servers import PROJECT, Metrics, Server, quantile_edge
from benchmarks.soak import fitted_growth, peak_growth
from benchmarks.zipf import zipf_rows
from relevance.pairs import Item
from service.admission import Ticket
from service.flow import Flow
from service.model import Model, load_model
from service.queueing import FairQueue
from service.settings import Settings

PROGRAMS = ("http_saturated", "http_idle", "fairness", "overload", "zipf", "soak", "grid")
OK = b'HTTP/1.1 200 OK\r\nContent-Length: 24\r\n\r\n{"counts":{"scored":2}}\n'
SHED = b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\ncontent-length: 0\r\n\r\n"


def figures_in(found: object) -> Iterator[dict]:
    """Give every figure with an interval in a report."""
    if isinstance(found, dict):
        if {"value", "low", "high", "n"} <= set(found):
            yield found
        for value in found.values():
            yield from figures_in(value)


@contextmanager
def canned_server(*answers: bytes) -> Iterator[int]:
    """Serve these answers, one a request of one connection, then close it; gives the port."""

    class Handler(socketserver.StreamRequestHandler):
        """Reads requests with a content length."""

        def handle(self) -> None:
            """Answer until the answers are used up."""
            for answer in answers:
                head = b""
                while not head.endswith(b"\r\n\r\n"):
                    if not (line := self.rfile.readline()):
                        return
                    head += line
                self.rfile.read(int(head.lower().split(b"content-length: ")[1].split(b"\r")[0]))
                self.wfile.write(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def reply(status: int, *, late_s: float = 0.0, scored: int = 50, retry_after: bool = False) -> Reply:
    """Give the reply to a call of 50 items with a deadline of one second, so much after it."""
    return Reply(Call(b"", 50, deadline_s=1.0), 10.0, 10.0, 11.0 + late_s, status, scored, retry_after)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_writes_a_report_with_its_command_server_and_figures(program, tiny_bundle, tmp_path, capsys):
    """What `--quick` measures means nothing, but every interval holds its value and every bound has a verdict."""
    out = tmp_path / "report.json"
    argv = ["--bundle", str(tiny_bundle), "--quick", "--out", str(out)]

    assert import_module(f"benchmarks.{program}").main(argv) == 0

    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["command"] == f"python -m benchmarks.{program} --bundle {tiny_bundle.name} --quick --out report.json"
    assert report["server"]["model"] == "tiny"
    assert {"engines", "threads", "batch_ms", "precision"} <= set(report["server"])
    assert report["texts"] == "generated"
    assert json.loads(capsys.readouterr().out) == report["figures"]
    found = list(figures_in(report["figures"]))
    assert found
    for one in found:
        assert one["low"] <= one["value"] <= one["high"]
        assert (one["verdict"] is None) == (one["bound"] is None)


def test_a_bound_is_met_by_the_worse_end_and_missed_by_the_better_one():
    """Between the two it is undecided, and without a bound there is nothing to say."""
    assert verdict(0.96, 0.99, at_least=0.95) == "met"
    assert verdict(0.94, 0.99, at_least=0.95) == "undecided"
    assert verdict(0.90, 0.94, at_least=0.95) == "missed"
    assert verdict(1.0, 2.9, at_most=3) == "met"
    assert verdict(2.9, 3.1, at_most=3) == "undecided"
    assert verdict(3.1, 4.0, at_most=3) == "missed"
    assert verdict(3.1, 4.0) is None


def test_a_figure_of_equal_values_has_an_interval_of_one_point():
    """Whatever is drawn, the median is 2."""
    shown = figure([2.0] * 10, at_most=2.0)

    assert (shown.value, shown.low, shown.high, shown.n, shown.verdict) == (2.0, 2.0, 2.0, 10, "met")


def test_a_ratio_of_blocks_resamples_blocks_and_not_their_values():
    """Two blocks whose ratios are 1 and 3: only those and what is drawn from both can come out."""
    below = [np.full(1000, 1.0), np.full(1000, 1.0)]
    above = [np.full(1000, 1.0), np.full(1000, 3.0)]

    shown = block_ratio(above, below, statistic=np.median)

    assert (shown.low, shown.high, shown.n) == (1.0, 3.0, 2)


def test_requests_have_the_sizes_asked_for_and_are_the_same_every_time():
    """Sizes 3 and 1; another seed gives other texts."""
    requests = requests_of(None, [3, 1], seed=1)

    assert [len(titles) for _, titles in requests] == [3, 1]
    assert requests == requests_of(None, [3, 1], seed=1)
    assert requests != requests_of(None, [3, 1], seed=2)


def test_poisson_arrivals_are_in_order_and_as_many_as_the_rate_says(rng):
    """Rate 50 for 100 s: 5,000 expected, standard deviation 71."""
    times = poisson_times(50, 100, rng)

    assert (np.diff(times) > 0).all()
    assert times[-1] < 100
    assert abs(len(times) - 5000) < 5 * 71


def test_zipf_draws_follow_the_law(rng):
    """Over ranks 1 to 3 with s = 1 the shares are 6/11, 3/11 and 2/11."""
    shares = np.bincount(zipf_rows(3, 1.0, 20_000, rng)) / 20_000

    assert shares == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.02)


def test_layouts_split_the_cores_evenly_and_begin_with_the_servers_own():
    """Four cores: 2 × 2 first, then 1 × 4 and 4 × 1."""
    assert [(layout.engines, layout.threads) for layout in layouts_of(2, 2)] == [(2, 2), (1, 4), (4, 1)]


def test_goodput_counts_scored_pairs_of_answers_within_their_deadline():
    """Of four calls of 50 items in 2 s one is in time and one in part: 75 pairs / 2 s; the others are late and shed.

    In time but after the two seconds is no goodput: then nothing else was offered.
    """
    replies = [reply(200, late_s=-0.5), reply(200, late_s=-0.1, scored=25), reply(200, late_s=0.2), reply(429)]
    latencies = np.array([one.latency_s for one in replies])

    block = block_of(replies, np.zeros(4), capacity=100.0, seconds=2.0)
    at_the_end = block_of(replies, 2.01 - latencies, capacity=100.0, seconds=2.0)

    assert (block.goodput, block.offered) == (37.5, 100.0)
    assert (at_the_end.goodput, at_the_end.offered) == (0.0, 100.0)
    assert block.codes == Counter({200: 3, 429: 1})
    assert block.without_retry_after == 1
    assert block.late_s == pytest.approx((-0.5, -0.1, 0.2))


def test_a_quantile_of_a_histogram_is_the_edge_above_it_and_counts_only_what_is_new():
    """After 10 old observations, 98 new ones up to 5 ms and 2 up to 20 ms: the 99th percentile is at most 20 ms."""
    labels = [frozenset({("le", edge)}) for edge in ("0.005", "0.02", "+Inf")]
    before, after = (
        Metrics({("lag_bucket", label): float(n) for label, n in zip(labels, counts, strict=True)})
        for counts in ((10, 10, 10), (108, 110, 110))
    )

    assert quantile_edge(after.histogram_since(before, "lag"), 0.99) == 0.02
    assert quantile_edge(after.histogram_since(before, "lag"), 0.98) == 0.005
    assert quantile_edge(before.histogram_since(before, "lag"), 0.99) is None


def test_memory_growth_is_the_fitted_line_over_the_whole_time():
    """From 100 to 110 over 20 samples: 10 over a median of 105, and a highest sample 110 / 105 - 1 above it."""
    at_s, rss = np.arange(20.0), np.linspace(100, 110, 20)

    assert fitted_growth(at_s, rss).value == pytest.approx(10 / 105)
    assert fitted_growth(at_s, rss).verdict == "missed"
    assert fitted_growth(at_s, np.full(20, 100.0)).verdict == "met"
    assert peak_growth(rss)["value"] == pytest.approx(110 / 105 - 1)


def test_the_client_reads_status_scored_pairs_and_retry_after_over_one_connection():
    """Two answers come over a connection that serves both; a third call finds it closed."""

    async def calls(port: int) -> list[Reply]:
        """Make three calls one after the other."""
        async with connected(port) as client:
            return [await client.call(score_call("steel kettle", ["steel kettle 2 l"])) for _ in range(2)]

    with canned_server(OK, SHED) as port:
        answered, shed = asyncio.run(calls(port))

    assert (answered.status, answered.scored, answered.retry_after) == (200, 2, False)
    assert (shed.status, shed.scored, shed.retry_after) == (429, 0, True)


def test_an_answer_that_does_not_come_is_a_reply_of_status_0():
    """The server closes the connection in the middle of its answer."""

    async def call(port: int) -> Reply:
        """Make one call."""
        async with connected(port) as client:
            return await client.call(Call(http_post(b"{}"), 0))

    with canned_server(OK[:-5]) as port:
        assert asyncio.run(call(port)).status == 0


def test_latency_in_the_open_model_counts_from_the_scheduled_time():
    """A call whose time had come a second before it could be sent took at least that second."""

    async def calls(port: int) -> list[Reply]:
        """Schedule a call before the start."""
        async with connected(port) as client:
            return await client.open_model([Call(http_post(b"{}"), 0)], [-1.0])

    with canned_server(OK) as port:
        (late,) = asyncio.run(calls(port))

    assert late.latency_s > 1.0
    assert late.done - late.sent < late.latency_s


@pytest.fixture(scope="module")
def model(tiny_bundle) -> Model:
    """The tiny bundle's model on one thread."""
    return load_model(Settings(bundle=tiny_bundle, threads=1))


def flow_of(model: Model, n_items: int) -> Flow:
    """Give a flow of equal items that has a minute."""
    prepared = model.scorer.prepare("steel kettle", [Item("steel kettle 2 l")] * n_items)
    return Flow(model.scorer, model.speed, prepared, ticket=Ticket(1.0, 1.0, time.monotonic() + 60))


@pytest.mark.parametrize(("kind", "small_waits"), [(FairQueue, False), (FifoQueue, True)])
def test_only_the_first_in_first_out_queue_lets_a_small_flow_wait_for_all_of_a_large_one(model, kind, small_waits):
    """The small flow comes after the first of the large one's many batches."""
    large, small = flow_of(model, 4000), flow_of(model, 5)
    queue = kind(batch_s=0.001)
    queue.submit(large)
    batches = [queue.take()]
    queue.submit(small)
    while (batch := queue.take()) is not None:
        batches.append(batch)

    with_large, with_small = (
        [i for i, b in enumerate(batches) if flow in [f for f, _ in b.parts]] for flow in (large, small)
    )
    assert len(with_large) > 2
    assert (with_small[0] >= with_large[-1]) == small_waits


def test_the_permit_server_computes_what_got_permits_of_a_call_that_it_refuses(tiny_bundle):
    """600 items and 512 permits: 429, and 512 scored pairs for nothing."""

    async def call(port: int) -> Reply:
        """Make one call of 600 items."""
        async with connected(port) as client:
            ((query, titles),) = requests_of(None, [600])
            return await client.call(score_call(query, titles))

    with Server(tiny_bundle, module="benchmarks.permit_server", pair_cache_bytes=0) as server:
        refused = asyncio.run(call(server.port))
        metrics = server.metrics()

    assert (refused.status, refused.retry_after) == (429, True)
    assert sum(metrics.total("relevance_pairs_total", outcome=outcome) for outcome in ("scored", "filtered")) == 512


def test_a_server_that_does_not_start_says_why(tmp_path):
    """What the process wrote is in the error."""
    with pytest.raises(RuntimeError, match="expected a bundle directory"), Server(tmp_path):
        pass


def test_the_two_layer_bundle_is_made_by_the_export_stage_and_kept(tmp_path: Path):
    """The second time it is found, not made."""
    from benchmarks.two_layer import two_layer_bundle

    bundle = two_layer_bundle(tmp_path)
    written = (bundle / "manifest.json").stat().st_mtime_ns

    assert json.loads((bundle / "manifest.json").read_text())["model_id"] == "two-layer-random"
    assert two_layer_bundle(tmp_path) == bundle
    assert (bundle / "manifest.json").stat().st_mtime_ns == written


_WATCHING = """
import os, sys, time
from benchmarks.servers import ServerProcess, free_port
port = free_port()
command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
with ServerProcess(command, port=port, environment=os.environ, ready="/") as server:
    print(server.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("trap", ["", "trap '' INT; "], ids=["in front", "behind"])
def test_a_benchmark_that_is_told_to_end_takes_its_server_with_it(trap: str) -> None:
    """SIGTERM to the program ends the server that it started, also where a shell has made it ignore SIGINT."""
    command = ["sh", "-c", f'{trap}exec "$@"', "sh", sys.executable, "-c", _WATCHING]
    program = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    with program.stdout:
        server = psutil.Process(int(program.stdout.readline()))
        program.terminate()
        assert program.wait(timeout=60) != 0
    assert not server.is_running()

"""The programs that check capacity planning and Ray: their arithmetic, and each of them for a few seconds."""

import asyncio
import json

import numpy as np
import pytest

from benchmarks import capacity_check, ray_score
from benchmarks.capacity_check import Arm, Balanced, outcome_of
from benchmarks.load import Call, Reply
from benchmarks.sleeping_server import FIXED_MS, TOKENS_PER_S
from service.capacity_simulation import OUTCOMES


def reply(status: int, scored: int = 0) -> Reply:
    """Give the reply to a call of ten items."""
    return Reply(Call(b"", 10), 0.0, 0.0, 1.0, status, scored, False)


class Counted:
    """A server's client that answers when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.may_answer = asyncio.Event()

    async def call(self, call: Call, scheduled: float | None = None, give_up: float | None = None) -> Reply:
        """Count a call."""
        self.asked += 1
        await self.may_answer.wait()
        return reply(200, 10)


@pytest.mark.parametrize(("balancer", "expected"), [("round_robin", [3, 3]), ("least", [5, 1])])
def test_calls_go_in_turn_or_to_the_server_with_fewest_under_way(balancer, expected):
    """Six calls; the first server answers at once, the second not before the end."""

    async def ask() -> list[int]:
        """Make the calls one after the other, without waiting for the second server."""
        servers = [Counted(), Counted()]
        servers[0].may_answer.set()
        balanced = Balanced(servers, balancer)
        tasks = []
        for _ in range(6):
            tasks.append(asyncio.create_task(balanced.call(Call(b"", 10))))
            await asyncio.sleep(0)
        servers[1].may_answer.set()
        await asyncio.gather(*tasks)
        return [server.asked for server in servers]

    assert asyncio.run(ask()) == expected


@pytest.mark.parametrize(
    ("answer", "name"),
    [(reply(200, 10), "complete"), (reply(200, 4), "partial"), (reply(504), "expired"), (reply(429), "shed")],
)
def test_answers_are_named_as_the_simulation_names_them(answer, name):
    """By status and by how much was scored."""
    assert outcome_of(answer) == name


def test_an_answer_that_the_simulation_does_not_know_ends_the_run():
    """A 500 or no answer at all is no figure."""
    with pytest.raises(RuntimeError, match="expected an answer 200, 429 or 504, found 500"):
        outcome_of(reply(500))


def test_an_arm_divides_what_was_measured_by_what_was_simulated():
    """Two blocks, each measured a tenth slower than simulated; a quarter of calls was refused, simulated none."""
    arm = Arm(1.5, "least")
    for seed in (0, 1):
        times = np.random.default_rng(seed).uniform(0.1, 1, 50)
        arm.simulated_s.append(times)
        arm.measured_s.append(1.1 * times)
        arm.simulated_shares.append([1.0, 0.0, 0.0, 0.0])
        arm.measured_shares.append([0.75, 0.0, 0.0, 0.25])
    figures = arm.figures()

    assert figures["p50_measured_over_simulated"]["value"] == pytest.approx(1.1)
    assert figures["p99_measured_over_simulated"]["low"] == pytest.approx(1.1)
    assert figures["unserved_measured_minus_simulated"]["value"] == pytest.approx(0.25)
    assert figures["shares"]["shed"] == {"measured": 0.25, "simulated": 0.0}
    assert figures["calls"] == 100


def test_ray_figures_tell_the_start_from_the_rate():
    """100 and 1,100 rows: 2 s + 10 ms a row alone, 8 s + 5 ms a row over Ray."""
    alone, ray = np.asarray([[3.0, 13.0]] * 2), np.asarray([[8.5, 13.5]] * 2)

    figures = ray_score.figures_of({0: alone, 2: ray}, (100, 1100))

    assert figures["single"]["start_s"]["value"] == pytest.approx(2)
    assert figures["single"]["rows_per_s_after_start"]["value"] == pytest.approx(100)
    assert figures["ray_2"]["start_s_beyond_single"]["value"] == pytest.approx(6)
    assert figures["ray_2"]["rate_over_single"]["value"] == pytest.approx(2)
    assert figures["ray_2"]["seconds_over_single"]["value"] == pytest.approx(13.5 / 13)


def test_two_sleeping_replicas_are_compared_with_their_simulation(tiny_bundle, tmp_path, monkeypatch, capsys):
    """Every rate and balancer has both sides; what a batch costs beside its sleep is added to that."""
    monkeypatch.setenv(FIXED_MS, "")
    monkeypatch.setenv(TOKENS_PER_S, "")
    out = tmp_path / "report.json"
    told = ["--bundle", str(tiny_bundle), "--quick", "--tokens-per-s", "20000", "--fixed-ms", "1", "--out", str(out)]

    assert capacity_check.main(told) == 0

    report = json.loads(out.read_text(encoding="utf-8"))
    figures = report["figures"]
    assert json.loads(capsys.readouterr().out) == figures
    assert report["server"]["model"] == "tiny"
    assert figures["simulated_replica"]["tokens_per_s"] == figures["slept"]["tokens_per_s"] == 20_000
    assert figures["simulated_replica"]["fixed_s"] >= figures["slept"]["fixed_s"] == 0.001
    for name in ("least_0.6_of_capacity", "round_robin_2_of_capacity"):
        arm = figures[name]
        assert arm["p99_measured_over_simulated"]["value"] > 0
        for side in ("measured", "simulated"):
            assert sum(arm["shares"][outcome][side] for outcome in OUTCOMES) == pytest.approx(1)


def test_a_local_cluster_writes_the_bytes_of_the_single_process_and_is_measured_beside_it(
    tiny_bundle, tmp_path, capsys
):
    """Two files, once each way; the program ends with an error if one byte differs."""
    out = tmp_path / "report.json"

    assert ray_score.main(["--bundle", str(tiny_bundle), "--quick", "--out", str(out)]) == 0

    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["figures"]["same_bytes"] is True
    assert report["figures"]["rows"] == [100, 1000]
    assert report["figures"]["ray_2"]["seconds_large"]["value"] > 0
    assert json.loads(capsys.readouterr().out) == report["figures"]

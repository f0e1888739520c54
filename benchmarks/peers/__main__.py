"""The same weights behind Infinity, a CrossEncoder server and ours: speed, latency, overload, memory, agreement.

Each server runs alone, on the same cores, in an environment of its own; every round takes them in another order. All
are offered the same texts at the same times: 70 % of what the better peer can do, and twice that with deadlines of four
times its idle latency. Ratios are ours over the peer that is better at the thing, within the round; their intervals
resample rounds. The pair cache is off but for repeated queries.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.bare import BareProcess, Layout, Work
from benchmarks.load import ClientCost
from benchmarks.measure import report_path, write_report
from benchmarks.peers.agreement import PARITY, Reference
from benchmarks.peers.arms import OURS, PEERS, WITHOUT_SEGMENTS, Arm, arms_of
from benchmarks.peers.repeats import QUICK as QUICK_REPEATS
from benchmarks.peers.repeats import Repeats, measure_repeats
from benchmarks.peers.summary import Found, figures_of, table
from benchmarks.peers.weights import MINILM, SMALL, make_weights
from benchmarks.peers.workloads import QUICK, Measured, Plan, Rates, Texts, calibrate, measure_arm, texts_of

BARE = "bare"
NAMES = (*OURS, *PEERS, BARE)


class Comparison:
    """All servers, the rounds they take turns in, and what was found.

    Args: arms: to compare, the first is ours fp32; bare: also run the bare session.
    """

    def __init__(self, arms: Sequence[Arm], plan: Plan, data: Path | None, *, bare: bool) -> None:
        self.arms, self.plan, self.data, self.bare = arms, plan, data, bare
        self.cost = ClientCost()
        self.found = Found({arm.name: [] for arm in arms}, {}, {})
        self.server: dict[str, Any] = {}

    def prepare(self) -> Rates:
        """Check that all servers give the same scores, and measure what the better peer can do.

        Raises: SystemExit: if a score differs by more than 1e-4 where nothing excuses it.
        """
        texts = texts_of(self.data, self.plan, 0)
        reference = Reference(texts, self.arms[0].weights.bundle)
        rates = []
        for arm in tqdm(self.arms, file=sys.stderr, desc="agreement and capacity"):
            with arm.started() as running:
                agreement = reference.compare(arm, running)
                self.found.agreement[arm.name] = agreement
                if arm.name not in ("ours_int8", *WITHOUT_SEGMENTS) and agreement.difference > PARITY:
                    raise SystemExit(f"{arm.name}: expected scores within {PARITY} of ours, found {agreement}")
                if running.ours and not self.server:
                    self.server = running.ours.description()
                if arm.name in PEERS or len(self.arms) == 1:
                    rates.append(asyncio.run(calibrate(arm, running, texts, self.plan)))
        sizes = rates[0].idle_s
        return Rates(
            max(found.mix for found in rates),
            max(found.outliers for found in rates),
            {size: min(found.idle_s[size] for found in rates) for size in sizes},
        )

    def run_round(self, number: int, rates: Rates) -> None:
        """Let every server take its turn."""
        texts = texts_of(self.data, self.plan, number)
        first = number % len(self.arms)
        for arm in (*self.arms[first:], *self.arms[:first]):
            with arm.started() as running, self.cost.measured():
                measured = asyncio.run(measure_arm(arm, running, texts, rates, self.plan))
            self.found.rounds[arm.name].append(measured)
        if self.bare:
            self._run_bare(texts, self.found.rounds[self.arms[0].name][-1])

    def _run_bare(self, texts: Texts, ours: Measured) -> None:
        """Run the round's pairs through the session alone, in batches of as many tokens as ours had."""
        layout = Layout(self.arms[0].cores, 1)
        with BareProcess(self.arms[0].weights.bundle, "fp32", [layout]) as bare:
            for name, requests in (("mix", texts.mix), ("outliers", texts.outliers)):
                budget = ours.batch_tokens[name]
                bare.prepare(Work([requests], budget))
                n_pairs = sum(len(titles) for _, titles in requests)
                self.found.bare.setdefault(name, []).append(n_pairs / bare.run(layout, budget))


@contextmanager
def on_cores(n: int) -> Iterator[int]:
    """Hold this process, and so all that it starts, to n of its cores; gives how many there are."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:n])
    try:
        yield min(n, len(allowed))
    finally:
        os.sched_setaffinity(0, allowed)


def compare(arguments: argparse.Namespace, cores: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make what is missing, run all rounds; gives the description of ours, and the figures."""
    plan, repeated = (QUICK, QUICK_REPEATS) if arguments.quick else (Plan(), Repeats())
    weights = make_weights(
        arguments.work / ("weights-quick" if arguments.quick else "weights"), SMALL if arguments.quick else MINILM
    )
    not_run = {name: why for name in OURS[1:] if name in arguments.arms and (why := weights.refused("int8"))}
    names = [name for name in NAMES if name in arguments.arms and name != BARE and name not in not_run]
    pythons = {name: Path(path).absolute() for name, path in arguments.python}
    arms = arms_of(names, weights, arguments.work, pythons=pythons, cores=cores)
    comparison = Comparison(arms, plan, arguments.data, bare=BARE in arguments.arms)
    rates = comparison.prepare()
    for number in tqdm(range(arguments.rounds), file=sys.stderr, desc="rounds"):
        comparison.run_round(number, rates)
    figures = figures_of(comparison.found, plan)
    if best := figures["targets"].get("mix_pairs_per_s_ours_fp32"):
        peer = next(arm for arm in arms if arm.name == best["better_peer"])
        figures["targets"]["repeated_queries_pairs_per_s"] = asyncio.run(
            measure_repeats(arms[0], peer, arguments.data, repeated)
        )
    figures |= {
        "not_run": not_run,
        "offered": {
            "capacity_pairs_per_s": {"mix": rates.mix, "outliers": rates.outliers},
            "deadline_ms": {str(size): 1000 * rates.deadline_s(size) for size in sorted(rates.idle_s)},
        },
        "client_share_of_cores": comparison.cost.share,
        "rounds": arguments.rounds,
        "cores": cores,
    }
    return comparison.server, figures


def main(argv: list[str]) -> int:
    """Compare, write results/peers.json and .md, and show the table."""
    arguments = _arguments(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with on_cores(arguments.cores) as cores:
        server, figures = compare(arguments, cores)
    write_report(arguments, argv, server=server, figures=figures)
    shown = table(figures)
    report_path(arguments).with_suffix(".md").write_text(shown, encoding="utf-8")
    print(shown)
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=NAMES, default=NAMES, help="default: all; ours_fp32 always runs")
    parser.add_argument("--rounds", type=int, default=4, help="every second one has overload, the others 3,000 items")
    parser.add_argument("--cores", type=int, default=2, help="for server and client together")
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="keeps weights and environments: 6 GB")
    parser.add_argument(
        "--python",
        nargs=2,
        action="append",
        default=[],
        metavar=("PEER", "PATH"),
        help="an interpreter that has the peer's packages, instead of an environment made for it",
    )
    parser.add_argument("--data", type=Path, help="Parquet as for the other programs; default: generated")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/peers.json")
    parser.add_argument("--quick", action="store_true", help="small random weights and one short round: no figures")
    parser.set_defaults(program="peers")
    arguments = parser.parse_args(argv)
    arguments.work = arguments.work.resolve()
    arguments.arms = {OURS[0], *arguments.arms}
    arguments.rounds = 1 if arguments.quick else arguments.rounds
    return arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

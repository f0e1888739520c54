"""What the A/B analysis promises, checked on simulated traffic whose lift is known.

Coverage of 95 % intervals of the lift (rows taken for independent, users as the unit, with CUPED), false alarms at no
lift with one look and with a look a day (plain and always-valid), power beside the planner's prediction, and alarms of
the sample ratio check. Each share has its 95 % Wilson interval over the simulated experiments.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.measure import RESULTS, machine
from training.ab.analysis import METRICS
from training.ab.estimate import SRM_ALARM, Lift, adjusted_ratios, arm_ratio, lift_of, sample_ratio_p
from training.ab.events import Events, UserTotals, user_totals
from training.ab.power import power_at, relative_variance_of, users_per_arm
from training.ab.sequential import looks
from training.ab.simulate import Traffic, simulate

ARMS = (0, 1)
Shares = dict[str, dict[str, float]]


def readings(events: Events, metric: str) -> dict[str, Lift]:
    """Give the lift of a metric read three ways: rows as units, users as units, and CUPED."""
    column = METRICS[metric][0]
    totals = user_totals(events, column)
    rows = UserTotals(events.variant_U[events.user_N], events.values[column], events.values[events.denominator])
    adjusted = adjusted_ratios(totals, ARMS)
    assert adjusted is not None
    return {
        "rows": lift_of(arm_ratio(rows, 1), arm_ratio(rows, 0)),
        "users": lift_of(arm_ratio(totals, 1), arm_ratio(totals, 0)),
        "cuped": lift_of(adjusted[1], adjusted[0]),
    }


def one_lift(traffic: Traffic, seed: int) -> dict[str, dict[str, Lift]]:
    """Simulate one experiment and read every metric."""
    events = simulate(traffic, seed)
    return {metric: readings(events, metric) for metric in METRICS}


def one_peeked(traffic: Traffic, seed: int) -> dict[str, bool]:
    """Simulate one experiment and look at it every day, by CTR and RPM."""
    events = simulate(traffic, seed)
    found: dict[str, bool] = {}
    for metric in ("ctr", "rpm"):
        seen = looks(events, METRICS[metric][0], arms=ARMS, planned_lift=0.1)
        z = [abs(math.log1p(look.value)) / math.sqrt(look.variance) for look in seen]
        found |= {
            f"{metric} one look": z[-1] > stats.norm.ppf(0.975),
            f"{metric} a look a day": max(z) > stats.norm.ppf(0.975),
            f"{metric} a look a day, always valid": seen[-1].p <= 0.05,
        }
    return {name: bool(value) for name, value in found.items()}


def one_split(traffic: Traffic, seed: int) -> bool:
    """Simulate one experiment and say whether its sample ratio raises the alarm."""
    return sample_ratio_p(np.bincount(simulate(traffic, seed).variant_U).tolist(), [1.0, 1.0]) < SRM_ALARM


def share(flags: Iterable[bool]) -> dict[str, float]:
    """Give a share with its Wilson interval."""
    values = list(flags)
    ends = stats.binomtest(sum(values), len(values)).proportion_ci(method="wilson")
    return {"value": sum(values) / len(values), "low": ends.low, "high": ends.high, "n": len(values)}


def shares(rows: Sequence[dict[str, bool]]) -> Shares:
    """Give the share of every flag."""
    return {name: share(row[name] for row in rows) for name in rows[0]}


def coverage(found: Sequence[dict[str, dict[str, Lift]]], lift: float) -> dict[str, Shares]:
    """Give, by metric and reading, how often the interval holds the true lift, and its mean width."""
    table: dict[str, Shares] = {}
    for metric in METRICS:
        table[metric] = {}
        for reading in ("rows", "users", "cuped"):
            lifts = [row[metric][reading] for row in found]
            table[metric][reading] = {
                **share(one.low <= lift <= one.high for one in lifts),
                "mean_width": float(np.mean([one.high - one.low for one in lifts])),
            }
        removed = [1 - row[metric]["cuped"].variance / row[metric]["users"].variance for row in found]
        table[metric]["cuped"]["variance_removed"] = float(np.mean(removed))
    return table


def power(found: Sequence[dict[str, dict[str, Lift]]], traffic: Traffic, pilot_users: int) -> dict[str, Shares]:
    """Give, by metric and reading, how often the lift is found beside the planner's prediction from other traffic."""
    pilot = simulate(Traffic(users=pilot_users, days=traffic.days), seed=10**9)
    table: dict[str, Shares] = {}
    for metric, (column, _) in METRICS.items():
        totals = user_totals(pilot, column)
        adjusted = adjusted_ratios(totals, ARMS)
        assert adjusted is not None
        table[metric] = {}
        for reading, ratio in (("users", arm_ratio(totals, 0)), ("cuped", adjusted[0])):
            variance = relative_variance_of(ratio)
            table[metric][reading] = {
                **share(row[metric][reading].p <= 0.05 for row in found),
                "planned": power_at(variance, traffic.lift, traffic.users),
                "users_for_80": users_per_arm(variance, traffic.lift),
            }
    return table


def main(argv: list[str]) -> int:
    """Run every simulation and write results/ab_coverage.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2000, help="of each setting")
    parser.add_argument("--seed", type=int, default=0, help="of the first experiment")
    parser.add_argument("--pilot-users", type=int, default=100_000, help="of each arm, for the planner's variance")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "ab_coverage.json")
    arguments = parser.parse_args(argv)
    seeds = range(arguments.seed, arguments.seed + arguments.experiments)
    settings = {"small": Traffic(users=300, lift=0.1), "large": Traffic(users=2000, lift=0.1)}
    none, broken = {name: Traffic(users=of.users) for name, of in settings.items()}, Traffic(users=2000, keep=0.9)
    with ProcessPoolExecutor(arguments.processes) as pool:
        run = partial(pool.map, chunksize=10)
        lifted = {name: list(run(partial(one_lift, traffic), seeds)) for name, traffic in settings.items()}
        peeked = {name: list(run(partial(one_peeked, traffic), seeds)) for name, traffic in none.items()}
        peeked_lift = list(run(partial(one_peeked, settings["large"]), seeds))
        balanced = list(run(partial(one_split, none["large"]), seeds))
        unbalanced = list(run(partial(one_split, broken), seeds))
    result = {
        "command": " ".join(["python -m benchmarks.ab_coverage", *argv]),
        "machine": machine(),
        "coverage": {
            name: {"users_per_arm": traffic.users, "lift": traffic.lift, **coverage(lifted[name], traffic.lift)}
            for name, traffic in settings.items()
        },
        "power": power(lifted["large"], settings["large"], arguments.pilot_users),
        "found_at_no_lift": {name: shares(rows) for name, rows in peeked.items()},
        "found_at_a_lift": shares(peeked_lift),
        "sample_ratio_alarms": {"as_planned": share(balanced), "a_tenth_of_one_arm_lost": share(unbalanced)},
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

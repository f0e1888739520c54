"""`relevance ab EVENTS`: lifts of RPM, CTR and RS with user-clustered intervals, from an experiment's events.

`--out DIR` receives ab.json and ab.md. `--plan LIFT` says how many users an experiment needs instead, from an events
file or from `--mean` and `--variance` of one user. `--simulate FILE` writes events with a known lift to try this on.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from relevance.errors import InputError
from relevance.pairs import BadRows
from training.ab.analysis import METRICS, Question, analyse
from training.ab.estimate import adjusted_ratios, arm_ratio
from training.ab.events import Events, read_events, user_totals
from training.ab.page import page
from training.ab.power import relative_variance_of, users_per_arm
from training.ab.simulate import Traffic, simulate, write_events
from training.runs import commit, hash_file

REPORT, PAGE = "ab.json", "ab.md"


def main(argv: list[str]) -> int:
    """Analyse an experiment, plan one, or simulate one.

    Raises: InputError: if an option or the events file is wrong; RowError: at the first bad row.
    """
    arguments = _arguments(argv)
    if arguments.simulate is not None:
        traffic = Traffic(users=arguments.users, days=arguments.days, lift=arguments.lift)
        write_events(arguments.simulate, simulate(traffic, arguments.seed))
        return 0
    if arguments.plan is not None:
        _tell(_plan(arguments))
        return 0
    if arguments.events is None or arguments.out is None:
        raise InputError("expected an events file and --out DIR, or --plan LIFT, or --simulate FILE")
    bad_rows = BadRows(arguments.on_bad_row)
    events = _events(arguments, bad_rows)
    report = {
        "file": {"name": arguments.events.name, "sha256": hash_file(arguments.events)},
        "commit": commit(),
        "bad_rows": {"count": bad_rows.count, "first": [str(error) for error in bad_rows.first]},
        **analyse(events, _question(arguments)),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (arguments.out / PAGE).write_text(page(report), encoding="utf-8")
    for name, result in report["treatments"].items():
        _tell(f"{name}: {result['verdict']} ({report['primary']})")
    _tell(f"→ {arguments.out / PAGE}; {bad_rows.count} bad rows left out")
    return 0


def _events(arguments: argparse.Namespace, bad_rows: BadRows) -> Events:
    return read_events(
        arguments.events, denominator=arguments.denominator, segments=arguments.segment, bad_rows=bad_rows
    )


def _question(arguments: argparse.Namespace) -> Question:
    if arguments.sequential is not None and not arguments.sequential > 0:
        raise InputError(f"--sequential: expected a planned lift above 0, found {arguments.sequential:g}")
    return Question(
        control=arguments.control,
        primary=arguments.primary,
        shares=_shares(arguments.shares),
        confidence=arguments.confidence,
        power=arguments.power,
        planned_lift=arguments.sequential,
        seed=arguments.seed,
    )


def _plan(arguments: argparse.Namespace) -> str:
    """Give the users an arm needs, as text of one line an estimate."""
    chances: dict[str, Any] = {"power": arguments.power, "confidence": arguments.confidence}
    lines = []
    for name, variance in _relative_variances(arguments).items():
        if not variance > 0:
            lines.append(f"{name}: no plan (expected a ratio above 0 that differs between users)")
            continue
        n = users_per_arm(variance, arguments.plan, **chances)
        lines.append(f"{name}: {n} users an arm (relative variance of a user {variance:.4g})")
    return "\n".join([f"a lift of {arguments.plan:+.2%} with {arguments.power:.0%} power needs", *lines])


def _relative_variances(arguments: argparse.Namespace) -> dict[str, float]:
    """Give one user's relative variance: as stated, or of each metric's control, plain and with CUPED."""
    if (arguments.mean is None) != (arguments.variance is None) or (arguments.mean is None) == (
        arguments.events is None
    ):
        raise InputError("--plan: expected either an events file, or --mean and --variance of one user")
    if arguments.mean is not None:
        if not (arguments.mean > 0 and arguments.variance > 0):
            raise InputError(
                f"expected a mean and a variance above 0, found {arguments.mean:g}, {arguments.variance:g}"
            )
        return {"stated": arguments.variance / arguments.mean**2}
    events = _events(arguments, BadRows(arguments.on_bad_row))
    if arguments.control not in events.variants:
        raise InputError(f"expected the control {arguments.control!r}, found {', '.join(events.variants)}")
    arm, found = events.variants.index(arguments.control), {}
    for name, (column, _) in METRICS.items():
        if column not in events.values:
            continue
        totals = user_totals(events, column)
        found[name] = relative_variance_of(arm_ratio(totals, arm))
        adjusted = adjusted_ratios(totals, [arm])
        if adjusted is not None:
            found[f"{name} with CUPED"] = relative_variance_of(adjusted[0])
    return found


def _shares(text: str | None) -> tuple[tuple[str, float], ...]:
    """Read `control=0.9,treatment=0.1`."""
    if text is None:
        return ()
    try:
        pairs = tuple((name, float(share)) for name, share in (part.split("=") for part in text.split(",")))
    except ValueError as error:
        raise InputError(f"--shares: expected name=number,name=number, found {text!r}") from error
    if not all(0 < share < float("inf") for _, share in pairs):
        raise InputError(f"--shares: expected numbers above 0, found {text!r}")
    return pairs


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="relevance ab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("events", type=Path, nargs="?", help="events: .jsonl or .parquet")
    parser.add_argument("--out", type=Path, help="directory for ab.json and ab.md")
    parser.add_argument("--control", default="control", help="name of the control variant")
    parser.add_argument("--primary", default="rpm", choices=tuple(METRICS), help="the metric that decides")
    parser.add_argument("--denominator", default="impressions", help="column that ratios divide by, e.g. requests")
    parser.add_argument(
        "--segment", action="append", default=[], metavar="COLUMN", help="a column of the segment table"
    )
    parser.add_argument("--shares", metavar="A=0.5,B=0.5", help="planned shares of users (default: equal)")
    parser.add_argument("--confidence", type=_share, default=0.95)
    parser.add_argument("--power", type=_share, default=0.8)
    parser.add_argument(
        "--sequential", type=float, metavar="LIFT", help="always-valid reading, tightest about this planned lift"
    )
    parser.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail", help="what a bad row does")
    parser.add_argument("--seed", type=int, default=0, help="of the latency bootstrap and of --simulate")
    planning = parser.add_argument_group("planning")
    planning.add_argument("--plan", type=float, metavar="LIFT", help="users an arm needs to find this lift")
    planning.add_argument("--mean", type=float, help="a user's mean, instead of an events file")
    planning.add_argument("--variance", type=float, help="a user's variance, instead of an events file")
    simulating = parser.add_argument_group("simulating")
    simulating.add_argument("--simulate", type=Path, metavar="FILE", help="write simulated events (.parquet)")
    simulating.add_argument("--users", type=int, default=2000, help="of each arm")
    simulating.add_argument("--days", type=int, default=14)
    simulating.add_argument("--lift", type=float, default=0.0, help="of RPM, CTR and RS")
    return parser.parse_args(argv)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {text}")
    return value


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")

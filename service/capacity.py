"""`relevance capacity`: how many replicas a load needs, what they answer in, and what a million pairs costs.

Every key of the plan is an option and a key of the TOML file that `--plan` names; options win. Nothing is sent
anywhere: the service's scheduling is simulated on numbers that were measured elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from relevance.errors import InputError, SettingsError
from service.capacity_plan import PERCENTILES, Answer, Load, Plan, Planner, plan_of
from service.capacity_simulation import Balancer

_NUMBERS = {
    "tokens-per-s": "of one replica, all engines together (/info, relevance_tokens_per_second)",
    "pair-tokens": "of a pair that is computed, on average",
    "pair-spread": "of their lengths: standard deviation over mean (0)",
    "most-unserved": "share of calls that may be refused, partly scored or too late (0.001)",
    "deadline-ms": "of a call (30000)",
    "batch-fixed-ms": "of a batch, beside its tokens (0: tokens-per-s holds it)",
    "engines": "threads of a replica that run batches (1)",
    "batch-ms": "what a batch may take (40)",
    "call-ms": "of a call outside the engines (0)",
    "pair-us": "of a pair outside the engines (0)",
    "cached": "share of pairs found in the pair cache (0)",
    "zones": "over which replicas are spread; one may be lost, 1 = no reserve (3)",
    "cost-per-hour": "of one replica",
    "group": "replicas that one balancer chooses among (8)",
    "calls": "simulated at a time (10000)",
    "seed": "of the random numbers (0)",
}


def main(argv: list[str]) -> int:
    """Plan each rate and print a table or JSON.

    Raises: InputError: the plan or the trace is missing, wrong or cannot be met.
    """
    arguments = _parser().parse_args(argv)
    plan = plan_of(_values(arguments))
    planner = Planner(plan, _read_trace(arguments.trace) if arguments.trace is not None else None)
    answers: list[Answer] = []
    for rate in tqdm(sorted(plan.rate), unit="rate", file=sys.stderr, disable=None):
        before = answers[-1] if answers else None
        guess = math.ceil(before.needed * rate / before.rate) if before is not None else None
        answers.append(planner.answer(rate, guess=guess))
    if arguments.json:
        told = {"plan": plan.model_dump(mode="json"), "answers": [_plain(asdict(answer)) for answer in answers]}
        sys.stdout.write(json.dumps(told, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join(_table(plan, answers)) + "\n")
    return 0


def _table(plan: Plan, answers: list[Answer]) -> list[str]:
    """Give the lines of the table: one a rate, then one a size class of each."""
    spare = "" if plan.zones == 1 else f", one of {plan.zones} zones lost"
    lines = [f"{'queries/s':>10}  {'replicas':>9}  {'needed':>9}  {'busy':>5}  {'unserved':>8}  {'cost/1M pairs':>13}"]
    for answer in answers:
        cost = "" if answer.cost_per_million is None else f"{answer.cost_per_million:.4g}"
        lines.append(
            f"{answer.rate:>10.6g}  {answer.replicas:>9}  {answer.needed:>9}  {answer.normal.utilisation:>5.2f}  "
            f"{1 - answer.normal.shares['complete']:>8.2%}  {cost:>13}"
        )
    for answer in answers:
        for name, load in (("all up", answer.normal), (f"{answer.worst.replicas} up{spare}", answer.worst)):
            lines += ["", f"{answer.rate:g} queries/s, {name}: {_outcomes(load)}"]
            lines += [f"  {_size(size)}  " + _latencies(found) for size, found in load.latency_ms.items()]
            if answer.normal is answer.worst:
                break
        lines.append(
            f"  tightest objective {answer.worst.strain:.1%} used; with other random numbers {answer.other_seed:+.1%}, "
            f"with groups twice as large {answer.twice_the_group:+.1%}"
        )
        if answer.too_few is not None:
            lines.append(f"  {answer.too_few.replicas} replicas: {', '.join(answer.too_few.unmet)}")
    return lines


def _outcomes(load: Load) -> str:
    shares = ", ".join(f"{name} {share:.2%}" for name, share in load.shares.items())
    return f"engines {load.utilisation:.0%} busy; {shares}"


def _size(size: int) -> str:
    return f"{'all calls' if not size else f'{size} items':>12}"


def _latencies(found: dict[int, float]) -> str:
    return "  ".join(f"p{q} {found[q]:>8.1f} ms" for q in PERCENTILES)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any part of a JSON document
    """Give what JSON can say: numbers that are none become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    values = _read_toml(arguments.plan) if arguments.plan is not None else {}
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    values |= {name: given[name] for name in given if name in Plan.model_fields and name not in {"mix", "slo"}}
    if "mix" in given:
        values["mix"] = dict(_pair(text, "=", "--mix", "ITEMS=SHARE") for text in given["mix"])
    if "slo" in given:
        values["slo"] = [_objective(text) for text in given["slo"]]
    return values


def _objective(text: str) -> dict[str, str]:
    size, found, rest = text.rpartition("=")
    percentile, ms = _pair(rest, ":", "--slo", "[ITEMS=]PERCENTILE:MS")
    return {"percentile": percentile, "ms": ms} | ({"items": size} if found else {})


def _pair(text: str, separator: str, option: str, form: str) -> tuple[str, str]:
    left, found, right = text.partition(separator)
    if not found:
        raise SettingsError(f"{option}: expected {form}, found {text!r}")
    return left, right


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected a TOML file: {error}") from error


def _read_trace(path: Path) -> NDArray[np.float64]:
    """Read arrival times, one a line, in seconds."""
    try:
        times = np.sort(np.asarray([float(line) for line in path.read_text(encoding="utf-8").split()]))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected one arrival time in seconds a line: {error}") from error
    if len(times) < 2 or not np.isfinite(times).all() or times[0] == times[-1]:
        raise InputError(f"{path}: expected at least two different finite times, found {len(times)} lines")
    return times


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="relevance capacity", description=__doc__)
    parser.add_argument("--plan", type=Path, help="TOML file with these options as keys, - as _")
    parser.add_argument(
        "--rate", nargs="+", metavar="N", help="queries a second, of the whole fleet; several make a sweep"
    )
    parser.add_argument("--mix", nargs="+", metavar="ITEMS=SHARE", help="sizes of calls (50=0.80 200=0.15 1000=0.05)")
    parser.add_argument(
        "--slo", nargs="+", metavar="[ITEMS=]PERCENTILE:MS", help="objectives, of all calls or of a size"
    )
    for name, meaning in _NUMBERS.items():
        parser.add_argument(f"--{name}", metavar="N", help=meaning)
    parser.add_argument(
        "--prefetch", action="store_true", default=None, help="as RELEVANCE_PREFETCH, on by default on GPUs"
    )
    parser.add_argument("--balancer", choices=get_args(Balancer), help="least: fewest calls under way (default)")
    parser.add_argument("--trace", type=Path, help="arrival times in seconds, one a line, instead of a Poisson stream")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    return parser

"""From the rounds of all servers to figures, ratios over the better peer with their verdicts, and one table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.measure import Figure, block_ratio, figure, p99, verdict
from benchmarks.peers.agreement import PARITY, Agreement
from benchmarks.peers.arms import PEERS
from benchmarks.peers.workloads import Arrivals, Measured, Plan

LEAST_RATE = {"ours_fp32": 1.1, "ours_int8": 1.4}
MOST_P99 = 0.5
LEAST_GOODPUT = 1.5
_PERCENTILES = (50, 95, 99)
Rounds = Sequence[Measured]


@dataclass(frozen=True, slots=True)
class Found:
    """All that was measured.

    Args: rounds, agreement: by server; bare: pairs a second of the bare session, by workload.
    """

    rounds: dict[str, list[Measured]]
    agreement: dict[str, Agreement]
    bare: dict[str, list[float]]


def figures_of(found: Found, plan: Plan) -> dict[str, Any]:
    """Give every figure of the report."""
    servers = {name: _server(rounds, found.agreement[name]) for name, rounds in found.rounds.items()}
    figures: dict[str, Any] = {"servers": servers, "targets": _targets(found, plan)}
    if found.bare:
        figures["bare_session_pairs_per_s"] = {name: asdict(figure(rates)) for name, rates in found.bare.items()}
    return figures


def _server(rounds: Rounds, agreement: Agreement) -> dict[str, Any]:
    sizes = sorted({size for found in rounds for size in found.single_s})
    single = {size: [s for found in rounds for s in found.single_s.get(size, [])] for size in sizes}
    told: dict[str, Any] = {
        "scores": {
            "difference_from_ours_fp32": agreement.difference,
            "difference_from_ours_without_token_types": agreement.without_types,
            "within_bound": verdict(agreement.difference, agreement.difference, at_most=PARITY),
            "bound": PARITY,
        },
        "time_to_ready_s": asdict(figure([found.ready_s for found in rounds])),
        "rss_mb": max(found.rss for found in rounds) / 1e6,
        "one_request_ms": {f"1x{size}": asdict(figure([1000 * s for s in values])) for size, values in single.items()},
        "mix_saturated_pairs_per_s": asdict(figure([found.mix_rate for found in rounds])),
        "padding_ratio": {
            workload: float(np.mean([found.padding[workload] for found in rounds])) for workload in rounds[0].padding
        },
    }
    for workload in ("mix", "outliers", "overload"):
        blocks = [block for found in rounds if (block := getattr(found, workload)) is not None]
        if blocks:
            told[workload] = _arrivals(blocks)
    return told


def _arrivals(blocks: Sequence[Arrivals]) -> dict[str, Any]:
    codes: Counter[int] = Counter()
    for block in blocks:
        codes += block.codes
    sizes = sorted({size for block in blocks for size in block.latency_s})
    pooled = {size: np.concatenate([b.latency_s[size] for b in blocks if size in b.latency_s]) for size in sizes}
    return {
        "latency_ms": {
            str(size): {f"p{q}": 1000 * float(np.percentile(values, q)) for q in _PERCENTILES} | {"n": len(values)}
            for size, values in pooled.items()
        },
        "offered_pairs_per_s": float(np.mean([block.offered for block in blocks])),
        "goodput_pairs_per_s": asdict(figure([block.goodput for block in blocks])),
        "answers": {str(code): count for code, count in sorted(codes.items())},
    }


def _targets(found: Found, plan: Plan) -> dict[str, Any]:
    """Hold ours against the peer that is better at each thing."""
    peers = [name for name in PEERS if name in found.rounds]
    told: dict[str, Any] = {}
    if not peers:
        return told
    best = max(peers, key=lambda name: np.median([m.mix_rate for m in found.rounds[name]]))
    for name, least in LEAST_RATE.items():
        if name in found.rounds:
            pairs = zip(found.rounds[name], found.rounds[best], strict=True)
            ratio = figure([ours.mix_rate / theirs.mix_rate for ours, theirs in pairs], at_least=least)
            told[f"mix_pairs_per_s_{name}"] = _over(best, ratio)
    if "ours_fp32" in found.rounds:
        told |= _latency_target(found, peers, plan.size(50)) | _goodput_target(found, peers, plan)
    return told


def _latency_target(found: Found, peers: Sequence[str], size: int) -> dict[str, Any]:
    blocks = {
        name: [m.mix.latency_s[size] for m in found.rounds[name] if m.mix and size in m.mix.latency_s]
        for name in ("ours_fp32", *peers)
    }
    best = min(peers, key=lambda name: float(p99(np.concatenate(blocks[name]))))
    ratio = block_ratio(blocks["ours_fp32"], blocks[best], at_most=MOST_P99)
    return {"mix_p99_of_50_items": _over(best, ratio)}


def _goodput_target(found: Found, peers: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Compare goodput in overload; a peer that brings nothing in time counts with one small request a block."""
    least = plan.size(50) / plan.overload_s
    goodput = {
        name: [max(least, m.overload.goodput) for m in found.rounds[name] if m.overload]
        for name in ("ours_fp32", *peers)
    }
    best = max(peers, key=lambda name: np.median(goodput[name]))
    ratios = [ours / theirs for ours, theirs in zip(goodput["ours_fp32"], goodput[best], strict=True)]
    return {"overload_goodput": _over(best, figure(ratios, at_least=LEAST_GOODPUT))}


def _over(best: str, ratio: Figure) -> dict[str, Any]:
    return {"ours_over_better_peer": asdict(ratio), "better_peer": best}


def table(figures: Mapping[str, Any]) -> str:
    """Give the figures as one Markdown table of servers, and one of targets."""
    servers: Mapping[str, Any] = figures["servers"]
    rows = [("", *servers), ("---", *["---:"] * len(servers))]
    for label, path, digits in _table_rows(servers):
        rows.append((label, *(_cell(_at(told, path), digits) for told in servers.values())))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    for workload, rate in figures.get("bare_session_pairs_per_s", {}).items():
        lines += ["", f"Bare session, {workload}: {rate['value']:.0f} pairs/s."]
    lines += [f"{name}: not run, {why}." for name, why in figures["not_run"].items()]
    lines += ["", "| target | better peer | ours / peer | 95 % interval | bound | |", "|---|---|---:|---|---:|---|"]
    for name, target in figures["targets"].items():
        ratio = target["ours_over_better_peer"]
        interval = f"{ratio['low']:.2f} – {ratio['high']:.2f}"
        cells = (name, target["better_peer"], f"{ratio['value']:.2f}", interval, str(ratio["bound"]), ratio["verdict"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _table_rows(servers: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], int]]:
    """Give (label, path into a server's figures, digits)."""
    some = next(iter(servers.values()))
    rows: list[tuple[str, tuple[str, ...], int]] = [
        ("scores, largest difference from ours fp32", ("scores", "difference_from_ours_fp32"), 6),
        ("the same, from ours without token types", ("scores", "difference_from_ours_without_token_types"), 6),
        ("time to ready, s", ("time_to_ready_s", "value"), 1),
        ("resident memory, MB", ("rss_mb",), 0),
        *((f"{name} alone, ms", ("one_request_ms", name, "value"), 0) for name in some["one_request_ms"]),
        ("mix, saturated, pairs/s", ("mix_saturated_pairs_per_s", "value"), 0),
    ]
    for workload in ("mix", "outliers", "overload"):
        if workload in some:
            small = next(iter(some[workload]["latency_ms"]))
            percentiles = [f"p{q}" for q in _PERCENTILES]
            rows += [
                (f"{workload}, {small} items, {p}, ms", (workload, "latency_ms", small, p), 0) for p in percentiles
            ]
            rows.append((f"{workload}, goodput, pairs/s", (workload, "goodput_pairs_per_s", "value"), 0))
            rows.append((f"{workload}, answers by code", (workload, "answers"), 0))
    rows += [(f"{name}, padding", ("padding_ratio", name), 3) for name in ("mix", "outliers")]
    return rows


def _at(told: Mapping[str, Any], path: Sequence[str]) -> Any:
    found: Any = told
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{code}: {count}" for code, count in value.items())
    return "not known" if value is None else f"{value:.{digits}f}"

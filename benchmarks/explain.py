"""What `explain: true` adds to one idle call of 100 items: its HTTP latency minus that of the same call without.

One client, one keep-alive connection, one server, a call at a time; plain and explained calls take turns, and a second
plain one tells what the difference of two equal things is. The pair cache is off: an explained call would not read it.
The default bundle of this program is a two-layer one with MiniLM widths and the prototypes of the embedded default.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.load import ClientCost, connected, score_call, whole_latency
from benchmarks.measure import figure, options, p99, requests_of, write_report
from benchmarks.servers import Server
from relevance.bundle import PROTOTYPES, open_bundle, write_bundle
from service.settings import DEFAULT_BUNDLE

BOUND_MS = 1.0
ITEMS = 100
QUIET_S = 0.02
"""Between two calls: onnxruntime's threads spin for a while after a run, and must not take the other's cores."""
PLAIN, AGAIN, EXPLAINED = "plain", "plain_again", "explained"


async def measure(arguments: Namespace, server: Server) -> dict[str, object]:
    """Take turns between the kinds of call."""
    requests = requests_of(arguments.data, [arguments.items] * arguments.requests)
    calls = {
        name: [score_call(query, titles, explain=name == EXPLAINED) for query, titles in requests]
        for name in (PLAIN, AGAIN, EXPLAINED)
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    cost = ClientCost()
    async with connected(server.port) as client:
        for _ in range(2):
            for row in range(arguments.requests):
                for of_kind in calls.values():
                    await whole_latency(client, of_kind[row])
        for number in tqdm(range(arguments.rounds), file=sys.stderr, desc="rounds"):
            row, turn = number % arguments.requests, number // arguments.requests % len(calls)
            names = list(calls)
            for name in names[turn:] + names[:turn]:
                await asyncio.sleep(QUIET_S)
                with cost.measured():
                    taken[name].append(await whole_latency(client, calls[name][row]))
    ms = {name: 1000 * np.array(values) for name, values in taken.items()}
    per_100 = 100 / arguments.items
    added = (ms[EXPLAINED] - ms[PLAIN]) * per_100
    return {
        "added_ms_per_100_items_median": asdict(figure(added, at_most=BOUND_MS)),
        "added_ms_per_100_items_p99": asdict(figure(added, statistic=p99)),
        "aa_plain_minus_plain_ms_per_100_items": asdict(figure((ms[AGAIN] - ms[PLAIN]) * per_100)),
        **{f"latency_ms_median_{name}": asdict(figure(values)) for name, values in ms.items()},
        "client_share_of_cores": cost.share,
        "rounds": arguments.rounds,
        "items": arguments.items,
        "requests": arguments.requests,
    }


def explained_bundle(work: Path) -> Path:
    """Give a two-layer bundle with latents and the default's prototypes, made in this folder unless it is there."""
    # Only making a bundle needs torch; loading it takes seconds and memory.
    from benchmarks.two_layer import RandomModel, random_bundle

    default = open_bundle(DEFAULT_BUNDLE)
    if default.prototypes is None:
        raise SystemExit(f"{DEFAULT_BUNDLE}: expected prototypes, found none")
    path = work / f"two_layer_{default.manifest.bundle_id}" / "bundle"
    if path.is_dir():
        return path
    width = default.prototypes.latent_width
    model = RandomModel("two-layer-latent", layers=2, width=width, heads=12, latent_outputs=True)
    made = open_bundle(random_bundle(work, model))
    files = {name: made.path / name for name in made.manifest.files}
    manifest = made.manifest.model_copy(update={"files": {}, "bundle_id": ""})
    write_bundle(path, manifest, {**files, PROTOTYPES: default.prototypes.to_bytes()})
    return path


def main(argv: list[str]) -> int:
    """Measure and write results/explain.json."""
    parser = options(__doc__, "explain")
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--requests", type=int, default=20, help="different calls, made in turn")
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmarks"), help="folder that keeps the bundle made")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.rounds, arguments.requests = 4, 2
    if arguments.bundle is None:
        arguments.bundle = explained_bundle(arguments.work)
    with Server(arguments.bundle, pair_cache_bytes=0, explain_max_items=arguments.items) as server:
        offered = server.info()["explanations"]
        if not offered["offered"]:
            raise SystemExit(f"expected a bundle that explains, found one of which {offered['reason']}")
        figures = asyncio.run(measure(arguments, server))
        described = server.description()
    write_report(arguments, argv, server=described, figures=figures)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""How many requests a second the client of LLM servers makes, so that it is never what a teacher waits for.

The dummy server answers at once with an answer of about 120 tokens; it runs on one core, the client on another. What is
timed is all that a run does with a request: hash, request over a kept connection, parsing, the store's line, the
completion. Each round has prompts of its own and an empty store.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.measure import figure, write_report
from relevance.labels import ESCI
from training.teacher.generator import Prompt
from training.teacher.openai_client import OpenAiGenerator
from training.teacher_recipe import SamplingRecipe

REQUESTS_A_SECOND = 500
"""What issue 5 asks for at least."""
RULES = "A pair is Exact if the item is what the query asks for in every respect that it names. " * 40
ANSWER = json.dumps({"rationale": "the item is what the query asks for " * 14, "evidence": [], "label": "E"})
BODY = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 120},
    }
).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)


class AtOnce(asyncio.Protocol):
    """Answers every request on a connection as soon as its body is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = transport
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        """Answer the requests that are whole."""
        self._rest += data
        while (end := self._rest.find(b"\r\n\r\n")) >= 0:
            head = self._rest[:end].lower()
            size = int(head.split(b"content-length: ")[1].split(b"\r")[0])
            if len(self._rest) < end + 4 + size:
                return
            self._rest = self._rest[end + 4 + size :]
            self._transport.write(REPLY)


def serve(cores: set[int], port: Connection) -> None:
    """Serve on some cores until killed; the port is sent when it listens."""
    os.sched_setaffinity(0, cores)

    async def listen() -> None:
        """Listen on a free port."""
        server = await asyncio.get_running_loop().create_server(AtOnce, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(listen())


def prompts(count: int, number: int) -> Iterator[Prompt]:
    """Give prompts of one round: the same rules and a pair of their own."""
    for n in range(count):
        pair = f"query: steel kettle {number} {n}\ntitle: Steel kettle of two litres with a lid and a handle of wood"
        yield Prompt(str(n), ({"role": "system", "content": RULES}, {"role": "user", "content": pair}), samples=1)


def measured(port: int, folder: Path, *, count: int, number: int, concurrency: int) -> tuple[float, float]:
    """Run a round: requests a second, and microseconds of processor time a request."""
    recipe = SamplingRecipe(kind="openai", model="m", base_url=f"http://127.0.0.1:{port}/v1", concurrency=concurrency)
    generator = OpenAiGenerator(recipe, folder / f"store-{number}.jsonl", ESCI)
    wall, processor = time.perf_counter(), time.process_time()
    answered = sum(c.error is None for c in generator.complete(prompts(count, number)))
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    if answered != count or generator.ledger.requests != count:
        raise RuntimeError(f"expected {count} answers to as many requests, found {answered}")
    return count / wall, 1e6 * processor / count


def main(argv: list[str]) -> int:
    """Measure and write results/generation_client.json."""
    parser = ArgumentParser(
        prog="python -m benchmarks.generation_client", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--requests", type=int, default=2000, help="a round")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/generation_client.json")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that the program works")
    parser.set_defaults(program="generation_client", data=None)
    arguments = parser.parse_args(argv)
    rounds, count = (3, 200) if arguments.quick else (arguments.rounds, arguments.requests)
    cores = sorted(os.sched_getaffinity(0))
    mine, theirs = {cores[0]}, {cores[-1]}
    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, sender), daemon=True)
    process.start()
    try:
        port = receiver.recv()
        os.sched_setaffinity(0, mine)
        with tempfile.TemporaryDirectory() as folder:
            measured(port, Path(folder), count=count, number=-1, concurrency=arguments.concurrency)
            found = [
                measured(port, Path(folder), count=count, number=number, concurrency=arguments.concurrency)
                for number in range(rounds)
            ]
    finally:
        os.sched_setaffinity(0, cores)
        process.kill()
        process.join()
    write_report(
        arguments,
        argv,
        server={"kind": "dummy that answers at once", "concurrency": arguments.concurrency, "own_core": mine != theirs},
        figures={
            "requests_a_second": asdict(figure([a for a, _ in found], at_least=REQUESTS_A_SECOND)),
            "client_microseconds_a_request": asdict(figure([b for _, b in found])),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

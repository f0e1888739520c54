"""The bare session: ready-made batches run in a process of its own, which idles while a server is measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType

import numpy as np

from relevance.bundle import Bundle, Precision, open_bundle
from relevance.pairs import Item
from relevance.tokenization import N_SPECIAL, PairBatch, TokenIds
from service.scorer import plan_batches
from service.session import OnnxSession
from service.settings import DEFAULT_BUNDLE

Requests = Sequence[tuple[str, list[str]]]
STOP_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Layout:
    """How the cores are used: engine threads side by side, and the intra-op threads of each."""

    engines: int
    threads: int


@dataclass(frozen=True, slots=True)
class Work:
    """What to make batches of: each group of requests is sorted by length and cut to the token budget as one."""

    groups: Sequence[Requests]
    token_budget: int


class BareProcess:
    """A process with sessions of each layout; a context manager.

    Args: bundle: None for the embedded one; precision: as the server resolved it.
    """

    def __init__(self, bundle: Path | None, precision: Precision, layouts: Sequence[Layout]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        arguments = (theirs, bundle or DEFAULT_BUNDLE, precision, tuple(layouts))
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def __enter__(self) -> BareProcess:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def prepare(self, work: Work) -> int:
        """Tokenise and cut the batches, replacing those of the same token budget; gives how many there are."""
        self._pipe.send(work)
        return int(self._pipe.recv())

    def run(self, layout: Layout, token_budget: int) -> float:
        """Run every batch of a budget once; gives the seconds that took."""
        self._pipe.send((layout, token_budget))
        return float(self._pipe.recv())


class _Sessions:
    """One session an engine thread, fed from one list of batches."""

    def __init__(self, sessions: list[OnnxSession]) -> None:
        self._sessions = sessions
        self._pool = ThreadPoolExecutor(len(sessions))

    def run(self, batches: list[PairBatch]) -> float:
        """Run every batch once, each by whichever session is free; gives the seconds."""
        waiting: SimpleQueue[PairBatch | None] = SimpleQueue()
        began = perf_counter()
        for batch in (*batches, *[None] * len(self._sessions)):
            waiting.put(batch)

        def drain(session: OnnxSession) -> None:
            """Run batches until none waits."""
            while (batch := waiting.get()) is not None:
                session.run(batch)

        for done in [self._pool.submit(drain, session) for session in self._sessions]:
            done.result()
        return perf_counter() - began


def _open(bundle: Bundle, precision: Precision, layout: Layout) -> list[OnnxSession]:
    """Give one session an engine; engines of one thread share theirs, as in the service."""
    n = 1 if layout.threads == 1 else layout.engines
    sessions = [OnnxSession(bundle, precision=precision, provider="cpu", threads=layout.threads) for _ in range(n)]
    return sessions * (layout.engines // n)


def _serve(pipe: Connection, bundle: Path, precision: Precision, layouts: tuple[Layout, ...]) -> None:
    """Answer `Work` with the number of batches, (layout, token budget) with seconds; ends on None."""
    opened = open_bundle(bundle)
    laid_out = {layout: _Sessions(_open(opened, precision, layout)) for layout in layouts}
    batches: dict[int, list[PairBatch]] = {}
    while (message := pipe.recv()) is not None:
        if isinstance(message, Work):
            batches[message.token_budget] = [b for group in message.groups for b in _cut(opened, group, message)]
            pipe.send(len(batches[message.token_budget]))
        else:
            layout, token_budget = message
            pipe.send(laid_out[layout].run(batches[token_budget]))


def _cut(bundle: Bundle, group: Requests, work: Work) -> list[PairBatch]:
    """Tokenise the requests of a group and cut them to length-sorted batches, whosever their rows are."""
    tokenizer, template = bundle.tokenizer, bundle.template
    queries: list[TokenIds] = []
    items: list[TokenIds] = []
    for query, titles in group:
        queries += [tokenizer.encode_query(template.query_text(query))] * len(titles)
        items += tokenizer.encode_items([template.item_text(Item(title)) for title in titles])
    lengths = [len(query) + len(item) + N_SPECIAL for query, item in zip(queries, items, strict=True)]
    length_B = np.minimum(lengths, tokenizer.max_pair_tokens).astype(np.int64)
    return [
        tokenizer.collate([queries[row] for row in rows.tolist()], [items[row] for row in rows.tolist()])
        for rows in plan_batches(length_B, work.token_budget)
    ]

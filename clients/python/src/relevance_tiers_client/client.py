"""The two clients: the same conversations, sent one after the other or side by side."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TypeVar

import httpx
import tenacity
from typing_extensions import Self, Unpack

from relevance_tiers_client.conversations import Ask, Conversation, Conversations
from relevance_tiers_client.deadlines import GRACE_S
from relevance_tiers_client.errors import (
    DeadlineError,
    NoConnectionError,
    NotReadyError,
    OverloadedError,
    RelevanceApiError,
    ServerFailureError,
)
from relevance_tiers_client.models import Info, Item, ScoreOptions, ScoreResponse

T = TypeVar("T")
R = TypeVar("R")
CONNECT_S = 2.0
"""Seconds for a connection, so that a host that does not answer leaves time for another attempt."""
_AGAIN = tenacity.retry_if_exception_type((OverloadedError, NotReadyError, NoConnectionError))
_OWN_WAIT = tenacity.wait_exponential(multiplier=0.1, max=2.0)
_JITTER_S = 0.1


class Client:
    """A sync client; one of them may be used by many threads.

    Args: base_url: such as http://HOST:8000; timeout_s: of a whole call, retries and waits included, where it names no
        `deadline_ms`; max_attempts: of each request; http: an httpx client of your own, which stays yours to close.
    Raises: ValueError: an argument that can never work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_attempts: int = 3,
        http: httpx.Client | None = None,
    ) -> None:
        self._conversations = Conversations(base_url, api_key, timeout_s, max_attempts)
        self._own = http is None
        self._http = http or httpx.Client()

    def score(
        self, query: str, items: Sequence[Item | Mapping[str, Any]], **options: Unpack[ScoreOptions]
    ) -> ScoreResponse:
        """Give each item a calibrated score, a tier 0–4 and whether it is kept.

        Args: items: any number, sent in as many requests as the service's limits ask for; options: see ScoreOptions.
        Raises: RelevanceApiError: see the tree in `errors`.
        """
        return self._hold(self._conversations.score(query, items, options))

    def info(self) -> Info:
        """Give what is being served, and its limits.

        Raises: RelevanceApiError: see the tree in `errors`.
        """
        return self._hold(self._conversations.info())

    def ready(self) -> bool:
        """Say whether traffic may come; False too where nobody answers.

        Raises: RelevanceApiError: an answer that is neither yes nor no.
        """
        try:
            return self._once(self._conversations.ready())
        except (NotReadyError, NoConnectionError, DeadlineError):
            return False

    def close(self) -> None:
        """Close the connections, unless the httpx client was given."""
        if self._own:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _hold(self, conversation: Conversation[R]) -> R:
        try:
            asks = next(conversation)
            while True:
                try:
                    outcomes = [self._outcome(ask) for ask in asks]
                except RelevanceApiError as error:
                    asks = conversation.throw(error)
                else:
                    asks = conversation.send(outcomes)
        except StopIteration as end:
            answer: R = end.value
            return answer

    def _outcome(self, ask: Ask[T]) -> T | DeadlineError:
        retrying = tenacity.Retrying(
            stop=_Stop(ask, self._conversations.max_attempts), wait=_wait, retry=_AGAIN, reraise=True
        )
        try:
            found: T = retrying(self._once, ask)
            return found
        except DeadlineError as error:
            return error

    def _once(self, ask: Ask[T]) -> T:
        pieces: list[bytes] = []
        try:
            request = self._http.build_request(
                ask.method, ask.url, content=ask.body, headers=ask.headers_now(), timeout=_timeout(ask)
            )
            response = self._http.send(request, stream=True)
            try:
                for piece in response.iter_bytes():
                    pieces.append(piece)
                    _check_patience(ask)
            finally:
                response.close()
        except httpx.HTTPError as error:
            raise _broken(error, ask) from None
        return ask.read(response.status_code, response.headers, b"".join(pieces))


class AsyncClient:
    """An async client; one of them may be used by many tasks of one event loop of asyncio.

    Args: base_url: such as http://HOST:8000; timeout_s: of a whole call, retries and waits included, where it names no
        `deadline_ms`; max_attempts: of each request; max_concurrency: requests of one call that are under way at the
        same time; http: an httpx client of your own, which stays yours to close.
    Raises: ValueError: an argument that can never work.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_attempts: int = 3,
        max_concurrency: int = 4,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        if max_concurrency < 1:
            raise ValueError(f"max_concurrency: expected at least 1, found {max_concurrency}")
        self._conversations = Conversations(base_url, api_key, timeout_s, max_attempts)
        self._max_concurrency = max_concurrency
        self._own = http is None
        self._http = http or httpx.AsyncClient()

    async def score(
        self, query: str, items: Sequence[Item | Mapping[str, Any]], **options: Unpack[ScoreOptions]
    ) -> ScoreResponse:
        """Give each item a calibrated score, a tier 0–4 and whether it is kept.

        Args: items: any number, sent in as many requests as the service's limits ask for; options: see ScoreOptions.
        Raises: RelevanceApiError: see the tree in `errors`.
        """
        return await self._hold(self._conversations.score(query, items, options))

    async def info(self) -> Info:
        """Give what is being served, and its limits.

        Raises: RelevanceApiError: see the tree in `errors`.
        """
        return await self._hold(self._conversations.info())

    async def ready(self) -> bool:
        """Say whether traffic may come; False too where nobody answers.

        Raises: RelevanceApiError: an answer that is neither yes nor no.
        """
        try:
            return await self._once(self._conversations.ready())
        except (NotReadyError, NoConnectionError, DeadlineError):
            return False

    async def aclose(self) -> None:
        """Close the connections, unless the httpx client was given."""
        if self._own:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.aclose()

    async def _hold(self, conversation: Conversation[R]) -> R:
        try:
            asks = next(conversation)
            while True:
                try:
                    outcomes = await self._side_by_side(asks)
                except RelevanceApiError as error:
                    asks = conversation.throw(error)
                else:
                    asks = conversation.send(outcomes)
        except StopIteration as end:
            answer: R = end.value
            return answer

    async def _side_by_side(self, asks: Sequence[Ask[Any]]) -> list[Any]:
        turns = asyncio.Semaphore(self._max_concurrency)

        async def in_turn(ask: Ask[Any]) -> Any:  # noqa: ANN401 - whatever the request asks for
            async with turns:
                return await self._outcome(ask)

        tasks = [asyncio.ensure_future(in_turn(ask)) for ask in asks]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _outcome(self, ask: Ask[T]) -> T | DeadlineError:
        retrying = tenacity.AsyncRetrying(
            stop=_Stop(ask, self._conversations.max_attempts), wait=_wait, retry=_AGAIN, reraise=True
        )
        try:
            return await retrying(self._once, ask)
        except DeadlineError as error:
            return error

    async def _once(self, ask: Ask[T]) -> T:
        """Send one attempt; its time is over at the deadline's, whatever it is spent on."""
        try:
            return await asyncio.wait_for(self._attempt(ask), max(GRACE_S, ask.deadline.patience_s))
        except asyncio.TimeoutError:
            raise ask.deadline.missed() from None

    async def _attempt(self, ask: Ask[T]) -> T:
        pieces: list[bytes] = []
        try:
            request = self._http.build_request(
                ask.method, ask.url, content=ask.body, headers=ask.headers_now(), timeout=_timeout(ask)
            )
            response = await self._http.send(request, stream=True)
            try:
                async for piece in response.aiter_bytes():
                    pieces.append(piece)
                    _check_patience(ask)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise _broken(error, ask) from None
        return ask.read(response.status_code, response.headers, b"".join(pieces))


class _Stop(tenacity.stop.stop_base):
    """No further attempt after the last one, or where the wait for it would not fit into the call."""

    def __init__(self, ask: Ask[Any], max_attempts: int) -> None:
        self._ask = ask
        self._max_attempts = max_attempts

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        late = retry_state.upcoming_sleep >= self._ask.deadline.left_s
        return late or retry_state.attempt_number >= self._max_attempts


def _wait(retry_state: tenacity.RetryCallState) -> float:
    """Give what the service asked for, at least a wait that doubles: its estimate may be too low twice.

    A little comes on top, so that callers do not come back all at once.
    """
    error = retry_state.outcome.exception() if retry_state.outcome else None
    asked_s = error.retry_after_s or 0.0 if isinstance(error, RelevanceApiError) else 0.0
    return max(asked_s, _OWN_WAIT(retry_state)) + random.uniform(0.0, _JITTER_S)


def _timeout(ask: Ask[Any]) -> httpx.Timeout:
    patience_s = max(GRACE_S, ask.deadline.patience_s)
    return httpx.Timeout(patience_s, connect=min(CONNECT_S, patience_s))


def _check_patience(ask: Ask[Any]) -> None:
    """Refuse an answer that trickles in.

    Raises: DeadlineError: the time for reading it is over.
    """
    if ask.deadline.patience_s < 0:
        raise ask.deadline.missed()


def _broken(error: httpx.HTTPError, ask: Ask[Any]) -> RelevanceApiError:
    """Give the error of an attempt without a whole answer; the message names no header."""
    if isinstance(error, httpx.DecodingError):
        return ServerFailureError(None, "malformed_answer", "expected a body encoded as its header says, found another")
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return ask.deadline.missed()
    found = f"{type(error).__name__}: {error}" if isinstance(error, httpx.NetworkError) else type(error).__name__
    return NoConnectionError(None, "no_connection", f"expected an answer from {ask.origin}, found {found}")

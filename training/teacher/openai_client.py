"""Any OpenAI-compatible server as a text generator: many requests at once, tried again, kept, never paid twice.

aiohttp, not httpx: the same 64 requests in flight cost it about a twentieth of the processor time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from tqdm import tqdm

from relevance.errors import InputError, RecipeError, RunError
from relevance.labels import LabelScheme
from training.runs import hash_json
from training.teacher.generation_ledger import GenerationLedger
from training.teacher.generator import Completion, Prompt, failed
from training.teacher.openai_replies import Failure, Reply, label_logprobs, read_reply, seconds_asked
from training.teacher.request_store import RequestStore, StoredAnswer
from training.teacher_recipe import SamplingRecipe

if TYPE_CHECKING:
    import aiohttp
    import tenacity

log = logging.getLogger("relevance.training")
FAILURES_IN_A_ROW = 20
"""Requests without an answer, one after the other, that end a run: a server that is gone is not asked for ever. A
request that the server refused for what it holds does not count, once there is an answer to any."""
_FIRST_WAIT_S, _LONGEST_WAIT_S, _LONGEST_ASKED_WAIT_S = 0.5, 60.0, 600.0
_REFUSED_KEY = frozenset({"status 401", "status 403"})
_NO_SUCH_MODEL = "status 404"


class OpenAiGenerator:
    """Chat completions of a server, as many at a time as the recipe says.

    `n` answers are `n` requests with seeds of their own, drawn from their hash, so that each can be stored, tried again
    and found again alone. The server's key is read from the environment at each `complete` and kept nowhere.
    `complete` runs an event loop of its own between two answers: call it from plain code, not from a coroutine.

    Args: recipe: server, model and sampling; store: JSONL file of paid answers; scheme: whose labels answers name;
        identity: of what answers under the model's name, part of every answer's key; known: other files of paid
        answers, only read; label_at: ask for log-probabilities at the label, which not every server gives, and take
            the first or the last place that could be it, as the reasoning order has it.
    Raises: RecipeError: if the recipe names no model, or no HTTP address.
    """

    def __init__(
        self,
        recipe: SamplingRecipe,
        store: Path,
        scheme: LabelScheme,
        *,
        identity: str = "",
        known: Sequence[Path] = (),
        label_at: Literal["first", "last"] | None = None,
    ) -> None:
        if recipe.model is None:
            raise RecipeError("teacher.sampling.model: expected the server's name for the model, found none")
        if urlsplit(recipe.base_url).scheme not in ("http", "https") or not urlsplit(recipe.base_url).hostname:
            raise RecipeError(f"teacher.sampling.base_url: expected http://… or https://…, found {recipe.base_url!r}")
        self.recipe, self.scheme = recipe, scheme
        self.store = RequestStore(store, known)
        self.identity, self.label_at = identity, label_at
        self.ledger = GenerationLedger()
        self.failures_in_a_row = 0
        self._parameters: dict[str, Any] = {
            "model": recipe.model,
            "temperature": recipe.temperature,
            "top_p": recipe.top_p,
            "max_tokens": recipe.max_new_tokens,
        }
        if recipe.extensions:
            # vLLM reads -1, not 0, as "no such cut"; for a missing one it takes its own default, see docs/teacher.md
            top_k = {"top_k": recipe.top_k} if recipe.top_k else {}
            self._parameters |= top_k | {"chat_template_kwargs": {"enable_thinking": recipe.thinking}}
        if label_at is not None:
            self._parameters |= {"logprobs": True, "top_logprobs": 20}

    @property
    def name(self) -> str:
        """What answers, and model and sampling settings as the server is told them."""
        told = ", ".join(f"{name} {value}" for name, value in self._parameters.items())
        return f"openai: {self.identity}, {told}" if self.identity else f"openai: {told}"

    def complete(self, prompts: Iterable[Prompt], *, total: int | None = None) -> Iterator[Completion]:
        """Answer prompts from the store or the server, in the order in which answers come.

        Args: prompts: read as requests find a place; total: completions to come, which shows a progress bar.
        Raises: RunError: after twenty prompts in a row without an answer, if another process uses the store, or at the
            end if more than the recipe's share `unanswered` got none for a reason that may pass; InputError: if the
            server refuses the key.
        """
        self.failures_in_a_row = 0
        with (
            self.store.opened(),
            tqdm(total=total, unit="answer", desc=self.recipe.model, disable=total is None, leave=False) as progress,
            asyncio.Runner() as runner,
        ):
            flow = _Flow(self, prompts)
            try:
                while True:
                    started = time.monotonic()
                    batch = runner.run(flow.batch())
                    self.ledger.seconds += time.monotonic() - started
                    if not batch:
                        yield from self._missing(flow)
                        return
                    progress.set_postfix_str(f"cost {self.ledger.cost:.2f}", refresh=False)
                    progress.update(len(batch))
                    yield from batch
            finally:
                runner.run(flow.close())

    def _missing(self, flow: _Flow) -> list[Completion]:
        """Give the completions of what got no answer for a reason that may pass.

        Raises: RunError: if they are too many: as rows they would be missing for good.
        """
        missing = flow.unanswered
        if len(missing) > self.recipe.unanswered * flow.asked:
            kinds = Counter(failure.kind for _, _, failure in missing)
            told = ", ".join(f"{kind} × {count}" for kind, count in kinds.most_common(5))
            raise RunError(
                f"{self.recipe.base_url}: expected {flow.asked} answers, found {len(missing)} missing for reasons that "
                f"may pass ({told}; the last: {missing[-1][2].message:.200}); the others are kept in "
                f"{self.store.path}: run the same command again to ask for these alone, with a larger "
                f"teacher.sampling.timeout_s or retries, or let a share stay away by teacher.sampling.unanswered"
            )
        return [failed(key, number, f"{failure.kind}: {failure.message}") for key, number, failure in missing]

    def body(self, prompt: Prompt) -> dict[str, Any]:
        """Give what a request holds besides its seed."""
        return self._parameters | {"messages": [dict(message) for message in prompt.messages], "stream": False}

    def key(self, prompt: Prompt, number: int) -> str:
        """Give what tells one answer from all others: who answers, under which name, what, how, and which sample."""
        return hash_json({"identity": self.identity, "request": self.body(prompt), "sample": number})

    def headers(self) -> dict[str, str]:
        """Give the headers of a request; no Authorization without a key in the environment."""
        key = os.environ.get(self.recipe.key_variable, "").strip()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def keep(self, key: str, reply: Reply) -> StoredAnswer:
        """Store a paid answer and count it."""
        answer = StoredAnswer(
            key=key,
            generator=self.name,
            text=reply.text,
            prompt_tokens=reply.prompt_tokens,
            completion_tokens=reply.completion_tokens,
            finish_reason=reply.finish_reason,
            label_logprobs=label_logprobs(reply.tokens, self.scheme, first=self.label_at == "first"),
        )
        self.store.add(answer)
        ledger, recipe = self.ledger, self.recipe
        prompt_tokens, completion_tokens = reply.prompt_tokens or 0, reply.completion_tokens or 0
        ledger.answers += 1
        ledger.without_usage += reply.prompt_tokens is None or reply.completion_tokens is None
        ledger.prompt_tokens += prompt_tokens
        ledger.completion_tokens += completion_tokens
        ledger.cost += (prompt_tokens * recipe.prompt_price + completion_tokens * recipe.completion_price) / 1e6
        return answer

    def give_up(self, failure: Failure) -> None:
        """Count a prompt without an answer.

        Raises: InputError: if the server refuses the key; RunError: if too many prompts in a row had none.
        """
        self.ledger.errors[failure.kind] += 1
        self.failures_in_a_row += _may_pass(failure) or not len(self.store)
        if failure.kind in _REFUSED_KEY:
            raise InputError(
                f"{self.recipe.base_url}: expected a key in ${self.recipe.key_variable} that the server accepts: "
                f"{failure.message}"
            )
        if self.failures_in_a_row == FAILURES_IN_A_ROW:
            raise RunError(
                f"{self.recipe.base_url}: expected answers, found {self.failures_in_a_row} requests in a row without "
                f"one, the last: {failure.message}; {len(self.store)} answers are kept in {self.store.path}: run the "
                "same command again to go on after them"
            )


class _Flow:
    """One call of `complete`: workers that share an iterator of jobs; the loop runs while somebody waits.

    When one of them ends with an error, the others take no further job, but what is in flight ends and is stored.
    `unanswered` are the prompts, with the answer's number, that got none for a reason that may pass.
    """

    def __init__(self, generator: OpenAiGenerator, prompts: Iterable[Prompt]) -> None:
        self._generator = generator
        self._jobs = (
            (prompt, number)
            for prompt in prompts
            for number in range(prompt.first_sample, prompt.first_sample + prompt.samples)
        )
        self.asked = 0
        self.unanswered: list[tuple[str, int, Failure]] = []
        self._ready: list[Completion] = []
        self._in_flight: dict[str, asyncio.Future[StoredAnswer | Failure]] = {}
        self._changed: asyncio.Event | None = None
        self._ending = asyncio.Event()
        self._all: asyncio.Task[None] | None = None

    async def batch(self) -> list[Completion]:
        """Wait for answers and give those that are there; none when all prompts are answered."""
        if self._changed is None or self._all is None:
            self._changed = asyncio.Event()
            self._all = asyncio.create_task(self._run(self._changed))
        if not self._ready and not self._all.done():
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            await asyncio.wait({changed, self._all}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        if not self._ready:
            await self._all
        ready, self._ready = self._ready, []
        return ready

    async def close(self) -> None:
        """Give up what is in flight."""
        if self._all is not None:
            self._all.cancel()
            await asyncio.wait({self._all})
            if not self._all.cancelled():
                self._all.exception()  # looked at, so that asyncio does not report it as forgotten

    async def _run(self, changed: asyncio.Event) -> None:
        import aiohttp

        recipe = self._generator.recipe
        connector = aiohttp.TCPConnector(limit=recipe.concurrency)
        timeout = aiohttp.ClientTimeout(total=recipe.timeout_s)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._generator.headers()
        ) as session:
            workers = [asyncio.create_task(self._work(session, changed)) for _ in range(recipe.concurrency)]
            try:
                await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                self._ending.set()
                await asyncio.wait(workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        for worker in workers:
            if not worker.cancelled():
                worker.result()

    async def _work(self, session: aiohttp.ClientSession, changed: asyncio.Event) -> None:
        while not self._ending.is_set() and (job := next(self._jobs, None)) is not None:
            prompt, number = job
            self.asked += 1
            found = await self._answer(session, prompt, number)
            if isinstance(found, Failure) and _may_pass(found):
                self.unanswered.append((prompt.key, number, found))
            elif isinstance(found, Failure):
                self._ready.append(failed(prompt.key, number, f"{found.kind}: {found.message}"))
            else:
                self._ready.append(_completion(prompt.key, number, found))
            changed.set()
            await asyncio.sleep(0)  # a store full of answers must not fill the memory before anybody reads them

    async def _answer(self, session: aiohttp.ClientSession, prompt: Prompt, number: int) -> StoredAnswer | Failure:
        generator = self._generator
        key = generator.key(prompt, number)
        stored = generator.store.get(key)
        if stored is not None:
            generator.ledger.stored += 1
            return stored
        if key in self._in_flight:
            generator.ledger.shared += 1
            return await asyncio.shield(self._in_flight[key])
        future = self._in_flight[key] = asyncio.get_running_loop().create_future()
        try:
            body = generator.body(prompt) | {"seed": int(key[:7], 16)}
            found = await _Attempts(generator, session, body, self._ending).run()
            result = found if isinstance(found, Failure) else generator.keep(key, found)
            future.set_result(result)
        finally:
            del self._in_flight[key]
            future.cancel()  # nothing where there is a result; else nobody may wait for one
        if isinstance(result, Failure):
            generator.give_up(result)
        else:
            generator.failures_in_a_row = 0
        return result


def _may_pass(failure: Failure) -> bool:
    """Say whether the same request may be answered later; a server that knows no such model may be loading it."""
    return failure.again or failure.kind == _NO_SUCH_MODEL


@dataclass(frozen=True, slots=True)
class _Attempts:
    """One request, tried again as the recipe allows, and once more at once when `ending` is set."""

    generator: OpenAiGenerator
    session: aiohttp.ClientSession
    body: dict[str, Any]
    ending: asyncio.Event

    async def run(self) -> Reply | Failure:
        """Give the reply, or the failure that no further attempt mends."""
        import tenacity

        retrying = tenacity.AsyncRetrying(
            stop=self._over,
            sleep=self._pause,
            wait=_waiting(),
            retry=tenacity.retry_if_result(lambda found: isinstance(found, Failure) and found.again),
            before_sleep=self._count,
            retry_error_callback=_last,
        )
        found: Reply | Failure = await retrying(self._post)
        return found

    async def _post(self) -> Reply | Failure:
        import aiohttp

        recipe = self.generator.recipe
        self.generator.ledger.requests += 1
        try:
            async with self.session.post(f"{recipe.base_url.rstrip('/')}/chat/completions", json=self.body) as response:
                found = read_reply(response.status, response.content_type, await response.read())
                if isinstance(found, Failure) and (asked := response.headers.get("Retry-After")):
                    return Failure(found.kind, found.message, found.again, seconds_asked(asked))
                return found
        except TimeoutError:
            return Failure("timeout", f"expected an answer within {recipe.timeout_s:g} s, found none", again=True)
        except (aiohttp.ClientError, OSError) as error:
            return Failure("connection", f"expected a connection, found {type(error).__name__}: {error}", again=True)

    def _over(self, state: tenacity.RetryCallState) -> bool:
        return self.ending.is_set() or state.attempt_number > self.generator.recipe.retries

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ending.wait(), seconds)

    def _count(self, state: tenacity.RetryCallState) -> None:
        self.generator.ledger.retries += 1


def _waiting() -> Any:  # noqa: ANN401 - tenacity's strategies have no common public type
    """Give waits that double, with jitter; at least what the server asked for, with jitter on top of that too."""
    import tenacity

    own = tenacity.wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)

    def wait(state: tenacity.RetryCallState) -> float:
        found = _last(state)
        asked = min(found.wait_s or 0.0, _LONGEST_ASKED_WAIT_S) if isinstance(found, Failure) else 0.0
        return max(own(state), asked) + random.uniform(0.0, _FIRST_WAIT_S)

    return wait


def _last(state: tenacity.RetryCallState) -> Reply | Failure:
    found: Reply | Failure = state.outcome.result() if state.outcome else Failure("no attempt", "", again=True)
    return found


def _completion(key: str, number: int, answer: StoredAnswer) -> Completion:
    return Completion(
        key=key,
        sample=number,
        text=answer.text,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        finish_reason=answer.finish_reason,
        error=None,
        label_logprobs=answer.label_logprobs,
    )

"""What client and service say to each other, without I/O: which requests to send next, what the answers come to.

A conversation is a generator: it yields the requests that may be sent side by side and is sent their outcomes. A
request that ran out of time has its DeadlineError as its outcome; any other error is thrown in.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from relevance_tiers_client.answers import problem, read, read_scores
from relevance_tiers_client.chunks import Chunk, added_up, cut, merge
from relevance_tiers_client.deadlines import Deadline
from relevance_tiers_client.errors import DeadlineError, InvalidRequestError, ProblemError, ServerFailureError
from relevance_tiers_client.models import Asked, Info, Item, ScoreOptions, ScoreResponse
from relevance_tiers_client.version import __version__

T = TypeVar("T")
R = TypeVar("R")
Conversation = Generator[Sequence["Ask[Any]"], Sequence[Any], R]
_ASKED = TypeAdapter(Asked)
_KEY = re.compile(r"[\x21-\x7e]+")
_TOO_LARGE = 413
_MOST_ROUNDS, _ROUNDS_IN_VAIN = 12, 2
_MOST_POINTER_CHARS = 64


@dataclass(frozen=True)
class Ask(Generic[T]):
    """One request, to be sent as often as retries allow, and how its answer is read.

    Args: headers: of every attempt, the deadline is added to them; key: what no error may show.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    deadline: Deadline
    reading: Callable[[bytes], T]
    body: bytes | None = None
    key: str = ""

    @property
    def origin(self) -> str:
        """Scheme, host and port, without a password that the address may hold."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"

    def headers_now(self) -> dict[str, str]:
        """Give the headers of an attempt that is sent now.

        Raises: DeadlineError: there is no time for one.
        """
        return {**self.headers, "X-Request-Deadline-Ms": self.deadline.header_ms()}

    def read(self, status: int, headers: Mapping[str, str], body: bytes) -> T:
        """Read an answer.

        Raises: RelevanceApiError: it is a problem, or not what was asked for.
        """
        if status == 200:
            return self.reading(body)
        shown = body.replace(self.key.encode(), b"***") if self.key else body
        raise problem(status, headers, shown)


class Conversations:
    """The conversations with one service; keeps what `/info` said.

    Args: base_url: of the service, with a path where a proxy asks for one; api_key: sent as a bearer token; timeout_s:
        the deadline of calls that name none; max_attempts: of each request.
    Raises: ValueError: an argument that can never work.
    """

    def __init__(self, base_url: str, api_key: str | None, timeout_s: float, max_attempts: int) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError(f"base_url: expected http://HOST or https://HOST, found scheme {parts.scheme!r}")
        if api_key is not None and not _KEY.fullmatch(api_key):
            raise ValueError("api_key: expected visible ASCII characters, found others or none")
        if timeout_s <= 0:
            raise ValueError(f"timeout_s: expected more than 0, found {timeout_s:g}")
        if max_attempts < 1:
            raise ValueError(f"max_attempts: expected at least 1, found {max_attempts}")
        self.max_attempts = max_attempts
        self._base_url = base_url.rstrip("/")
        self._key = api_key or ""
        self._timeout_s = timeout_s
        self._headers = {"Accept": "application/json", "User-Agent": f"relevance-tiers-client/{__version__}"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._info: Info | None = None

    def info(self, deadline: Deadline | None = None) -> Conversation[Info]:
        """Read `/info` and keep it."""
        deadline = deadline or Deadline(self._timeout_s)
        (found,) = yield [self._ask("/info", self._headers, deadline, partial(read, Info))]
        if isinstance(found, DeadlineError):
            raise found
        self._info = found
        return self._info

    def ready(self) -> Ask[bool]:
        """Give the one request of `ready`."""
        return self._ask("/readyz", self._headers, Deadline(self._timeout_s), lambda _: True)

    def score(
        self, query: str, items: Sequence[Item | Mapping[str, Any]], options: ScoreOptions
    ) -> Conversation[ScoreResponse]:
        """Score the items of one query, in as many requests as the limits ask for."""
        asked = _checked(query, items, options)
        options = asked["options"]
        deadline_ms = options.get("deadline_ms")
        deadline = Deadline(self._timeout_s if deadline_ms is None else deadline_ms / 1000)
        request_id = options.get("request_id") or uuid.uuid4().hex
        headers = {**self._headers, "Content-Type": "application/json", "X-Request-ID": request_id}
        info = self._info or (yield from self.info(deadline))
        while True:
            explain = options.get("explain", False)
            chunks = cut(_head(asked["query"], options), asked["items"], info.limits, explain=explain)
            asks = [
                self._ask("/score", headers, deadline, partial(read_scores, items=chunk.items), chunk.body)
                for chunk in chunks
            ]
            try:
                answers = yield from self._of_one_model(asks)
            except InvalidRequestError as error:
                before = info.limits
                if error.status != _TOO_LARGE or (info := (yield from self.info(deadline))).limits == before:
                    raise
            else:
                return _one_answer(chunks, answers, options, info, deadline)

    def _of_one_model(self, asks: Sequence[Ask[ScoreResponse]]) -> Conversation[Sequence[ScoreResponse | None]]:
        """Give the answers, None where time ran out; all of the same versions.

        Requests that another version answered are sent again until the commonest version has answered them all, as
        replicas of a canary beside stable ones do in the end. Where two rounds bring nothing nearer, the commonest one
        may be gone, as after a reload, and the version that answered last is the one to ask all others for.

        Raises: DeadlineError: there is none; ServerFailureError: versions stay mixed.
        """
        answers: list[ScoreResponse | None] = [None] * len(asks)
        missing, in_vain = list(range(len(asks))), 0
        for _ in range(_MOST_ROUNDS):
            outcomes = yield [asks[place] for place in missing]
            for place, outcome in zip(missing, outcomes, strict=True):
                answers[place] = outcome if isinstance(outcome, ScoreResponse) else None
            newest = [answer for place in missing if (answer := answers[place]) is not None]
            known = [answer for answer in answers if answer is not None]
            if not known:
                raise next(outcome for outcome in outcomes if isinstance(outcome, DeadlineError))
            wanted = _commonest(newest if in_vain >= _ROUNDS_IN_VAIN and newest else known)
            before = len(missing)
            missing = [p for p, a in enumerate(answers) if a is not None and _versions(a) != wanted]
            if not missing:
                return answers
            in_vain = in_vain + 1 if len(missing) >= before else 0
        raise ServerFailureError(200, "mixed_versions", "expected answers of one model and policy, found several")

    def _ask(
        self,
        path: str,
        headers: Mapping[str, str],
        deadline: Deadline,
        reading: Callable[[bytes], T],
        body: bytes | None = None,
    ) -> Ask[T]:
        method = "GET" if body is None else "POST"
        return Ask(method, self._base_url + path, headers, deadline, reading, body, self._key)


def _checked(query: str, items: Sequence[Item | Mapping[str, Any]], options: ScoreOptions) -> Asked:
    """Give a call that the service's schema accepts.

    Raises: InvalidRequestError: saying which field of which item is wrong.
    """
    plain = [dict(item) if isinstance(item, Mapping) else item for item in items]
    try:
        return _ASKED.validate_python({"query": query, "items": plain, "options": options})
    except ValidationError as error:
        faults = [
            ProblemError(pointer=_pointer(fault["loc"]), message=fault["msg"])
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        detail = f"expected a call as the service takes it, found {len(faults)} fault(s)"
        raise InvalidRequestError(None, "schema", detail, errors=faults) from None


def _pointer(location: tuple[int | str, ...]) -> str:
    if location[0] == "options" and len(location) > 1:
        location = location[1:]
    elif location[0] == "items" and len(location) > 2 and location[2] == "id":
        location = location[:3]
    parts = (str(part)[:_MOST_POINTER_CHARS].replace("~", "~0").replace("/", "~1") for part in location)
    return "".join(f"/{part}" for part in parts)


def _head(query: str, options: ScoreOptions) -> bytes:
    elsewhere = {"deadline_ms", "request_id"}
    given = {name: value for name, value in options.items() if value is not None and name not in elsewhere}
    return to_json({"query": query, **given})


def _commonest(answers: Sequence[ScoreResponse]) -> tuple[str, str, str]:
    """Give the versions that answered most requests, of equals those of the last one."""
    counts = Counter(_versions(answer) for answer in reversed(answers))
    return counts.most_common(1)[0][0]


def _versions(answer: ScoreResponse) -> tuple[str, str, str]:
    return answer.model, answer.calibration, answer.policy


def _one_answer(
    chunks: Sequence[Chunk],
    answers: Sequence[ScoreResponse | None],
    options: ScoreOptions,
    info: Info,
    deadline: Deadline,
) -> ScoreResponse:
    if len(chunks) == 1 and answers[0] is not None:
        return answers[0]
    merged = merge(chunks, answers, options, keep_unscored=info.keep_unscored)
    given = [answer for answer in answers if answer is not None]
    return merged.model_copy(update={"timing_ms": added_up(given, deadline.passed_ms)})

"""What an OpenAI-compatible server says: JSON replies, event streams, error pages; all of it may be broken.

Nothing here raises: a reply is either a `Reply` or a `Failure` that says of which kind and whether to try again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import BaseModel, ValidationError

from relevance.labels import LabelScheme

_AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 after which the same request may succeed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer.

    Args: kind: a word to count by; message: expected and found; again: whether the same request may succeed later;
        wait_s: what the server asked to wait, None if it did not.
    """

    kind: str
    message: str
    again: bool
    wait_s: float | None = None


class _TopLogprob(BaseModel):
    token: str
    logprob: float


class TokenLogprob(_TopLogprob):
    """A generated token with its own log-probability and those of its rivals."""

    top_logprobs: list[_TopLogprob] = []


class _Logprobs(BaseModel):
    content: list[TokenLogprob] | None = None


class _Message(BaseModel):
    """What a server says: SGLang and older vLLM put thoughts into `reasoning_content`, vLLM of today into `reasoning`.

    See vllm-project/vllm pull requests 27752 and 33402.
    """

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def thoughts(self) -> str:
        """What a reasoning parser took for thoughts, "" for none."""
        return self.reasoning or self.reasoning_content or ""


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Body(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class _Piece(BaseModel):
    delta: _Message = _Message()
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Event(BaseModel):
    choices: list[_Piece] = []
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Args: text: the content, or where there is none what the server's reasoning parser took for thoughts, unless the
        token limit ended them; tokens: generated ones with log-probabilities, none unless asked for.
    """

    text: str
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    tokens: tuple[TokenLogprob, ...]


def read_reply(status: int, content_type: str, body: bytes) -> Reply | Failure:
    """Read what came back, streamed or not."""
    if status != 200:
        return Failure(f"status {status}", _complaint(status, body), again=status >= 500 or status in _AGAIN)
    if content_type == "text/event-stream":
        return _read_events(body)
    try:
        data = _loaded(body)
    except (ValueError, RecursionError) as error:
        return Failure("not JSON", f"expected JSON, found {_shown(body)} ({error})", again=True)
    try:
        read = _Body.model_validate(data)
    except ValidationError as error:
        return Failure("schema", f"expected a chat completion, found {_shown(body)} ({_first(error)})", again=True)
    if not read.choices:
        return Failure("schema", f"expected a choice, found {_shown(body)}", again=True)
    choice, usage = read.choices[0], read.usage or _Usage()
    tokens = (choice.logprobs and choice.logprobs.content) or ()
    return _reply(choice.message.content or "", choice.message.thoughts, choice.finish_reason, usage, tokens)


def _reply(
    content: str, thoughts: str, finish: str | None, usage: _Usage, tokens: Sequence[TokenLogprob]
) -> Reply | Failure:
    """Give the answer; thoughts that the limit cut off are none, though a label may be weighed in them."""
    if not (content or thoughts) and (usage.completion_tokens or 0) > 1 and finish != "length":
        return Failure(
            "empty",
            f"expected text in content, reasoning or reasoning_content, found none, though the server counts "
            f"{usage.completion_tokens} tokens (finish_reason {finish!r})",
            again=False,
        )
    text = content or ("" if finish == "length" else thoughts)
    return Reply(text, finish, usage.prompt_tokens, usage.completion_tokens, tuple(tokens))


def _read_events(body: bytes) -> Reply | Failure:
    """Join the pieces of a stream; one that ends without a finish reason was cut off."""
    content, thoughts, tokens = [], [], []
    finish, usage, ended = None, _Usage(), False
    for data in _event_data(body):
        if data == b"[DONE]":
            ended = True
            break
        try:
            event = _loaded(data)
            if isinstance(event, dict) and event.get("error"):
                return Failure("stream error", f"expected an answer, found {_shown(data)}", again=True)
            read = _Event.model_validate(event)
        except (ValueError, RecursionError):
            return Failure("schema", f"expected chunks of a chat completion, found {_shown(data)}", again=True)
        usage = read.usage or usage
        for piece in read.choices[:1]:
            content.append(piece.delta.content or "")
            thoughts.append(piece.delta.thoughts)
            finish = piece.finish_reason or finish
            tokens += (piece.logprobs and piece.logprobs.content) or []
    if not ended and finish is None:
        return Failure("cut off", "expected a stream with an end, found none", again=True)
    return _reply("".join(content), "".join(thoughts), finish, usage, tokens)


def _event_data(body: bytes) -> Iterator[bytes]:
    for line in body.splitlines():
        if line.startswith(b"data:"):
            yield line.removeprefix(b"data:").strip()


def seconds_asked(retry_after: str) -> float | None:
    """Read the header `Retry-After`: seconds, or a date; None for anything else."""
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(retry_after)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def label_logprobs(
    tokens: Sequence[TokenLogprob], scheme: LabelScheme, *, first: bool = False
) -> dict[str, float] | None:
    """Give the log-probability of each class where an answer names its label.

    The last place where `label` is followed by a class is where the label stands. A rival token counts for a class if
    it begins that class's code or title and no other's; a class without such a token is absent.

    Args: first: the label comes before the rationale, so that the first such place is meant.
    Returns: class → log-probability of its tokens there; None if the answer names no label.
    """
    if not tokens:
        return None
    text = "".join(t.token for t in tokens)
    names = sorted({*scheme.classes, *scheme.titles}, key=len, reverse=True)
    named = list(re.finditer(rf"label\W{{1,8}}({'|'.join(map(re.escape, names))})\b", text, re.IGNORECASE))
    if not named:
        return None
    place, start = named[0 if first else -1].start(1), 0
    for token in tokens:
        if place < start + len(token.token):
            break
        start += len(token.token)
    lead = text[start:place]
    found: dict[str, float] = {}
    for rival in token.top_logprobs or [token]:
        classes = _begun(rival.token.removeprefix(lead), scheme) if rival.token.startswith(lead) else set()
        if len(classes) == 1:
            (name,) = classes
            found[name] = _log_add(found.get(name), rival.logprob)
    return found or None


def _begun(start: str, scheme: LabelScheme) -> set[str]:
    """Give the classes whose code or title a token begins, or spells out with something after it."""
    start = start.casefold()
    whole = re.split(r"[^\w\s]", start, maxsplit=1)[0].rstrip()
    if not whole:
        return set()
    names = ((code, name.casefold()) for code, title in zip(scheme.classes, scheme.titles, strict=True)
             for name in (code, title))  # fmt: skip
    return {code for code, name in names if name.startswith(whole)}


def _log_add(one: float | None, other: float) -> float:
    if one is None:
        return other
    high, low = max(one, other), min(one, other)
    return high + math.log1p(math.exp(low - high))


def _complaint(status: int, body: bytes) -> str:
    """Give the server's own words about a refused request."""
    try:
        data = _loaded(body)
    except (ValueError, RecursionError):
        return f"expected status 200, found {status}: {_shown(body)}"
    if isinstance(data, Mapping):
        error = data.get("error", data)
        told = error.get("message") or error.get("detail") if isinstance(error, Mapping) else error
        return f"expected status 200, found {status}: {str(told or data)[:500]}"
    return f"expected status 200, found {status}: {_shown(body)}"


def _loaded(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    """Read JSON; half a character, as of an emoji that the token limit cut, becomes a question mark."""
    value = json.loads(data)
    if b"\\ud" in data.lower():
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def _shown(body: bytes) -> str:
    return repr(body[:120].decode("utf-8", errors="replace")) + ("…" if len(body) > 120 else "")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or '*'}: {first['msg']}"

"""What writes rationales: anything that reads a pair, or anything that continues a prompt.

A label is no part of a pair, so a `RationaleGenerator` cannot look at one. A `TextGenerator` is an LLM or what stands
in for one: prompts in, texts out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from relevance.errors import InputError
from relevance.pairs import Pair
from training.rationale_rows import Rationale
from training.recipe import VIEWS, Perspective, View


class RationaleGenerator(Protocol):
    """A writer of rationales, the same text for the same pair."""

    @property
    def name(self) -> str:
        """Name and version, written into every rationale."""
        ...

    def generate(self, pair: Pair, perspective: Perspective) -> Rationale:
        """Write the rationale of one pair from one perspective."""
        ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """Messages to continue.

    Args: key: the caller's name for the prompt, as `prompt_key` makes it where it is about a pair; messages: chat
        messages with `role` and `content`; samples: answers wanted; first_sample: number of the first of them, so that
        more answers can be asked for later.
    """

    key: str
    messages: tuple[Mapping[str, str], ...]
    samples: int
    first_sample: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt, or why there is none.

    Args: key: of the prompt; sample: its number; text: "" without an answer; prompt_tokens, completion_tokens: None if
        unknown; finish_reason: `stop`, `length` or a server's own, None if unknown; error: None for an answer;
        label_logprobs: log-probability by class where the answer names its label, None if not asked for or unknown.
    """

    key: str
    sample: int
    text: str
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    error: str | None
    label_logprobs: Mapping[str, float] | None


def failed(key: str, sample: int, error: str) -> Completion:
    """Give the completion of a request that got no answer."""
    return Completion(key, sample, "", None, None, None, error, None)


class TextGenerator(Protocol):
    """An LLM, or what stands in for one."""

    @property
    def name(self) -> str:
        """Model, revision and sampling settings; part of every hash."""
        ...

    def complete(self, prompts: Iterable[Prompt], *, total: int | None = None) -> Iterator[Completion]:
        """Answer prompts, in any order: one completion for each prompt and sample, with `error` where none came.

        Args: prompts: read as they are needed, never all at once; total: completions to come, which shows a progress
            bar.
        """
        ...


def prompt_key(pair_id: str, view: View) -> str:
    """Give the key of the prompt that asks about a pair from a view."""
    return f"{view}\t{pair_id}"


def split_key(key: str) -> tuple[str, View]:
    """Give pair id and view of a prompt's key.

    Raises: InputError: if `prompt_key` did not make it.
    """
    name, tab, pair_id = key.partition("\t")
    view = next((v for v in VIEWS if v == name), None)
    if not tab or view is None:
        raise InputError(f"prompt key: expected one of {VIEWS}, a tab and a pair id, found {key!r:.80}")
    return pair_id, view

"""Samples: what a teacher answered when it was asked about a pair, one JSONL row an answer, good or bad.

`sample_pairs` is the one function that asks and parses; `write_samples` writes its rows so that a killed run goes on
where it stopped and the finished file is the same as that of a run that was never killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from relevance.errors import InputError, RunError
from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair, Pair
from training.json_rows import read_json_rows
from training.rationale_rows import Evidence
from training.recipe import View
from training.teacher.generator import Completion, Prompt, TextGenerator, prompt_key
from training.teacher.prompts import PromptBook
from training.teacher.responses import parse_response

EMPTY_TITLE = "not asked: the item's title is empty"
_ANSWERS_AT_ONCE = 4096
"""Answers asked for before the first of them is handed on: what a killed run without a store loses at most."""


class Sample(BaseModel):
    """One answer about one pair.

    Args: sample: 0 for the first answer to this prompt; text: as it came; label: of the scheme, None if the text names
        none; rationale: "" if it holds none; problems: what the parser found wrong; prompt_tokens, completion_tokens:
        None if the server did not say; generator: model, revision and sampling settings; error: why there is no
        answer, None if there is one; label_logprobs: of the label names, from servers that tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair_id: str
    view: View
    sample: int
    text: str
    label: str | None
    rationale: str
    evidence: tuple[Evidence, ...]
    problems: tuple[str, ...]
    prompt_tokens: int | None
    completion_tokens: int | None
    finish_reason: str | None
    generator: str
    error: str | None
    label_logprobs: dict[str, float] | None = None

    @property
    def readable(self) -> bool:
        """Say whether the answer names a label and gives a rationale."""
        return self.label is not None and bool(self.rationale.strip())

    @property
    def whole(self) -> bool:
        """Say whether the answer ended by itself: one that starts with its label is readable before it is."""
        return self.finish_reason != "length" and "cut_off" not in self.problems


def sample_line(sample: Sample) -> str:
    """Give the JSONL line of a sample, with its line end."""
    return sample.model_dump_json() + "\n"


def read_samples(path: Path) -> Iterator[Sample]:
    """Read a JSONL file of samples, one at a time.

    Raises: InputError: if the file is missing; RowError: if a line is not a sample, naming line and field.
    """
    return read_json_rows(path, Sample, "samples")


def sample_pairs(
    generator: TextGenerator,
    book: PromptBook,
    scheme: LabelScheme,
    pairs: Iterable[Pair],
    views: Sequence[View],
    *,
    samples: int,
) -> Iterator[Sample]:
    """Ask about pairs under each view's prompt and parse the answers.

    A pair whose title is empty is not asked about: it gives one sample a view, whose `error` says so.

    Args: pairs: no two with the same id; samples: answers a pair and view.
    Returns: samples in the order of pairs, views and sample numbers.
    Raises: InputError: if two pairs have the same id; RunError: if the generator leaves a prompt without a completion.
    """
    asker = _Asker(generator, book, scheme)
    for chunk in _chunks(pairs, samples * len(views)):
        found = asker.ask(_jobs(chunk, views), 0, samples)
        yield from _in_order(chunk, views, found, generator.name)


def sample_until_right(
    generator: TextGenerator,
    book: PromptBook,
    scheme: LabelScheme,
    labelled: Iterable[LabelledPair],
    views: Sequence[View],
    *,
    samples: int,
) -> Iterator[Sample]:
    """Ask as `sample_pairs` does, but draw one answer first, and the others only where that was wrong or unreadable.

    Where the first answer agrees with the label, one consistent rationale is there and further ones would be thrown
    away: ours, the paper draws all.
    """
    asker = _Asker(generator, book, scheme)
    for chunk in _chunks(labelled, samples * len(views)):
        label_of = {one.pair.pair_id: one.label for one in chunk}
        pairs = [one.pair for one in chunk]
        jobs = _jobs(pairs, views)
        found = asker.ask(jobs, 0, 1)
        again = [job for job in jobs if not _right(found[_place(job)], label_of[job[0].pair_id])]
        if again and samples > 1:
            for place, own in asker.ask(again, 1, samples - 1).items():
                found[place] += own
        yield from _in_order(pairs, views, found, generator.name)


_Row = TypeVar("_Row")
_Job = tuple[Pair, View]
_Found = dict[tuple[str, View], list[Sample]]


def _chunks(rows: Iterable[_Row], answers_each: int) -> Iterator[list[_Row]]:
    rest = iter(rows)
    while chunk := list(islice(rest, max(1, _ANSWERS_AT_ONCE // max(1, answers_each)))):
        yield chunk


def _jobs(pairs: Sequence[Pair], views: Sequence[View]) -> list[_Job]:
    return [(pair, view) for pair in pairs if pair.item.title.strip() for view in views]


def _place(job: _Job) -> tuple[str, View]:
    return job[0].pair_id, job[1]


def _right(own: Sequence[Sample], label: str) -> bool:
    return any(sample.readable and sample.whole and sample.label == label for sample in own)


def _in_order(pairs: Sequence[Pair], views: Sequence[View], found: _Found, name: str) -> Iterator[Sample]:
    for pair in pairs:
        for view in views:
            yield from found.get((pair.pair_id, view)) or [_not_asked(pair, view, name)]


@dataclass(frozen=True, slots=True)
class _Asker:
    generator: TextGenerator
    book: PromptBook
    scheme: LabelScheme

    def ask(self, jobs: Sequence[_Job], start: int, count: int) -> _Found:
        """Ask each job's prompt so many times, from sample `start` on; completions may come in any order."""
        places = {prompt_key(*_place(job)): _place(job) for job in jobs}
        if len(places) < len(jobs):
            raise InputError(f"expected pairs with ids of their own, found {len(jobs) - len(places)} repeated prompts")
        prompts = (
            Prompt(prompt_key(*_place(job)), tuple(self.book.messages(*job)), samples=count, first_sample=start)
            for job in jobs
        )
        found: dict[tuple[str, View], dict[int, Sample]] = {place: {} for place in places.values()}
        for completion in self.generator.complete(prompts, total=len(jobs) * count):
            place = places[completion.key]
            found[place][completion.sample] = _sample(completion, place, self.scheme, self.generator.name)
        expected = set(range(start, start + count))
        for (pair_id, view), own in found.items():
            if own.keys() != expected:
                raise RunError(
                    f"{self.generator.name}: expected samples {sorted(expected)} of {pair_id!r:.80} ({view}), "
                    f"found {sorted(own)}"
                )
        return {place: [own[number] for number in sorted(own)] for place, own in found.items()}


def _sample(completion: Completion, place: tuple[str, View], scheme: LabelScheme, name: str) -> Sample:
    parsed = None if completion.error is not None else parse_response(completion.text, scheme)
    return Sample(
        pair_id=place[0],
        view=place[1],
        sample=completion.sample,
        text=completion.text,
        label=None if parsed is None else parsed.label,
        rationale="" if parsed is None else parsed.rationale,
        evidence=() if parsed is None else parsed.evidence,
        problems=() if parsed is None else tuple(parsed.problems),
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        finish_reason=completion.finish_reason,
        generator=name,
        error=completion.error,
        label_logprobs=None if completion.label_logprobs is None else dict(completion.label_logprobs),
    )


def _not_asked(pair: Pair, view: View, name: str) -> Sample:
    return Sample(
        pair_id=pair.pair_id,
        view=view,
        sample=0,
        text="",
        label=None,
        rationale="",
        evidence=(),
        problems=(),
        prompt_tokens=0,
        completion_tokens=0,
        finish_reason=None,
        generator=name,
        error=EMPTY_TITLE,
    )


def write_samples(path: Path, pairs: Sequence[Pair], ask: Callable[[Sequence[Pair]], Iterable[Sample]]) -> int:
    """Write the samples of pairs, going on where a killed run stopped.

    Args: path: of the finished file, which is left alone when it is there; ask: gives the samples of pairs in the
        pairs' order, as `sample_pairs` does.
    Returns: samples written by this call.
    Raises: RunError: if what a killed run left is of other pairs.
    """
    if path.is_file():
        return 0
    partial = path.with_suffix(".partial")
    done = _finished_pairs(partial, pairs)
    place = {pair.pair_id: number for number, pair in enumerate(pairs, start=1)}
    written = 0
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(pairs), initial=done, unit="pair", desc=path.stem) as progress,
    ):
        for sample in ask(pairs[done:]):
            file.write(sample_line(sample))
            written += 1
            progress.update(place[sample.pair_id] - 1 - progress.n)
        progress.update(len(pairs) - progress.n)
    os.replace(partial, path)
    return written


def _finished_pairs(partial: Path, pairs: Sequence[Pair]) -> int:
    """Cut a partial file before the rows of its last pair, which may lack some, and count the pairs left."""
    if not partial.is_file():
        return 0
    starts: dict[str, int] = {}
    offset = 0
    with partial.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                starts.setdefault(Sample.model_validate_json(line).pair_id, offset)
            offset += len(line)
    if not starts:
        partial.unlink()
        return 0
    whole = list(starts)[:-1]
    if whole != [pair.pair_id for pair in pairs[: len(whole)]]:
        raise RunError(f"{partial}: expected the samples of this run's pairs, found others; remove it to ask again")
    with partial.open("r+b") as file:
        file.truncate(starts[list(starts)[-1]])
    return len(whole)

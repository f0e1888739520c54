"""Forced labels: the probabilities of the classes where an answer is made to name its label, kept as JSONL rows.

A killed run goes on where it stopped, so no forward pass is paid for twice. Suffixes: N rows, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from relevance.pairs import Pair
from training.json_rows import cut_to_whole_lines, read_json_rows
from training.rationale_rows import Rationale
from training.recipe import VIEWS, View
from training.runs import log
from training.teacher.prompts import Message, PromptBook
from training.teacher.samples import Sample

WHOLE = "100"
"""Name of the row whose reasoning is the whole of the answer's."""
_AT_ONCE = 256
_PERSPECTIVE = re.compile(r'"perspective"\s*:\s*"(\w+)"')


@runtime_checkable
class LabelScorer(Protocol):
    """What can continue a response that somebody else has begun; servers cannot."""

    def label_probabilities(
        self, messages: Sequence[Sequence[Message]], prefixes: Sequence[str], labels: Sequence[str]
    ) -> NDArray[np.float64]:
        """Give the softmax over labels that would stand next, float64 of shape (N, K), nan where a row is too long.

        Args: messages, prefixes: of each of N rows: the prompt and the start of the response; labels: K texts.
        """
        ...


@dataclass(frozen=True, slots=True)
class ForcedJob:
    """One question: the pair, the view it is asked from, and the reasoning that the answer starts with.

    Args: cut: what was done to the reasoning, part of the row's key.
    """

    pair: Pair
    view: View
    cut: str
    reasoning: Rationale


class ForcedLabel(BaseModel):
    """The classes' probabilities after some reasoning, in the order of the scheme."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pair_id: str
    cut: str
    probabilities: tuple[float, ...]


def reasoning_of(sample: Sample) -> Rationale:
    """Give the reasoning of an answer as a rationale, from the perspective that its text names, if it names one.

    A policy that was asked for no perspective takes one by itself, and its label follows from a text that says so.
    """
    named = _PERSPECTIVE.search(sample.text)
    own = next((view for view in VIEWS if named is not None and view == named.group(1)), sample.view)
    return Rationale(
        pair_id=sample.pair_id,
        perspective=own,
        evidence=sample.evidence,
        rationale=sample.rationale,
        verdict=sample.label,
        generator=sample.generator,
        annotator_seen_pair=False,
    )


def write_forced(path: Path, jobs: Sequence[ForcedJob], scorer: LabelScorer, book: PromptBook) -> int:
    """Append the rows that the file lacks; what is too long for the model has none, and is counted in the log.

    Args: jobs: no two of a pair with the same cut.
    Returns: rows written by this call.
    Raises: RowError: if the file holds a whole line that is no such row.
    """
    cut_to_whole_lines(path)
    known = {(row.pair_id, row.cut) for row in read_forced(path)} if path.is_file() else set()
    missing = iter([job for job in jobs if (job.pair.pair_id, job.cut) not in known])
    written = too_long = 0
    with path.open("a", encoding="utf-8") as file, tqdm(total=len(jobs), unit="label", desc=path.stem) as progress:
        progress.update(len(known))
        while some := list(islice(missing, _AT_ONCE)):
            probabilities_NK = scorer.label_probabilities(
                [book.messages(job.pair, job.view) for job in some],
                [book.label_prefix(job.reasoning) for job in some],
                book.label_texts,
            )
            known_N = np.isfinite(probabilities_NK.sum(axis=1))
            for job, own_K, told in zip(some, probabilities_NK.tolist(), known_N, strict=True):
                if told:
                    row = ForcedLabel(pair_id=job.pair.pair_id, cut=job.cut, probabilities=tuple(own_K))
                    file.write(row.model_dump_json() + "\n")
            file.flush()
            written += int(known_N.sum())
            too_long += len(some) - int(known_N.sum())
            progress.update(len(some))
    if too_long:
        log.warning("%s: %d answers are too long for the model with a label forced, and have none", path, too_long)
    return written


def read_forced(path: Path) -> Iterator[ForcedLabel]:
    """Read forced labels, one at a time.

    Raises: InputError: if the file is missing; RowError: if a line is no such row.
    """
    return read_json_rows(path, ForcedLabel, "forced labels")

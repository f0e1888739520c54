"""The programmatic annotator as a text generator: a stand-in for a base LLM that never looks at a gold label.

The rationale is the annotator's. The label is a guess: drawn from the soft labels that stage `annotate` gave the pair
out of fold, from the prompt's perspective alone, by a model that never saw the pair's own label.
Suffixes: N pairs, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from relevance.errors import InputError
from relevance.pairs import read_pairs
from training.marketplace.facts import INTENTS
from training.recipe import PERSPECTIVES, Perspective, View
from training.runs import Run, hash_file, hash_json
from training.soft_labels import FILE, read_soft_labels
from training.teacher.generator import Completion, Prompt, failed, split_key
from training.teacher.prompts import PromptBook
from training.teacher.rationales import make_generator


@dataclass(frozen=True, slots=True)
class LabelGuesses:
    """Guesses of training pairs' labels, one distribution a perspective.

    Args: classes: of the label scheme; probabilities: perspective → pair id → float32 of shape (K,); temperature: of
        all draws but the first; seed: of the draws.
    """

    classes: tuple[str, ...]
    probabilities: dict[Perspective, dict[str, NDArray[np.float32]]]
    temperature: float
    seed: int

    @classmethod
    def read(cls, run: Run) -> LabelGuesses:
        """Read what stage `annotate` wrote with `annotate.teacher = "facts"`.

        Raises: RunError: if it has not finished; InputError: if it wrote no soft labels of perspectives.
        """
        folder, scheme = run.require("annotate"), run.recipe.label_scheme
        found: dict[Perspective, dict[str, NDArray[np.float32]]] = {}
        for perspective in PERSPECTIVES:
            path = folder / FILE.replace(".", f".{perspective}.")
            if not path.is_file():
                raise InputError(f"{path}: expected soft labels of annotate.teacher = 'facts', found none")
            soft = read_soft_labels(path, scheme.n_classes)
            rows = zip(soft.pairs, soft.probabilities_NK, strict=True)
            found[perspective] = {pair.pair_id: own_K for pair, own_K in rows}
        return cls(scheme.classes, found, run.recipe.teacher.sampling.temperature, run.recipe.seed)

    def knows(self, pair_id: str) -> bool:
        """Say whether there are guesses of a pair."""
        return all(pair_id in own for own in self.probabilities.values())

    def draw(self, pair_id: str, perspective: Perspective, sample: int) -> str:
        """Give a guess: the most probable class for sample 0, else one drawn with temperature.

        Raises: InputError: if there are no guesses of the pair.
        """
        own_K = self.probabilities[perspective].get(pair_id)
        if own_K is None:
            raise InputError(f"label guess: expected a training pair of stage annotate, found {pair_id!r:.80}")
        if sample == 0 or self.temperature == 0:
            return self.classes[int(own_K.argmax())]
        weight_K = np.maximum(own_K.astype(np.float64), 0.0) / own_K.max()
        sum_K = (weight_K ** (1.0 / self.temperature)).cumsum()
        place = _unit(f"{self.seed}\t{pair_id}\t{perspective}\t{sample}") * sum_K[-1]
        return self.classes[min(int(np.searchsorted(sum_K, place, side="right")), len(self.classes) - 1)]


class ProgrammaticGenerator:
    """Answers about a run's training pairs in the format of its prompt book, without reading the prompts' texts.

    Pair and view come from a prompt's key; asked without a perspective, it takes one of the three by chance. Only the
    label differs between the samples of a prompt.

    Args: run: whose stages `data` and `annotate` have finished.
    Raises: RunError: if one has not; InputError: if there are no guesses of the perspectives.
    """

    def __init__(self, run: Run) -> None:
        recipe, data = run.recipe, run.require("data")
        sampling, scheme = recipe.teacher.sampling, recipe.label_scheme
        pairs = list(read_pairs(data / "pairs.train.parquet"))
        self._pairs = {pair.pair_id: pair for pair in pairs}
        self._guesses = LabelGuesses.read(run)
        self._book = PromptBook.load(recipe.teacher.prompt, scheme)
        rationales = recipe.rationales.model_copy(update={"generator": sampling.annotator})
        told = data / INTENTS if sampling.annotator == "marketplace" else None
        if told is not None and not told.is_file():
            raise InputError(f"{told}: expected the queries of data.source = 'marketplace', found none")
        self._annotator = make_generator(recipe.model_copy(update={"rationales": rationales}), pairs, told)
        folder = run.require("annotate")
        files = [folder / FILE.replace(".", f".{perspective}.") for perspective in PERSPECTIVES]
        guessed_by = hash_json([hash_file(path) for path in files])[:12]
        self.name = (
            f"programmatic: {self._annotator.name}, guesses {guessed_by}, temperature {sampling.temperature}, "
            f"seed {recipe.seed}"
        )

    def complete(self, prompts: Iterable[Prompt], *, total: int | None = None) -> Iterator[Completion]:
        """Answer prompts in their order; a pair that is none of the run's training pairs gets an error.

        Args: total: completions to come, which shows a progress bar.
        """
        with tqdm(total=total, unit="answer", desc="programmatic", disable=total is None) as progress:
            for prompt in prompts:
                for sample in range(prompt.first_sample, prompt.first_sample + prompt.samples):
                    progress.update()
                    yield self._answer(prompt.key, sample)

    def _answer(self, key: str, sample: int) -> Completion:
        try:
            pair_id, view = split_key(key)
        except InputError as error:
            return failed(key, sample, str(error))
        pair = self._pairs.get(pair_id)
        if pair is None or not self._guesses.knows(pair_id):
            return failed(key, sample, f"expected a training pair of the run, found {pair_id!r:.80}")
        perspective = _perspective(view, pair_id, sample)
        rationale = self._annotator.generate(pair, perspective).model_copy(update={"perspective": view})
        text = self._book.response(rationale, self._guesses.draw(pair_id, perspective, sample))
        return Completion(key, sample, text, None, None, "stop", None, None)


def _perspective(view: View, pair_id: str, sample: int) -> Perspective:
    if view == "unified":
        return PERSPECTIVES[int(_unit(f"{pair_id}\t{sample}") * len(PERSPECTIVES))]
    return view


def _unit(name: str) -> float:
    """Give a number in [0, 1) that belongs to a name."""
    return int(hashlib.sha256(name.encode("utf-8", "replace")).hexdigest()[:13], 16) / 16**13

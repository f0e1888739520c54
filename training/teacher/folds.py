"""Cross-fitting: a teacher a fold, each of which leaves out one part of the training queries, for others to annotate.

A teacher's rationale of a pair it was fitted on says what the label told it; of a held-out pair it says what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from relevance.pairs import Pair, read_pairs
from training.recipe import Split
from training.runs import Run, hash_file, hash_json, log, stage_arguments
from training.teacher.collect import generate
from training.teacher.dpo import optimise_policy
from training.teacher.parts import fold_of, split_parts
from training.teacher.policy import final_policy, read_record, weights_hash
from training.teacher.preferences import build_preferences
from training.teacher.sft import fit_policy

FOLDS = "folds"


@dataclass(frozen=True, slots=True)
class Annotator:
    """A run whose teacher annotates some pairs.

    Args: name: for files; seen: ids of pairs, of any split, that the teacher was fitted on with their labels.
    """

    name: str
    run: Run
    pairs: tuple[Pair, ...]
    seen: frozenset[str]

    def identity(self) -> str:
        """Name the teacher by its weights, tokenizer and base, or a server's by its model.

        Raises: RunError: if the teacher has not been trained.
        """
        sampling = self.run.recipe.teacher.sampling
        if sampling.kind == "openai":
            return f"{sampling.kind}:{sampling.model}"
        folder = final_policy(self.run)
        record = read_record(folder)
        tokenizers = [hash_file(path) for path in sorted(folder.glob("tokenizer*.json"))]
        return hash_json([weights_hash(folder), tokenizers, None if record is None else record.base_hash])


def fold_run(run: Run, fold: int) -> Run:
    """Give the run of one fold's teacher: `OUT/folds/FOLD`, which takes all it does not make itself from `OUT`."""
    teacher = run.recipe.teacher.model_copy(update={"fold": fold})
    path = run.path / FOLDS / str(fold)
    path.mkdir(parents=True, exist_ok=True)
    return Run(run.recipe.model_copy(update={"teacher": teacher}), path, run.path)


def main(argv: list[str]) -> int:
    """Train the teacher of every fold of `teacher.folds`, below `OUT/folds`; finished stages are skipped."""
    run = stage_arguments(argv, FOLDS, __doc__)
    train_folds(run)
    return 0


def train_folds(run: Run) -> None:
    """Train the teacher of every fold: `generate` once for all of them, then SFT, preferences and DPO for each.

    Raises: RunError: if an earlier stage has not finished.
    """
    generate(run)
    for fold in range(run.recipe.teacher.folds):
        log.info("folds: teacher %d of %d", fold + 1, run.recipe.teacher.folds)
        own = fold_run(run, fold)
        fit_policy(own)
        build_preferences(own)
        optimise_policy(own)


def annotators(run: Run, split: Split) -> list[Annotator]:
    """Give who annotates a split's pairs: for train the teacher that left each pair out, where there is one.

    Raises: RunError: if stage `data` has not finished.
    """
    pairs = tuple(read_pairs(run.require("data") / f"pairs.{split}.parquet"))
    folds = run.recipe.teacher.folds
    crossed = folds > 1 and run.recipe.teacher.sampling.kind != "openai"
    if split == "train" and crossed:
        return [
            Annotator(
                f"fold-{fold}",
                fold_run(run, fold),
                tuple(pair for pair in pairs if fold_of(pair.query.text, folds) == fold),
                frozenset(),
            )
            for fold in range(folds)
        ]
    return [annotator_of(run, pairs, "all")]


def annotator_of(run: Run, pairs: tuple[Pair, ...], name: str) -> Annotator:
    """Give the one teacher for pairs that no fold is meant for: the run's own, or, when cross-fitting, fold 0's.

    A server is taken to serve the run's own teacher where there is one.
    """
    crossed = run.recipe.teacher.folds > 1 and run.recipe.teacher.sampling.kind != "openai"
    own = fold_run(run, 0) if crossed else run
    if not own.finished("sft"):
        return Annotator(name, own, pairs, frozenset())
    parts = split_parts(own)
    return Annotator(name, own, pairs, frozenset(one.pair.pair_id for one in (*parts.fit, *parts.reserved)))

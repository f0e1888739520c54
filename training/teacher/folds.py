"""Cross-fitting: a teacher a fold, each of which leaves out one part of the training queries, for others to annotate.

A teacher's rationale of a pair it was fitted on says what the label told it; of a held-out pair it says what it knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from relevance.errors import RecipeError, RunError
from relevance.pairs import Pair, read_pairs
from training.recipe import Split
from training.runs import Run, log, stage_arguments
from training.teacher.collect import generate
from training.teacher.dpo import optimise_policy
from training.teacher.parts import fold_of
from training.teacher.policy import base_policy_identity, final_policy, policy_identity
from training.teacher.preferences import build_preferences
from training.teacher.seen import pairs_read
from training.teacher.sft import fit_policy
from training.teacher.text_generators import FOLD_MARK
from training.teacher.trainer_settings import processes

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
        """Name the teacher by its weights, tokenizer and base, also where a server answers for it.

        Raises: RunError: if the teacher has not been trained.
        """
        if self.run.recipe.teacher.annotated_by == "base":
            return base_policy_identity(self.run)
        return policy_identity(final_policy(self.run))


def fold_run(run: Run, fold: int) -> Run:
    """Give the run of one fold's teacher: `OUT/folds/FOLD`, which takes data and the base's answers from `OUT`.

    What makes its teacher, `training.runs.OF_A_FOLD`, it never takes from there.
    """
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

    Raises: RunError: if an earlier stage has not finished, if this is one of several processes, or if a server is to
        answer for policies that are not there yet.
    """
    _check_alone(run)
    generate(run)
    for fold in range(run.recipe.teacher.folds):
        log.info("folds: teacher %d of %d", fold + 1, run.recipe.teacher.folds)
        own = fold_run(run, fold)
        fit_policy(own)
        build_preferences(own)
        optimise_policy(own)


def annotators(run: Run, split: Split) -> list[Annotator]:
    """Give who annotates a split's pairs: for train the teacher that left each pair out, where there is one.

    Raises: RunError: if stage `data` has not finished, or a teacher has not been trained; RecipeError: if a server
        serves one model for the teachers of all folds.
    """
    pairs = tuple(read_pairs(run.require("data") / f"pairs.{split}.parquet"))
    folds = run.recipe.teacher.folds
    if split != "train" or folds == 1 or run.recipe.teacher.annotated_by == "base":
        return [annotator_of(run, pairs, "all")]
    return [
        _annotator(
            _served(fold_run(run, fold)),
            tuple(pair for pair in pairs if fold_of(pair.query.text, folds) == fold),
            f"fold-{fold}",
        )
        for fold in range(folds)
    ]


def annotator_of(run: Run, pairs: tuple[Pair, ...], name: str) -> Annotator:
    """Give the one teacher for pairs that no fold is meant for: the run's own, or, when cross-fitting, fold 0's.

    The base model was fitted on no label and has seen none of the pairs with theirs.

    Raises: RunError: if that teacher has not been trained; RecipeError: if a server serves one model for the teachers
        of all folds.
    """
    teacher = run.recipe.teacher
    if teacher.annotated_by == "base":
        return Annotator(name, run, pairs, frozenset())
    return _annotator(_served(fold_run(run, 0)) if teacher.folds > 1 else run, pairs, name)


def _annotator(run: Run, pairs: tuple[Pair, ...], name: str) -> Annotator:
    """Give a run's own teacher as an annotator, with what it has seen."""
    return Annotator(name, run, pairs, pairs_read(run))


def _served(run: Run) -> Run:
    """Give a fold's run, if a server that answers for it can tell the folds' teachers apart."""
    sampling = run.recipe.teacher.sampling
    if sampling.kind == "openai" and FOLD_MARK not in (sampling.policy_model or ""):
        raise RecipeError(
            f"teacher.sampling.policy_model: expected a name with {FOLD_MARK}, one served model for the teacher of "
            f"each of {run.recipe.teacher.folds} folds, found {sampling.policy_model!r}"
        )
    return run


def _check_alone(run: Run) -> None:
    """Refuse what trains several teachers in one process where one teacher needs several, or a server for each.

    Raises: RunError: with the commands to type instead.
    """
    served = run.recipe.teacher.sampling.kind == "openai"
    if processes().num_processes == 1 and not served:
        return
    folds = run.recipe.teacher.folds
    found = "a server, which cannot serve policies before they are trained" if served else "several"
    raise RunError(
        f"folds: expected one process that trains and samples here, found {found}; run `relevance generate`, then for "
        f"each FOLD from 0 to {folds - 1} `relevance sft`, `preferences` and `dpo` (under accelerate launch where one "
        f"process is not enough) with --set teacher.folds={folds} --set teacher.fold=FOLD --out "
        f"{run.path / FOLDS}/FOLD --shared {run.path}"
    )

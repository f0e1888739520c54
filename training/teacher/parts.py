"""Which labelled training pairs a teacher is fitted on, which its preferences are made of, and which it never sees.

All pairs of a query fall into one part. A query's part depends on its text alone, never on the other queries. Pairs of
sources that hold only Exact pairs are in none: there a query has nothing to be told apart from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from relevance.errors import InputError, RecipeError
from relevance.pairs import LabelledPair, read_labelled_pairs
from training.runs import Run
from training.teacher_recipe import TeacherRecipe
from training.words import normalise_query, query_unit

_FOLD = "teacher-fold:"
_RESERVED = "teacher-reserved:"
_ASKED = "teacher-asked:"
_PREFERRED = "teacher-preferred:"


@dataclass(frozen=True, slots=True)
class Parts:
    """The labelled training pairs in three parts, each in the order of the file.

    Args: fit: what SFT learns from; reserved: what preferences are made of and SFT never sees; held_out: those of the
        teacher's own fold, which nothing of it sees.
    """

    fit: tuple[LabelledPair, ...]
    reserved: tuple[LabelledPair, ...]
    held_out: tuple[LabelledPair, ...]


def split_parts(run: Run) -> Parts:
    """Give the parts of a run's labelled training pairs.

    Raises: RunError: if stage `data` has not finished; RecipeError: if `teacher.fold` is none of `teacher.folds`.
    """
    path = run.require("data") / "pairs.train.parquet"
    return parts_of(read_labelled_pairs(path, run.recipe.label_scheme), run.recipe.teacher)


def parts_of(labelled: Iterable[LabelledPair], recipe: TeacherRecipe) -> Parts:
    """Split labelled pairs by query, those of exact-only sources left out.

    Raises: RecipeError: if `teacher.fold` is none of `teacher.folds`.
    """
    if recipe.fold >= recipe.folds:
        raise RecipeError(f"teacher.fold: expected a fold below teacher.folds = {recipe.folds}, found {recipe.fold}")
    fit, reserved, held_out = [], [], []
    for one in labelled:
        query = one.pair.query.text
        if one.exact_only:
            continue
        if recipe.folds > 1 and fold_of(query, recipe.folds) == recipe.fold:
            held_out.append(one)
        elif is_reserved(query, recipe):
            reserved.append(one)
        else:
            fit.append(one)
    return Parts(tuple(fit), tuple(reserved), tuple(held_out))


def asked_pairs(run: Run) -> list[LabelledPair]:
    """Give the pairs that stage `generate` asks the base model about: all that are not reserved, of any fold.

    The base model saw no label, so its answers serve the teachers of all folds; each takes those of its own `fit`
    part. With `teacher.generate.max_pairs`, whole queries are drawn until no further one fits. Pairs of exact-only
    sources are left out.

    Raises: RunError: if stage `data` has not finished; InputError: if two pairs have the same id, or none is left.
    """
    recipe = run.recipe.teacher
    path = run.require("data") / "pairs.train.parquet"
    labelled = [
        one
        for one in read_labelled_pairs(path, run.recipe.label_scheme)
        if not one.exact_only and not is_reserved(one.pair.query.text, recipe)
    ]
    commonest = Counter(one.pair.pair_id for one in labelled).most_common(1)
    if not commonest or commonest[0][1] > 1:
        found = f"{commonest[0][0]!r:.80} {commonest[0][1]} times" if commonest else "none that is not reserved"
        raise InputError(f"{path}: expected labelled pairs, each once, found {found}")
    return _whole_queries(labelled, recipe.generate.max_pairs, _ASKED)


def preference_pairs(run: Run) -> list[LabelledPair]:
    """Give the pairs that stage `preferences` asks the SFT policy about: the reserved ones, or whole queries of them.

    Raises: RunError: if stage `data` has not finished; RecipeError: if `teacher.fold` is none of `teacher.folds`.
    """
    return _whole_queries(split_parts(run).reserved, run.recipe.teacher.preferences.asked_pairs, _PREFERRED)


def fold_of(query: str, folds: int) -> int:
    """Give the fold of a query, from 0."""
    return int(query_unit(query, _FOLD) * folds)


def is_reserved(query: str, recipe: TeacherRecipe) -> bool:
    """Say whether a query's pairs are reserved for preferences."""
    return query_unit(query, _RESERVED) < recipe.preferences.reserved


def _whole_queries(labelled: Sequence[LabelledPair], most: int | None, salt: str) -> list[LabelledPair]:
    """Draw whole queries until no further one fits into so many pairs; in the order of the pairs, all for None."""
    if most is None:
        return list(labelled)
    sizes = Counter(normalise_query(one.pair.query.text) for one in labelled)
    drawn: set[str] = set()
    for query in sorted(sizes, key=lambda query: query_unit(query, salt)):
        if sizes[query] <= most:
            drawn.add(query)
            most -= sizes[query]
    return [one for one in labelled if normalise_query(one.pair.query.text) in drawn]

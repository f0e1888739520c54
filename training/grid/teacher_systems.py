"""Every teacher a comparison can hold: MPCoT, one teacher a perspective, and the rivals of the papers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from relevance.errors import RecipeError
from training.grid.systems import LRKD, System
from training.recipe import PERSPECTIVES, Perspective, Recipe

MPCOT = "mpcot"
SINGLE, EQUAL_TOKENS = "single_", "equal_tokens_"
"""How the names of teachers of one perspective begin: as they are, and controls that read as much as MPCoT."""
SAME_SIZE = "teacher.preferences.same_size_as"
TITLES: Mapping[str, str] = {"user": "user intent", "struct": "structured analysis", "rule": "business rule"}
_LREF, _CRSD = "arXiv:2503.09223", "arXiv:2510.11056"


def _single(perspective: Perspective, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - values of a recipe
    return {"teacher.perspectives": [perspective], "teacher.preferences.perspectives": [perspective], **more}


_ALL = (
    System(MPCOT, "MPCoT", "ours", LRKD, "teacher"),
    *(System(f"{SINGLE}{p}", f"SingleCoT, {TITLES[p]}", "rival", LRKD, "teacher", _single(p)) for p in PERSPECTIVES),
    *(
        System(
            f"same_size_{p}",
            f"SingleCoT, {TITLES[p]}, as many preference pairs as MPCoT",
            "control",
            LRKD,
            "teacher",
            _single(p, **{SAME_SIZE: MPCOT}),
            members=(MPCOT,),
        )
        for p in PERSPECTIVES
    ),
    *(
        System(
            f"{EQUAL_TOKENS}{p}",
            f"SingleCoT, {TITLES[p]}, as many SFT tokens and preference pairs as MPCoT",
            "control",
            LRKD,
            "teacher",
            _single(p, **{SAME_SIZE: MPCOT, "teacher.equal_tokens_with": list(PERSPECTIVES)}),
            members=(MPCOT,),
        )
        for p in PERSPECTIVES
    ),
    System("progressive", "ProgressiveCoT", "rival", _LREF, "teacher", {"teacher.method": "progressive"}),
    System(
        "crsd_teacher",
        "CRSD's teacher",
        "rival",
        _CRSD,
        "teacher",
        {"teacher.method": "crsd", "teacher.preferences.builder": "reward"},
    ),
)
TEACHERS: Mapping[str, System] = {system.name: system for system in _ALL}


def teachers_of(recipe: Recipe, names: tuple[str, ...] = ()) -> list[System]:
    """Give the teachers that a recipe asks for, or those of them that are named.

    Raises: RecipeError: if one is unknown, not the recipe's, or stands there without what it is sized after.
    """
    asked = recipe.grid.teachers
    unknown = sorted({*asked, *names} - set(TEACHERS)) + sorted(set(names) - set(asked))
    if unknown or not asked:
        raise RecipeError(f"grid.teachers: expected some of {sorted(TEACHERS)}, found {unknown or 'none'}")
    for name in asked:
        missing = sorted(set(TEACHERS[name].members) - set(asked))
        if missing:
            raise RecipeError(f"grid.teachers: expected {missing} beside {name!r}, found {list(asked)}")
    return [TEACHERS[name] for name in names or asked]

"""Command `study`: the table of studies, each imported only when chosen."""

from __future__ import annotations

from importlib import import_module

from relevance.errors import InputError

STUDIES: dict[str, tuple[str, str]] = {
    "calibration": ("training.studies.calibration", "calibrators compared, cut points re-drawn, the guarantee checked"),
    "robustness": ("training.studies.robustness", "typos, stuffing, swaps and more: what flips, what should have"),
    "disparity": ("training.studies.disparity", "who is wrongly filtered: by brand tier, locale and kind of item"),
    "faithfulness": ("training.studies.faithfulness", "do explanations say what the student and the annotator say"),
    "probing": ("training.studies.probing", "does the latent hold more of the rationale than the label tells"),
    "transfer": ("training.studies.transfer", "figures of each slice of the split, held-out ones beside the main one"),
}
"""Name → module with `main(argv)`, and what it is for."""


def main(argv: list[str]) -> int:
    """Run the study that the first argument names.

    Raises: InputError: if there is no such study.
    """
    if not argv or argv[0] not in STUDIES:
        known = "; ".join(f"{name} ({about})" for name, (_, about) in STUDIES.items())
        raise InputError(f"study: expected one of {known}; found {argv[0] if argv else 'nothing'!r}")
    return int(import_module(STUDIES[argv[0]][0]).main(argv[1:]))

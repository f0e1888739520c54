"""Command `pipeline`: every stage that a recipe names, in its order, over one run directory."""

from __future__ import annotations

from relevance import cli
from training.runs import log, stage_arguments


def main(argv: list[str]) -> int:
    """Run the recipe's stages one after the other; a finished stage with the same inputs is skipped by itself.

    Returns: 0, or the exit status of the first stage that failed.
    """
    run = stage_arguments(argv, "pipeline", __doc__)
    for stage in run.recipe.stages:
        log.info("pipeline: %s", stage)
        status = cli.main([stage, *argv])
        if status != 0:
            return status
    return 0

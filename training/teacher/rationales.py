"""Stage `rationales`: one rationale per pair and perspective, as JSONL; an LLM teacher writes one per pair.

Resumable: a killed run leaves a partial file, and the next one goes on after its last whole line; the finished file is
the same, byte for byte, as that of a run that was never killed.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from relevance.errors import InputError
from relevance.pairs import Pair, parquet_rows, read_pairs
from training.json_rows import cut_to_whole_lines
from training.marketplace.facts import INTENTS, read_intents
from training.marketplace.phrases import PHRASES
from training.rationale_rows import rationale_line
from training.recipe import Perspective, Recipe, Split
from training.runs import Run, hash_file, stage_arguments
from training.teacher import annotator, marketplace_annotator
from training.teacher.annotator import ProgrammaticAnnotator, VisibleAnnotator
from training.teacher.generator import RationaleGenerator
from training.teacher.marketplace_annotator import MarketplaceAnnotator
from training.teacher.readings import brand_vocabulary
from training.words import normalise_query

log = logging.getLogger("relevance.training")
READINGS = "esci_query_reasoning.parquet"
_WORDS_OF_ANNOTATOR = ("phrases.toml", "lexicon.toml")
_NAMES = {
    "programmatic": annotator.NAME,
    "visible": annotator.VISIBLE_NAME,
    "marketplace": marketplace_annotator.NAME,
    "marketplace-visible": marketplace_annotator.VISIBLE_NAME,
}


def main(argv: list[str] | None = None) -> int:
    """Run the stage; see the module."""
    run = stage_arguments(sys.argv[1:] if argv is None else argv, "rationales", __doc__)
    recipe = run.recipe.rationales
    if recipe.generator == "teacher":
        # An LLM teacher may be asked by way of the generators made here, so it cannot be imported above.
        from training.teacher.teacher_rationales import write_teacher_rationales

        write_teacher_rationales(run)
        return 0
    splits: tuple[Split, ...] = ("train", *recipe.splits)
    pair_files = {split: run.require("data") / f"pairs.{split}.parquet" for split in splits}
    told = recipe.query_readings is not None and recipe.generator != "visible"
    readings = Path(str(recipe.query_readings)) / READINGS if told else None
    if readings is not None and not readings.is_file():
        raise InputError(f"{readings}: expected a file of query readings, found none")
    intents = run.require("data") / INTENTS if recipe.generator.startswith("marketplace") else None
    if intents is not None and not intents.is_file():
        raise InputError(f"{intents}: expected the queries of data.source = 'marketplace', found none")
    files = [*pair_files.values(), *(path for path in (readings, intents) if path is not None)]
    files += [PHRASES] if intents is not None else [Path(__file__).with_name(name) for name in _WORDS_OF_ANNOTATOR]
    inputs = {
        "rationales": recipe.model_dump(mode="json", exclude={"teacher"}),
        "generator": _NAMES[recipe.generator],
        "seed": run.recipe.seed,
        "scheme": run.recipe.label_scheme.to_dict(),
        "files": {path.name: hash_file(path) for path in files},
    }
    with run.stage("rationales", inputs, resumable=True) as folder:
        if folder is not None:
            _write_all(run, folder, pair_files, intents or readings)
    return 0


def write_rationales(
    path: Path, pairs: Sequence[Pair], generator: RationaleGenerator, perspectives: Sequence[Perspective]
) -> int:
    """Write the rationales of pairs, going on where a killed run stopped.

    Returns: rationales written by this call; 0 if the file was complete.
    """
    if path.is_file():
        return 0
    partial = path.with_suffix(".partial")
    done = cut_to_whole_lines(partial)
    jobs = [(pair, perspective) for pair in pairs for perspective in perspectives]
    with (
        partial.open("a", encoding="utf-8") as file,
        tqdm(total=len(jobs), initial=done, unit="rationale", desc=path.stem) as progress,
    ):
        for pair, perspective in jobs[done:]:
            file.write(rationale_line(generator.generate(pair, perspective)))
            progress.update()
    os.replace(partial, path)
    return len(jobs) - done


def read_query_readings(path: Path) -> dict[str, str]:
    """Read written readings of queries: normalised query → text.

    Raises: InputError: if the file is not Parquet or lacks a column.
    """
    rows = parquet_rows(path, ("query", "reasoning"), ("query", "reasoning"))
    return {normalise_query(row["query"]): row["reasoning"] for _, row in rows if row["query"] and row["reasoning"]}


def make_generator(recipe: Recipe, brand_source: Sequence[Pair], told: Path | None = None) -> RationaleGenerator:
    """Build the generator a recipe names.

    Args: brand_source: train pairs, whose items teach the annotator brand names; told: what is known of queries: the
        marketplace's intents, or written readings, None for neither.
    """
    kind = recipe.rationales.generator
    if kind.startswith("marketplace"):
        intents = {} if told is None else read_intents(told)
        visible = kind == "marketplace-visible"
        return MarketplaceAnnotator(intents, seed=recipe.seed, scheme=recipe.label_scheme, visible=visible)
    programmatic = ProgrammaticAnnotator(
        brands=brand_vocabulary({pair.item.id: pair.item for pair in brand_source}.values()),
        seed=recipe.seed,
        scheme=recipe.label_scheme,
        query_readings={} if told is None else read_query_readings(told),
    )
    return VisibleAnnotator(programmatic) if kind == "visible" else programmatic


def _write_all(run: Run, folder: Path, pair_files: dict[Split, Path], told: Path | None) -> None:
    recipe = run.recipe.rationales
    pairs = {split: list(read_pairs(path)) for split, path in pair_files.items()}
    generator = make_generator(run.recipe, pairs["train"], told)
    for split in recipe.splits:
        path = folder / f"rationales.{split}.jsonl"
        written = write_rationales(path, pairs[split], generator, recipe.perspectives)
        log.info("rationales: %s: %d pairs, %d written now", split, len(pairs[split]), written)

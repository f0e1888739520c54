"""Stage `warm_up`: a student learns a teacher's soft labels on pairs without labels, before it sees a label."""

from __future__ import annotations

from training.cot_store import MATRIX
from training.runs import hash_file, stage_arguments
from training.soft_labels import soft_labels_file
from training.student.train import ENCODER, PRETRAIN, WARM_UP, StudentTraining, shared_inputs
from training.student_recipe import hashed_student

NOT_YET = {
    "fit",
    "warm_up_start",
    "seeds",
    "class_weights",
    "query_weights",
    "exact_only",
    "guidance_weight",
    "guidance",
    "rationale_terms",
    "ced_kd",
    "mkd",
    "crsd",
    "random_negatives",
    "random_negative_weight",
    "checkpoint_steps",
    "round_weights",
}
"""Keys of the student's recipe that only the fine-tuning reads: changing them keeps the warm-up."""
GUIDED = {"guidance_weight", "guidance"}
"""Those of them that a guided warm-up reads too."""


def main(argv: list[str]) -> int:
    """Warm the recipe's student up."""
    run = stage_arguments(argv, WARM_UP, __doc__)
    recipe = run.recipe.student
    # What the fine-tuning keeps fixed, the warm-up trains.
    trained = recipe.encoder.model_copy(update={"freeze_layers": 0, "keep_states": False})
    read = recipe.model_copy(update={"encoder": trained})
    inputs = {
        "student": hashed_student(read, NOT_YET - GUIDED if recipe.warm_up_guidance else NOT_YET),
        **shared_inputs(run),
        "soft_labels": hash_file(run.require("annotate") / soft_labels_file(recipe)),
        # Labelled training pairs are left out of the annotated ones, dev pairs choose the epoch.
        "files": {split: hash_file(run.require("data") / f"pairs.{split}.parquet") for split in ("train", "dev")},
    }
    encoder = run.folder(PRETRAIN) / ENCODER
    if encoder.is_file():
        inputs["pretrain"] = hash_file(encoder)
    if recipe.warm_up_guidance:
        inputs["embeddings"] = hash_file(run.require(recipe.guidance.store) / MATRIX)
    with run.stage(WARM_UP, inputs, resumable=True) as folder:
        if folder is not None:
            StudentTraining(run, folder).warm_up()
    return 0

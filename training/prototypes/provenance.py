"""Whether a run's prototypes were made of its present student: their maps fit no other one's latents."""

from __future__ import annotations

import json
from pathlib import Path

from relevance.errors import RunError
from training.runs import INPUTS, Run, hash_file

STUDENT_FILES = ("model.safetensors", "config.json", "tokenizer.json")


def prototypes_folder(run: Run) -> Path:
    """Give the folder of the prototypes of this student.

    Raises: RunError: if the stage has not finished, or read another student.
    """
    folder, student = run.require("prototypes"), run.require("student")
    path = folder / INPUTS
    files = json.loads(path.read_text(encoding="utf-8"))["inputs"]["files"] if path.is_file() else {}
    if any(files.get(f"student/{name}") != hash_file(student / name) for name in STUDENT_FILES):
        raise RunError(
            f"{folder}: expected the prototypes of the student in {student}, found another one's; "
            "run `relevance prototypes` with this --out first"
        )
    return folder

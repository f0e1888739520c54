"""The OpenAPI document is frozen: a change shows as a diff of tests/golden/openapi.json."""

from __future__ import annotations

import json
import os
from pathlib import Path

from relevance import __version__
from service.app import create_app
from service.settings import Settings

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"


def test_the_openapi_document_is_the_golden_one(tmp_path):
    """UPDATE_GOLDEN=1 writes it anew; the version is left out, so that a release alone changes nothing."""
    document = create_app(Settings(bundle=tmp_path, threads=1)).openapi()
    assert document["info"].pop("version") == __version__
    found = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(found, encoding="utf-8")

    assert found == GOLDEN.read_text(encoding="utf-8")


def test_every_reference_in_the_document_leads_somewhere(tmp_path):
    """Bodies are read by hand, so their schemas are put in by hand: none may be missing."""
    document = create_app(Settings(bundle=tmp_path, threads=1)).openapi()

    def references(node):
        if isinstance(node, dict):
            yield from (value for key, value in node.items() if key == "$ref")
            for value in node.values():
                yield from references(value)
        elif isinstance(node, list):
            for value in node:
                yield from references(value)

    targets = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(references(document["paths"])) | set(references(document["components"])) <= targets
    assert "#/components/schemas/ScoreRequest" in set(references(document["paths"]))

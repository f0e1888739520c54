"""Golden pairs: invented texts whose token ids and logits are frozen at export and replayed before serving."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from export.parity import Run
from relevance.bundle import GoldenPair, Precision
from relevance.errors import InputError
from relevance.text import TextTemplate
from relevance.tokenization import PairTokenizer

GOLDEN_PAIRS = Path(__file__).parent / "golden_pairs.jsonl"


def read_golden_pairs(path: Path) -> list[GoldenPair]:
    """Read golden pairs without ids and logits from a JSONL file.

    Raises: InputError: if the file cannot be read, a row is not a golden pair, or there are fewer than two.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        pairs = [GoldenPair.model_validate_json(line) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise InputError(f"{path}: expected one golden pair a line: {error}") from error
    if len(pairs) < 2:
        raise InputError(f"{path}: expected at least 2 golden pairs, found {len(pairs)}")
    return pairs


def fill_golden_pairs(
    pairs: list[GoldenPair], tokenizer: PairTokenizer, template: TextTemplate, runs: Mapping[Precision, Run]
) -> list[GoldenPair]:
    """Freeze token ids and, for each precision, the logits of one batch of all pairs, mixed lengths and all.

    Raises: QueryTooLongError: if a query has more tokens than the student reads.
    """
    queries = [tokenizer.encode_query(template.query_text(pair.query)) for pair in pairs]
    items = tokenizer.encode_items([template.item_text(pair.item) for pair in pairs])
    batch = tokenizer.collate(queries, items)
    logits = {precision: run(batch).tolist() for precision, run in runs.items()}
    length_B = batch.attention_mask_BL.sum(axis=1).tolist()
    return [
        pair.model_copy(
            update={
                "input_ids": tuple(batch.input_ids_BL[row, : length_B[row]].tolist()),
                "logits": {precision: tuple(values[row]) for precision, values in logits.items()},
            }
        )
        for row, pair in enumerate(pairs)
    ]


def golden_lines(pairs: list[GoldenPair]) -> bytes:
    """Give the content of golden.jsonl."""
    return "".join(pair.model_dump_json() + "\n" for pair in pairs).encode("utf-8")

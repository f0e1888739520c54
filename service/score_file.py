"""`relevance score FILE`: score a JSONL or Parquet file of pairs offline, with the service's own scorer.

Consecutive rows of one query are scored together. Finished groups are appended to a part file beside the output; a run
that was killed goes on after the last whole group, and the finished file is the same to the byte. `--ray` scores the
groups on a Ray cluster instead; all else, the part file included, is the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from relevance.errors import InputError, RowError
from relevance.pairs import BadRows, Pair, read_pairs
from service.model import Model, load_model
from service.ray_scoring import LOCAL, Cluster, score_over_ray
from service.score_group import ScoredGroup, policy_hash, score_group
from service.scorer import TOKEN_BUDGET
from service.settings import Settings, load_settings

_PARQUET_ROWS = 50_000


@dataclass(frozen=True, slots=True)
class Part:
    """The unfinished output: lines of whole groups, and beside it what they were made from."""

    lines: Path
    origin: Path

    @classmethod
    def beside(cls, out: Path) -> Part:
        """Give the part files that belong to an output."""
        return cls(out.with_name(out.name + ".part.jsonl"), out.with_name(out.name + ".part.origin.json"))

    def resume(self, origin: dict[str, Any]) -> int:
        """Give the number of whole lines left by a killed run of the same origin; anything else starts over."""
        same = self.origin.is_file() and self.lines.is_file() and _read_json(self.origin) == origin
        if not same:
            self.lines.write_bytes(b"")
            self.origin.write_text(json.dumps(origin) + "\n", encoding="utf-8")
            return 0
        with self.lines.open("rb") as file:
            return sum(line.endswith(b"\n") for line in file)

    def cut(self, n_lines: int) -> None:
        """Drop everything after the first n lines."""
        with self.lines.open("r+b") as file:
            for _ in range(n_lines):
                file.readline()
            file.truncate(file.tell())

    def skip(self, groups: Iterable[list[Pair]], done: int) -> tuple[int, Iterator[list[Pair]]]:
        """Give how many rows of whole groups are among the lines done, which stay, and the groups still to score."""
        n_rows = 0
        rest = iter(groups)
        for group in rest:
            if n_rows + len(group) > done:
                rest = chain([group], rest)
                break
            n_rows += len(group)
        self.cut(n_rows)
        return n_rows, rest


def main(argv: list[str]) -> int:
    """Score one file.

    Raises: InputError: the file or a row is wrong; BundleError: the bundle must not be served.
    """
    arguments = _arguments(argv)
    out = arguments.out or arguments.file.with_name(arguments.file.name + ".out.jsonl")
    if out.suffix not in {".jsonl", ".parquet"}:
        raise InputError(f"{out}: expected an output ending in .jsonl or .parquet")
    if not arguments.file.is_file():
        raise InputError(f"{arguments.file}: expected a file, found none")
    settings = load_settings(
        bundle=arguments.bundle, policy=arguments.policy, precision=arguments.precision, threads=arguments.threads
    )
    model = load_model(settings)
    part = Part.beside(out)
    origin = {
        "input": _sha256(arguments.file),
        "bundle": model.bundle.manifest.bundle_id,
        "policy": policy_hash(model),
        "precision": model.session.precision,
        "batch": arguments.batch,
        "batch_tokens": TOKEN_BUDGET,
        "on_bad_row": arguments.on_bad_row,
        "probabilities": arguments.probabilities,
    }
    done = part.resume(origin)
    bad_rows = BadRows(policy=arguments.on_bad_row)
    groups = group_pairs(read_pairs(arguments.file, bad_rows), at_most=arguments.batch)
    skipped, rest = part.skip(groups, done)
    answers = _over_ray(rest, arguments, settings, model) if arguments.ray else _here(rest, arguments, model)
    with closing(answers):
        n_rows = _append(answers, part, skipped, bad_rows=bad_rows, where=arguments.file.name)
    _publish(part, out, arguments.probabilities)
    sys.stderr.write(f"relevance score: {n_rows} rows → {out}; {bad_rows.count} bad rows skipped\n")
    for error in bad_rows.first:
        sys.stderr.write(f"  {error}\n")
    return 0


def group_pairs(pairs: Iterable[Pair], *, at_most: int) -> Iterator[list[Pair]]:
    """Give runs of consecutive pairs of the same query text and locale, cut after `at_most` pairs."""
    group: list[Pair] = []
    for pair in pairs:
        if group and (len(group) == at_most or _key(pair) != _key(group[0])):
            yield group
            group = []
        group.append(pair)
    if group:
        yield group


def _here(groups: Iterable[list[Pair]], arguments: argparse.Namespace, model: Model) -> Generator[ScoredGroup]:
    for group in groups:
        yield score_group(model.scorer, group, probabilities=arguments.probabilities)


def _over_ray(
    groups: Iterable[list[Pair]], arguments: argparse.Namespace, settings: Settings, model: Model
) -> Generator[ScoredGroup]:
    """Score with this very bundle, policy and precision on every node, one engine a worker."""
    same = {
        "bundle": settings.bundle.resolve(),
        "bundle_id": model.bundle.manifest.bundle_id,
        "policy": settings.policy.resolve() if settings.policy is not None else None,
        "precision": model.session.precision,
        "engines": 1,
        "threads": settings.threads or 1,
    }
    cluster = Cluster(arguments.ray, arguments.workers)
    settings = settings.model_copy(update=same)
    return score_over_ray(groups, cluster, settings, policy=policy_hash(model), probabilities=arguments.probabilities)


def _append(answers: Iterator[ScoredGroup], part: Part, n_rows: int, *, bad_rows: BadRows, where: str) -> int:
    """Append what was scored after so many rows, group by group, and give how many rows there are now."""
    with part.lines.open("ab") as file, tqdm(unit="rows", initial=n_rows, file=sys.stderr, disable=None) as progress:
        for group in answers:
            if group.problem is not None:
                for _ in range(group.n_rows):
                    bad_rows.add(RowError(where, n_rows + 1, "query", group.problem))
            file.write(group.lines)
            file.flush()
            n_rows += group.n_rows
            progress.update(group.n_rows)
    return n_rows


def _publish(part: Part, out: Path, probabilities: bool) -> None:
    if out.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        names = ["query_id", "item_id", "score", "tier", "label", "kept", "truncated", "policy_locale", "reason"]
        names += ["probabilities"] if probabilities else []
        types: dict[str, pa.DataType] = {
            "score": pa.float64(),
            "tier": pa.int8(),
            "kept": pa.bool_(),
            "truncated": pa.bool_(),
            "probabilities": pa.list_(pa.float64()),
        }
        schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
        staging = out.with_name(out.name + ".part.parquet")
        with part.lines.open("rb") as file, pq.ParquetWriter(staging, schema, compression="zstd") as writer:
            while rows := [json.loads(line) for line in islice(file, _PARQUET_ROWS)]:
                for row in rows:
                    row["item_id"] = str(row["item_id"])
                writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        os.replace(staging, out)
        part.lines.unlink()
    else:
        os.replace(part.lines, out)
    part.origin.unlink()


def _key(pair: Pair) -> tuple[str, str | None]:
    return pair.query.text, pair.query.locale


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="relevance score", description="Score a JSONL or Parquet file of pairs.")
    parser.add_argument("file", type=Path, help="pairs: query, title and optional columns; .jsonl or .parquet")
    parser.add_argument("--bundle", type=Path, help="bundle directory (default: the embedded one)")
    parser.add_argument("--policy", type=Path, help="policy.toml to use instead of the bundle's own")
    parser.add_argument("--out", type=Path, help="output, .jsonl or .parquet (default: FILE.out.jsonl)")
    parser.add_argument("--batch", type=int, default=4096, help="most rows of one query scored together")
    parser.add_argument("--on-bad-row", choices=("fail", "skip"), default="fail", help="what a bad row does")
    parser.add_argument("--probabilities", action="store_true", help="write the probability of each class too")
    parser.add_argument("--precision", help="auto, fp32, fp16, int8w or int8 (default auto)")
    parser.add_argument("--threads", type=int, help="intra-op threads (default: the CPU quota; with --ray 1 a worker)")
    parser.add_argument("--ray", metavar=f"ADDRESS|{LOCAL}", help="score on a Ray cluster, or on one of this machine")
    parser.add_argument("--workers", type=int, help="scorers on the cluster (default: as many as it has room for)")
    arguments = parser.parse_args(argv)
    for option in ("workers", "threads"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise InputError(f"--{option}: expected at least 1, found {value}")
    if arguments.workers is not None and arguments.ray is None:
        raise InputError("--workers: expected --ray beside it, found none")
    if arguments.batch < 1:
        raise InputError(f"--batch: expected at least 1, found {arguments.batch}")
    return arguments

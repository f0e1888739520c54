"""Stage `export`: student, calibrator and policy → gated ONNX graphs, golden pairs and a verified bundle.

Where stage `prototypes` has finished, the bundle gets its rationales and the graphs give latent and token weights too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from export.card import quality_figures, read_report, render_card
from export.distributions import reference_distributions
from export.golden import GOLDEN_PAIRS, fill_golden_pairs, golden_lines, read_golden_pairs
from export.onnx_graph import export_graph, fuse_graph, graph_tensors
from export.parity import (
    BATCH_SIZE,
    GatePairs,
    Judge,
    Run,
    draw_gate_pairs,
    gate_graph,
    open_graph,
    output_differences,
    reference_logits,
)
from export.precision import write_fp16, write_int8, write_int8w
from relevance.bundle import (
    BASELINE,
    CALIBRATION,
    CARD,
    CPU_ORDER,
    GOLDEN,
    POLICY,
    PROTOTYPES,
    TEMPLATE,
    TOKENIZER,
    Gate,
    Graph,
    Limits,
    Manifest,
    Precision,
    graph_file,
    open_bundle,
    write_bundle,
)
from relevance.calibration import Calibrator
from relevance.errors import InputError, ParityError, RecipeError
from relevance.pairs import LabelledPair, read_labelled_pairs
from relevance.policy import TierPolicy
from relevance.tokenization import PairBatch
from training import runs
from training.predictions import read_predictions
from training.prototypes.provenance import prototypes_folder
from training.recipe import ExportRecipe
from training.student.model import Student, load_student

BUNDLE, GRAPHS, FIGURES = "bundle", "graphs", "export.json"
REFERENCE_SPLITS = ("dev", "cal")
TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "int8w": 1e-3, "fp16": 2e-2, "unfused": 2e-2}
"""Of golden logits; TensorRT computes the unfused graph in half precision."""
INT8_MARGIN = 0.05
"""Added to the largest difference between batchings of the int8 graph: other CPUs round and saturate differently."""
_JUDGED = {"calibration": CALIBRATION, "policy": POLICY}
N_RANGE_PAIRS = 256
"""Train pairs on which the activation ranges of int8 are measured."""


def main(argv: list[str]) -> int:
    """Run the stage.

    Raises: RunError: if an earlier stage has not finished, or prototypes are of another student; RecipeError: if a
        graph to ship is not to be made; ParityError: if the graph differs from the torch student or no graph passes for
        the CPU.
    """
    run = runs.stage_arguments(argv, "export", __doc__)
    section = run.recipe.export
    unmade = [p for p in section.ship if p not in section.precisions]
    if unmade or not section.ship:
        raise RecipeError(
            f"export.ship: expected graphs of export.precisions {section.precisions}, found {section.ship}"
        )
    files = _input_files(run)
    inputs = {
        "recipe": section.model_dump(mode="json"),
        "scheme": run.recipe.label_scheme.to_dict(),
        "seed": run.recipe.seed,
        "files": {name: runs.hash_file(path) for name, path in files.items()},
    }
    with run.stage("export", inputs) as folder:
        if folder is not None:
            manifest = Exporter(run, files, folder).build()
            runs.log.info("export: bundle %s with %s", manifest.bundle_id, ", ".join(manifest.graphs))
    return 0


class Exporter:
    """The steps of one export, over the files of one run.

    Args: files: as `_input_files` names them; folder: the stage's.
    Raises: InputError: if the calibrator or the policy cannot be read, or pairs and predictions disagree.
    """

    def __init__(self, run: runs.Run, files: dict[str, Path], folder: Path) -> None:
        self.recipe, self.files, self.folder = run.recipe, files, folder
        self.student, self.tokenizer = load_student(files["student/model.safetensors"].parent)
        self.scheme, self.template = self.student.config.label_scheme, self.student.config.template
        try:
            calibrator = Calibrator.model_validate_json(files[CALIBRATION].read_bytes())
        except ValidationError as error:
            raise InputError(f"{files[CALIBRATION]}: expected a calibrator: {error}") from error
        policy = TierPolicy.from_toml(files[POLICY].read_bytes(), self.scheme)
        self.judge = Judge(calibrator, policy, self.scheme, self.template)
        self.pairs, self.logits_NK = self._reference_pairs()
        self.report = read_report(files["report"]) if "report" in files else None

    def build(self) -> Manifest:
        """Make and gate the graphs, then write the bundle and the gates' figures.

        Raises: ParityError: as in `main`, or if latents or token weights differ from the torch student's.
        """
        explains = PROTOTYPES in self.files
        section = self.recipe.export.model_copy(update={"latent_outputs": True} if explains else {})
        paths = make_graphs(self.student, self.folder / GRAPHS, section, self._range_batches())
        gate_pairs = draw_gate_pairs(
            self.pairs, self.tokenizer, self.template, limit=self.recipe.export.gate_pairs, seed=self.recipe.seed
        )
        opened = {precision: open_graph(path, precision) for precision, path in paths.items()}
        gates = self._gates(opened, gate_pairs)
        figures = {name: json.loads(gate.model_dump_json()) for name, gate in gates.items()}
        shipped = [p for p in self.recipe.export.ship if gates[p].passed]
        outputs = {p: output_differences(self.student, paths[p], p, gate_pairs) for p in shipped if explains}
        (self.folder / FIGURES).write_text(
            json.dumps({"gates": figures, "outputs": outputs}, indent=2) + "\n", encoding="utf-8"
        )
        if not set(shipped) & set(CPU_ORDER):
            raise ParityError(f"export: expected a graph of {CPU_ORDER} to ship that passes its gate; found {figures}")
        graphs = {p: _graph(paths[p], p, gates[p]) for p in shipped}
        manifest = self._manifest(graphs)
        golden_path = Path(self.recipe.export.golden) if self.recipe.export.golden else GOLDEN_PAIRS
        golden = fill_golden_pairs(
            read_golden_pairs(golden_path), self.tokenizer, self.template, {p: opened[p] for p in shipped}
        )
        baseline = reference_distributions(self.pairs, self.logits_NK, self.judge, self.tokenizer)
        written = write_bundle(
            self.folder / BUNDLE,
            manifest,
            {
                **{graph_file(p): paths[p] for p in shipped},
                TOKENIZER: self.tokenizer.to_bytes(),
                TEMPLATE: _line(self.template.model_dump_json(indent=2)),
                CALIBRATION: self.files[CALIBRATION],
                POLICY: self.files[POLICY],
                GOLDEN: golden_lines(golden),
                BASELINE: _line(baseline.model_dump_json()),
                CARD: self._card(manifest).encode(),
                **({PROTOTYPES: self.files[PROTOTYPES]} if explains else {}),
            },
        )
        open_bundle(self.folder / BUNDLE)
        return written

    def _gates(self, opened: dict[Precision, Run], gate_pairs: GatePairs) -> dict[Precision, Gate]:
        reference = reference_logits(torch_run(self.student), opened["fp32"], gate_pairs)
        gates = {}
        for precision, graph_run in opened.items():
            gate = gate_graph(graph_run, gate_pairs, reference, self.judge)
            runs.log.info("export: %s %s: %s", precision, "passed" if gate.passed else "FAILED", gate)
            gates[precision] = gate
        return gates

    def _reference_pairs(self) -> tuple[list[LabelledPair], NDArray[np.float64]]:
        pairs: list[LabelledPair] = []
        logits = []
        for split in REFERENCE_SPLITS:
            rows = read_labelled_pairs(self.files[f"pairs.{split}"], self.scheme)
            predictions = read_predictions(self.files[f"predictions.{split}"])
            if predictions.pair_id.tolist() != [p.pair.pair_id for p in rows]:
                raise InputError(
                    f"{self.files[f'predictions.{split}']}: expected the predictions of {len(rows)} pairs in the order "
                    f"of {self.files[f'pairs.{split}'].name}, found {len(predictions)} that differ"
                )
            fair = np.array([not p.exact_only for p in rows], dtype=bool)
            pairs += [p for p, keep in zip(rows, fair.tolist(), strict=True) if keep]
            logits.append(predictions.logits_NK[fair])
        return pairs, np.concatenate(logits)

    def _range_batches(self) -> list[PairBatch]:
        if "int8" not in self.recipe.export.precisions:
            return []
        train = read_labelled_pairs(self.files["pairs.train"], self.scheme)
        chosen = draw_gate_pairs(train, self.tokenizer, self.template, limit=N_RANGE_PAIRS, seed=self.recipe.seed)
        return [
            self.tokenizer.collate(chosen.queries[start : start + BATCH_SIZE], chosen.items[start : start + BATCH_SIZE])
            for start in range(0, len(chosen), BATCH_SIZE)
        ]

    def _manifest(self, graphs: dict[Precision, Graph]) -> Manifest:
        section, policy = self.recipe.export, self.judge.policy
        rated = {n: "supported" if cuts.certified else "weak" for n, cuts in policy.locales.items()}
        fingerprint = runs.hash_json({n: runs.hash_file(p) for n, p in self.files.items() if n == "pairs.train"})
        return Manifest.model_validate(
            {
                "model_id": section.model_id,
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "commit": runs.commit(),
                "scheme": self.scheme.to_dict(),
                "graphs": graphs,
                "limits": Limits(
                    max_query_tokens=self.tokenizer.max_query_tokens, max_pair_tokens=self.tokenizer.max_pair_tokens
                ),
                "locales": {**rated, **section.locales},
                "quality": quality_figures(self.report),
                "data_fingerprint": fingerprint,
                "licences": section.licences,
            }
        )

    def _card(self, manifest: Manifest) -> str:
        if self.recipe.export.card is not None:
            return self.files["card"].read_text(encoding="utf-8")
        n_train = len(read_labelled_pairs(self.files["pairs.train"], self.scheme))
        return render_card(manifest, self.report, n_train, about=self.recipe.export.about)


def make_graphs(
    student: Student, folder: Path, recipe: ExportRecipe, batches: Sequence[PairBatch]
) -> dict[Precision, Path]:
    """Write the unfused graph, the fused fp32 graph and the precisions made from it.

    Args: recipe: which ones; batches: of train pairs, for int8's ranges.
    Returns: precision → file; fp32 is always there, because the others are held against it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[Precision, Path] = {"fp32": folder / graph_file("fp32")}
    unfused = folder / graph_file("unfused")
    export_graph(student, unfused, latent_outputs=recipe.latent_outputs)
    config = student.encoder.config
    fuse_graph(unfused, paths["fp32"], heads=config.num_attention_heads, width=config.hidden_size)
    for precision in recipe.precisions:
        paths[precision] = folder / graph_file(precision)
        match precision:
            case "fp16":
                write_fp16(paths["fp32"], paths[precision])
            case "int8w":
                write_int8w(paths["fp32"], paths[precision])
            case "int8":
                write_int8(paths["fp32"], paths[precision], batches)
    return paths


def torch_run(student: Student) -> Run:
    """Give the torch student as a function of batches, like an opened graph."""

    def run(batch: PairBatch) -> NDArray[np.floating]:
        with torch.inference_mode():
            tensors = {name: torch.from_numpy(array) for name, array in batch.inputs().items()}
            logits: NDArray[np.floating] = student(**tensors).logits_BK.numpy()
        return logits

    return run


def _graph(path: Path, precision: Precision, gate: Gate) -> Graph:
    inputs, outputs = graph_tensors(path)
    tolerance = TOLERANCE.get(precision, gate.batch_max_abs_difference + INT8_MARGIN)
    return Graph(inputs=inputs, outputs=outputs, tolerance=tolerance, gate=gate)


def _input_files(run: runs.Run) -> dict[str, Path]:
    student, calibrate, data = (run.require(stage) for stage in ("student", "calibrate", "data"))
    files = {
        **{f"student/{name}": student / name for name in ("model.safetensors", "config.json", "tokenizer.json")},
        CALIBRATION: calibrate / CALIBRATION,
        POLICY: calibrate / POLICY,
        **{f"pairs.{split}": data / f"pairs.{split}.parquet" for split in ("train", *REFERENCE_SPLITS)},
        **{f"predictions.{split}": student / f"predictions.{split}.parquet" for split in REFERENCE_SPLITS},
    }
    if run.finished("prototypes"):
        files[PROTOTYPES] = prototypes_folder(run) / PROTOTYPES
    if run.finished("evaluate"):
        files["report"] = run.path / "evaluate" / "report.json"
    for name, path in (("card", run.recipe.export.card), ("golden", run.recipe.export.golden)):
        if path is not None:
            files[name] = Path(path)
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise InputError(f"export: expected the files {missing}, found none")
    calibrated = run.inputs_of("calibrate").get("predictions")
    run.check_read("calibrate", {"student": (calibrated, files["predictions.cal"])})
    if "report" in files:
        judged = run.inputs_of("evaluate").get("files", {})
        run.check_read("evaluate", {n: (judged.get(n), files[f]) for n, f in _JUDGED.items()})
    return files


def _line(text: str) -> bytes:
    return (text + "\n").encode("utf-8")

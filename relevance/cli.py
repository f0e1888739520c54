"""The `relevance` command: an ordered table of stages, each imported only when chosen."""

from __future__ import annotations

import os
import sys
from importlib import import_module

from relevance import __version__
from relevance.errors import RelevanceError

_TELEMETRY = "HF_HUB_DISABLE_TELEMETRY"
"""TRL tells its makers of each training, architecture and GPU included, unless this is set."""

COMMANDS: dict[str, tuple[str, str, str]] = {
    "pipeline": ("training.pipeline", "training", "every stage of a recipe, in order: pairs to bundle"),
    "data": ("training.data.stage", "training", "labelled pairs from a source, split by query, with a leak check"),
    "teacher_pretrain": ("training.teacher.pretrain", "teacher", "a small decoder from scratch reads texts, prompts"),
    "generate": ("training.teacher.collect", "teacher", "answers under each perspective's prompt, the consistent kept"),
    "sft": ("training.teacher.sft", "teacher", "fine-tune the teacher on what was kept"),
    "preferences": ("training.teacher.preferences", "teacher", "its wrong answers against right ones, on unseen pairs"),
    "dpo": ("training.teacher.dpo", "teacher", "preference optimisation, behind a gate on dev"),
    "folds": ("training.teacher.folds", "teacher", "a teacher a fold, for cross-fit annotation"),
    "merge_policy": ("training.teacher.merge_policy", "teacher", "an adapter into a full model, if its logits agree"),
    "judge": ("training.teacher.judge", "teacher", "what a teacher is worth: figures, faithfulness, card"),
    "teachers": ("training.grid.teacher_stage", "teacher", "teachers × seeds on the same first answers"),
    "rationales": ("training.teacher.rationales", "training", "one rationale per pair and perspective"),
    "embed": ("training.teacher.embed", "training", "rationales to CoT embeddings"),
    "annotate": ("training.teacher.annotate", "training", "soft labels for pairs without labels, the warm-up's food"),
    "pretrain": ("training.student.pretrain", "training", "a small encoder from scratch reads the texts, no labels"),
    "warm_up": ("training.student.warm_up", "training", "a student learns the soft labels before it sees a label"),
    "student": ("training.student.train", "training", "train a student; write weights and predictions"),
    "prototypes": ("training.prototypes.stage", "training", "typical rationales of a student's pairs, to explain by"),
    "grid": ("training.grid.stage", "training", "systems × seeds on the same pairs, with controls"),
    "baseline": ("training.lexical_baseline", "training", "the lexical baseline on the same rows, for the report"),
    "calibrate": ("training.calibrate", "training", "fit the calibrator, choose and certify cut points"),
    "evaluate": ("training.evaluate", "training", "figures with intervals: report.json"),
    "report": ("training.report", "training", "one self-contained page of a run's figures or of a grid's comparison"),
    "study": ("training.studies.stage", "training", "calibration, robustness, disparity, faithfulness and others"),
    "ab": ("training.ab.stage", "training", "online experiments: lifts, intervals, sample ratio, power"),
    "export": ("export.build", "export", "student to ONNX graphs, gates, and a verified bundle"),
    "verify": ("service.verify", "service", "check a bundle's files and replay its golden pairs"),
    "bundle": ("service.bundle_store", "service", "deliver bundles by digest into a folder, switch, roll back"),
    "serve": ("service.__main__", "service", "run the service"),
    "drain": ("service.drain", "service", "pre-stop hook: readiness off, then wait for load balancers"),
    "capacity": ("service.capacity", "service", "how many replicas a load needs, by simulation"),
    "score": ("service.score_file", "service", "score a JSONL or Parquet file of pairs offline"),
    "inspect": ("training.inspection.command", "training", "error analysis of a scored file or a run, as one page"),
}


def usage() -> str:
    """Give the help text: every command in pipeline order."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, _, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: relevance COMMAND [--help] …",
            "",
            *lines,
            "",
            f"relevance-tiers {__version__}; order = pipeline order",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors we raise on purpose become one line and exit status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in {"-h", "--help", "--version"}:
        sys.stdout.write((__version__ if argv[:1] == ["--version"] else usage()) + "\n")
        return 0
    if argv[0] not in COMMANDS:
        sys.stderr.write(f"relevance: expected a command of {', '.join(COMMANDS)}; found {argv[0]!r}\n")
        return 2
    module, extra, _ = COMMANDS[argv[0]]
    os.environ.setdefault(_TELEMETRY, "1")
    try:
        stage = import_module(module)
    except ModuleNotFoundError as error:
        ours = (error.name or "").split(".")[0] in {"relevance", "service", "training", "export"}
        if ours:
            raise
        sys.stderr.write(
            f"relevance {argv[0]}: the package {error.name!r} is missing; pip install 'relevance-tiers[{extra}]'\n"
        )
        return 2
    try:
        return int(stage.main(argv[1:]))
    except RelevanceError as error:
        sys.stderr.write(f"relevance {argv[0]}: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(main())

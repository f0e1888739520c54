"""A policy: the decoder that answers as the teacher, as one folder, with a record of what it was made from.

A LoRA adapter is loaded over the very base it was trained on, and never merged silently: rounding a merged adapter
changes its answers (peft issues 1043 and 2321), so what was evaluated would not be what annotates. Command
`merge_policy` merges when asked, and only if both give the same logits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from pydantic import BaseModel, ConfigDict, ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from relevance.errors import RecipeError, RunError
from training.model_source import resolve_model
from training.recipe import View
from training.runs import DONE, Run, hash_file

POLICY = "policy"
"""Sub-folder of a stage that holds its policy."""
RECORD = "policy.json"
SCRATCH = "scratch"
PRETRAIN_STAGE = "teacher_pretrain"
_ADAPTER = "adapter_config.json"
_ANSWERS_DEPEND_ON = ("tokenizer*.json", "chat_template*", "config.json", "generation_config.json", _ADAPTER)
"""Files beside the weights: how texts become tokens, what a prompt looks like, how the model is run."""
_LOCAL = "sha256:"
_HUB = "hub:"


class PolicyRecord(BaseModel):
    """What a fine-tuned policy was made from, and how it must be asked.

    Args: base: hub name, or path of a folder, relative to the policy's; base_hash: `sha256:` of a folder's weights, or
        `hub:` and the commit; revision: of the hub, None for a folder; prompt: fingerprint of the prompt book;
        reasoning_order, thinking: of the answers it learned; view: whose prompt it learned; quantized: base in 4 bits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: str
    base_hash: str
    revision: str | None
    prompt: str
    reasoning_order: Literal["think_first", "answer_first"]
    thinking: bool
    view: View
    quantized: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """A causal language model with its tokenizer.

    Args: name: stage or model with the hash of its weights, written beside every answer; record: None for a base model
        that nobody fine-tuned here.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    record: PolicyRecord | None = None


def load_policy(
    where: str | Path, *, revision: str | None = None, trainable: bool = False, fingerprint: str | None = None
) -> Policy:
    """Load a model folder, a hub model, or an adapter folder over its recorded base.

    Weights are bfloat16 on CUDA and float32 on a CPU; all weights that are trained are float32. A trainable model stays
    on the CPU, because the trainer places it.

    Args: where: folder or hub name; revision: of the hub; trainable: adapter weights, or all without an adapter, take
        gradients; fingerprint: of the prompt book it will be asked with, None to skip the check.
    Raises: RunError: if there is no model, the base or the prompt book differs from the recorded one, or the tokenizer
        has no chat template.
    """
    folder = Path(where)
    record = read_record(folder) if folder.is_dir() else None
    if record is not None and fingerprint is not None and record.prompt != fingerprint:
        raise RunError(
            f"{folder}: expected the prompt book it was trained with ({record.prompt[:12]}), found another "
            f"({fingerprint[:12]}); train it again or set teacher.prompt back"
        )
    if (folder / _ADAPTER).is_file():
        return _load_adapter(folder, record, trainable)
    model = load_model(where, revision=revision, dtype=torch.float32 if trainable else None)
    model.requires_grad_(trainable)
    name = _named(folder) if folder.is_dir() else f"{where}@{_commit_of(model) or revision or 'unknown'}"
    return Policy(_placed(model, trainable), load_tokenizer(where, revision=revision), name, record)


def load_model(
    where: str | Path, *, revision: str | None = None, dtype: torch.dtype | None = None, quantized: bool = False
) -> PreTrainedModel:
    """Load a full model from a folder or the hub, on the CPU unless quantized.

    Args: dtype: of its weights, None for bfloat16 where there is CUDA and float32 elsewhere; quantized: to 4 bits.
    Raises: RunError: if there is none; RecipeError: if it is to be quantized and cannot be.
    """
    if dtype is None:
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    transformers_logging.disable_progress_bar()
    options: dict[str, Any] = {"quantization_config": quantization()} if quantized else {}
    try:
        return AutoModelForCausalLM.from_pretrained(str(where), revision=revision, dtype=dtype, **options)
    except (OSError, ValueError) as error:
        raise RunError(f"{where}: expected a folder or hub name of a causal language model: {error}") from error


def load_tokenizer(where: str | Path, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer with a chat template; one without a padding token pads with the end of text.

    Raises: RunError: if there is none, or it has no chat template.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(where), revision=revision)
    except (OSError, ValueError) as error:
        raise RunError(f"{where}: expected a tokenizer: {error}") from error
    if tokenizer.chat_template is None:
        raise RunError(f"{where}: expected an instruction-tuned model, found a tokenizer without chat template")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def quantization() -> object:
    """Give the 4-bit configuration of QLoRA (Dettmers et al., arXiv:2305.14314): NF4, twice quantized.

    Raises: RecipeError: without CUDA or the bitsandbytes package.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if not torch.cuda.is_available() or find_spec("bitsandbytes") is None:
        raise RecipeError("teacher.sft.qlora: expected CUDA and the bitsandbytes package, found them missing")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def save_policy(policy: Policy, folder: Path) -> None:
    """Save a policy so that `load_policy` gives it back: an adapter without its base, or a full model."""
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    if policy.record is not None:
        record_policy(folder, policy.record)


def record_policy(folder: Path, record: PolicyRecord) -> None:
    """Write the record beside weights that a trainer saved."""
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def read_record(folder: Path) -> PolicyRecord | None:
    """Read a policy's record, None for a base model.

    Raises: RunError: if it is not one.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        return PolicyRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise RunError(f"{path}: expected the record of a policy: {error}") from error


def base_identity(base: str | Path, model: PreTrainedModel, folder: Path) -> Mapping[str, str | None]:
    """Give `base`, `base_hash` and `revision` of a record.

    Args: base: folder or hub name that the model was loaded from; folder: of the policy that the record is written to.
    """
    if Path(base).is_dir():
        relative = os.path.relpath(Path(base).resolve(), folder.resolve())
        return {"base": relative, "base_hash": _LOCAL + weights_hash(Path(base)), "revision": None}
    commit = _commit_of(model)
    return {"base": str(base), "base_hash": _HUB + (commit or "unknown"), "revision": commit}


def rebased(record: PolicyRecord, old_folder: Path, new_folder: Path) -> PolicyRecord:
    """Give the record for a policy in another folder, trained on from the one in the old folder."""
    if not record.base_hash.startswith(_LOCAL):
        return record
    base = os.path.normpath(old_folder.resolve() / record.base)
    return record.model_copy(update={"base": os.path.relpath(base, new_folder.resolve())})


def weights_hash(folder: Path) -> str:
    """Give the SHA-256 over names and contents of a folder's safetensors files.

    Raises: RunError: if it holds none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(f"{folder}: expected *.safetensors, found none")
    lines = [f"{path.name} {_hash_once(path, path.stat().st_size, path.stat().st_mtime_ns)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


@lru_cache(maxsize=64)
def _hash_once(path: Path, size: int, changed_ns: int) -> str:
    """Hash a file once a process: a large base is loaded by several stages."""
    return hash_file(path)


def policy_identity(where: str | Path, revision: str | None = None) -> str:
    """Name what answers: a folder's policy by stage and hash of its files and its base, a hub model by revision.

    Raises: RunError: if the folder holds no weights.
    """
    folder = Path(where)
    if not folder.is_dir():
        return f"{where}@{revision}"
    record = read_record(folder)
    return _named(folder, "" if record is None or not (folder / _ADAPTER).is_file() else record.base_hash)


def base_policy_identity(run: Run) -> str:
    """Name the model that a run's teacher starts from.

    Raises: RunError: if it is made from scratch and stage `teacher_pretrain` has not finished.
    """
    return policy_identity(base_policy(run), run.recipe.teacher.revision)


def base_policy(run: Run) -> str | Path:
    """Give folder or hub name of the model that a run's teacher starts from.

    Raises: RunError: if it is made from scratch and stage `teacher_pretrain` has not finished.
    """
    base = run.recipe.teacher.base
    return run.require(PRETRAIN_STAGE) / POLICY if base == SCRATCH else resolve_model(base)


def final_policy(run: Run) -> Path:
    """Give the folder of a run's teacher: DPO's policy where its gate let it pass, else SFT's.

    Raises: RunError: if SFT has not finished, or DPO's policy was made from another SFT than the run's.
    """
    sft = run.require("sft")
    if run.finished("dpo"):
        path = run.folder("dpo") / "report.json"
        report = json.loads(path.read_text(encoding="utf-8"))
        if report["shipped"] == "dpo":
            fitted = json.loads((sft / DONE).read_text(encoding="utf-8"))["inputs"]
            if report.get("sft") != fitted:
                raise RunError(
                    f"{path}: expected DPO of the policy in {sft} ({fitted[:12]}), found another's "
                    f"({str(report.get('sft'))[:12]}): run dpo again"
                )
            return run.folder("dpo") / POLICY
    return sft / POLICY


def _load_adapter(folder: Path, record: PolicyRecord | None, trainable: bool) -> Policy:
    from peft import PeftModel

    if record is None:
        raise RunError(f"{folder}: expected {RECORD} beside {_ADAPTER}, which says which base the adapter belongs to")
    base: str | Path = record.base
    if record.base_hash.startswith(_LOCAL):
        base = Path(os.path.normpath(folder.resolve() / record.base))
        if not base.is_dir():
            raise RunError(f"{folder}: expected its base model at {base}, found no folder")
        found = _LOCAL + weights_hash(base)
        _check_base(folder, record, found)
    model = load_model(base, revision=record.revision, quantized=record.quantized)
    if record.base_hash.startswith(_HUB):
        _check_base(folder, record, _HUB + (_commit_of(model) or "unknown"))
    adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    return Policy(_placed(adapted, trainable), load_tokenizer(folder), _named(folder, record.base_hash), record)


def _check_base(folder: Path, record: PolicyRecord, found: str) -> None:
    if found != record.base_hash:
        raise RunError(
            f"{folder}: an adapter from another base model: expected {record.base} with {record.base_hash[:19]}…, "
            f"found {found[:19]}…"
        )


def _placed(model: PreTrainedModel, trainable: bool) -> PreTrainedModel:
    if trainable or getattr(model, "is_quantized", False):
        return model
    return model.to(PartialState().device).eval() if torch.cuda.is_available() else model.eval()


def _named(folder: Path, base_hash: str = "") -> str:
    """Name a policy by its stage and by all that makes its answers, not by where it lies."""
    stage = folder.resolve().parent.name if folder.name == POLICY else folder.name
    files = sorted(path for pattern in _ANSWERS_DEPEND_ON for path in folder.glob(pattern))
    parts = [weights_hash(folder), base_hash, *(f"{path.name} {hash_file(path)}" for path in files)]
    return f"{stage}@{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _commit_of(model: PreTrainedModel) -> str | None:
    commit: str | None = getattr(model.config, "_commit_hash", None)
    return commit

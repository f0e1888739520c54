"""What the tests of sft start from: invented pairs, a tiny base and kept samples."""

import json

import torch

from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.rationale_rows import Evidence
from training.recipe import load_recipe
from training.runs import DONE, Run
from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.policy import Policy, save_policy
from training.teacher.samples import Sample, sample_line
from training.teacher_recipe import DecoderRecipe

KINDS = ("lamp", "shirt", "kettle", "backpack", "drill", "pillow")
COLOURS = ("red", "blue", "green", "black")
DECODER = DecoderRecipe(vocabulary=420, width=32, layers=2, heads=4, kv_heads=2, context=512)
OVERRIDES = (
    "teacher.base=scratch",
    "teacher.prompt.version=compact",
    "teacher.prompt.shots=0",
    "teacher.sft.epochs=2",
    "teacher.sft.batch_size=8",
    "teacher.sft.device_batch_size=4",
    "teacher.sft.learning_rate=2e-2",
    "teacher.sft.max_tokens=256",
    "teacher.sft.save_steps=3",
    "teacher.sft.gradient_checkpointing=false",
)


def invented_pairs(n_queries):
    """Colour-and-kind queries, each with one item of the four classes."""
    pairs = []
    for i in range(26, 26 + n_queries):
        kind, other, colour = KINDS[i % 6], KINDS[(i + 2) % 6], COLOURS[(i // 6) % 4]
        titles = (f"{colour} {kind} by Norda", f"grey {kind}", f"case for {kind}", f"{colour} {other}")
        for label, title in zip("ESCI", titles, strict=True):
            pair = Pair(Query(f"{colour} {kind} {i}", f"q{i}", "us"), Item(title, f"q{i}{label}"))
            pairs.append(LabelledPair(pair, label, "invented"))
    return pairs


def sample_of(labelled, view, rationale):
    """Give a kept sample of a pair."""
    return Sample(
        pair_id=labelled.pair.pair_id,
        view=view,
        sample=0,
        text="as it came",
        label=labelled.label,
        rationale=rationale,
        evidence=(Evidence(dim="type", query_span="lamp", item_span="lamp", verdict="match"),),
        problems=(),
        prompt_tokens=None,
        completion_tokens=None,
        finish_reason="stop",
        generator="invented",
        error=None,
    )


def finish(folder):
    """Mark a stage as finished."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DONE).write_text(json.dumps({"inputs": ""}))


def make_earlier(root):
    """Finish the stages before sft: pairs, a base with random weights, kept samples of every pair and perspective."""
    for stage in ("data", "teacher_pretrain", "generate"):
        finish(root / stage)
    pairs = invented_pairs(14)
    write_labelled_pairs(root / "data" / "pairs.train.parquet", pairs)
    torch.manual_seed(0)
    texts = [f"{one.pair.query.text} {one.pair.item.title} label: {one.label}" for one in pairs]
    tokenizer = train_tokenizer(texts, DECODER)
    save_policy(Policy(make_decoder(DECODER, tokenizer), tokenizer, "base"), root / "teacher_pretrain" / "policy")
    lines = [
        sample_line(sample_of(one, view, f"the {view} side of {one.pair.item.title}"))
        for one in pairs
        for view in ("user", "struct", "rule")
    ]
    for name in ("kept.train.jsonl", "samples.train.jsonl"):
        (root / "generate" / name).write_text("".join(lines))
    return root


def start(earlier, path, *overrides):
    """Give a run that finds the earlier stages in a shared directory."""
    path.mkdir(parents=True, exist_ok=True)
    return Run(load_recipe("tiny", [*OVERRIDES, *overrides]), path, shared=earlier)


def report_of(path):
    """Read the stage's report."""
    return json.loads((path / "sft" / "report.json").read_text())

"""What tests of preferences and DPO share: answers, rows, tiny policies and a run whose earlier stages are finished."""

import shutil

import torch

from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.recipe import DataRecipe, Recipe
from training.runs import DONE, Run
from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.policy import Policy, PolicyRecord, base_identity, load_policy, record_policy, save_policy
from training.teacher.preference_rows import Preference
from training.teacher.prompts import PromptBook
from training.teacher.samples import Sample
from training.teacher_recipe import DecoderRecipe, DpoRecipe, PromptRecipe, SamplingRecipe, TeacherRecipe

PROMPT = PromptRecipe(version="compact", shots=0)
DECODER = DecoderRecipe(vocabulary=330, width=16, layers=1, heads=2, kv_heads=1, context=256)
FIT = DpoRecipe(
    epochs=5,
    batch_size=4,
    device_batch_size=4,
    learning_rate=1e-2,
    warmup_fraction=0.0,
    schedule="constant",
    max_tokens=256,
    gradient_checkpointing=False,
    save_steps=3,
    gate_pairs=12,
)
SAMPLING = SamplingRecipe(max_new_tokens=4, batch_size=8)


def preferences(count=16):
    """Give invented rows: a right answer that names the kettle, a wrong one that names a pan."""
    book = PromptBook.load(PROMPT, ESCI)
    rows = []
    for number in range(count):
        pair = Pair(Query(f"kettle {number}", f"q{number}", "us"), Item(f"Red kettle {number}", str(number)))
        rows.append(
            Preference(
                pair_id=pair.pair_id,
                label="E",
                view="unified",
                prompt=tuple(book.messages(pair, "unified")),
                chosen=f"the kettle {number} is red\nlabel: E",
                rejected=f"a pan {number} was meant\nlabel: S",
                chosen_label="E",
                rejected_label="S",
                chosen_view="user",
                rejected_view="rule",
                chosen_tokens=6,
                rejected_tokens=6,
                chosen_score=1.0,
                rejected_score=0.0,
            )
        )
    return rows


def sample(view, number, label, rationale, pair_id="q\t1", **changes):
    """Give one answer about a pair."""
    fields = {
        "pair_id": pair_id,
        "view": view,
        "sample": number,
        "text": "",
        "label": label,
        "rationale": rationale,
        "evidence": (),
        "problems": (),
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "finish_reason": "stop",
        "generator": "hand",
        "error": None,
    }
    return Sample(**fields | changes)


def save_policies(root):
    """Save a base model, an adapter over it whose weights are not zero, and a full policy; give their folder."""
    from peft import LoraConfig, get_peft_model

    texts = [text for row in preferences() for text in (row.prompt[-1]["content"], row.chosen, row.rejected)]
    tokenizer = train_tokenizer(texts, DECODER)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make_decoder(DECODER, tokenizer)
        save_policy(Policy(model, tokenizer, "base"), root / "base")
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        adapter = get_peft_model(load_policy(root / "base").model, lora)
        save_policy(Policy(adapter, tokenizer, "sft"), root / "adapter")
        full = make_decoder(DECODER, tokenizer)
        save_policy(Policy(full, tokenizer, "sft"), root / "full")
    for name in ("adapter", "full"):
        record = PolicyRecord(
            **base_identity(root / "base", model, root / name),
            prompt=PromptBook.load(PROMPT, ESCI).fingerprint,
            reasoning_order="think_first",
            thinking=False,
            view="unified",
        )
        record_policy(root / name, record)
    return root


def labelled_pairs(queries, items=4):
    """Give labelled pairs, `items` a query."""
    return [
        LabelledPair(
            Pair(Query(f"kettle {q}", f"d{q}", "us"), Item(f"Kettle {q} {i}", f"{q}-{i}")), ESCI.classes[i % 4]
        )
        for q in range(queries)
        for i in range(items)
    ]


def stage_run(path, **dpo):
    """Give a run of the smallest recipe that the stage takes."""
    teacher = TeacherRecipe(
        base="scratch", prompt=PROMPT, sampling=SAMPLING, dpo=FIT.model_copy(update={"epochs": 1} | dpo)
    )
    return Run(Recipe(name="t", data=DataRecipe(source="pairs", path="x"), teacher=teacher), path)


def finished_run(tmp_path, policies, rows, **dpo):
    """Give a run whose earlier stages are finished: pairs, an SFT policy and preferences."""
    for stage in ("data", "sft", "preferences"):
        (tmp_path / stage).mkdir(parents=True)
        (tmp_path / stage / DONE).write_text('{"inputs": "by hand"}')
    write_labelled_pairs(tmp_path / "data" / "pairs.dev.parquet", labelled_pairs(5))
    shutil.copytree(policies / "full", tmp_path / "sft" / "policy")
    lines = [row.model_dump_json() + "\n" for row in rows]
    (tmp_path / "preferences" / "preferences.jsonl").write_text("".join(lines))
    return stage_run(tmp_path, **dpo)

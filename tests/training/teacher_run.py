"""Runs with a small teacher that always gives one answer, for tests."""

from constant_policy import save_constant_policy

from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs, write_labelled_pairs
from training.recipe import Recipe
from training.runs import DONE, Run

SPLIT_SIZES = {"train": 36, "dev": 6, "cal": 6, "test": 6}
WORDS = "the item fits what was asked for"


def make_run(path, labelled=(), **teacher):
    """Give a run with a small local teacher and a finished data stage."""
    rest = list(labelled)
    (path / "data").mkdir(parents=True, exist_ok=True)
    for split, size in SPLIT_SIZES.items() if rest else ():
        write_labelled_pairs(path / "data" / f"pairs.{split}.parquet", rest[:size])
        (path / "data" / DONE).write_text('{"inputs": ""}')
        rest = rest[size:]
    sampling = {"max_new_tokens": 40, "batch_size": 8}
    section = {"base": "scratch", "prompt": {"version": "compact"}, "sampling": sampling, **teacher}
    recipe = {
        "name": "t",
        "data": {"source": "pairs", "path": "unused.jsonl", "on_bad_row": teacher.pop("on_bad_row", "fail")},
        "rationales": {"generator": "teacher", "splits": ["train", "dev"]},
        "annotate": {"teacher": "policy"},
        "teacher": {name: value for name, value in section.items() if name != "on_bad_row"},
    }
    return Run(Recipe.model_validate(recipe), path)


def give_policy(run, text, *, steps=40):
    """Put a policy that always answers `text` where the run's SFT stage would."""
    pairs = [one.pair for one in read_labelled_pairs(run.require("data") / "pairs.train.parquet", ESCI)]
    folder = run.path / "sft"
    save_constant_policy(folder / "policy", run, pairs[:8], text, steps=steps)
    (folder / DONE).write_text('{"inputs": ""}')

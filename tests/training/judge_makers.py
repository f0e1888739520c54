"""Recipes, runs and answers of the judge's tests."""

import numpy as np
from fake_teacher import FakeTeacher, answer

from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.recipe import Recipe
from training.runs import DONE, Run

CODES = "ESCI"


def make_recipe(**teacher):
    """Give a recipe whose teacher is a scratch policy asked under three perspectives."""
    section = {
        "base": "scratch",
        "lora": None,
        "prompt": {"version": "v1", "shots": 0},
        "judge": {"pairs": 30, "samples": 3, "choice_pairs": 12, "faithfulness_pairs": 10},
        "sampling": {"max_new_tokens": 24, "batch_size": 8, "prompt_price": 1.0, "completion_price": 4.0},
        **teacher,
    }
    return Recipe.model_validate(
        {
            "name": "made-up",
            "data": {"source": "pairs", "path": "none.jsonl"},
            "evaluate": {"draws": 50},
            "teacher": section,
        }
    )


def make_run(folder, tiny_pairs, **teacher):
    """Give a run whose data stage has finished: English pairs, with one from an Exact-only source in each split."""
    data = folder / "data"
    data.mkdir(parents=True)
    (data / DONE).write_text('{"inputs": "", "seconds": 1.0}')
    english = [one for one in tiny_pairs if one.pair.query.locale == "us"]
    only = LabelledPair(Pair(Query("lamp", "only"), Item("desk lamp", "only")), "E", "clicks", exact_only=True)
    for number, split in enumerate(("train", "dev", "cal", "test")):
        own = [one for one in english if int(one.pair.query.id.split("-")[1]) % 4 == number]
        write_labelled_pairs(data / f"pairs.{split}.parquet", [only, *own])
    return Run(make_recipe(**teacher), folder)


def text_of_pairs(labelled):
    """Give answers: `user` is always right, `struct` at every second sample, `rule` never; one pair is garbage."""
    labels = {one.pair.pair_id: one for one in labelled}
    garbage = labelled[0].pair.pair_id

    def text_of(pair_id, view, sample):
        """Give the answer to one prompt; a swapped pair is answered as it was before."""
        one = labels[pair_id.removesuffix("#swapped")]
        wrong = CODES[(CODES.index(one.label) + 1) % 4]
        right = view in ("user", "unified") or (view == "struct" and sample % 2 == 0)
        if pair_id == garbage and view == "unified":
            return "I would rather not."
        said = f"the title says {one.pair.item.title} in {one.pair.item.brand}"
        rows = [{"dim": "type", "query_span": one.pair.query.text, "item_span": "gold", "verdict": "match"}]
        return answer(one.label if right else wrong, said, rows)

    return text_of


class ScoringTeacher(FakeTeacher):
    """A teacher whose labels can be forced: S, whatever it has said so far."""

    def label_probabilities(self, messages, prefixes, labels):
        """Give 0.7 to S."""
        return np.tile(np.where(np.array(labels) == "S", 0.7, 0.1), (len(prefixes), 1))

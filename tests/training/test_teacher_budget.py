"""The budget of a comparison of teachers, worked out by hand."""

import pytest

from training.grid.teacher_budget import budget_lines, budget_of, train_pairs
from training.grid.teacher_systems import TEACHERS, teachers_of
from training.recipe import load_recipe

OVERRIDES = [
    "data.marketplace.queries={train=100, dev=10, cal=10, test=10}",
    "teacher.generate.max_pairs=900",
    "teacher.generate.samples=2",
    "teacher.sampling.max_new_tokens=100",
    "teacher.sft.epochs=1.5",
    "teacher.sft.max_tokens=200",
    "teacher.preferences.asked_pairs=300",
    "teacher.preferences.samples=4",
    "teacher.dpo.gate_pairs=50",
    "teacher.judge={pairs=400, draw_pairs=40, samples=3, choice_pairs=30, faithfulness_pairs=20}",
]


@pytest.mark.parametrize(
    ("name", "rows", "answers_a_pair", "judge"),
    [
        ("mpcot", 3, 12, 400 + 40 * 3 * 3 + 30 * 3 + 20),
        ("single_rule", 1, 4, 400 + 40 * 3 + 20),
        ("same_size_rule", 1, 12, 400 + 40 * 3 + 20),
        ("equal_tokens_rule", 3, 12, 400 + 40 * 3 + 20),
    ],
)
def test_a_teacher_s_bounds_follow_from_the_recipe(name, rows, answers_a_pair, judge):
    """900 rows a perspective of at most 200 tokens, 1.5 times; both policies answer 50 gate pairs and are judged."""
    found = budget_of(load_recipe("teacher-small", OVERRIDES), TEACHERS[name])

    assert found.sft_tokens == 900 * rows * 1.5 * 200
    assert found.preferences == 300 * answers_a_pair
    assert (found.gate, found.judge) == (100, 2 * judge)
    assert found.answers == found.preferences + found.gate + found.judge


def test_the_lines_add_up():
    """Pre-training, generate once, each teacher times its seeds, and all together."""
    recipe = load_recipe("teacher-small", OVERRIDES)
    chosen = teachers_of(recipe, ("mpcot", "single_rule"))
    lines = budget_lines(recipe, chosen, 3)
    each = [3 * (budget_of(recipe, system).answers or 0) for system in chosen]

    assert lines[0] == f"teacher_pretrain reads {9000 * 12 * 256:,} tokens"
    assert lines[1] == "generate asks for 5,400 answers, once for all teachers"
    assert [line.partition(":")[0] for line in lines[2:4]] == ["mpcot", "single_rule"]
    assert lines[2].endswith(f"times 3 seeds {each[0]:,} answers")
    total = 5400 + sum(each)
    assert lines[-1] == f"in all {total:,} answers, {100 * total:,} tokens written"


def test_what_only_the_data_tell_is_said_to_be_so():
    """Without a cap on pairs, of a source that is no synthetic world."""
    recipe = load_recipe("teacher-small", [*OVERRIDES, "data.source=pairs", "data.path=x", "teacher.judge.pairs=null"])
    found = budget_of(recipe, TEACHERS["mpcot"])

    assert (train_pairs(recipe), found.judge, found.answers) == (None, None, None)
    assert budget_lines(recipe, [TEACHERS["mpcot"]], 1)[-1].startswith("in all as many as the data ask for answers")

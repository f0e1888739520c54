"""ProgressiveCoT's curriculum: three phases of the same samples, MPCoT's tokens, a fitting wrong decision."""

import json
from dataclasses import replace

import pytest

from relevance.errors import RecipeError
from relevance.labels import ESCI, WANDS
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.recipe import DataRecipe, Recipe
from training.runs import DONE, Run
from training.teacher.curriculum import EXPLAIN, REASON, REFLECT, WrongDecisions, make_curriculum, phases
from training.teacher.prompts import PromptBook
from training.teacher.responses import parse_response
from training.teacher.samples import Sample, sample_line
from training.teacher_recipe import DecoderRecipe, PromptRecipe, TeacherRecipe

PROMPT = PromptRecipe(version="compact", shots=0)
VIEWS = ("user", "struct", "rule")
PAIRS = [
    LabelledPair(Pair(Query(f"kettle {n}", f"q{n}", "us"), Item(f"Red kettle {n}", str(n))), ESCI.classes[n % 4])
    for n in range(12)
]


def sample(labelled, view, label, number=0, words="the kettle is of the kind that was asked for"):
    """Give one answer about a pair."""
    return Sample(
        pair_id=labelled.pair.pair_id,
        view=view,
        sample=number,
        text="",
        label=label,
        rationale=f"{words} by {view}",
        evidence=(),
        problems=(),
        prompt_tokens=10,
        completion_tokens=5,
        finish_reason="stop",
        generator="hand",
        error=None,
    )


KEPT = [(one, sample(one, view, one.label)) for one in PAIRS for view in VIEWS]
"""MPCoT's samples: every perspective gave a right answer of every pair."""


def words_of(rows):
    """Count words where SFT counts tokens."""
    return [len(f"{' '.join(m['content'] for m in row.prompt)} {row.completion}".split()) for row in rows]


def decisions(samples=()):
    """Give wrong decisions from samples of PAIRS."""
    return WrongDecisions({one.pair.pair_id: one.label for one in PAIRS}, samples, ESCI)


@pytest.fixture(scope="module")
def book():
    """The compact prompts."""
    return PromptBook.load(PROMPT, ESCI)


def test_each_phase_asks_its_own_question_and_answers_with_the_right_label(book):
    """EE-CoT tells the label, RA-CoT is the rules' prompt, DR-CoT tells a wrong one that the answer takes back."""
    made = make_curriculum(KEPT, decisions(), book, words_of, seed=0)
    assert [phase.name for phase in made.phases] == [EXPLAIN, REASON, REFLECT]
    pair_of = {one.pair.pair_id: one for one in PAIRS}
    for phase in made.phases:
        assert phase.rows
        for row in phase.rows:
            one = pair_of[row.pair_id]
            parsed = parse_response(row.completion, ESCI)
            assert (parsed.label, parsed.problems) == (one.label, ())
            prompts = {
                EXPLAIN: book.explain(one.pair, one.label),
                REASON: book.messages(one.pair, "rule"),
                REFLECT: book.reflect(one.pair, decisions().of(one)),
            }
            assert list(row.prompt) == prompts[phase.name]
            assert parsed.rationale.startswith("The decision ") == (phase.name == REFLECT)
    reasons = {parse_response(row.completion, ESCI).rationale for row in made.phases[1].rows}
    assert all(reason.endswith("by rule") for reason in reasons)


def test_the_phases_together_have_no_more_tokens_than_mpcot_and_hardly_fewer(book):
    """The budget is MPCoT's own rows; each phase may fall short of its share by less than one row."""
    made = make_curriculum(KEPT, decisions(), book, words_of, seed=0)
    rows = [row for phase in made.phases for row in phase.rows]
    unified = [
        sum(len(m["content"].split()) for m in book.messages(one.pair, "unified"))
        + len(f"{s.rationale}\nlabel: {one.label}".split())
        for one, s in KEPT
    ]
    assert made.budget == sum(unified)
    assert sum(made.tokens.values()) == sum(words_of(rows)) <= made.budget
    longest = max(words_of(rows))
    assert sum(made.tokens.values()) > made.budget - 3 * longest
    assert max(made.tokens.values()) - min(made.tokens.values()) <= longest


def test_a_phase_with_little_to_learn_leaves_its_share_to_the_others(book):
    """Two rationales of the rules: RA-CoT has two rows, and the other phases fill the budget."""
    kept = [(one, s) for one, s in KEPT if s.view != "rule" or one.pair.query.id in ("q0", "q1")]
    made = make_curriculum(kept, decisions(), book, words_of, seed=0)
    assert len(made.phases[1].rows) == 2
    assert made.tokens[EXPLAIN] > made.budget / 3
    assert made.tokens[REFLECT] > made.budget / 3


def test_the_same_seed_cuts_the_same_rows(book):
    """And another seed cuts others."""
    first, again, other = (make_curriculum(KEPT, decisions(), book, words_of, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.phases != other.phases


def test_the_wrong_decision_is_the_pairs_own_first_wrong_answer():
    """Pair 0 (E) was once taken for C, whatever E is mostly taken for."""
    samples = [
        sample(PAIRS[0], "user", "E"),
        sample(PAIRS[0], "rule", "C"),
        sample(PAIRS[0], "rule", "S", number=1),
        *[sample(PAIRS[4], "user", "I", number=n) for n in range(5)],
    ]
    assert decisions(samples).of(PAIRS[0]) == "C"


def test_a_pair_never_judged_wrongly_shows_what_its_class_is_taken_for():
    """E is taken for I twice and for S once; of a class never confused the one beside it is shown."""
    samples = [sample(PAIRS[4], "user", label, number=n) for n, label in enumerate(("I", "S", "I", None, "E"))]
    found = decisions(samples)
    assert found.of(PAIRS[0]) == "I"
    assert [found.of(PAIRS[n]) for n in (1, 2, 3)] == ["C", "I", "C"]
    no_one_knows = WrongDecisions({}, [sample(PAIRS[0], "user", "C")], ESCI)
    assert no_one_knows.of(PAIRS[0]) == "S"


def test_the_last_class_of_any_scheme_has_a_class_beside_it():
    """Irrelevant of WANDS is shown Partial."""
    none = WrongDecisions({}, [], WANDS)
    assert [none.of(replace(PAIRS[0], label=label)) for label in WANDS.classes] == ["Partial", "Irrelevant", "Partial"]


def test_a_run_gives_its_phases_and_notes_both_budgets(tmp_path):
    """From the files of stage `generate`: kept samples make rows, all samples the wrong decisions."""
    from training.teacher.decoder import train_tokenizer

    teacher = TeacherRecipe(base="scratch", method="progressive", prompt=PROMPT)
    run = Run(Recipe(name="t", data=DataRecipe(source="pairs", path="x"), teacher=teacher), tmp_path)
    for stage in ("data", "generate"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / DONE).write_text('{"inputs": "by hand"}')
    write_labelled_pairs(tmp_path / "data" / "pairs.train.parquet", PAIRS)
    kept = [s for _, s in KEPT]
    (tmp_path / "generate" / "kept.train.jsonl").write_text("".join(map(sample_line, kept)))
    every = [*kept, *(sample(one, "user", "I" if one.label != "I" else "E", number=1) for one in PAIRS)]
    (tmp_path / "generate" / "samples.train.jsonl").write_text("".join(map(sample_line, every)))
    tokenizer = train_tokenizer([s.rationale for s in kept], DecoderRecipe(vocabulary=300))
    made = phases(run, tokenizer)
    assert [phase.name for phase in made] == [EXPLAIN, REASON, REFLECT]
    label_of = {one.pair.pair_id: one.label for one in PAIRS}
    for row in made[2].rows:
        assert f"The decision {'E' if label_of[row.pair_id] == 'I' else 'I'} does not hold." in row.completion
    note = json.loads((tmp_path / "ledger.jsonl").read_text())
    assert 0 < sum(note["tokens"].values()) <= note["mpcot_tokens"]
    single = teacher.model_copy(update={"perspectives": ("user",)})
    with pytest.raises(RecipeError, match="expected 'rule'"):
        phases(replace(run, recipe=run.recipe.model_copy(update={"teacher": single})), tokenizer)

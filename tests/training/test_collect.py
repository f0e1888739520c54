"""Stage `generate`: what is kept, what is counted, and what is asked again when a rule of keeping changes."""

import json
from collections import Counter

import pytest
from fake_teacher import CODES, FakeTeacher, answer, drawn

from relevance.errors import InputError, RunError
from relevance.labels import ESCI
from relevance.pairs import write_labelled_pairs
from training.recipe import PERSPECTIVES, Recipe
from training.runs import DONE, Run
from training.teacher.collect import KEPT, REPORT, SAMPLES, generate
from training.teacher.keep import Keeper, kept_rows, variation, words
from training.teacher.parts import asked_pairs, split_parts
from training.teacher.samples import EMPTY_TITLE, Sample, read_samples
from training.teacher_recipe import GenerateRecipe, SamplingRecipe

PRICES = SamplingRecipe(prompt_price=2.0, completion_price=10.0)


def make_run(path, labelled, **teacher):
    """Give a run whose data stage has finished, with a teacher that needs no model of ours."""
    if not (path / "data" / DONE).is_file():
        (path / "data").mkdir(parents=True)
        write_labelled_pairs(path / "data" / "pairs.train.parquet", labelled)
        (path / "data" / DONE).write_text("{}")
    data = {"source": "pairs", "path": "unused.jsonl"}
    section = {"sampling": {"kind": "openai", "model": "fake"}, **teacher}
    return Run(Recipe.model_validate({"name": "t", "data": data, "teacher": section}), path)


def asking(teacher):
    """Give what hands the stage a fake teacher in place of its generator."""
    return lambda run, store: teacher


def sample_of(pair_id, view, number, label, rationale, **other):
    """Give a sample."""
    fields = {"text": "t", "evidence": (), "problems": (), "prompt_tokens": 100, "completion_tokens": 10}
    fields |= {"finish_reason": "stop", "generator": "g", "error": None, **other}
    return Sample(pair_id=pair_id, view=view, sample=number, label=label, rationale=rationale, **fields)


def keeper_of(label_of, **recipe):
    """Give a keeper."""
    return Keeper(GenerateRecipe(**recipe), ESCI, label_of)


def test_the_shortest_right_answer_of_each_pair_and_perspective_is_kept():
    """Wrong ones, unreadable ones and longer ones are not."""
    samples = [
        sample_of("a", "user", 0, "E", "a long rationale about the red shoe"),
        sample_of("a", "user", 1, "I", "short and wrong one"),
        sample_of("a", "user", 2, "E", "the red shoe"),
        sample_of("a", "user", 3, "E", "   "),
        sample_of("a", "rule", 0, None, "no label was named"),
        sample_of("b", "user", 0, "S", "another red shoe"),
    ]
    keeper = keeper_of({"a": "E", "b": "S"})
    kept = keeper.keep(samples)
    report = keeper.report(kept, PRICES)

    assert [(s.pair_id, s.sample) for s in kept] == [("a", 2), ("b", 0)]
    assert report["dropped"] == {"cut_off": 0, "short": 0, "long": 0, "duplicate": 0, "surplus": 1, "balance": 0}
    assert report["classes"]["user/E"] == {
        "pairs": 1,
        "answers": 4,
        "right": 2,
        "pairs_kept": 1,
        "kept": 1,
        "answer_accuracy": 0.5,
        "keep_rate": 1.0,
    }
    assert report["unreadable"] == 2
    assert report["labels_given"] == {"rule": {"none": 1}, "user": {"E": 3, "I": 1, "S": 1}}


def test_a_base_that_does_not_read_the_pair_is_told_of():
    """Under "rule" four of five are called Exact whatever they are; under "user" the class tells, though often wrong.

    κ by hand: "rule" agrees in 0.8 · 0.5 + 0.2 · 0.5 = 0.5 of the pairs, as chance does; "user" in 0.75, chance 0.5.
    """
    label_of = {f"{label}{n}": label for label in "EI" for n in range(100)}
    samples = []
    for pair_id, label in label_of.items():
        number = int(pair_id[1:])
        named = {"rule": "I" if number % 5 == 0 else "E", "user": label if number % 4 else "IE"["EI".index(label)]}
        samples += [sample_of(pair_id, view, 0, given, f"shoe {pair_id}") for view, given in named.items()]
        samples.append(sample_of(pair_id, "user", 1, label, f"a later answer about {pair_id}"))
    keeper = keeper_of(label_of)
    report = keeper.report(keeper.keep(samples), PRICES)

    assert report["first_answers"]["rule"] == {"answers": 200, "kappa": 0.0, "p": 1.0}
    assert (report["first_answers"]["user"]["answers"], report["first_answers"]["user"]["kappa"]) == (200, 0.5)
    assert report["first_answers"]["user"]["p"] < 1e-6
    assert report["warnings"] == [
        "the classes of 200 first answers from perspective rule have nothing to do with their pairs' (p = 1.0): such a "
        "base has not learned to compare query and item"
    ]


def test_cost_is_tokens_times_price():
    """(6 × 100 × 2 + 6 × 10 × 10) / 10⁶ dollars, and answers without counts are counted apart."""
    samples = [sample_of("a", "user", n, "E", "the red shoe", completion_tokens=10) for n in range(6)]
    samples.append(sample_of("a", "user", 6, "E", "the red shoe", completion_tokens=None, prompt_tokens=None))
    keeper = keeper_of({"a": "E"})
    report = keeper.report(keeper.keep(samples), PRICES)

    assert report["tokens"] == {"prompt": 600, "completion": 60, "answers_without_count": 1}
    assert report["cost"] == 0.0018


def test_what_was_not_asked_or_not_answered_is_counted_by_reason():
    """An empty title is no question, and a failed request no answer; neither lowers a rate of answers."""
    silence = {"text": "", "prompt_tokens": None, "completion_tokens": None, "finish_reason": None}
    samples = [
        sample_of("a", "user", 0, None, "", error=EMPTY_TITLE, **silence),
        sample_of("b", "user", 0, None, "", error="connection refused", **silence),
        sample_of("b", "user", 1, "E", "the red shoe"),
    ]
    keeper = keeper_of({"a": "E", "b": "E"})
    report = keeper.report(keeper.keep(samples), PRICES)

    assert (report["empty_titles"], report["asked"], report["answered"]) == (1, 2, 1)
    assert report["errors"] == {"connection refused": 1}
    assert tuple(report["classes"]["user/E"][name] for name in ("pairs", "answers", "answer_accuracy")) == (1, 1, 1.0)


def test_every_answer_is_drawn_where_resampling_is_off(tiny_pairs, tmp_path):
    """The paper's way: all samples of every pair and perspective."""
    teacher = FakeTeacher(drawn)
    generate(make_run(tmp_path, tiny_pairs, generate={"samples": 3, "resample": False}), make=asking(teacher))

    assert len(asked_pairs(make_run(tmp_path, tiny_pairs))) * 3 * 3 == len(teacher.asked)


def test_a_right_answer_that_was_cut_off_is_not_kept():
    """With its label first it is readable, but SFT would learn to stop amid a sentence."""
    samples = [
        sample_of("a", "user", 0, "E", "the shoe", finish_reason="length"),
        sample_of("a", "user", 1, "E", "another", problems=("cut_off",)),
        sample_of("a", "user", 2, "E", "the red shoe fits"),
    ]
    keeper = keeper_of({"a": "E"})

    assert [s.sample for s in keeper.keep(samples)] == [2]
    assert keeper.report([], PRICES)["dropped"]["cut_off"] == 2


def test_equal_texts_count_once_and_lengths_are_bounded():
    """Case and punctuation make no other text; Japanese is counted by characters."""
    samples = [
        sample_of("a", "user", 0, "E", "The red shoe."),
        sample_of("a", "user", 1, "E", "the RED shoe"),
        sample_of("a", "user", 2, "E", "the red shoe fits the query well"),
        sample_of("a", "user", 3, "E", "red"),
        sample_of("a", "user", 4, "E", " ".join(["shoe"] * 9)),
    ]
    keeper = keeper_of({"a": "E"}, kept_per_view=3, min_words=3, max_words=8)
    kept = keeper.keep(samples)

    assert [s.sample for s in kept] == [1, 2]
    assert keeper.report(kept, PRICES)["dropped"] == {
        "cut_off": 0,
        "short": 1,
        "long": 1,
        "duplicate": 1,
        "surplus": 0,
        "balance": 0,
    }
    assert words("赤いスニーカー") == 6


def test_classes_are_capped_view_by_view():
    """Of 12 E, 4 S and 2 I a view, balance 2 leaves 4, 4 and 2; a class that nothing was kept of sets no cap."""
    label_of = {f"{label}{n}": label for label, count in (("E", 12), ("S", 4), ("I", 2)) for n in range(count)}
    label_of["C0"] = "C"
    samples = [
        sample_of(pair_id, view, 0, "E" if label == "C" else label, f"the shoe of {pair_id}")
        for pair_id, label in label_of.items()
        for view in PERSPECTIVES
    ]
    keeper = keeper_of(label_of, balance=2)
    kept = keeper.keep(samples)
    report = keeper.report(kept, PRICES)

    assert report["class_balance"]["after"] == {"E": 12, "S": 12, "C": 0, "I": 6}
    for view in PERSPECTIVES:
        assert Counter(E=4, S=4, I=2) == Counter(label_of[s.pair_id] for s in kept if s.view == view)
    assert len({s.pair_id for s in kept}) == 10
    assert report["dropped"]["balance"] == 3 * 8
    assert report["warnings"] == [
        f"no rationale of class C was kept from perspective {view}, of 1 pairs" for view in ("rule", "struct", "user")
    ]


def test_variation_of_equal_counts_is_zero():
    """And √3 when one of four classes has all (standard deviation over mean)."""
    assert variation([5, 5, 5, 5]) == 0
    assert variation([8, 0, 0, 0]) == pytest.approx(3**0.5, abs=1e-4)
    assert variation([0, 0]) == 0


def test_every_answer_is_written_and_the_kept_ones_are_right(tiny_pairs, tmp_path):
    """The report's figures are those of the files, counted another way."""
    run = make_run(tmp_path, tiny_pairs, generate={"samples": 3, "min_words": 0})
    teacher = FakeTeacher(drawn)
    generate(run, make=asking(teacher))
    folder = tmp_path / "generate"
    samples, kept = list(read_samples(folder / SAMPLES)), list(read_samples(folder / KEPT))
    report = json.loads((folder / REPORT).read_text())
    label_of = {one.pair.pair_id: one.label for one in split_parts(run).fit}

    assert len(teacher.asked) == len(samples) == report["asked"] == report["answered"]
    assert set(label_of) == {s.pair_id for s in samples}
    assert all(s.label == label_of[s.pair_id] for s in kept)
    right = {(s.pair_id, s.view) for s in samples if s.readable and s.label == label_of[s.pair_id]}
    assert right == {(s.pair_id, s.view) for s in kept}
    assert len(kept) == len(right) == report["kept"]
    assert Counter(label_of.values()) == report["class_balance"]["before"]
    assert sum(not s.readable for s in samples) == report["unreadable"] > 0
    for view in PERSPECTIVES:
        for label in CODES:
            of_class = [p for p in label_of if label_of[p] == label]
            cell = report["classes"][f"{view}/{label}"]
            assert len(of_class) == cell["pairs"]
            assert sum((p, view) in right for p in of_class) == cell["pairs_kept"]
            assert cell["keep_rate"] == pytest.approx(cell["pairs_kept"] / cell["pairs"], abs=1e-4)


def test_another_rule_of_keeping_asks_nothing_again(tiny_pairs, tmp_path):
    """And another number of samples asks anew."""
    run = make_run(tmp_path, tiny_pairs, generate={"samples": 2})
    generate(run, make=asking(FakeTeacher(drawn)))
    balanced = FakeTeacher(drawn)
    generate(make_run(tmp_path, tiny_pairs, generate={"samples": 2, "balance": 1.0}), make=asking(balanced))
    after = json.loads((tmp_path / "generate" / REPORT).read_text())["class_balance"]["after"]
    more = FakeTeacher(drawn)
    generate(make_run(tmp_path, tiny_pairs, generate={"samples": 3}), make=asking(more))

    assert balanced.asked == []
    assert len(set(after.values())) == 1
    assert len(more.asked) > 0


def test_a_class_that_nothing_is_kept_of_is_a_warning(tiny_pairs, tmp_path, caplog):
    """A teacher that always says Exact keeps no other class."""
    run = make_run(tmp_path, tiny_pairs, generate={"samples": 1})
    generate(run, make=asking(FakeTeacher(lambda *_: answer("E"))))
    warnings = json.loads((tmp_path / "generate" / REPORT).read_text())["warnings"]

    assert len(warnings) == 9 + 3, "three classes a perspective, and each perspective as a whole"
    assert set(warnings) <= {record.getMessage().removeprefix("generate: ") for record in caplog.records}


def test_what_is_asked_is_neither_reserved_nor_more_than_wanted(tiny_pairs, tmp_path):
    """Whole queries are drawn, up to `max_pairs`."""
    whole = asked_pairs(make_run(tmp_path, tiny_pairs))
    some = asked_pairs(make_run(tmp_path, tiny_pairs, generate={"max_pairs": 50}))

    assert list(split_parts(make_run(tmp_path, tiny_pairs)).fit) == whole
    assert len(some) == 48
    assert {6} == set(Counter(one.pair.query.id for one in some).values())
    assert some == [one for one in whole if one in some]


def test_one_asking_serves_every_fold_and_no_fold_learns_from_its_held_out_pairs(tiny_pairs, tmp_path):
    """With folds all pairs but the reserved ones are asked, and `kept_rows` leaves the fold's own out."""
    run = make_run(tmp_path, tiny_pairs, folds=2)
    generate(run, make=asking(FakeTeacher(drawn)))
    asked = {s.pair_id for s in read_samples(tmp_path / "generate" / SAMPLES)}
    kept = {s.pair_id for s in read_samples(tmp_path / "generate" / KEPT)}
    learned = []
    for fold in range(2):
        own = make_run(tmp_path, tiny_pairs, folds=2, fold=fold)
        parts = split_parts(own)
        rows = kept_rows(own)
        learned.append({sample.pair_id for _, sample in rows})
        assert not learned[-1] & {one.pair.pair_id for one in (*parts.held_out, *parts.reserved)}
        assert all(one.pair.pair_id == sample.pair_id for one, sample in rows)

    assert asked == {one.pair.pair_id for one in asked_pairs(run)}
    assert kept == learned[0] | learned[1]
    assert not learned[0] & learned[1]


def test_a_teacher_of_one_perspective_learns_from_that_one_alone(tiny_pairs, tmp_path):
    """Though all three were asked, once, for several teachers."""
    generate(make_run(tmp_path, tiny_pairs), make=asking(FakeTeacher(drawn)))
    rows = kept_rows(make_run(tmp_path, tiny_pairs, perspectives=["rule"]))

    assert {"rule"} == {sample.view for _, sample in rows}


def test_pairs_that_stand_twice_are_refused_and_so_is_an_empty_part(tiny_pairs, tmp_path):
    """Their answers could not be told apart; and with nothing to ask there is no teacher."""
    with pytest.raises(InputError, match=r"each once, found .* 2 times"):
        asked_pairs(make_run(tmp_path / "twice", [*tiny_pairs, *tiny_pairs]))
    with pytest.raises(InputError, match="found none that is not reserved"):
        asked_pairs(make_run(tmp_path / "none", []))
    with pytest.raises(RunError, match="expected a finished stage"):
        asked_pairs(Run(make_run(tmp_path / "none", []).recipe, tmp_path / "nothing"))

"""Stage `judge`: from the answers of a made-up teacher, and of a real tiny policy, to figures and a card."""

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_teacher import FakeTeacher, KilledError
from judge_makers import ScoringTeacher, make_run, text_of_pairs

from relevance.errors import InputError, RunError
from relevance.pairs import write_labelled_pairs
from training.runs import DONE
from training.teacher.judge import answer_pairs, drawn_pairs, judge_policy, judged_pairs, read_judged
from training.teacher.judge_measures import UNANSWERED, classes_named
from training.teacher.judge_report import report_of
from training.teacher.samples import read_samples
from training.teacher.teacher_card import teacher_card, weaknesses

GOLDEN = Path(__file__).parents[1] / "golden" / "teacher_card.md"


@pytest.fixture
def judged(tmp_path, tiny_pairs):
    """A run, the folder of a made-up teacher's answers, and the judged pairs."""
    run = make_run(tmp_path / "run", tiny_pairs)
    labelled = judged_pairs(run, "test", 30)
    every = [*judged_pairs(run, "dev", None), *judged_pairs(run, "test", None)]
    folder = tmp_path / "judge"
    folder.mkdir()
    order = [one for one in labelled if one.label == "C"]
    text_of = text_of_pairs([*order, *every])
    answer_pairs(run, folder, labelled, ScoringTeacher(text_of), FakeTeacher(text_of))
    return run, folder, labelled


def test_whole_queries_are_judged_and_exact_only_sources_are_not(tmp_path, tiny_pairs):
    """Queries are added until there are enough pairs; six candidates a query."""
    run = make_run(tmp_path, tiny_pairs)
    chosen = judged_pairs(run, "test", 13)

    assert len(chosen) == 18
    assert len({one.pair.query.id for one in chosen}) == 3
    assert not any(one.exact_only for one in judged_pairs(run, "test", None))
    write_labelled_pairs(tmp_path / "data" / "pairs.test.parquet", [replace(one, exact_only=True) for one in chosen])
    with pytest.raises(InputError, match="more than Exact-only sources"):
        judged_pairs(run, "test", 13)


def test_fewer_pairs_are_drawn_than_are_answered_greedily(tmp_path, tiny_pairs):
    """Two whole queries of five get three answers of each perspective; every figure of the greedy answers is of all."""
    run = make_run(tmp_path / "run", tiny_pairs, judge={"pairs": 30, "draw_pairs": 7, "samples": 3, "choice_pairs": 6})
    labelled = judged_pairs(run, "test", 30)
    text_of = text_of_pairs([*labelled, *judged_pairs(run, "dev", None)])
    answer_pairs(run, tmp_path, labelled, ScoringTeacher(text_of), FakeTeacher(text_of))
    report, predictions = report_of(run, read_judged(run, tmp_path, labelled), "unified")
    drawn = {one.pair_id for one in read_samples(tmp_path / "samples.jsonl")}
    of_query = Counter(one.pair.query.id for one in labelled if one.pair.pair_id in drawn)

    assert drawn == {one.pair.pair_id for one in drawn_pairs(run, labelled)} < set(predictions.pair_id)
    assert all(of_query[q] == sum(one.pair.query.id == q for one in labelled) for q in of_query)
    assert (report["perspectives"]["n_pairs"], report["perspectives"]["n_queries"]) == (12, 2)
    assert (report["pairs"]["n_pairs"], report["answers"]["greedy"]["answers"]) == (30, 30)
    assert report["answers"]["user"]["answers"] == 36
    assert report["perspectives"]["pass_at_k"]["user"][0]["value"] == 1.0
    assert "3 answers a perspective to 12 pairs of 2 queries." in teacher_card({**report, "policy": "shipped"})


def test_each_source_has_figures_of_its_own(judged):
    """A source whose pairs are all answered right, and one with the pair that cannot be read."""
    run, folder, labelled = judged
    unread = next(one.pair.query.id for one in labelled if one.label == "C")
    sourced = [replace(one, source="new" if one.pair.query.id == unread else "main") for one in labelled]
    report, _ = report_of(run, read_judged(run, folder, sourced), "unified")
    plain, _ = report_of(run, read_judged(run, folder, labelled), "unified")

    assert report["sources"]["main"]["accuracy"]["value"] == 1.0
    assert report["sources"]["new"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert report["sources"]["new"]["n_pairs"] == 6
    assert plain["sources"] == {}
    assert "| new | 6 | 1 | 0.833" in teacher_card({**report, "policy": "shipped"})


def test_the_report_says_what_the_made_up_teacher_does(judged):
    """One pair is unreadable and therefore wrong; the perspectives' curves are 1, rising and 0; S is always forced."""
    run, folder, labelled = judged
    report, predictions = report_of(run, read_judged(run, folder, labelled), "unified")
    n = len(labelled)

    assert report["figures"]["accuracy"]["value"] == pytest.approx(1 - 1 / n)
    assert report["figures"]["answered"]["value"] == pytest.approx(1 - 1 / n)
    assert report["figures"]["f1_E"]["value"] == 1.0
    assert report["pairs"]["n_queries"] == 5
    assert report["answers"]["greedy"]["without_label"] == 1
    assert sum(row[-1] for row in report["confusion"]) == 1
    curves = {name: [point["value"] for point in curve] for name, curve in report["perspectives"]["pass_at_k"].items()}
    assert curves["user"] == [1.0, 1.0, 1.0]
    assert curves["struct"] == pytest.approx([2 / 3, 1.0, 1.0])
    assert curves["rule"] == [0.0, 0.0, 0.0]
    oracle = report["perspectives"]["oracle"]
    assert (oracle["best"], oracle["chosen_on"]) == ("user", "12 dev pairs")
    assert oracle["difference"]["value"] == 0.0
    assert report["perspectives"]["agreement"]["user–rule"]["same"]["value"] == 0.0
    assert report["rationales"]["greedy"]["grounded"]["value"] == pytest.approx(0.5)
    exact = np.mean([one.label == "E" for one in labelled])
    assert report["rationales"]["user"]["consistent"]["value"] == pytest.approx(exact)
    early = report["faithfulness"]["early"]["cuts"]
    assert early["0"]["same"]["value"] == early["100"]["same"]["value"]
    assert report["faithfulness"]["swapped"]["not_asked_for"]["cites_old"]["value"] == 1.0
    assert report["probabilities"]["source"] == "label_tokens"
    assert report["probabilities"]["other_label"] == pytest.approx(
        np.mean([one.label != "S" for one in labelled if one.pair.pair_id in _named(predictions)])
    )


def _named(predictions):
    """Give the ids of the pairs whose predictions name a class."""
    return set(predictions.pair_id[classes_named(predictions) != UNANSWERED].tolist())


def test_predictions_say_nothing_of_an_unreadable_answer(judged):
    """Its logits are all the same, finite for every reader, and name no class; the others' are log-probabilities."""
    run, folder, labelled = judged
    _, predictions = report_of(run, read_judged(run, folder, labelled), "unified")
    unread = classes_named(predictions) == UNANSWERED

    assert unread.sum() == 1
    assert np.ptp(predictions.logits_NK[unread]) == 0.0
    np.testing.assert_allclose(np.exp(predictions.logits_NK[~unread][0]), [0.1, 0.7, 0.1, 0.1])


def test_without_forced_labels_predictions_name_the_answer_and_calibration_is_unknown(judged):
    """As from a server: early answering is said to be not run, and the reason given."""
    run, folder, labelled = judged
    answers = replace(read_judged(run, folder, labelled), forced=None)
    report, predictions = report_of(run, answers, "unified")
    named = classes_named(predictions)

    assert report["probabilities"] == {"source": "none", "n_pairs": 0, "other_label": None}
    assert report["figures"]["ece"]["value"] is None
    assert report["faithfulness"]["early"]["state"] == "not run"
    assert (named == predictions.label).sum() == len(labelled) - 1


def test_log_probabilities_that_a_server_told_become_probabilities(judged):
    """Classes it left out get none; ECE is known then."""
    run, folder, labelled = judged
    answers = read_judged(run, folder, labelled)
    told = tuple(
        one.model_copy(update={"label_logprobs": {one.label or "E": -0.1, "I": -3.0}}) for one in answers.greedy
    )
    report, predictions = report_of(run, replace(answers, forced=None, greedy=told), "unified")
    first = next(n for n, one in enumerate(labelled) if one.label == "E" and classes_named(predictions)[n] == 0)

    assert report["probabilities"]["source"] == "label_logprobs"
    expected = np.exp([-0.1, -3.0]) / np.exp([-0.1, -3.0]).sum()
    np.testing.assert_allclose(np.exp(predictions.logits_NK[first])[[0, 3]], expected)
    assert report["figures"]["ece"]["value"] is not None


def test_one_perspective_has_no_oracle(tmp_path, tiny_pairs):
    """It is asked under its own prompt and its pass@k stands alone; dev pairs are not asked."""
    run = make_run(tmp_path, tiny_pairs, perspectives=["rule"])
    labelled = judged_pairs(run, "test", 12)
    text_of = text_of_pairs(labelled)
    teacher = FakeTeacher(text_of)
    answer_pairs(run, tmp_path, labelled, teacher, teacher)
    report, _ = report_of(run, read_judged(run, tmp_path, labelled), "rule")

    assert {view for _, view, _ in teacher.asked} == {"rule"}
    assert report["figures"]["accuracy"]["value"] == 0.0
    assert report["perspectives"]["oracle"] == {"state": "not run", "because": "the teacher has one perspective"}
    assert not (tmp_path / "samples.dev.jsonl").exists()


def test_a_teacher_that_never_answers_has_a_report_and_a_card(tmp_path, tiny_pairs):
    """Every request failed: nothing is right, nothing can be tested, and that is said."""
    run = make_run(tmp_path, tiny_pairs)
    labelled = judged_pairs(run, "test", 12)
    silent = ScoringTeacher(lambda *_: None)
    answer_pairs(run, tmp_path, labelled, silent, silent)
    report, predictions = report_of(run, read_judged(run, tmp_path, labelled), "unified")

    assert report["answers"]["greedy"] == {
        "answers": 12,
        "errors": 12,
        "without_label": 12,
        "too_long": 0,
        "problems": {},
    }
    assert report["figures"]["macro_f1"]["value"] == report["figures"]["answered"]["value"] == 0.0
    assert not predictions.logits_NK.any()
    assert report["faithfulness"]["early"]["because"] == "no answer to test"
    card = teacher_card({"policy": "shipped", **report})
    assert "100.0% of the pairs got no readable label" in card
    assert "Swapped facts: not run, no answer to test." in card


def test_with_the_answer_first_early_answering_is_undefined(tmp_path, tiny_pairs):
    """The label's probabilities are those before any rationale; facts are swapped all the same."""
    prompt = {"version": "v1", "shots": 0, "reasoning_order": "answer_first"}
    run = make_run(tmp_path, tiny_pairs, prompt=prompt)
    labelled = judged_pairs(run, "test", 12)
    text_of = text_of_pairs([*labelled, *judged_pairs(run, "dev", 12)])
    answer_pairs(run, tmp_path, labelled, ScoringTeacher(text_of), FakeTeacher(text_of))
    report, _ = report_of(run, read_judged(run, tmp_path, labelled), "unified")

    assert "answer_first" in report["faithfulness"]["early"]["because"]
    assert report["probabilities"]["source"] == "label_tokens"
    assert report["faithfulness"]["swapped"]["not_asked_for"]["n_pairs"] > 0


def test_tokens_and_money_are_those_of_the_answers(judged):
    """100 tokens in at 1 and 10 out at 4 a million: 0.14 for 1,000 pairs; a server that does not count gives none."""
    run, folder, labelled = judged
    answers = read_judged(run, folder, labelled)
    own = report_of(run, answers, "unified")[0]["cost"]["per_1000_pairs"]
    silent = tuple(one.model_copy(update={"completion_tokens": None}) for one in answers.greedy)

    assert (own["prompt_tokens"], own["completion_tokens"], own["money"]) == (100_000, 10_000, pytest.approx(0.14))
    assert own["seconds"] > 0
    unknown = report_of(run, replace(answers, greedy=silent), "unified")[0]["cost"]["per_1000_pairs"]
    assert unknown["money"] is unknown["completion_tokens"] is None


def test_a_killed_judge_asks_only_what_is_missing(judged, tmp_path):
    """Killed after some answers, it goes on; the files are those of a judge that was never killed."""
    run, folder, labelled = judged
    again = tmp_path / "again"
    again.mkdir()
    every = [*judged_pairs(run, "dev", None), *judged_pairs(run, "test", None)]
    text_of = text_of_pairs([*[one for one in labelled if one.label == "C"], *every])
    with pytest.raises(KilledError):
        answer_pairs(run, again, labelled, ScoringTeacher(text_of), FakeTeacher(text_of, dies_after=20))
    second = ScoringTeacher(text_of)
    answer_pairs(run, again, labelled, second, FakeTeacher(text_of))

    assert all(pair_id.endswith("#swapped") for pair_id, _, _ in second.asked)
    for path in folder.glob("*.jsonl"):
        if path.name != "seconds.jsonl":
            assert path.read_bytes() == (again / path.name).read_bytes(), path.name


_DPO = {"last_steps": {"steps": 10, "rewards/accuracies": 0.625, "rewards/margins": 0.0312}}
_PHASE = {"rows": 400, "tokens_seen": 120000, "trained_parameters": 5000, "parameters": 9000}


def shipped_report(judged):
    """Give the made-up teacher's report as stage `judge` writes it, with made-up earlier stages."""
    run, folder, labelled = judged
    report, _ = report_of(run, read_judged(run, folder, labelled), "unified")
    report["cost"]["per_1000_pairs"]["seconds"], report["cost"]["judging"]["seconds"] = 12.5, 3.0
    report["data"] = "d" * 64
    report["stages"] = {
        "generate": {
            "seconds": 60.0,
            "report": {
                "answered": 900,
                "kept": 400,
                "tokens": {"prompt": 90000, "completion": 9000},
                "classes": {"rule/C": {"pairs": 40, "keep_rate": 0.1}, "user/E": {"pairs": 100, "keep_rate": 0.8}},
            },
        },
        "sft": {"seconds": 30.0, "report": {"phases": {"mpcot": _PHASE}}},
        "preferences": {"seconds": 5.0, "report": {"preferences": 90, "pairs": 120, "crossing": 0.6}},
        "dpo": {"seconds": 20.0, "report": {"shipped": "sft", "reason": "DPO did not win", "training": _DPO}},
    }
    return {"policy": "shipped", "commit": "0", **report}


def test_the_card_of_a_made_up_report_is_the_golden_one(judged):
    """UPDATE_GOLDEN=1 writes it anew."""
    card = teacher_card(shipped_report(judged))
    if os.environ.get("UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(card, encoding="utf-8")

    assert card == GOLDEN.read_text(encoding="utf-8")


def test_weaknesses_are_named_only_where_the_figures_say_so(judged):
    """A label that stands before any reasoning, a perspective too many, facts that are not looked at."""
    report = shipped_report(judged)
    found = "\n".join(weaknesses(report))

    assert "got no readable label" in found
    assert "the label stays" not in found
    stubborn = {"label_changed": {"value": 0.25, "low": 0.1, "high": 0.4}}
    faithfulness = {**report["faithfulness"], "swapped": {"asked_for": {"n_pairs": 8, **stubborn}}}
    assert "the label stays in 75% of 8 pairs" in "\n".join(weaknesses({**report, "faithfulness": faithfulness}))
    assert "Its perspectives together are not told from" in found
    assert "Accuracy" not in found
    figures = report["figures"] | {"answered": {"value": 1.0, "low": 1.0, "high": 1.0}}
    assert "got no readable label" not in "\n".join(weaknesses({**report, "figures": figures}))


def test_a_policy_that_is_not_there_is_an_error(tmp_path, tiny_pairs):
    """SFT has not run; DPO has run and trained nothing."""
    run = make_run(tmp_path, tiny_pairs)
    with pytest.raises(RunError, match="relevance sft"):
        judge_policy(run)
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / DONE).write_text("{}")
    with pytest.raises(RunError, match=r"dpo/report.json says why"):
        judge_policy(run, "dpo")

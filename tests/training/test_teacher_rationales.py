"""What an LLM teacher writes for a student: rationales, labels and probabilities, and who saw which pair."""

import json
import math
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from constant_policy import save_constant_policy

from relevance.errors import RecipeError, RowError, RunError
from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs, write_labelled_pairs
from training.leakage import check_nearly_complete, check_rationales
from training.predictions import read_predictions
from training.rationale_rows import Rationale, read_rationales
from training.recipe import Recipe
from training.runs import DONE, Run
from training.soft_labels import FILE, read_soft_labels
from training.teacher.folds import annotators, fold_run
from training.teacher.parts import fold_of, split_parts
from training.teacher.policy import final_policy
from training.teacher.policy_annotate import LABELS, RATIONALES, REPORT, PolicyLabel, annotate_by_policy, conclude
from training.teacher.samples import Sample
from training.teacher.teacher_rationales import write_teacher_rationales

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


@pytest.fixture(scope="module")
def labelled(tiny_pairs):
    """Pairs of ten queries of each of two locales."""
    return tiny_pairs[:60]


@pytest.fixture(scope="module")
def taught(tmp_path_factory, labelled):
    """A run whose teacher calls everything Exact, with its rationales and its annotation."""
    run = make_run(tmp_path_factory.mktemp("taught"), labelled)
    give_policy(run, f"{WORDS}\nlabel: E")
    write_teacher_rationales(run)
    annotate_by_policy(run)
    return run


def pair_ids(run, split):
    """Give the ids of a split's pairs, in order."""
    return [one.pair.pair_id for one in read_labelled_pairs(run.path / "data" / f"pairs.{split}.parquet", ESCI)]


def test_each_pair_has_one_rationale_under_the_unified_prompt(taught):
    """With the label it concludes, the teacher's name, and the words it wrote; the leak check accepts it."""
    for split in ("train", "dev"):
        rows = list(read_rationales(taught.path / "rationales" / f"rationales.{split}.jsonl"))

        assert pair_ids(taught, split) == [row.pair_id for row in rows]
        assert {("unified", "E", WORDS)} == {(row.perspective, row.verdict, row.rationale) for row in rows}
        assert all(row.generator.startswith("local: sft@") for row in rows)
    assert check_rationales(taught)["train"]["rationales"] == SPLIT_SIZES["train"]


def test_a_rationale_says_whether_its_annotator_saw_the_pair(taught):
    """Without folds the training pairs were seen, those of other splits were not."""
    of_split = {
        split: list(read_rationales(taught.path / "rationales" / f"rationales.{split}.jsonl"))
        for split in ("train", "dev")
    }
    parts = split_parts(taught)

    assert {one.pair.pair_id for one in (*parts.fit, *parts.reserved)} == {
        row.pair_id for row in of_split["train"] if row.annotator_seen_pair
    }
    assert not any(row.annotator_seen_pair for row in of_split["dev"])


def test_the_report_counts_what_is_missing_and_what_is_right(taught):
    """Half of the labels are Exact, and so is every verdict."""
    report = json.loads((taught.path / "rationales" / "report.json").read_text())

    assert report["train"] == {
        "pairs": 36,
        "rationales": 36,
        "missing": 0,
        "verdict_accuracy": 0.5,
        "annotator_seen_pair": 36,
    }


def test_a_finished_stage_asks_nothing_and_another_policy_asks_anew(taught, tmp_path, labelled):
    """The teacher's weights are part of the inputs."""
    path = tmp_path / "run"
    shutil.copytree(taught.path, path)
    run = make_run(path)
    before = (path / "rationales" / "rationales.train.jsonl").stat().st_mtime_ns
    write_teacher_rationales(run)

    assert before == (path / "rationales" / "rationales.train.jsonl").stat().st_mtime_ns

    give_policy(run, f"{WORDS}\nlabel: S")
    write_teacher_rationales(run)

    assert {"S"} == {row.verdict for row in read_rationales(path / "rationales" / "rationales.train.jsonl")}


def test_a_teacher_that_babbles_writes_nothing_and_fails_the_check(tmp_path, labelled):
    """Its answers, first and second, are kept; every pair is counted as missing."""
    run = make_run(tmp_path, labelled, generate={"samples": 2})
    give_policy(run, "unused", steps=0)
    write_teacher_rationales(run)
    report = json.loads((tmp_path / "rationales" / "report.json").read_text())
    again = (tmp_path / "rationales" / "samples.train.all.again.jsonl").read_text()

    assert report["train"]["missing"] + report["train"]["rationales"] == 36
    assert report["train"]["missing"] > 18
    assert again.count("\n") >= report["train"]["missing"]
    with pytest.raises(RunError, match=r"expected rationales of all but 10% of 36 pairs"):
        check_rationales(run)


def test_a_run_without_a_teacher_says_which_stage_is_missing(tmp_path, labelled):
    """Before anything is written."""
    with pytest.raises(RunError, match="run `relevance sft`"):
        write_teacher_rationales(make_run(tmp_path, labelled))


def test_when_cross_fitting_each_pair_is_annotated_by_the_teacher_that_left_it_out(tmp_path, labelled):
    """Two teachers with an answer each: a pair's verdict tells which one wrote it, and nothing was seen."""
    run = make_run(tmp_path, labelled, folds=2)
    for fold, label in enumerate("SI"):
        give_policy(fold_run(run, fold), f"{WORDS}\nlabel: {label}")
    write_teacher_rationales(run)
    rows = list(read_rationales(tmp_path / "rationales" / "rationales.train.jsonl"))
    query_of = {one.pair.pair_id: one.pair.query.text for one in labelled}

    assert pair_ids(run, "train") == [row.pair_id for row in rows]
    assert ["SI"[fold_of(query_of[row.pair_id], 2)] for row in rows] == [row.verdict for row in rows]
    assert {"S", "I"} == {row.verdict for row in rows}
    assert not any(row.annotator_seen_pair for row in rows)
    assert {"S"} == {row.verdict for row in read_rationales(tmp_path / "rationales" / "rationales.dev.jsonl")}


def rationale_of(pair_id, view="unified"):
    """Give a rationale."""
    fields = {"evidence": (), "rationale": "r", "verdict": "E", "generator": "g", "annotator_seen_pair": False}
    return Rationale(pair_id=pair_id, perspective=view, **fields)


def test_one_pair_in_ten_may_be_missing_but_none_may_stand_twice():
    """Of ten pairs nine will do; eight, a pair twice, one of no pair, or of another view will not."""
    ids = [str(n) for n in range(10)]
    nine = [rationale_of(pair_id) for pair_id in ids[1:]]
    check_nearly_complete(nine, ids, "unified", where="r.jsonl")

    for wrong, message in (
        (nine[1:], "found none for 2"),
        ([*nine, nine[0]], "1 more than one"),
        ([*nine, rationale_of("x")], "1 for no pair"),
        ([*nine, rationale_of("0", "rule")], "1 missing"),
    ):
        with pytest.raises(RunError, match=message):
            check_nearly_complete(wrong, ids, "unified", where="r.jsonl")


def test_annotated_training_pairs_are_soft_labels_in_order(taught):
    """One row a pair; probabilities of the label's tokens sum to one and lead to the label the policy always gives."""
    folder = taught.path / "annotate"
    rows = [PolicyLabel.model_validate_json(line) for line in (folder / LABELS).read_text().splitlines()]
    soft = read_soft_labels(folder / FILE, 4)

    assert pair_ids(taught, "train") == [row.pair_id for row in rows] == [pair.pair_id for pair in soft.pairs]
    assert {("E", 1.0, WORDS)} == {(row.label, row.vote_share, row.rationale) for row in rows}
    np.testing.assert_allclose(soft.probabilities_NK.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(soft.probabilities_NK, [row.probabilities for row in rows], atol=1e-6)
    assert {0} == set(soft.probabilities_NK.argmax(axis=1).tolist())
    assert soft.features_NF.shape == (36, 0)
    assert len(list(read_rationales(folder / RATIONALES))) == 36
    (reading,) = (taught.path / "test_reads.jsonl").read_text().splitlines()
    assert json.loads(reading)["stage"] == "annotate"
    for split in ("dev", "cal", "test"):
        predictions = read_predictions(folder / f"predictions.{split}.parquet")
        assert pair_ids(taught, split) == predictions.pair_id.tolist()
        assert {0} == set(predictions.logits_NK.argmax(axis=1).tolist())


def test_a_log_without_labels_is_annotated_row_by_row(taught, tmp_path):
    """A repeated pair is asked once, a bad row is named or skipped as the recipe says, and the teacher saw none."""
    run_path = tmp_path / "run"
    shutil.copytree(taught.path, run_path)
    log = tmp_path / "log.jsonl"
    rows = [{"query": "steel lamp", "title": f"desk lamp {n}", "item_id": n} for n in (1, 2, 1)]
    rows.insert(1, {"query": "steel lamp", "title": " ", "item_id": 9})
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    label = {"pairs": str(log), "samples": 3, "probabilities": "votes"}
    with pytest.raises(RowError, match=r"log\.jsonl, row 2, column 'title'"):
        annotate_by_policy(make_run(run_path, label=label))
    annotate_by_policy(make_run(run_path, label=label, on_bad_row="skip"))
    folder = run_path / "annotate"
    found = [PolicyLabel.model_validate_json(line) for line in (folder / LABELS).read_text().splitlines()]
    report = json.loads((folder / REPORT).read_text())

    assert [row.pair_id for row in found] == ["steel lamp\t1", "steel lamp\t2"]
    assert (folder / "samples.all.jsonl").read_text().count("\n") == 6
    assert all(sum(row.probabilities) == pytest.approx(1) for row in found)
    assert not any(row.annotator_seen_pair for row in found)
    assert report["bad_rows"]["count"] == 1
    assert "row 2" in report["bad_rows"]["first"][0]


def sample_of(number, label, rationale="because"):
    """Give an answer about one pair."""
    fields = {"text": "t", "evidence": (), "prompt_tokens": 1, "completion_tokens": 1, "finish_reason": "stop"}
    problems = () if label else ("no_label",)
    fields |= {"pair_id": "q\ti", "view": "unified", "generator": "g", "error": None, "problems": problems}
    return Sample(sample=number, label=label, rationale=rationale, **fields)


def test_the_label_is_the_commonest_and_among_equals_the_more_probable():
    """Two E, two S and one unreadable: S by its probability; its share is 2/5, its rationale the shortest."""
    answers = [sample_of(0, "E"), sample_of(1, "S", "a longer one"), sample_of(2, "S", "short"), sample_of(3, "E")]
    answers.append(sample_of(4, None))
    row = conclude(answers, np.array([0.3, 0.6, 0.1, 0.0]), ESCI, seen=True)

    assert (row.label, row.vote_share, row.rationale, row.annotator_seen_pair) == ("S", 0.4, "short", True)
    assert row.problems == ("no_label",)
    assert conclude(answers[:2] + answers[3:], np.array([0.3, 0.6, 0.1, 0.0]), ESCI, seen=False).label == "E"


def test_a_pair_without_a_readable_answer_has_no_label():
    """And no probabilities, but a row."""
    row = conclude([sample_of(0, None), sample_of(1, "E", " ")], None, ESCI, seen=False)

    assert (row.label, row.probabilities, row.vote_share, row.rationale) == (None, None, 0.0, "")


class LogprobServer(BaseHTTPRequestHandler):
    """An OpenAI-compatible server that says S, with probability 0.6 beside 0.2 for E and 0.2 for I."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        """Answer, with log-probabilities token by token."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.models.add(asked["model"])
        silent = any(f"lamp {n}" in asked["messages"][-1]["content"] for n in self.server.silent)
        rivals = [{"token": name, "logprob": math.log(p)} for name, p in (("E", 0.2), ("S", 0.6), ("I", 0.2))]
        tokens = ['{"evidence": [], "rationale": "it is a lamp as wanted", "label": "', "S", '"}']
        content = [{"token": t, "logprob": -0.1, "top_logprobs": rivals if t == "S" else []} for t in tokens]
        message = {"role": "assistant", "content": "".join(tokens)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        choice |= {"logprobs": None if silent else {"content": content}}
        body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server():
    """A running server; `silent` are numbers of lamps about which it tells no log-probabilities."""
    with ThreadingHTTPServer(("127.0.0.1", 0), LogprobServer) as server:
        server.silent, server.models = (), set()
        server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def served_run(path, labelled, server, **sampling):
    """Give a run whose fine-tuned policy a server answers for, with a log of five pairs to annotate."""
    log = path / "log.jsonl"
    log.write_text("".join(json.dumps({"query": "lamp", "title": f"lamp {n}", "item_id": n}) + "\n" for n in range(5)))
    served = {"kind": "openai", "model": "m", "policy_model": "mine", "base_url": server.url, **sampling}
    run = make_run(path / "run", labelled, label={"pairs": str(log)}, sampling=served)
    give_policy(run, "unused", steps=0)
    return run


def test_a_server_annotates_with_the_probabilities_it_tells(tmp_path, labelled, server):
    """The softmax over the label names that its logprobs hold; a class that it does not name has none; where it tells
    nothing of one pair, that pair has the shares of its votes, which are counted."""
    server.silent = (3,)
    annotate_by_policy(served_run(tmp_path, labelled, server))
    folder = tmp_path / "run" / "annotate"
    soft = read_soft_labels(folder / FILE, 4)
    told = [0.2, 0.6, 0.0, 0.2]

    np.testing.assert_allclose(soft.probabilities_NK, [told, told, told, [0, 1, 0, 0], told], atol=1e-6)
    assert [row.verdict for row in read_rationales(folder / RATIONALES)] == ["S"] * 5
    assert json.loads((folder / REPORT).read_text())["probabilities"] == {"label_tokens": 4, "votes": 1}
    assert server.models == {"mine"}


def test_a_server_that_tells_no_probabilities_at_all_is_refused(tmp_path, labelled, server):
    """With the way to go on without them."""
    server.silent = range(5)
    with pytest.raises(RecipeError, match=r"logprobs, found none in the answers about 5 pairs; set it to 'votes'"):
        annotate_by_policy(served_run(tmp_path, labelled, server))


def test_a_policy_that_was_trained_again_under_the_same_name_is_asked_anew(tmp_path, labelled, server):
    """The finished stage is not taken for done, and none of the first policy's answers for the second's."""
    run = served_run(tmp_path, labelled, server)
    annotate_by_policy(run)
    first = (run.path / "annotate" / LABELS).read_text()
    give_policy(run, "unused", steps=1)
    annotate_by_policy(run)
    ledger = [json.loads(line) for line in (run.path / "ledger.jsonl").read_text().splitlines()]

    assert (run.path / "annotate" / LABELS).read_text() != first
    assert [(row["requests"], row["stored"]) for row in ledger if "requests" in row] == [(5, 0), (5, 0)]


@pytest.mark.parametrize(("name", "found"), [(None, "found none"), ("m", "found 'm', which is the base model's")])
def test_a_server_is_never_asked_for_the_base_in_place_of_the_policy(tmp_path, labelled, server, name, found):
    """Without a name of its own for the policy nothing is asked."""
    with pytest.raises(RecipeError, match=f"policy_model: expected the server's name.*{found}"):
        annotate_by_policy(served_run(tmp_path, labelled, server, policy_model=name))
    assert not server.models


def test_a_fold_takes_no_teacher_but_its_own(tmp_path, labelled):
    """The run beside the folds has a teacher, SFT's and DPO's, which saw the pairs that a fold leaves out."""
    run = make_run(tmp_path, labelled, folds=2)
    give_policy(run, "unused", steps=0)
    give_policy(fold_run(run, 0), "unused", steps=0)
    shutil.copytree(tmp_path / "sft", tmp_path / "dpo")
    (tmp_path / "dpo" / "report.json").write_text('{"shipped": "dpo", "sft": ""}')

    with pytest.raises(RunError, match=r"folds/1/sft: expected a finished stage"):
        annotators(run, "train")
    give_policy(fold_run(run, 1), "unused", steps=0)
    for fold, one in enumerate(annotators(run, "train")):
        parts = split_parts(one.run)
        assert final_policy(one.run) == tmp_path / "folds" / str(fold) / "sft" / "policy"
        assert one.seen == {own.pair.pair_id for own in (*parts.fit, *parts.reserved)}
        assert not one.seen & {pair.pair_id for pair in one.pairs}
        assert len(one.seen) + len(one.pairs) == SPLIT_SIZES["train"]


def test_a_server_must_tell_the_teachers_of_the_folds_apart(tmp_path, labelled, server):
    """One name for all of them is refused; with the fold in it, each is asked for its own pairs."""
    run = served_run(tmp_path, labelled, server)
    crossed = {"folds": 2, "sampling": run.recipe.teacher.sampling.model_dump() | {"policy_model": "half-{fold}"}}
    for policy_model in ("mine", "half-{fold}"):
        crossed["sampling"] |= {"policy_model": policy_model}
        run = make_run(run.path, **crossed)
        for fold in range(2):
            give_policy(fold_run(run, fold), "unused", steps=0)
        if policy_model == "mine":
            with pytest.raises(RecipeError, match=r"expected a name with \{fold\}"):
                annotators(run, "train")
    write_teacher_rationales(run)

    assert server.models == {"half-0", "half-1"}

"""A server that answers for a teacher: its probabilities, its identity, and a hosted model as it is."""

import json
import math
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from teacher_run import SPLIT_SIZES, give_policy, make_run

from relevance.errors import RecipeError, RunError
from training.rationale_rows import read_rationales
from training.soft_labels import FILE, read_soft_labels
from training.teacher.folds import annotators, fold_run
from training.teacher.parts import split_parts
from training.teacher.policy import final_policy
from training.teacher.policy_annotate import LABELS, RATIONALES, REPORT, PolicyLabel, annotate_by_policy
from training.teacher.teacher_rationales import write_teacher_rationales


@pytest.fixture(scope="module")
def labelled(tiny_pairs):
    """Pairs of ten queries of each of two locales."""
    return tiny_pairs[:60]


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


def test_a_finished_stage_is_kept_when_the_servers_name_for_the_policy_is_left_out(tmp_path, labelled, server):
    """The policy is told by its weights: without its name on the server nothing is asked, and nothing is emptied."""
    run = served_run(tmp_path, labelled, server)
    annotate_by_policy(run)
    first = (run.path / "annotate" / LABELS).read_text()
    server.models.clear()
    annotate_by_policy(served_run(tmp_path, labelled, server, policy_model=None))

    assert (run.path / "annotate" / LABELS).read_text() == first
    assert not server.models


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
        assert one.seen == {own.pair.pair_id for own in parts.fit}
        assert not one.seen & {pair.pair_id for pair in one.pairs}
        assert len(one.seen) + len(parts.reserved) + len(one.pairs) == SPLIT_SIZES["train"]


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


def test_a_hosted_model_that_was_never_fine_tuned_labels_a_log(tmp_path, labelled, server):
    """Asked under its own name, without any stage of a teacher; it has seen no pair with its label."""
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"query": "lamp", "title": f"lamp {n}", "item_id": n}) + "\n" for n in range(5)))
    sampling = {"kind": "openai", "model": "hosted", "base_url": server.url}
    teacher = {"base": "hosted/model", "annotated_by": "base", "label": {"pairs": str(log)}, "sampling": sampling}
    run = make_run(tmp_path / "run", labelled, **teacher)
    annotate_by_policy(run)
    lines = (run.path / "annotate" / LABELS).read_text().splitlines()
    rows = [PolicyLabel.model_validate_json(line) for line in lines]

    assert server.models == {"hosted"}
    assert [(row.label, row.annotator_seen_pair) for row in rows] == [("S", False)] * 5

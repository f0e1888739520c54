"""The comparison with other servers: its weights, its arithmetic, and a quick run against a CrossEncoder server."""

import json
import os
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.load import rerank_call
from benchmarks.peers.__main__ import main, on_cores
from benchmarks.peers.agreement import Agreement
from benchmarks.peers.arms import HERE, PEERS, Arm
from benchmarks.peers.summary import Found, figures_of
from benchmarks.peers.weights import SMALL, Weights, make_weights
from benchmarks.peers.workloads import QUICK, Arrivals, Measured, Rates, cleaned, texts_of, with_outliers


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder that holds the small weights, as `--quick` keeps them."""
    folder = tmp_path_factory.mktemp("peers")
    make_weights(folder / "weights-quick", SMALL)
    return folder


def arm(name: str) -> Arm:
    """Give a server that is not started."""
    here = HERE
    return Arm(name, Weights(here, here, here), here, here, cores=1)


def arrivals(*, p99_s: float, goodput: float) -> Arrivals:
    """Give what became of a hundred equal requests."""
    return Arrivals({2: np.full(100, p99_s)}, Counter({200: 100}), offered=100.0, goodput=goodput)


def rounds(mix_rate: float, *, p99_s: float, goodput: float) -> list[Measured]:
    """Give two equal rounds of one server."""
    block = arrivals(p99_s=p99_s, goodput=goodput)
    return [
        Measured(1.0, rss=10**6, single_s={50: [0.1]}, mix_rate=mix_rate, mix=block, outliers=block, overload=block)
        for _ in range(2)
    ]


def test_one_logit_and_two_logits_are_the_same_function_of_a_pair(work):
    """sigmoid(z) of the peers' model, tanh and all, is softmax([z, 0]) of ours; and it needs the token types."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from relevance.bundle import open_bundle
    from relevance.pairs import Item
    from service.session import OnnxSession

    weights = make_weights(work / "weights-quick", SMALL)
    ((query, titles),) = with_outliers(texts_of(None, QUICK, 0).mix[:1], seed=0)
    bundle = open_bundle(weights.bundle)
    session = OnnxSession(bundle, precision="fp32", provider="cpu", threads=1)
    items = bundle.tokenizer.encode_items([bundle.template.item_text(Item(title)) for title in titles])
    batch = bundle.tokenizer.collate([bundle.tokenizer.encode_query(query)] * len(items), items)
    ours = bundle.calibrator.probabilities(session.run(batch))[:, 0]

    model = AutoModelForSequenceClassification.from_pretrained(weights.model).eval()
    inputs = AutoTokenizer.from_pretrained(weights.model)(
        [query] * len(titles), titles, padding=True, truncation=True, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = torch.sigmoid(model(**inputs).logits)[:, 0].numpy()
        inputs["token_type_ids"] *= 0
        untyped = torch.sigmoid(model(**inputs).logits)[:, 0].numpy()

    assert model.config.num_labels == 1
    assert np.abs(ours - theirs).max() < 1e-4
    assert np.abs(ours - untyped).max() > 0.01


def test_a_quick_comparison_with_a_cross_encoder_server_finds_equal_scores_and_writes_report_and_table(
    work, tmp_path, capsys
):
    """Real servers, small weights; the CrossEncoder server runs in the project's own environment."""
    out = tmp_path / "peers.json"
    argv = ["--quick", "--work", str(work), "--out", str(out), "--arms", "cross_encoder", "bare"]

    assert main([*argv, "--python", "cross_encoder", sys.executable]) == 0

    figures = json.loads(out.read_text(encoding="utf-8"))["figures"]
    assert set(figures["servers"]) == {"ours_fp32", "cross_encoder"}
    peer = figures["servers"]["cross_encoder"]
    assert peer["scores"]["difference_from_ours_fp32"] < 1e-4
    assert peer["scores"]["difference_from_ours_without_token_types"] > 0.01
    assert set(peer["mix"]["answers"]) == {"200"}
    assert set(peer["one_request_ms"]) == {"1x50", "1x500", "1x3000"}
    assert 0 < figures["servers"]["ours_fp32"]["padding_ratio"]["mix"] < 1
    assert set(figures["bare_session_pairs_per_s"]) == {"mix", "outliers"}
    assert set(figures["targets"]) == {
        "mix_pairs_per_s_ours_fp32",
        "mix_p99_of_50_items",
        "overload_goodput",
        "repeated_queries_pairs_per_s",
    }
    shown = out.with_suffix(".md").read_text(encoding="utf-8")
    assert shown in capsys.readouterr().out
    assert "| mix, saturated, pairs/s |" in shown


def test_targets_are_held_against_the_peer_that_is_better_at_each_thing():
    """Ours does 120 pairs/s; one peer 100 with a p99 of 4 s, the other 60 with 1 s, and none brings any in time."""
    found = Found(
        {
            "ours_fp32": rounds(120.0, p99_s=0.4, goodput=90.0),
            "infinity_torch": rounds(100.0, p99_s=4.0, goodput=0.0),
            "cross_encoder": rounds(60.0, p99_s=1.0, goodput=0.0),
        },
        dict.fromkeys(("ours_fp32", "infinity_torch", "cross_encoder"), Agreement(0.0, 0.5)),
        {},
    )

    targets = figures_of(found, QUICK)["targets"]

    rate, latency, goodput = (
        targets[name] for name in ("mix_pairs_per_s_ours_fp32", "mix_p99_of_50_items", "overload_goodput")
    )
    assert (rate["better_peer"], rate["ours_over_better_peer"]["value"]) == ("infinity_torch", 1.2)
    assert (latency["better_peer"], latency["ours_over_better_peer"]["value"]) == ("cross_encoder", 0.4)
    assert goodput["ours_over_better_peer"]["value"] == 90.0 / (QUICK.size(50) / QUICK.overload_s)
    assert {t["ours_over_better_peer"]["verdict"] for t in (rate, latency, goodput)} == {"met"}


def test_a_server_that_takes_fewer_items_is_asked_in_several_calls():
    """3,000 items are 2,048 and 952 for Infinity, one call for the others; the deadline is told to ours alone."""
    titles = [f"kettle {number}" for number in range(3000)]

    assert [call.n_items for call in arm("infinity_torch").calls("kettle", titles)] == [2048, 952]
    assert [call.n_items for call in arm("cross_encoder").calls("kettle", titles)] == [3000]
    (held,) = arm("ours_fp32").calls("kettle", titles, deadline_s=2.0)
    (told,) = arm("ours_fp32").calls("kettle", titles, deadline_s=2.0, told=True)
    assert held.deadline_s == told.deadline_s == 2.0
    assert (b"deadline_ms" in held.payload, b"deadline_ms" in told.payload) == (False, True)


def test_the_scored_pairs_of_a_rerank_answer_are_its_results():
    """Two rows came for three documents."""
    call = rerank_call("kettle", ["one", "two", "three"])
    body = b'{"results":[{"index":1,"relevance_score":0.5},{"index":0,"relevance_score":0.25}]}'

    assert call.payload.startswith(b"POST /rerank HTTP/1.1\r\n")
    assert (call.n_items, call.scored(body)) == (3, 2)


def test_texts_are_the_same_for_every_server_and_other_ones_in_every_round():
    """Every second round has the largest requests instead of overload; one title in twenty is long."""
    first, again, second = (texts_of(None, replace(QUICK, alternate=True), number) for number in (0, 0, 1))

    assert first == again
    assert first.mix != second.mix
    assert (first.overloaded, second.overloaded) == (True, False)
    assert (set(first.single), set(second.single)) == ({50, 500}, {50, 500, 3000})
    assert cleaned(first.outliers) == first.outliers
    lengths = [len(title) for _, titles in first.outliers + second.outliers for title in titles]
    assert 0 < np.mean(np.array(lengths) > 500) < 0.2


def test_deadlines_are_four_times_the_idle_latency_of_the_size():
    """0.25 s alone: one second."""
    assert Rates(mix=1.0, outliers=1.0, idle_s={50: 0.25}).deadline_s(50) == 1.0


@pytest.mark.parametrize("name", PEERS)
def test_every_peer_has_an_environment_with_every_version_pinned(name):
    """And the same torch for all."""
    lines = (HERE / f"requirements-{name}.txt").read_text(encoding="utf-8").splitlines()

    assert all("==" in line for line in lines)
    assert "torch==2.13.0" in lines


def test_cores_are_given_back():
    """One core inside, what there was before outside."""
    before = os.sched_getaffinity(0)
    with on_cores(1) as cores:
        assert (cores, len(os.sched_getaffinity(0))) == (1, 1)

    assert os.sched_getaffinity(0) == before

"""The gate: which of two policies ships, by their greedy answers about whole queries of dev pairs."""

import dataclasses

import pytest
from preference_makers import finished_run, labelled_pairs, sample, save_policies

from relevance.errors import RunError
from relevance.pairs import write_labelled_pairs
from training.runs import hash_json
from training.teacher.gate import decide, gate_inputs, gate_pairs


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Tiny policies, whose answers the tests replace."""
    return save_policies(tmp_path_factory.mktemp("policies"))


def told(one, label):
    """Give a greedy answer about a pair; one without a label is longer."""
    return sample("unified", 0, label, "so it is", pair_id=one.pair.pair_id, completion_tokens=3 if label else 7)


@pytest.mark.parametrize(("margin", "shipped"), [(0.0, "dpo"), (0.49, "dpo"), (0.5, "sft"), (0.6, "sft")])
def test_dpo_is_shipped_only_if_it_wins_by_more_than_the_margin(policies, tmp_path, margin, shipped):
    """Answers on file: SFT reads half of the pairs (macro-F1 1/2: two classes right, two unanswered), DPO all."""
    run = finished_run(tmp_path, policies, [], gate_margin=margin, gate_pairs=20)
    folder = tmp_path / "dpo"
    folder.mkdir()
    pairs = labelled_pairs(5)
    answers = {
        "sft": [told(one, one.label if one.label in ("E", "S") else None) for one in pairs],
        "dpo": [told(one, one.label) for one in pairs],
    }
    asked = hash_json([gate_inputs(run), [one.pair.pair_id for one in pairs]])[:12]
    for name, own in answers.items():
        (folder / f"gate.{name}.{asked}.jsonl").write_text("".join(a.model_dump_json() + "\n" for a in own))
    decision = decide(run, folder, {"sft": policies / "full", "dpo": policies / "full"})
    assert decision["shipped"] == shipped
    assert (decision["gate"]["sft"]["macro_f1"], decision["gate"]["dpo"]["macro_f1"]) == (0.5, 1.0)
    assert (decision["gate"]["sft"]["answered"], decision["gate"]["sft"]["response_tokens"]) == (0.5, 5.0)


def test_the_gate_takes_whole_queries_and_the_same_in_any_order():
    """Until there are enough pairs; asked for ten of queries with four items each it takes twelve."""
    pairs = labelled_pairs(9)
    chosen = gate_pairs(pairs, 10)
    assert len(chosen) == 12
    assert {one.pair.pair_id for one in gate_pairs(pairs[::-1], 10)} == {one.pair.pair_id for one in chosen}
    assert gate_pairs(pairs, 1000) == pairs
    assert gate_pairs([], 10) == []


def test_the_gate_leaves_exact_only_sources_out():
    """As the judgement of a teacher does: of nine queries two are of such a source."""
    pairs = labelled_pairs(9)
    marked = [dataclasses.replace(one, exact_only=one.pair.query.id in {"d0", "d4"}) for one in pairs]
    assert gate_pairs(marked, 1000) == [one for one in pairs if one.pair.query.id not in {"d0", "d4"}]


def test_a_run_without_dev_pairs_has_no_gate(policies, tmp_path):
    """The error names the file."""
    run = finished_run(tmp_path, policies, [])
    write_labelled_pairs(tmp_path / "data" / "pairs.dev.parquet", [])
    with pytest.raises(RunError, match=r"pairs\.dev\.parquet: expected dev pairs"):
        decide(run, tmp_path, {})

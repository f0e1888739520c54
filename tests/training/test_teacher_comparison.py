"""Teachers × seeds with planted differences: figures, families, verdicts, and what was not run."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from preference_makers import sample
from safetensors.numpy import save_file
from sklearn.metrics import f1_score

from relevance.errors import InputError, RunError
from relevance.labels import ESCI
from training.grid import teacher_stage
from training.grid.jobs import prepare_folder
from training.grid.teacher_comparison import (
    RESULTS,
    TABLE,
    best_of,
    compare_teachers,
    families_of,
    without_dev_figures,
    write_comparison,
)
from training.grid.teacher_results import named_predictions, read_results
from training.grid.teacher_systems import EQUAL_TOKENS, SINGLE, TEACHERS
from training.grid.teacher_table import teacher_table
from training.predictions import Predictions, write_predictions
from training.recipe import load_recipe
from training.runs import DONE, Run
from training.teacher.policy import policy_identity
from training.teacher.prompts import PromptBook
from training.teacher.samples import sample_line

N_QUERIES, N_ITEMS = 40, 6
RECIPE = """
name = "made-up"
[data]
source = "pairs"
path = "none.jsonl"
[grid]
teachers = ["mpcot", "single_user", "single_rule"]
seeds = [0, 1, 2]
draws = 200
"""


def judged(accuracy, seed, unanswered=0.0):
    """Give predictions that name the right class with this chance, and none with that of `unanswered`."""
    label = np.random.default_rng(0).choice(4, N_QUERIES * N_ITEMS, p=[0.5, 0.25, 0.1, 0.15])
    rng = np.random.default_rng([seed, 7])
    named = np.where(rng.random(len(label)) < accuracy, label, (label + 1) % 4)
    logits_NK = 3.0 * np.eye(4)[named]
    logits_NK[rng.random(len(label)) < unanswered] = 0.0
    query_id = np.repeat([f"q{n}" for n in range(N_QUERIES)], N_ITEMS)
    return Predictions(
        pair_id=np.array([f"{q}\ti{n}" for n, q in enumerate(query_id)]),
        query_id=query_id,
        item_id=np.array([f"i{n}" for n in range(len(label))]),
        query=np.char.add("blue kettle ", query_id),
        locale=np.array(["us"] * len(label)),
        source=np.array(["main"] * len(label)),
        label=label,
        exact_only=np.zeros(len(label), dtype=bool),
        logits_NK=logits_NK,
    )


def runs(accuracy, **more):
    """Give three seeds of a teacher."""
    return {seed: judged(accuracy, seed, **more) for seed in range(3)}


def test_figures_are_means_over_seeds_and_count_the_unanswered_as_wrong():
    """sklearn's macro-F1 of each seed, with a fifth class that no label has, over four."""
    own = runs(0.8, unanswered=0.2)
    (row,) = compare_teachers({"mpcot_sft": own}, {}, ESCI, draws=50)["teachers"]
    expected = [
        f1_score(
            one.label,
            np.where(np.ptp(one.logits_NK, axis=1) > 0, one.logits_NK.argmax(axis=1), 4),
            labels=range(4),
            average="macro",
        )
        for one in own.values()
    ]

    assert row["seeds"] == [0, 1, 2]
    assert row["figures"]["macro_f1"]["value"] == pytest.approx(np.mean(expected))
    answered = np.mean([np.ptp(one.logits_NK, axis=1) > 0 for one in own.values()])
    assert row["figures"]["answered"]["value"] == pytest.approx(answered)
    assert 0.7 < answered < 0.9


def test_a_planted_lead_is_found_and_none_is_made_up():
    """0.9 against 0.5 is ahead, 0.7 against 0.7 of other seeds is not; a teacher that was not run weighs in Holm."""
    predictions = {
        "mpcot_sft": runs(0.9),
        "single_user_sft": runs(0.5),
        "same_sft": {seed + 10: judged(0.9, seed + 10) for seed in range(3)},
        "lost_sft": {},
    }
    pairs = [("mpcot_sft", name) for name in ("single_user_sft", "same_sft", "lost_sft")]
    found = compare_teachers(predictions, {"others": pairs}, ESCI, draws=300)
    ahead, apart, lost = found["differences"]["others"]
    alone = compare_teachers(predictions, {"others": pairs[:1]}, ESCI, draws=300)["differences"]["others"][0]

    assert ahead["verdict"] == "ahead"
    assert ahead["figures"]["macro_f1"]["low"] > 0.2
    assert ahead["p_holm"] == pytest.approx(3 * alone["p_holm"])
    assert (apart["verdict"], apart["figures"]) == ("not run", {})
    assert (lost["verdict"], lost["p_holm"]) == ("not run", None)


def test_teachers_that_judged_other_pairs_are_not_compared():
    """The error names teacher and seed."""
    other = judged(0.5, 1)
    with pytest.raises(InputError, match="teacher 'b', seed 1: expected the 240 pairs"):
        compare_teachers({"a": {0: judged(0.5, 0)}, "b": {1: other.rows(np.arange(30))}}, {}, ESCI)


def test_the_best_single_perspective_is_chosen_by_its_dev_figures():
    """The mean over seeds decides, MPCoT is none of them, and without a gate nothing is chosen."""
    gates = {
        "mpcot": [{"sft": {"macro_f1": 0.9}}],
        "single_user": [{"sft": {"macro_f1": 0.5}}, {"sft": {"macro_f1": 0.3}}],
        "single_rule": [{"sft": {"macro_f1": 0.45}}],
        "single_struct": [],
    }

    assert best_of(gates, "sft") == "single_rule"
    assert best_of({"mpcot": gates["mpcot"]}, "sft") is None


def test_a_teacher_that_a_choice_was_made_without_is_named():
    """One seed had too few preferences for DPO, another teacher has not finished at all; MPCoT is in no choice."""
    both, after_sft = {"sft": {"macro_f1": 0.5}, "dpo": {"macro_f1": 0.5}}, {"sft": {"macro_f1": 0.9}}
    gates = {"mpcot": [], "single_user": [both, after_sft], "single_rule": [], "equal_tokens_user": [both, both]}
    found = without_dev_figures(gates, [SINGLE, EQUAL_TOKENS], 2)

    assert [(row["name"], row["phase"], row["seeds"]) for row in found] == [
        ("single_rule", "sft", 0),
        ("single_user", "dpo", 1),
        ("single_rule", "dpo", 0),
    ]
    assert (best_of(gates, "sft"), best_of(gates, "dpo")) == ("single_user", "single_user")
    assert best_of(gates, "dpo", EQUAL_TOKENS) == "equal_tokens_user"


def test_families_are_fixed_by_what_was_asked_for():
    """The best of each group stands in a family of its own and not in the last one; one that is missing keeps a row."""
    teachers = ("mpcot", "single_user", "single_rule", "equal_tokens_user")
    names = [f"{name}_{phase}" for name in teachers for phase in ("sft", "dpo")]
    best = {SINGLE: {"sft": "single_user", "dpo": None}, EQUAL_TOKENS: {"sft": "equal_tokens_user", "dpo": None}}
    found = families_of(dict.fromkeys([*names, "base"]), best)

    assert found["main"] == [
        ("mpcot_dpo", "mpcot_sft"),
        ("mpcot_sft", "single_user_sft"),
        ("mpcot_dpo", "single_best_dpo"),
        ("single_user_dpo", "single_user_sft"),
    ]
    assert found["equal_tokens"] == [("mpcot_sft", "equal_tokens_user_sft"), ("mpcot_dpo", "equal_tokens_best_dpo")]
    assert found["others"] == [
        ("mpcot_sft", "single_rule_sft"),
        ("mpcot_dpo", "single_user_dpo"),
        ("mpcot_dpo", "single_rule_dpo"),
        ("mpcot_dpo", "equal_tokens_user_dpo"),
        ("mpcot_sft", "base"),
    ]


def write_judged(folder, predictions):
    """Write predictions and the answers that name their classes."""
    folder.mkdir(parents=True)
    write_predictions(folder / "predictions.test.parquet", predictions)
    named = np.where(np.ptp(predictions.logits_NK, axis=1) > 0, predictions.logits_NK.argmax(axis=1), 4)
    labels = [*ESCI.classes, None]
    rows = [
        sample("unified", 0, labels[k], "so it is", pair_id=pair_id)
        for pair_id, k in zip(predictions.pair_id.tolist(), named.tolist(), strict=True)
    ]
    (folder / "greedy.jsonl").write_text("".join(map(sample_line, rows)))


def test_the_class_that_an_answer_names_is_scored_whatever_its_label_tokens_say(tmp_path):
    """Probabilities of another class, and of an answer that names none, are not read; a missing answer is an error."""
    own = judged(0.9, 0, unanswered=0.1)
    write_judged(tmp_path / "judge", own)
    other = replace(own, logits_NK=np.roll(own.logits_NK, 1, axis=1) + np.array([0.5, 0.0, 0.0, 0.0]))
    write_predictions(tmp_path / "judge" / "predictions.test.parquet", other)
    found = named_predictions(tmp_path / "judge", "test", ESCI)

    assert np.array_equal(found.logits_NK > 0, own.logits_NK > 0)
    assert (np.ptp(found.logits_NK, axis=1) == 0).any()
    answers = (tmp_path / "judge" / "greedy.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "judge" / "greedy.jsonl").write_text("".join(answers[:-1]))
    with pytest.raises(InputError, match="expected an answer to pair"):
        named_predictions(tmp_path / "judge", "test", ESCI)


def test_the_main_slice_decides_and_the_others_stand_beside_it():
    """Right everywhere but on a source of its own: 1 in the comparison, 0 on that slice."""
    own = judged(1.0, 0)
    new = np.isin(own.query_id, [f"q{n}" for n in range(30, 40)])
    wrong_NK = np.where(new[:, None], np.roll(own.logits_NK, 1, axis=1), own.logits_NK)
    sourced = replace(own, source=np.where(new, "heldout_brand", "main"), logits_NK=wrong_NK)
    found = compare_teachers({"mpcot_sft": {0: sourced}, "lost_sft": {}}, {}, ESCI, draws=50)
    slice_of = found["slices"]["heldout_brand"]

    assert (found["slice"], found["n_queries"], found["n_pairs"]) == ("main", 30, 180)
    assert found["teachers"][0]["figures"]["accuracy"]["value"] == 1.0
    assert (slice_of["n_queries"], slice_of["n_pairs"]) == (10, 60)
    assert slice_of["teachers"][0]["figures"]["accuracy"]["value"] == 0.0
    with pytest.raises(InputError, match="at least two queries of the main slice"):
        compare_teachers({"mpcot_sft": {0: sourced.rows(np.arange(6))}}, {}, ESCI, draws=50)


def finish(out, system, seed, accuracy, config_hash="h"):
    """Write a finished job with both policies judged."""
    folder = out / "teachers" / system / f"seed_{seed}"
    gate = {phase: {"macro_f1": accuracy} for phase in ("sft", "dpo")}
    for phase in ("sft", "dpo"):
        write_judged(folder / f"judge_{phase}", judged(accuracy, seed))
    status = {"state": "done", "error": None, "config_hash": config_hash, "gate": {"shipped": "sft", "gate": gate}}
    if system != "single_user":
        status["learned"] = {"sft_tokens": 40_000 + 1_000 * seed, "dpo_rows": 100 + seed}
        status["learned"] |= {"crossing": 0.6, "reward_accuracy": 0.75, "reward_margin": 0.125} if seed else {}
    (folder / "status.json").write_text(json.dumps(status))


def test_a_folder_of_jobs_becomes_a_table(tmp_path):
    """Three seeds of two teachers; another's jobs failed, were killed, or had another configuration."""
    path = tmp_path / "made-up.toml"
    path.write_text(RECIPE)
    run = Run(load_recipe(str(path)), tmp_path)
    with pytest.raises(RunError, match="at least one finished and judged teacher"):
        write_comparison(run, tmp_path / "teachers")
    for seed in range(3):
        finish(tmp_path, "mpcot", seed, 0.9)
        finish(tmp_path, "single_user", seed, 0.6)
        finish(tmp_path, "single_rule", seed, 0.95, config_hash="old" if seed < 2 else "h")
    status = tmp_path / "teachers" / "single_rule" / "seed_2" / "status.json"
    status.write_text(status.read_text().replace('"done"', '"failed"'))
    hashes = {f"{name}/seed_{seed}": "h" for name in ("mpcot", "single_user", "single_rule") for seed in range(3)}
    (tmp_path / "teachers.json").write_text(json.dumps({"config_hashes": hashes}))
    write_comparison(run, tmp_path / "teachers")
    results = json.loads((tmp_path / "teachers" / RESULTS).read_text())
    table = (tmp_path / "teachers" / TABLE).read_text()

    assert results["best"] == {SINGLE: {"sft": "single_user", "dpo": "single_user"}}
    of_dpo, *against_single, of_dpo_of_single = (row["verdict"] for row in results["differences"]["main"])
    assert of_dpo.startswith("undecided")
    assert of_dpo_of_single.startswith("undecided")
    assert against_single == ["ahead", "ahead"]
    assert results["differences"]["equal_tokens"] == []
    assert [row["verdict"] for row in results["differences"]["others"]] == ["not run", "not run"]
    assert table == teacher_table(results)
    ended = {"crossing": 0.6, "reward_accuracy": 0.75, "reward_margin": 0.125}
    assert results["learned"] == {"mpcot": {"sft_tokens": 41_000, "dpo_rows": 101, **ended}}
    cells = {
        line.split(" | ")[0]: line.rstrip(" |").split(" | ")[-5:] for line in table.splitlines() if "MPCoT" in line
    }
    assert cells["| MPCoT, SFT"] == ["41,000", "–", "–", "–", "–"]
    assert cells["| MPCoT, SFT+DPO"] == ["41,000", "101", "60%", "0.750", "0.125"]
    assert "are one draw, shared by all teachers and seeds" in table
    assert "SingleCoT, business rule, SFT (0 of 3 seeds)" in table
    assert "| MPCoT, SFT | 3 | 0." in table
    assert "| SingleCoT, business rule, SFT | 0 | not run |" in table
    assert "chosen on dev pairs: SingleCoT, user intent, SFT; SingleCoT, user intent, SFT+DPO." in table


def test_the_base_model_is_compared_under_each_prompt_that_it_was_judged_with(tmp_path):
    """One run each, which stands beside any seed; without examples the title does not say few-shot."""
    path = tmp_path / "made-up.toml"
    path.write_text(RECIPE + "[teacher.prompt]\nshots = 0\n")
    for seed in range(3):
        finish(tmp_path, "mpcot", seed, 0.9)
    write_judged(tmp_path / "judge_base", judged(0.5, 0))
    write_judged(tmp_path / "judge_base_rule", judged(0.4, 0))
    write_comparison(Run(load_recipe(str(path)), tmp_path), tmp_path / "teachers")
    results = json.loads((tmp_path / "teachers" / RESULTS).read_text())
    verdicts = {(row["ours"], row["theirs"]): row["verdict"] for row in results["differences"]["others"]}
    table = (tmp_path / "teachers" / TABLE).read_text()

    assert verdicts["mpcot_sft", "base"] == verdicts["mpcot_sft", "base_rule"] == "ahead"
    assert ("mpcot_sft", "base_user") not in verdicts
    assert "| base model, without examples, business rule | 1 | 0." in table


def test_a_judgement_of_another_base_model_is_refused(tmp_path):
    """The base was pre-trained again after it was judged; one whose record says nothing is taken as it is."""
    (tmp_path / "made-up.toml").write_text(RECIPE)
    run = Run(load_recipe(str(tmp_path / "made-up.toml"), ["teacher.base=scratch"]), tmp_path)
    write_judged(tmp_path / "judge_base", judged(0.5, 0))
    policy = tmp_path / "teacher_pretrain" / "policy"
    policy.mkdir(parents=True)
    (policy / "model.safetensors").write_bytes(b"weights")
    (policy.parent / DONE).write_text("{}")
    told = {"policy": policy_identity(policy), "prompts": PromptBook.load(run.recipe.teacher.prompt, ESCI).fingerprint}
    inputs = tmp_path / "judge_base" / "inputs.json"
    inputs.write_text(json.dumps({"inputs": told}))

    assert list(read_results(run, tmp_path / "teachers").predictions["base"]) == [run.recipe.seed]
    (policy / "model.safetensors").write_bytes(b"others!")
    with pytest.raises(RunError, match="judge_base: expected a judgement of the run's own base model"):
        read_results(run, tmp_path / "teachers")
    inputs.write_text(json.dumps({"inputs": told | {"policy": policy_identity(policy), "prompts": "older"}}))
    with pytest.raises(RunError, match="prompts"):
        read_results(run, tmp_path / "teachers")


def make_by_hand(out, system, teacher):
    """Write what the stages of one teacher leave when they are called one by one: reports, and both judgements."""
    folder = out / "teachers" / system / "seed_0"
    for phase in ("sft", "dpo"):
        write_judged(folder / f"judge_{phase}", judged(0.9, 0))
        (folder / f"judge_{phase}" / "report.json").write_text(json.dumps({"teacher": teacher}))
        (folder / f"judge_{phase}" / DONE).write_text('{"inputs": ""}')
        (folder / f"judge_{phase}" / "inputs.json").write_text('{"inputs": {"seed": 0}}')
    last = {"rewards/accuracies": 0.75, "rewards/margins": 0.1}
    gate = {phase: {"macro_f1": 0.8} for phase in ("sft", "dpo")}
    for stage, report in {
        "sft": {"phases": {"sft": {"tokens_seen": 1234}}},
        "preferences": {"crossing": 0.5},
        "dpo": {"gate": gate, "training": {"preferences": 77, "last_steps": last}},
    }.items():
        (folder / stage).mkdir()
        (folder / stage / DONE).write_text('{"inputs": ""}')
        (folder / stage / "report.json").write_text(json.dumps(report))


def test_teachers_whose_stages_were_called_by_hand_are_compared_and_nothing_is_run(tmp_path):
    """One is there, the others are not run; a folder that holds another teacher is refused by its key."""
    path = tmp_path / "made-up.toml"
    path.write_text(RECIPE + '[teacher.sampling]\nkind = "openai"\n')
    recipe = load_recipe(str(path))
    out = tmp_path / "out"
    words = [str(path), "--out", str(out), "--compare-only"]
    make_by_hand(out, "mpcot", recipe.teacher.model_dump(mode="json"))
    assert teacher_stage.main(words) == 0
    assert teacher_stage.main(words) == 0
    results = json.loads((out / "teachers" / RESULTS).read_text())
    learned = {"sft_tokens": 1234, "dpo_rows": 77, "crossing": 0.5, "reward_accuracy": 0.75, "reward_margin": 0.1}
    expected = {f"{name}_{phase}": [] for name in recipe.grid.teachers for phase in ("sft", "dpo")}

    assert {row["name"]: row["seeds"] for row in results["teachers"]} == expected | {"mpcot_sft": [0], "mpcot_dpo": [0]}
    assert results["learned"] == {"mpcot": learned}
    assert not (out / "data").exists()
    make_by_hand(out, "single_rule", recipe.teacher.model_dump(mode="json"))
    with pytest.raises(RunError, match=r"single_rule.*expected teacher\.perspectives = \['rule'\]"):
        teacher_stage.main(words)
    shutil.rmtree(out / "teachers" / "single_rule")
    weights = out / "teachers" / "mpcot" / "seed_0" / "sft" / "policy" / "model.safetensors"
    weights.parent.mkdir()
    save_file({"weight": np.zeros(1)}, weights)
    with pytest.raises(RunError, match=r"expected a judgement of the policy that is there \(.+\), found None"):
        teacher_stage.main(words)
    shutil.rmtree(weights.parent)
    (out / "teachers" / "mpcot" / "seed_0" / "judge_sft" / "inputs.json").write_text('{"inputs": {"seed": 7}}')
    with pytest.raises(RunError, match=r"expected seed = 0, found 7"):
        teacher_stage.main(words)
    with pytest.raises(RunError, match=r"seed_0: expected a folder of this command, found one .* by hand"):
        prepare_folder(teacher_stage.job_of(Run(recipe, out), TEACHERS["mpcot"], 0))


def test_a_teacher_that_this_command_is_training_is_not_taken_for_finished(tmp_path):
    """Between its two judgements a job has no status; a look at the comparison must not end it."""
    path = tmp_path / "made-up.toml"
    path.write_text(RECIPE)
    out = tmp_path / "out"
    make_by_hand(out, "mpcot", load_recipe(str(path)).teacher.model_dump(mode="json"))
    (out / "teachers" / "mpcot" / "seed_0" / "config_hash").write_text("c0ffee")
    with pytest.raises(RunError, match="at least one finished and judged teacher, found none"):
        teacher_stage.main([str(path), "--out", str(out), "--compare-only"])
    assert not (out / "teachers" / "mpcot" / "seed_0" / "status.json").exists()


def test_a_job_that_had_too_few_preferences_has_no_figures_after_dpo(tmp_path):
    """What an earlier configuration left in judge_dpo does not count; a comparison with a missing best is not run."""
    path = tmp_path / "made-up.toml"
    path.write_text(RECIPE)
    for seed in range(2):
        finish(tmp_path, "mpcot", seed, 0.9)
    status = tmp_path / "teachers" / "mpcot" / "seed_1" / "status.json"
    content = json.loads(status.read_text())
    status.write_text(json.dumps({**content, "gate": {"shipped": "sft", "gate": {"sft": {"macro_f1": 0.9}}}}))
    write_comparison(Run(load_recipe(str(path)), tmp_path), tmp_path / "teachers")
    results = json.loads((tmp_path / "teachers" / RESULTS).read_text())
    table = (tmp_path / "teachers" / TABLE).read_text()
    seeds = {row["name"]: row["seeds"] for row in results["teachers"]}

    assert (seeds["mpcot_sft"], seeds["mpcot_dpo"]) == ([0, 1], [0])
    assert results["differences"]["main"][2]["theirs"] == "single_best_dpo"
    assert results["differences"]["main"][2]["verdict"] == "not run"
    assert "MPCoT, SFT+DPO − best single perspective, SFT+DPO | – |" in table

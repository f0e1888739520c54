"""One budget for all systems of a grid, and the choice of tuned values from a ledger of equally many trials."""

import json

import pytest

from relevance.errors import RecipeError, RowError
from training.grid.equal_budget import METHOD_KEYS, Allowance, check_budget, choose_tuned
from training.grid.systems import PAPER_SCHEDULE, SYSTEMS
from training.recipe import Recipe

METHODS = {
    "bert": {"student.extractor.kind": "none", "student.guidance_weight": 0.0},
    "lrkd_gat": {"student.extractor.kind": "gat", "student.fit.learning_rate": 2e-5},
    "ced_kd": {"student.ced_kd": {"weight": 0.5, "layers": 2}},
}


def search(trials):
    """Give the overrides of so many trials."""
    return [{"student.fit.learning_rate": 10.0**-trial} for trial in range(trials)]


def row(system="bert", trial=0, dev=0.5, **changes):
    """Give one ledger row as plain data."""
    overrides = {"student.fit.learning_rate": 10.0**-trial}
    return {"system": system, "trial": trial, "overrides": overrides, "dev": dev, "common": "ab12", **changes}


def chosen(path, systems, trials):
    """Choose for systems that each have so many trials."""
    return choose_tuned(path, {system: search(trials) for system in systems}, "ab12")


def write(path, rows):
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def test_methods_that_differ_in_their_method_alone_pass():
    """Extractor, guidance, decoder and learning rate are what is compared or tuned; nothing needs an allowance."""
    assert check_budget(METHODS, {}) == ()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("student.fit.epochs", 20),
        ("student.fit.batch_size", 256),
        ("student.fit.max_pair_tokens", 256),
        ("student.fit.patience", 9),
        ("student.encoder.layers", 12),
        ("student.seeds", [0, 1, 2]),
        ("student.warm_up.epochs", 3),
        ("template.fields", ["title", "text"]),
        ("data.max_queries", 10_000),
        ("max_pair_tokens", 256),
        ("grid.trials", 50),
    ],
)
def test_more_budget_or_another_input_for_one_method_is_refused(key, value):
    """The message names the method, the key and the value."""
    systems = {**METHODS, "lrkd_gat": {**METHODS["lrkd_gat"], key: value}}

    with pytest.raises(RecipeError, match=rf"lrkd_gat: {key} = "):
        check_budget(systems, {})


@pytest.mark.parametrize("changes", [{"student": {"fit": {"epochs": 9}}}, {"student.fit": {"epochs": 9}}])
def test_a_whole_section_hides_nothing(changes):
    """The same change written as a section instead of a dotted key."""
    with pytest.raises(RecipeError, match=r"crsd: student\.fit\.epochs = 9"):
        check_budget({**METHODS, "crsd": changes}, {})


def test_dropping_a_section_that_holds_budget_is_refused():
    """`student.fit` set to something that is no section changes epochs as well."""
    with pytest.raises(RecipeError, match=r"crsd: student\.fit = None"):
        check_budget({**METHODS, "crsd": {"student.fit": None}}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("student.pretrain.steps", 9000),
        ("student.class_weights", "sqrt_inverse"),
        ("student.pooling", "segments"),
        ("student.fit.label_smoothing", 0.1),
        ("student.feature_weight", 1.0),
        ("embed.max_tokens", 512),
        ("student.extractors", "gat"),
    ],
)
def test_whatever_is_no_methods_key_is_budget(key, value):
    """The list names what may differ; a key that nobody thought of is refused, and so is one that only looks alike."""
    with pytest.raises(RecipeError, match=rf"crsd: {key} = "):
        check_budget({**METHODS, "crsd": {key: value}}, {})


def test_the_same_value_for_all_passes_and_another_value_for_one_does_not():
    """Ten epochs for everyone is equal; eleven for one is not."""
    same = {name: {**changes, "student.fit.epochs": 10} for name, changes in METHODS.items()}
    assert check_budget(same, {}) == ()

    same["ced_kd"]["student.fit.epochs"] = 11
    with pytest.raises(RecipeError, match=r"ced_kd: student\.fit\.epochs = 11"):
        check_budget(same, {})


def test_a_system_alone_has_nothing_to_be_equal_to_but_the_recipe():
    """With one system in the grid its budget keys still belong in the recipe."""
    with pytest.raises(RecipeError, match=r"bert: student\.fit\.epochs"):
        check_budget({"bert": {"student.fit.epochs": 10}}, {})


def test_an_allowance_is_given_back_for_the_report():
    """Reasons cover a key or a whole section, for the named system alone."""
    systems = {**METHODS, "bert_features": {"template.fields": ["title", "brand"], "student.guidance_weight": 0.0}}
    reason = "reads the privileged fields by definition"

    shown = check_budget(systems, {"bert_features": {"template": reason}, "not_in_this_grid": {"template": "other"}})

    assert shown == (Allowance("bert_features", "template.fields", ["title", "brand"], reason),)
    with pytest.raises(RecipeError, match="lrkd_gat"):
        check_budget(
            {**systems, "lrkd_gat": {"template.fields": ["title", "brand"]}}, {"bert_features": {"template": "x"}}
        )


@pytest.mark.parametrize(
    ("allowance", "message"),
    [({"student.fit.epochs": " "}, "expected a reason"), ({"template": "reads more"}, "change that it covers")],
)
def test_an_allowance_without_reason_or_use_is_refused(allowance, message):
    """Neither a blank reason nor an excuse for nothing may stand in the list."""
    systems = {**METHODS, "paper_preset": {"student.fit.epochs": 5}}

    with pytest.raises(RecipeError, match=message):
        check_budget(systems, {"paper_preset": {"student.fit.epochs": "the paper's schedule", **allowance}})


def test_systems_that_share_an_allowed_value_can_be_rerun_alone():
    """Two of the paper's presets are equal to each other: nothing to refuse, and nothing to show."""
    preset = {"student.fit.epochs": 5, "student.fit.batch_size": 256}

    assert check_budget({"bert_paper": preset, "lrkd_gat_paper": preset}, {}) == ()


def test_the_shipped_methods_have_one_budget_but_for_the_stated_reasons():
    """Only the paper's presets and the baseline that reads the hidden fields differ; all searches are equally long."""
    methods = [system for system in SYSTEMS.values() if system.group != "sweep"]
    preset = dict.fromkeys(PAPER_SCHEDULE, "the paper's own schedule")
    reasons = {
        "privileged_input": {
            "template": "reads the hidden fields by definition",
            "max_pair_tokens": "which need room",
        },
        **{system.name: preset for system in methods if system.name.endswith("_paper")},
    }

    shown = check_budget({system.name: system.overrides for system in methods}, reasons)

    assert {allowance.system for allowance in shown} == set(reasons)
    assert len({len(system.search) for system in methods if system.search}) == 1
    assert all(check_budget({system.name: keys}, {}) == () for system in methods for keys in system.search)


def test_every_method_key_is_a_key_of_the_recipe():
    """A renamed recipe key must not slip out of the check."""
    for key in METHOD_KEYS:
        fields = Recipe.model_fields
        for part in key.split("."):
            assert part in fields, key
            fields = getattr(fields[part].annotation, "model_fields", {})


def test_the_best_trial_on_dev_is_chosen(tmp_path):
    """Per system; rows of a system that is not asked for do not matter."""
    rows = [row("bert", 0, 0.41), row("bert", 1, 0.44), row("mkd", 1, 0.5), row("mkd", 0, 0.6), row("other", 0, 0.9)]

    tuned = chosen(write(tmp_path / "tuning.jsonl", rows), ["bert", "mkd"], 2)

    assert tuned == {"bert": {"student.fit.learning_rate": 0.1}, "mkd": {"student.fit.learning_rate": 1.0}}


def test_of_equal_trials_the_earliest_wins_whatever_the_order_of_rows(tmp_path):
    """Trials 1 and 2 tie; rows come backwards."""
    rows = [row(trial=2, dev=0.5), row(trial=1, dev=0.5), row(trial=0, dev=0.3)]

    assert chosen(write(tmp_path / "t.jsonl", rows), ["bert"], 3) == {"bert": {"student.fit.learning_rate": 0.1}}


def test_a_diverged_trial_is_spent_but_never_chosen(tmp_path):
    """Its dev figure is null; a system whose trials all diverged has no values to take."""
    path = write(tmp_path / "t.jsonl", [row(trial=0, dev=None), row(trial=1, dev=0.2)])
    assert chosen(path, ["bert"], 2) == {"bert": {"student.fit.learning_rate": 0.1}}

    write(path, [row(trial=0, dev=None), row(trial=1, dev=None)])
    with pytest.raises(RecipeError, match="did not diverge"):
        chosen(path, ["bert"], 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("bert", 0), row("bert", 1), row("mkd", 0)], r"expected tuning trials .*found .* 'mkd': 1"),
        ([row("bert", 0), row("bert", 1)], r"'mkd': 0"),
        ([row("bert", 0), row("bert", 1), row("mkd", 0), row("mkd", 1), row("mkd", 2)], r"of mkd, trial 2, 2 trials"),
        ([row("bert", 0), row("bert", 0), row("mkd", 0), row("mkd", 1)], r"each trial of bert once"),
        ([row("bert", 0, overrides={"student.fit.epochs": 40})], r"row 1: expected of bert, trial 0, .*epochs"),
        ([row("bert", 0, overrides={"student.extractor.kind": "gat"})], r"found .*student\.extractor\.kind"),
        ([row("bert", 0, common="cd34")], r"expected trials of this recipe \(ab12\), found those of another \(cd34\)"),
    ],
)
def test_missing_unequal_repeated_or_dearer_trials_are_refused(tmp_path, rows, message):
    """More trials for one method are more budget, and a foreign trial would turn one system into another."""
    with pytest.raises(RecipeError, match=message):
        chosen(write(tmp_path / "tuning.jsonl", rows), ["bert", "mkd"], 2)


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("not json", r"'\*'"),
        (json.dumps(row(dev="0.5")), "'dev'"),
        (json.dumps(row(dev=float("nan"))), "'dev'"),
        (json.dumps(row(trial=-1)), "'trial'"),
        (json.dumps(row(trial=0.5)), "'trial'"),
        (json.dumps(row(overrides=["student.fit.learning_rate"])), "'overrides'"),
        (json.dumps({k: v for k, v in row().items() if k != "common"}), "'common'"),
        (json.dumps({k: v for k, v in row().items() if k != "dev"}), "'dev'"),
    ],
)
def test_a_malformed_row_is_named_by_line_and_field(tmp_path, line, column):
    """A row that cannot be read is an error, never a skipped trial."""
    path = tmp_path / "tuning.jsonl"
    path.write_text(json.dumps(row()) + "\n" + line + "\n", encoding="utf-8")

    with pytest.raises(RowError, match=rf"tuning\.jsonl, row 2, column {column}"):
        chosen(path, ["bert"], 2)


def test_a_missing_ledger_is_named(tmp_path):
    """The reader learns which recipe key points at nothing."""
    with pytest.raises(RecipeError, match=r"grid\.tuning: .*nowhere\.jsonl"):
        chosen(tmp_path / "nowhere.jsonl", ["bert"], 1)

"""A made-up grid directory → results.json, report.html and table.md."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from markupsafe import escape
from scipy import stats
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from relevance.calibration import softmax
from relevance.cli import main
from relevance.errors import RunError
from relevance.labels import ESCI
from training.calibrate import balanced_label_weights
from training.grid.page import render_grid
from training.grid.results import grid_results
from training.grid.slices import slices_of
from training.grid.systems import SYSTEMS
from training.measures import complete_lists
from training.predictions import Predictions, read_predictions, write_predictions
from training.recipe import load_recipe
from training.runs import Run

RECIPE = """
name = "{name}"
[data]
source = "{source}"
path = "none.jsonl"
[grid]
systems = ["majority", "bert", "label_kd", "mkd", "crsd", "lrkd_gat", "lrkd_shuffled", "lrkd_no_guidance", "teacher"]
seeds = [0, 1, 2]
draws = 300
rivals = ["bert", "label_kd", "mkd", "crsd"]
"""
STRENGTH = {"bert": 1.0, "label_kd": 2.2, "crsd": 1.1, "lrkd_gat": 2.2, "lrkd_shuffled": 1.0, "teacher": 5.0}
"""How far the logit of the label stands out; label_kd is as good as ours."""
N_QUERIES, N_ITEMS = 100, 12


def predictions(system, seed, split, *, n_queries=N_QUERIES):
    """Give a system's logits: the label's stands out; a query's pairs share some of their noise, across systems too."""
    world = np.random.default_rng([len(split), 1])
    n = n_queries * N_ITEMS
    label = world.choice(4, n, p=[0.5, 0.25, 0.1, 0.15])
    shared = np.repeat(world.normal(size=(n_queries, 4)), N_ITEMS, axis=0) + world.normal(size=(n, 4))
    own = np.random.default_rng([seed, sum(map(ord, system)), len(split)]).normal(size=(n, 4)) / 2
    logits = STRENGTH.get(system, 0.0) * np.eye(4)[label] + shared + own
    query_id = np.repeat([f"q{i}" for i in range(n_queries)], N_ITEMS)
    number = np.arange(n) // N_ITEMS
    return Predictions(
        pair_id=np.array([f"{q}\ti{i}" for i, q in enumerate(query_id)]),
        query_id=query_id,
        item_id=np.array([f"i{i}" for i in range(n)]),
        query=np.char.add("red mug ", query_id),
        locale=np.array(["us"] * n),
        source=np.where(number < 0.8 * n_queries, "main", "heldout_brand"),
        label=label,
        exact_only=np.zeros(n, dtype=bool),
        logits_NK=np.tile([9.0, 0.0, 0.0, 0.0], (n, 1)) if system == "majority" else logits,
    )


def finish(out, system, seed, *, rows=None):
    """Write a finished run."""
    folder = out / "fits" / system / f"seed_{seed}" / "student"
    folder.mkdir(parents=True)
    for split in ("dev", "cal", "test"):
        write_predictions(folder / f"predictions.{split}.parquet", rows or predictions(system, seed, split))
    figures = {"seconds": 60.0 + seed, "pairs_per_second": 200.0 if system == "bert" else 190.0}
    figures["guidance_explained"] = 0.25 + 0.125 * seed if system == "lrkd_gat" else None
    state(out, system, seed, "done", **figures)


def state(out, system, seed, name, *, error=None, **more):
    """Write a run's status."""
    folder = out / "fits" / system / f"seed_{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    status = {"system": system, "seed": seed, "state": name, "error": error, "config_hash": f"hash-{system}-{seed}"}
    (folder / "status.json").write_text(json.dumps(status | more))


def make_grid(out):
    """A grid in which crsd diverged once and failed once, mkd was never run, and one run was killed half-way."""
    for system in ("majority", "teacher"):
        finish(out, system, 0)
    for system in ("bert", "label_kd", "lrkd_gat", "lrkd_shuffled"):
        for seed in range(3):
            finish(out, system, seed)
    finish(out, "crsd", 0)
    state(out, "crsd", 1, "diverged", error="dev macro-F1 0.17: one class | only")
    state(out, "crsd", 2, "failed", error="out of memory")
    finish(out, "lrkd_no_guidance", 0)
    (out / "fits" / "lrkd_no_guidance" / "seed_1" / "student").mkdir(parents=True)
    record = {"config_hash": "c0ffee", "commit": "abc", "machine": {"cores": 2}, "tuning": {"bert": {"rate": 2}}}
    record["systems"] = [{"name": "lrkd_gat", "title": "LRKD-GAT <ours>", "group": "ours", "paper": "S3"}]
    (out / "grid.json").write_text(json.dumps(record | {"checks": {"embeddings": {"probe_accuracy": 0.61}}}))


def run_of(out, name="made-up", source="marketplace"):
    """Give a run of the made-up recipe over a grid's directory."""
    path = out.parent / f"{name}.toml"
    path.write_text(RECIPE.format(name=name, source=source))
    return Run(load_recipe(str(path)), out)


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The made-up grid, reported."""
    out = tmp_path_factory.mktemp("grid") / "out"
    make_grid(out)
    run_of(out)
    assert main(["report", "--recipe", str(out.parent / "made-up.toml"), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def results(out):
    """What was reported."""
    return json.loads((out / "report" / "results.json").read_text())


def system(results, name):
    """Give a system's row."""
    return next(row for row in results["systems"] if row["name"] == name)


def compared(results, family, theirs):
    """Give one comparison of a family."""
    return next(row for row in results["differences"][family] if row["theirs"] == theirs)


def test_figures_are_means_over_seeds_on_the_main_slice(results):
    """Three seeds of plain BERT: sklearn's figures of each, their mean and sd; the slice has 80 of the 100 queries."""
    primary = results["primary"]
    assert (primary["name"], primary["n_pairs"], primary["n_queries"]) == ("main", 960, 80)
    figures = system(results, "bert")["figures"]
    by_seed = {"macro_f1": [], "qwk": [], "auc_irrelevant": [], "f1_S": []}
    for seed in range(3):
        rows = predictions("bert", seed, "test").rows(np.arange(960))
        guess = rows.logits_NK.argmax(axis=1)
        shares = np.exp(rows.logits_NK)[:, 3] / np.exp(rows.logits_NK).sum(axis=1)
        by_seed["macro_f1"].append(f1_score(rows.label, guess, average="macro"))
        by_seed["f1_S"].append(f1_score(rows.label, guess, labels=[1], average="macro"))
        by_seed["qwk"].append(cohen_kappa_score(rows.label, guess, weights="quadratic"))
        by_seed["auc_irrelevant"].append(roc_auc_score(rows.label == 3, shares))
    for name, values in by_seed.items():
        assert figures[name]["value"] == pytest.approx(np.mean(values))
        assert figures[name]["sd"] == pytest.approx(np.std(values, ddof=1))
        assert figures[name]["low"] < figures[name]["value"] < figures[name]["high"]
    assert figures["ece"]["low"] is None
    assert 0 < figures["macro_f1_weighted"]["value"] < 1


def test_a_run_that_did_not_finish_is_named_and_not_averaged_in(results):
    """crsd has one finished run of three; a killed run has no status and counts as not run; mkd keeps its row."""
    assert (system(results, "crsd")["finished"], system(results, "crsd")["asked"]) == (1, 3)
    states = {(run["system"], run["seed"]): run["state"] for run in results["runs"]}
    assert [states["crsd", seed] for seed in range(3)] == ["done", "diverged", "failed"]
    assert states["lrkd_no_guidance", 1] == states["mkd", 0] == "not run"
    assert system(results, "mkd")["figures"] is None
    assert compared(results, "rivals", "mkd")["verdict"] == "not run"
    alone = predictions("crsd", 0, "test").rows(np.arange(960))
    expected = f1_score(alone.label, alone.logits_NK.argmax(axis=1), average="macro")
    assert system(results, "crsd")["figures"]["macro_f1"]["value"] == pytest.approx(expected)
    assert system(results, "crsd")["figures"]["macro_f1"]["sd"] is None
    assert compared(results, "rivals", "crsd")["figures"]["macro_f1"]["seeds"] == 1


def test_differences_say_ahead_where_there_is_one_and_undecided_where_there_is_none(results):
    """Ours is far stronger than plain BERT and made like label_kd; beside it what Holm's first of four steps shows."""
    ahead, even = compared(results, "rivals", "bert"), compared(results, "rivals", "label_kd")
    assert ahead["verdict"] == "ahead"
    assert ahead["figures"]["macro_f1"]["low"] > 0
    assert ahead["paired"]["mid_p"] < 0.001
    assert ahead["paired"]["only_ours"] > ahead["paired"]["only_theirs"]
    own = even["figures"]["macro_f1"]
    assert even["verdict"] == f"undecided (MDD {own['detectable']:.3f})"
    reach = stats.t.ppf(1 - 0.025 / 4, own["df"]) + stats.t.ppf(0.8, own["df"])
    assert own["detectable"] == pytest.approx(reach * own["error"])
    assert compared(results, "controls", "lrkd_shuffled")["verdict"] == "ahead"
    assert compared(results, "ablations", "lrkd_no_guidance")["figures"]["macro_f1"]["seeds"] == 1
    rival = next(row for row in results["differences"]["rivals_and_bert"] if row["ours"] == "label_kd")
    assert (rival["theirs"], rival["verdict"]) == ("bert", "ahead")


def test_one_seed_of_a_trained_system_is_never_judged(results):
    """crsd and λ = 0 have one finished seed; ours is far ahead, yet nothing is told of the spread between seeds."""
    for family, theirs in (("rivals", "crsd"), ("ablations", "lrkd_no_guidance")):
        row = compared(results, family, theirs)
        assert row["verdict"] == "undecided (one seed)"
        assert row["figures"]["macro_f1"]["value"] > 0.1
        assert row["p_holm"] is row["figures"]["macro_f1"]["low"] is row["figures"]["macro_f1"]["detectable"] is None


def test_untrained_systems_are_judged_by_their_queries(tmp_path):
    """Nothing of them depends on a seed: one run of the teacher is ahead of the commonest class."""
    out = tmp_path / "out"
    for name in ("majority", "teacher"):
        finish(out, name, 0)
    run = run_of(out)
    grid = run.recipe.grid.model_copy(update={"ours": "teacher", "rivals": ("majority",)})
    (row,) = grid_results(Run(run.recipe.model_copy(update={"grid": grid}), out))["differences"]["rivals"]
    assert (row["verdict"], row["figures"]["macro_f1"]["seeds"]) == ("ahead", 1)


def test_holm_runs_over_what_the_recipe_asked_for(results):
    """Two of four rivals can be tested: the least p is still multiplied by four, the other by three."""
    rows = [row for row in results["differences"]["rivals"] if row["p_holm"] is not None]
    pairs = sorted((row["figures"]["macro_f1"]["p"], row["p_holm"]) for row in rows)
    assert [adjusted for _, adjusted in pairs] == pytest.approx([4 * pairs[0][0], min(1, 3 * pairs[1][0])])


def test_every_control_and_ablation_has_a_row(results, out):
    """All of SYSTEMS, asked for or not; teachers of an ensemble are further systems and no ablation of ours."""
    rows = [row for family in ("controls", "ablations", "preset") for row in results["differences"][family]]
    listed = {name for row in rows for name in (row["ours"], row["theirs"])}
    expected = {name for name, own in SYSTEMS.items() if own.group in {"control", "ablation"}}
    assert expected - listed == {"label_kd_user", "label_kd_struct", "label_kd_rule"}
    assert compared(results, "controls", "lrkd_one_hot")["verdict"] == "not in this recipe"
    assert compared(results, "controls", "lrkd_shuffled")["verdict"] == "ahead"
    page = (out / "report" / "report.html").read_text()
    claims = page[page.index("Which claims survive") : page.index("Response curves")]
    for name in listed - {"lrkd_gat", "bert"}:
        assert escape(SYSTEMS[name].title) in claims


def test_the_untrained_row_and_the_ceiling_stand_beside_every_seed(results):
    """Always naming the first class has the closed-form figures; the teacher's lead is closed in part."""
    commonest = results["primary"]["commonest"]
    figures = system(results, "majority")["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(commonest["accuracy"])
    assert figures["macro_f1"]["value"] == pytest.approx(commonest["macro_f1"])
    shares = {row["name"]: row["value"] for row in results["gap_closed"]["privileged teacher"] if "value" in row}
    assert 0.2 < shares["lrkd_gat"] < 1
    assert shares["lrkd_shuffled"] == pytest.approx(0, abs=0.1)
    assert "majority" not in shares


def test_slices_are_told_by_source(results):
    """One other source, 20 queries; every finished system has figures of it, and ours stands against the rivals."""
    (part,) = results["slices"]
    assert (part["name"], part["kind"], part["n_queries"], part["n_pairs"]) == ("heldout_brand", "source", 20, 240)
    assert set(part["systems"]) == {row["name"] for row in results["systems"] if row["figures"]}
    rows = {row["theirs"]: row for row in part["differences"]}
    assert list(rows) == ["bert", "label_kd", "mkd", "crsd"]
    assert [rows[name]["verdict"] for name in ("bert", "mkd", "crsd")] == ["ahead", "not run", "undecided (one seed)"]
    assert rows["bert"]["p_holm"] == pytest.approx(4 * rows["bert"]["figures"]["macro_f1"]["p"])
    assert "auc_exact" not in rows["bert"]["figures"]


def test_without_a_main_source_the_exact_only_pairs_are_left_out_and_locales_are_slices():
    """Ten queries of an Exact-only source, the others of two locales; a locale of one query cannot be judged."""
    rows = predictions("bert", 0, "test")
    number = np.arange(len(rows)) // N_ITEMS
    exact_only = number < 10
    rows = replace(
        rows,
        source=np.where(exact_only, "clicks", "panel"),
        label=np.where(exact_only, 0, rows.label),
        exact_only=exact_only,
        locale=np.where(number == 99, "es", np.where(number % 2 == 0, "us", "jp")),
    )
    found = [(part.kind, part.name, part.n_queries) for part in slices_of(rows)]
    assert found == [
        ("primary", "without Exact-only sources", 90),
        ("source", "panel", 90),
        ("locale", "jp", 44),
        ("locale", "us", 45),
    ]


def test_label_weights_come_from_dev(results):
    """The secondary macro-F1 of an only run: probabilities times the weights that dev is best with."""
    dev, test = predictions("crsd", 0, "dev"), predictions("crsd", 0, "test").rows(np.arange(960))
    weights = balanced_label_weights(dev, softmax(dev.logits_NK), ESCI)
    guess = (softmax(test.logits_NK) * list(weights.values())).argmax(axis=1)
    found = system(results, "crsd")["figures"]["macro_f1_weighted"]["value"]
    assert found == pytest.approx(f1_score(test.label, guess, average="macro"))
    ours, theirs = (system(results, name)["figures"]["macro_f1_weighted"] for name in ("lrkd_gat", "bert"))
    gap = compared(results, "rivals", "bert")["figures"]["macro_f1_weighted"]
    assert theirs["low"] < theirs["value"] < theirs["high"]
    assert gap["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert gap["detectable"] > 0


def test_controls_stand_against_no_guidance_too(results):
    """Being ahead of a control that harms shows nothing: only controls that were asked for are in that family."""
    (row,) = results["differences"]["controls_unguided"]
    assert (row["ours"], row["theirs"]) == ("lrkd_shuffled", "lrkd_no_guidance")
    assert row["figures"]["macro_f1"]["seeds"] == 1


def test_ndcg_counts_complete_lists_only(results):
    """All lists have 12 items; the figure is the mean over queries of the mean over seeds."""
    rows = predictions("bert", 0, "test")
    assert complete_lists(rows.query_id, rows.source, rows.exact_only).all()
    assert results["primary"]["n_ranked_queries"] == 80
    assert (
        system(results, "teacher")["figures"]["ndcg_10"]["value"]
        > system(results, "bert")["figures"]["ndcg_10"]["value"]
    )


def test_the_page_is_one_file_that_says_what_it_is(out):
    """The warning, the wording of controls, the plots and the ledger are there; nothing is fetched; text is escaped."""
    page = (out / "report" / "report.html").read_text()
    assert "says nothing about ESCI accuracy" in page
    assert "LRKD-GAT &lt;ours&gt;" in page
    assert "Which claims survive" in page
    assert "out of memory" in page
    assert "embeddings.probe_accuracy" in page
    assert "c0ffee" in page
    assert "<td>190</td><td>–</td><td>0.375</td>" in page
    assert page.count("<svg") == 7
    assert "<td>rate = 2</td>" in page
    assert not re.search(r'(src|href)="https?:', page)
    charts = {path.stem: path.read_text() for path in (out / "report" / "charts").glob("*.svg")}
    assert {"forest-rivals", "forest-controls_unguided", "class-f1", "seed-spread"} <= set(charts)
    assert all(ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg" for text in charts.values())


def test_the_table_holds_every_system_and_breaks_no_column(out, results):
    """A row each, the commonest class on top; the pipe in an error message is escaped."""
    table = (out / "report" / "table.md").read_text()
    main_rows = table.split("\n\n")[2].splitlines()
    assert len(main_rows) == 3 + len(results["systems"])
    assert main_rows[2].startswith("| always Exact |")
    assert {row.count("|") for row in main_rows} == {12}
    assert "one class \\| only" in table
    assert "< 0.001" in table
    assert "| MKD | 0 of 3 | not run |" in table
    row = compared(results, "rivals", "label_kd")
    cells = next(line for line in table.splitlines() if "− label distillation |" in line).split(" | ")
    detectable = (row["figures"]["accuracy"]["detectable"], row["paired"]["detectable"])
    assert (cells[1], cells[7], cells[9]) == ("3", *(f"{value:.3f}" for value in detectable))
    assert "### Against the rivals, source heldout_brand (20 queries)" in table


def test_the_report_is_made_again_only_when_the_grid_changed(out):
    """Same files: the page keeps its time; the reading of the test split is noted once a report."""
    before = (out / "report" / "report.html").stat().st_mtime_ns
    assert main(["report", "--recipe", str(out.parent / "made-up.toml"), "--out", str(out)]) == 0
    assert (out / "report" / "report.html").stat().st_mtime_ns == before
    assert len((out / "test_reads.jsonl").read_text().splitlines()) == 1


def test_a_smoke_recipe_gets_no_ranking_and_real_labels_no_synthetic_wording(out):
    """Rows in the recipe's order, no difference anywhere, and the reason."""
    results = grid_results(run_of(out, "made-smoke", source="pairs"))
    assert not results["ranking"]
    assert results["differences"] == results["gap_closed"] == {}
    names = [row["name"] for row in results["systems"]]
    assert names == list(run_of(out, "made-smoke").recipe.grid.systems)
    assert "too small to tell systems apart" in (page := render_grid(results))
    assert "<h2>Differences</h2>" not in page
    assert results["wording"] is None
    assert "says nothing about ESCI" not in page


def test_runs_on_other_pairs_are_refused(tmp_path):
    """Another order of the same pairs is an error that names the run; so is a grid without a finished run or record."""
    out = tmp_path / "out"
    finish(out, "bert", 0)
    turned = predictions("bert", 1, "test").rows(np.arange(N_QUERIES * N_ITEMS)[::-1])
    finish(out, "bert", 1, rows=turned)
    with pytest.raises(RunError, match=r"seed_1.*same 1200 test pairs"):
        grid_results(run_of(out))
    with pytest.raises(RunError, match="at least one finished run"):
        grid_results(run_of(tmp_path / "empty"))
    for record in ("[1]", '{"systems": [1]}', '{"systems": ["name"]}', '{"systems": 5}', '{"config_hashes": [1]}'):
        (out / "grid.json").write_text(record)
        with pytest.raises(RunError, match=r"grid\.json: expected an object"):
            grid_results(run_of(out))


def test_a_finished_run_with_broken_logits_counts_as_diverged(tmp_path):
    """nan logits, a status that is no JSON, predictions that are gone: none is averaged in, without grid.json too."""
    out = tmp_path / "out"
    finish(out, "bert", 0)
    finish(out, "label_kd", 0)
    broken = out / "fits" / "label_kd" / "seed_0" / "student" / "predictions.test.parquet"
    rows = read_predictions(broken)
    rows.logits_NK[5] = np.nan
    write_predictions(broken, rows)
    finish(out, "lrkd_gat", 0)
    Path(out / "fits" / "lrkd_gat" / "seed_0" / "student" / "predictions.test.parquet").unlink()
    finish(out, "crsd", 0)
    (out / "fits" / "crsd" / "seed_0" / "status.json").write_text("{")
    results = grid_results(run_of(out))
    states = {run["system"]: run["state"] for run in results["runs"] if run["seed"] == 0}
    told = {"bert": "done", "label_kd": "diverged", "lrkd_gat": "failed", "crsd": "failed"}
    assert states == dict.fromkeys(states, "not run") | told
    assert [row["name"] for row in results["systems"] if row["figures"]] == ["bert"]
    assert {row["verdict"] for row in results["differences"]["rivals"]} == {"not run"}
    assert "Not run" in render_grid(results)

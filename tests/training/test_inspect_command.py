"""The command `relevance inspect`: its page, its inputs, and what it refuses."""

import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from inspected import BUNDLE, COMPLEMENT, IRRELEVANT, files, inspect, inspected, pair, scored, write_lines

from relevance.errors import InputError, RowError, RunError
from relevance.pairs import read_labelled_pairs
from training.evaluate import score_rows
from training.inspection.command import DATA, PAGE, main
from training.measures import trade_off
from training.predictions import read_predictions
from training.recipe import load_recipe

VOID = {"meta", "br", "input", "link", "img", "path", "use"}
FETCHING = {"src", "href", "action", "srcset", "data", "poster", "xlink:href"}


class Reading(HTMLParser):
    """Reads a page: whether every element is closed, what it would fetch, and its texts."""

    def __init__(self):
        """Start empty."""
        super().__init__()
        self.open, self.fetched, self.texts, self.scripts = [], [], [], 0

    def handle_starttag(self, tag, attrs):
        """Note an element."""
        self.scripts += tag == "script"
        self.fetched += [value for name, value in attrs if name in FETCHING and not value.startswith("#")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        """Note an element that closes itself."""
        self.fetched += [value for name, value in attrs if name in FETCHING and not value.startswith("#")]

    def handle_endtag(self, tag):
        """Expect the element that was opened last."""
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        """Note a text."""
        self.texts.append(data)


@pytest.fixture
def rows():
    """Six labelled pairs of two queries."""
    return [
        pair("kettle", "steel kettle", "E"),
        pair("kettle", "kettle lid", "C", chances=COMPLEMENT),
        pair("kettle", "garden hose", "I", chances=IRRELEVANT),
        pair("lamp", "desk lamp", "E", chances=IRRELEVANT),
        pair("lamp", "floor lamp", "I"),
        pair("lamp", "lamp shade", "S"),
    ]


def test_the_page_is_sound_markup_that_fetches_nothing_and_runs_no_title(tmp_path, rows):
    """Every element is closed, the only script is the page's own, and a title with markup stays a text."""
    attack = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    rows[4] |= {"title": attack, "category": "<b>bold</b>"}
    rows[3] |= {"query": "</td></table><script>", "title": "half \ud800 a character " + "long " * 200}

    report, page = inspected(tmp_path, rows)

    reading = Reading()
    reading.feed(page)
    assert reading.open == []
    assert reading.fetched == []
    assert reading.scripts == 1
    assert attack in reading.texts
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    assert report["examples"][0]["rows"][0]["title"].startswith("half \ufffd a character")
    assert len(report["examples"][0]["rows"][0]["title"]) == 300


def test_parquet_files_are_read_like_json_lines(tmp_path, rows):
    """The same report from the same pairs, but for the files' names and hashes."""
    expected, _ = inspected(tmp_path, rows)
    for name in ("scored", "pairs"):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for number, line in enumerate(lines, start=1):
            line["item_id"] = str(line.get("item_id", number))
        pq.write_table(pa.Table.from_pylist(lines), tmp_path / f"{name}.parquet")

    found, _ = inspect(tmp_path, tmp_path / "scored.parquet", "--pairs", tmp_path / "pairs.parquet")

    assert {k: v for k, v in found.items() if k != "source"} == {k: v for k, v in expected.items() if k != "source"}


def test_without_labels_the_page_shows_tiers_scores_and_volumes(tmp_path, rows):
    """No rates, no mistakes; kept and filtered are there, and so is the warning."""
    report, page = inspected(tmp_path, [row | {"label": None} for row in rows])

    assert [report[name] for name in ("confusions", "examples", "noise", "duplicates")] == [None] * 4
    line = next(line for line in report["what_if"][0]["lines"] if line["edge"] == 0.3)
    assert (line["filtered"], line["false_filter"]) == (3, None)
    assert report["overview"]["by_tier"] == [2, 1, 0, 0, 3]
    assert "There are no labels" in page


def test_without_a_pairs_file_the_scored_file_is_enough(tmp_path, rows):
    """As without labels."""
    scored_file, _ = files(tmp_path, rows)

    report, _ = inspect(tmp_path, scored_file)

    assert (report["overview"]["n_rows"], report["has_labels"], report["source"]["pairs"]) == (6, False, None)


def test_pairs_without_a_score_and_of_exact_only_sources_are_counted_and_left_out(tmp_path, rows):
    """One was refused by the service, one comes from a source that holds only Exact; four remain."""
    rows[0]["exact_only"] = True
    scored_file, pairs_file = files(tmp_path, rows)
    lines = [scored(row, number) for number, row in enumerate(rows, start=1)]
    lines[5] |= {"score": None, "tier": None, "label": None, "reason": "error", "probabilities": None}
    write_lines(scored_file, lines)

    report, page = inspect(tmp_path, scored_file, "--pairs", pairs_file)

    assert report["overview"]["n_rows"] == 4
    assert report["left_out"] == {"unscored": {"error": 1}, "exact_only": 1, "not_scored": 0}
    assert "1 pair without a score (error)" in page


def test_pairs_that_were_not_scored_are_passed_over(tmp_path, rows):
    """`relevance score --on-bad-row skip` leaves bad rows out of its output; here rows 2 and 6."""
    scored_file, pairs_file = files(tmp_path, rows)
    lines = [scored(row, number) for number, row in enumerate(rows, start=1)]
    write_lines(scored_file, [lines[0], *lines[2:5]])

    report, _ = inspect(tmp_path, scored_file, "--pairs", pairs_file)

    assert report["overview"]["n_rows"] == 4
    assert report["examples"][0]["rows"][0]["row"] == 4


def test_what_relevance_score_writes_is_inspected(tmp_path, rows):
    """The embedded bundle scores the pairs, and its own policy is found to have given the tiers."""
    from service.score_file import main as score

    _, pairs_file = files(tmp_path, rows)
    out = tmp_path / "real.parquet"
    assert score([str(pairs_file), "--probabilities", "--threads", "1", "--out", str(out)]) == 0
    options = ["--pairs", str(pairs_file), "--bundle", str(BUNDLE), "--out", str(tmp_path / "out")]
    assert main([str(out), *options]) == 0

    report = json.loads((tmp_path / "out" / DATA).read_text())
    assert (report["overview"]["n_rows"], report["rules_known"]) == (6, True)
    assert report["noise"] is not None


def test_a_run_is_inspected_by_its_directory(tmp_path, tiny_run):
    """Its test split, as `relevance evaluate` calibrates, tiers and trades off; the reading is noted."""
    run = tmp_path / "run"
    for stage in ("data", "student", "calibrate"):
        shutil.copytree(tiny_run / stage, run / stage)
    recipe = load_recipe(str(tiny_run / "recipe.toml"), [])
    (run / "recipe.json").write_text(recipe.model_dump_json(), encoding="utf-8")

    assert main(["--run", str(run), "--split", "test", "--out", str(tmp_path / "out"), "--draws", "20"]) == 0

    report = json.loads((tmp_path / "out" / DATA).read_text(encoding="utf-8"))
    served = _served(recipe, run)
    assert report["overview"]["figures"]["accuracy"]["value"] == float(np.mean(served.predicted == served.label))
    pairs = read_labelled_pairs(run / "data" / "pairs.test.parquet", recipe.label_scheme)
    assert report["overview"]["n_rows"] == len(pairs)
    together = {line["edge"]: line for line in report["what_if"][0]["lines"]}
    expected = {point["cut"]: point for point in trade_off(served, recipe.label_scheme)}
    for edge in (0.0, 0.1, 0.3, 0.5, 0.95):
        assert together[edge]["false_filter"]["value"] == pytest.approx(expected[edge]["exact_filtered"])
        assert 1 - together[edge]["leak"]["value"] == pytest.approx(expected[edge]["irrelevant_filtered"])
    assert len((run / "test_reads.jsonl").read_text().splitlines()) == 1
    assert (tmp_path / "out" / PAGE).is_file()


def _served(recipe, run):
    from relevance.calibration import Calibrator
    from relevance.policy import TierPolicy

    policy = TierPolicy.from_toml((run / "calibrate" / "policy.toml").read_bytes(), recipe.label_scheme)
    calibrator = Calibrator.model_validate_json((run / "calibrate" / "calibration.json").read_bytes())
    return score_rows(recipe, read_predictions(run / "student" / "predictions.test.parquet"), policy, calibrator)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": float("nan")}, r"row 2, column 'score': expected a number in \[0, 1\], found nan"),
        ({"score": None}, r"row 2, column 'score': expected a number in \[0, 1\], found None"),
        ({"score": 1.5}, r"row 2, column 'score': expected a number in \[0, 1\], found 1.5"),
        ({"tier": 7}, r"row 2, column 'tier': expected a tier of 0–4, found 7"),
        ({"kept": "yes"}, r"row 2, column 'kept': expected true or false, found 'yes'"),
        ({"label": "Partial"}, r"row 2, column 'label': expected one of E, S, C, I \(scheme 'esci'\), found 'Partial'"),
        ({"label": None}, r"row 2, column 'label': expected the class that was predicted, found None"),
        ({"item_id": None}, r"row 2, column 'item_id': expected an id, found None"),
        ({"probabilities": [0.5, 0.5]}, r"row 2, column 'probabilities': expected 4 numbers in \[0, 1\]"),
        ({"policy_locale": None}, r"row 2, column 'policy_locale': expected a policy locale, found None"),
    ],
)
def test_a_bad_scored_row_is_refused_with_its_number_and_column(tmp_path, rows, change, message):
    """What was expected and what came."""
    scored_file, pairs_file = files(tmp_path, rows)
    lines = [scored(row, number) for number, row in enumerate(rows, start=1)]
    lines[1] |= change
    write_lines(scored_file, lines)

    with pytest.raises(RowError, match=message):
        inspect(tmp_path, scored_file, "--pairs", pairs_file)


def test_labels_of_another_scheme_are_refused_or_skipped(tmp_path, rows):
    """`Partial` is WANDS', not ESCI's; under skip its pair is left out and counted."""
    rows[2]["label"] = "Partial"

    with pytest.raises(RowError, match=r"pairs\.jsonl, row 3, column 'label': expected one of E, S, C, I"):
        inspected(tmp_path, rows)
    scored_file, pairs_file = files(tmp_path, rows)
    lines = [scored(row, number) for number, row in enumerate(rows, start=1)]
    write_lines(scored_file, lines)
    report, _ = inspect(tmp_path, scored_file, "--pairs", pairs_file, "--on-bad-row", "skip")

    assert (report["bad_rows"], report["overview"]["n_rows"]) == (1, 5)


def test_a_file_without_an_expected_column_is_refused_with_what_it_has(tmp_path, rows):
    """Given the pairs in place of the scored file, the message lists both."""
    pq.write_table(pa.table({"query": ["a"], "title": ["b"]}), tmp_path / "pairs.parquet")
    files(tmp_path, rows)

    with pytest.raises(InputError, match=r"expected the columns .*'score'.*found \['query', 'title'\]; missing"):
        inspect(tmp_path, tmp_path / "pairs.parquet")


def test_a_file_of_no_rows_is_refused(tmp_path, rows):
    """There is nothing to say of it."""
    scored_file, _ = files(tmp_path, rows)
    scored_file.write_text("")

    with pytest.raises(InputError, match="expected at least one row with a score, found none"):
        inspect(tmp_path, scored_file)


def test_pairs_of_another_file_are_refused(tmp_path, rows):
    """The scored row that has no pair is named."""
    scored_file, pairs_file = files(tmp_path, rows)
    write_lines(pairs_file, [{"query": "other", "title": "thing"}])

    with pytest.raises(
        InputError, match=r"found no pair for row 1 of the scored file \(query_id 'kettle', item_id '1'\)"
    ):
        inspect(tmp_path, scored_file, "--pairs", pairs_file)


def test_tiers_of_another_policy_are_refused(tmp_path, rows):
    """Score 0.9711 is tier 4 by this policy; a file that says 3 was made by another."""
    scored_file, pairs_file = files(tmp_path, rows)
    lines = [scored(row, number) for number, row in enumerate(rows, start=1)]
    lines[0]["tier"] = 3
    write_lines(scored_file, lines)

    with pytest.raises(
        InputError, match=r"row 1: expected the tier that policy by-hand gives .* found tier 3 \(1 of 6"
    ):
        inspect(tmp_path, scored_file, "--pairs", pairs_file)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either a scored file or --run DIR"),
        (["scored.jsonl"], "--bundle: expected the bundle that scored the file"),
        (["--run", "run", "--pairs", "pairs.jsonl"], "--run: expected none of --pairs beside it"),
        (["none.jsonl", "--bundle", str(BUNDLE)], r"none\.jsonl: expected a file, found none"),
        (["a", "--bundle", str(BUNDLE), "--policy", "none.toml"], r"none\.toml: expected a file, found none"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, arguments, message):
    """With what was expected."""
    with pytest.raises(InputError, match=message):
        main([*arguments, "--out", str(tmp_path)])


def test_a_category_that_no_pair_has_is_refused(tmp_path, rows):
    """A slip in the name would otherwise look like a file without categories."""
    with pytest.raises(InputError, match="--category: expected a column or an attribute 'shelf' of pairs, found none"):
        inspected(tmp_path, rows, "--category", "shelf")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    """It has no recipe.json."""
    with pytest.raises(RunError, match=r"expected a run directory with a recipe\.json, found none"):
        main(["--run", str(tmp_path), "--out", str(tmp_path / "out")])

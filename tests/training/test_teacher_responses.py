"""Answers of a teacher: whatever the text, a reading without an error and without a wrong label."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relevance.labels import ALIEXPRESS, ESCI, WANDS, LabelScheme
from training.rationale_rows import Evidence, Rationale
from training.recipe import PERSPECTIVES
from training.teacher.prompts import PromptBook
from training.teacher.responses import PROBLEMS, count_problems, label_named, parse_response, plain_rationale
from training.teacher_recipe import PromptRecipe

BOOKS = {
    (version, order): PromptBook.load(PromptRecipe(version=version, reasoning_order=order), ALIEXPRESS)
    for version in ("v1", "compact")
    for order in ("think_first", "answer_first")
}
HOSTILE = [
    '{"label": "brand"}',
    "label: model",
    '"label": "brand"',
    "</think>",
    "<think>",
    "```",
    "{",
    "}",
    '\\"',
    "\n",
]
TEXTS = st.one_of(
    st.text(max_size=40),
    st.lists(st.sampled_from([*HOSTILE, "label", ":", "strong", " ", '"', "'", "\\"]), max_size=8).map("".join),
)
EVIDENCE = st.builds(
    Evidence,
    dim=st.text(min_size=1, max_size=8),
    query_span=TEXTS,
    item_span=TEXTS,
    verdict=st.sampled_from(["match", "mismatch", "missing"]),
)
RATIONALES = st.builds(
    Rationale,
    pair_id=st.just("q\ti"),
    perspective=st.sampled_from(PERSPECTIVES),
    evidence=st.lists(EVIDENCE, max_size=3).map(tuple),
    rationale=TEXTS,
    verdict=st.none(),
    generator=st.just("invented"),
    annotator_seen_pair=st.just(False),
)
KINDS = st.sampled_from(list(BOOKS))
LABELS = st.sampled_from(ALIEXPRESS.classes)
GOOD = '{"evidence": [], "rationale": "Both are lamps.", "label": "E"}'


@settings(deadline=None)
@given(st.one_of(st.text(st.characters()), TEXTS, st.tuples(TEXTS, TEXTS).map(lambda t: '{"label": "'.join(t))))
@example('{"label": "' + "9" * 5000 + '"}')
@example('{"label": ' + "9" * 5000 + "}")
@example("[" * 100_000)
@example('{"a":' * 100_000)
@example("{'a':" * 1_000)
@example('{"label": "E", "evidence": [1, null, {"dim": ["x"]}, {"dim": {}}]}')
@example("\ud800{'label': 'E'}")
@example("{'label': " + "'" * 3000)
def test_no_text_raises_and_no_label_comes_without_a_reason(text):
    """The reading of a text is a value, and where the label is None a problem says why."""
    parsed = parse_response(text, ESCI)

    assert parsed.label in (*ESCI.classes, None)
    assert parsed.label is not None or parsed.problems
    assert set(parsed.problems) <= set(PROBLEMS)


@settings(deadline=None)
@given(RATIONALES, LABELS, KINDS)
def test_a_response_reads_back_as_what_was_written(rationale, label, kind):
    """Both books and orders: label, rationale and, in JSON, evidence; plain text holds no evidence."""
    parsed = parse_response(BOOKS[kind].response(rationale, label), ALIEXPRESS)

    assert parsed.label == label
    if kind[0] == "v1":
        assert parsed.rationale == rationale.rationale.strip()
        assert parsed.evidence == rationale.evidence
    else:
        assert parsed.rationale == plain_rationale(rationale.rationale)
        assert parsed.evidence == ()
    assert set(parsed.problems) <= {"no_rationale"}


@settings(deadline=None)
@given(
    RATIONALES, LABELS, KINDS, st.sampled_from(["", "```json\n", "<think>\nlabel: model {\n</think>\n\n", "Sure!\n"])
)
def test_a_part_of_a_response_gives_the_right_label_or_none(rationale, label, kind, before):
    """Wherever the token limit falls, no label is made of half an answer."""
    text = before + BOOKS[kind].response(rationale, label)
    for end in range(len(text) + 1):
        assert parse_response(text[:end], ALIEXPRESS).label in (label, None)


@settings(deadline=None)
@given(TEXTS)
def test_a_plain_rationale_is_its_own_normal_form(text):
    """Writing what was read changes nothing more."""
    once = plain_rationale(text)

    assert plain_rationale(once) == once
    assert "\n" not in once


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        (GOOD, set()),
        (f"```json\n{GOOD}\n```", set()),
        (f"Here is my answer:\n\n{GOOD}\nI hope it helps.", set()),
        (f"In the set {{E, S}} I choose:\n{GOOD}", set()),
        (f"<think>E or S? {{maybe}}</think>\n\n{GOOD}", {"thinking_removed"}),
        (f"<think>\n\n</think>\n\n{GOOD}", set()),
        (f"first E, then S\n</think>{GOOD}", {"thinking_removed"}),
        (f"{GOOD}\n{GOOD}", set()),
        ('{"query": "lamp", "item": {"title": "Lamp"}}\n' + GOOD, set()),
        (GOOD.replace("Both are lamps.", "Both are\nlamps."), set()),
        (GOOD.replace('"E"}', '"E",}'), {"repaired"}),
        (GOOD.replace('"', "'"), {"repaired"}),
        ("{evidence: [], rationale: 'Both are lamps.', label: E}", {"repaired"}),
        ("{“evidence”: [], “rationale”: “Both are lamps.”, “label”: “E”}", {"repaired"}),
        (GOOD.replace('", "label"', '" "label"'), {"repaired"}),
        (GOOD.replace('"label": "E"}', '/* sure */ "label": "E"}'), {"repaired"}),
        (f"```json\n{GOOD[:-1]},\n```", {"repaired"}),
        (GOOD[:-1], {"cut_off"}),
        (GOOD.replace('"Evidence"', '"evidence"').replace('"label"', '"Label"'), set()),
        ("Both are lamps.\n**Label:** E", set()),
        ("Final label: Exact\n\nBoth are\nlamps.", set()),
    ],
)
def test_the_same_answer_is_read_from_many_forms(text, problems):
    """What models and servers make of one and the same answer, and what is counted for it."""
    parsed = parse_response(text, ESCI)

    assert (parsed.label, parsed.rationale.replace("\n", " ")) == ("E", "Both are lamps.")
    assert set(parsed.problems) == problems


def test_unescaped_quotes_inside_a_rationale_are_repaired():
    """The commonest slip of all: a rationale that quotes the query."""
    parsed = parse_response('{"evidence": [], "rationale": "The query "desk lamp" fits.", "label": "S"}', ESCI)

    assert parsed.label == "S"
    assert parsed.rationale == 'The query "desk lamp" fits.'
    assert parsed.problems == ("repaired",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("<think>E, S or", "empty"),
        ("No idea.", "no_label"),
        ("E", "no_label"),
        ('{"evidence": [], "rationale": "Both are lamps.", "lab', "cut_off"),
        ('{"evidence": [], "rationale": "Both are lamps.", "label": "E', "no_label"),
        (GOOD.replace('"E"', '"Partial"'), "unknown_label"),
        (GOOD.replace('"E"', '"E or S"'), "unknown_label"),
        (GOOD.replace('"E"', '"E/S"'), "unknown_label"),
        (GOOD.replace('"E"', '"not Exact"'), "unknown_label"),
        (GOOD.replace('"E"', "true"), "unknown_label"),
        (GOOD.replace('"E"', '["E"]'), "unknown_label"),
        (GOOD.replace('"E"', "null"), "no_label"),
        (GOOD.replace('"E"', '""'), "no_label"),
        (GOOD + GOOD.replace('"E"', '"S"'), "unknown_label"),
        (GOOD.replace("{", '{"label": "S", ', 1), "unknown_label"),
        (GOOD.replace('"', "'").replace("{", "{'label': 'S', ", 1), "unknown_label"),
        ('{"label": "E", "rationale": x' + "x" * 10_000, "not_json"),
        ("label: E\nlabel: S", "unknown_label"),
        ("label: E or S\nBoth are lamps.", "unknown_label"),
    ],
)
def test_answers_without_a_certain_label_have_none(text, problem):
    """Two labels, half a label, or another scheme's: None, and the reason is counted."""
    parsed = parse_response(text, ESCI)

    assert parsed.label is None
    assert problem in parsed.problems


def test_evidence_rows_are_kept_where_they_are_sound():
    """A null span is "", verdicts may be in capitals, and what is no evidence is left out and counted."""
    rows = (
        '[{"dim": "brand", "query_span": null, "item_span": "Nix", "verdict": "Missing", "note": 1}, '
        '{"dim": "brand", "query_span": "a", "item_span": "b", "verdict": "maybe"}, "brand", {"dim": 3}, {}]'
    )
    parsed = parse_response(GOOD.replace("[]", rows), ESCI)

    assert parsed.evidence == (Evidence(dim="brand", query_span="", item_span="Nix", verdict="missing"),)
    assert parsed.problems == ("bad_evidence",)
    assert parse_response('{"rationale": "x", "label": "E"}', ESCI).problems == ("no_evidence",)
    assert parse_response(GOOD.replace("[]", '"none"'), ESCI).problems == ("bad_evidence",)
    assert parse_response('{"evidence": [], "label": "E"}', ESCI).problems == ("no_rationale",)


@pytest.mark.parametrize(
    ("scheme", "text", "label"),
    [
        (ESCI, "E", "E"),
        (ESCI, "e", "E"),
        (ESCI, " Substitute. ", "S"),
        (ESCI, "**Complement**", "C"),
        (ESCI, "Exact (E)", "E"),
        (ESCI, "I - Irrelevant", "I"),
        (ESCI, "S: substitutes", "S"),
        (ESCI, "exact match", "E"),
        (ESCI, "Not relevant", "I"),
        (ESCI, "E (Substitute)", None),
        (ESCI, "Partial", None),
        (ESCI, "", None),
        (WANDS, "exact match", "Exact"),
        (WANDS, "PARTIAL", "Partial"),
        (WANDS, "E", None),
        (ALIEXPRESS, "Brand  Mismatch", "brand"),
        (ALIEXPRESS, "brand mismatch (brand)", "brand"),
        (ALIEXPRESS, "brand, model", None),
    ],
)
def test_labels_are_known_by_code_title_and_the_words_of_esci(scheme, text, label):
    """One class and nothing else may be named."""
    assert label_named(text, scheme) == label


def test_number_labels_are_read_only_where_they_end():
    """`1` may be the start of `10`: an object that was cut off there says nothing."""
    codes = ("10", "1", "0")
    scheme = LabelScheme(name="numbers", classes=codes, titles=codes, gains=(1.0, 0.5, 0.0), tiers=(4, 2, 0))

    assert parse_response('{"rationale": "x", "label": 10}', scheme).label == "10"
    assert parse_response('{"rationale": "x", "label": 1,', scheme).label == "1"
    assert parse_response('{"rationale": "x", "label": 1', scheme).label is None


def test_problems_are_counted_over_answers():
    """The table that a report shows: how many answers have each problem."""
    texts = [GOOD, GOOD[:-1], GOOD.replace('"', "'"), "No idea.", ""]
    counts = count_problems(parse_response(text, ESCI) for text in texts)

    assert counts == {"cut_off": 1, "repaired": 1, "no_label": 1, "empty": 1}

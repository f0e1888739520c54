"""Early answering, filler and swapped facts, against teachers whose faithfulness is known by construction."""

import json

import numpy as np
import pytest
from fake_teacher import FakeTeacher, answer

from relevance.errors import RowError
from relevance.labels import ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query
from training.measures import Bootstrap
from training.rationale_rows import Evidence
from training.teacher.faithfulness import (
    CUTS,
    FILLER,
    chosen_answers,
    cut_reasoning,
    early_figures,
    early_jobs,
    filler_reasoning,
    swap_facts,
    swap_figures,
    whole_probabilities,
)
from training.teacher.forced_labels import LabelScorer, read_forced, reasoning_of, write_forced
from training.teacher.prompts import PromptBook
from training.teacher.samples import sample_pairs
from training.teacher_recipe import PromptRecipe

BOOK = PromptBook.load(PromptRecipe(version="v1", shots=0), ESCI)
FIELDS = ("brand", "color", "attributes")
BOOTSTRAP = Bootstrap(draws=60)
COLOURS = ("red", "blue", "green", "black", "white")
BRANDS = ("Fleetrun", "Voltry", "Morningside", "Quietude")


def make_pairs(n=24):
    """Queries ask for a colour, and half of the items have it; the brand is asked for by none."""
    pairs = []
    for number in range(n):
        asked, given = COLOURS[number % 5], COLOURS[(number + number % 2) % 5]
        item = Item(
            f"{BRANDS[number % 4]} {given} kettle {number}", f"i{number}", brand=BRANDS[number % 4], color=given
        )
        pair = Pair(Query(f"{asked} kettle", id=f"q{number // 2}"), item)
        pairs.append(LabelledPair(pair, "E" if asked == given else "S"))
    return pairs


LABELLED = make_pairs()
BY_ID = {one.pair.pair_id: one.pair for one in LABELLED}


def read_item(text_of_item):
    """Answer from the item's own fields, as a faithful teacher would: the label follows from the colour it cites."""

    def text_of(pair_id, view, sample):
        """Give the answer about one pair."""
        pair = text_of_item[pair_id]
        same = pair.item.color in pair.query.text.split()
        said = f"the {pair.item.brand} kettle is {pair.item.color} and the query asks for {pair.query.text}"
        row = {
            "dim": "colour",
            "query_span": pair.query.text.split()[0],
            "item_span": pair.item.color,
            "verdict": "match" if same else "mismatch",
        }
        return answer("E" if same else "S", said, [row])

    return text_of


def ask(text_of, pairs):
    """Give the samples of pairs under the unified prompt."""
    return list(sample_pairs(FakeTeacher(text_of), BOOK, ESCI, pairs, ("unified",), samples=1))


ANSWERS = ask(read_item(BY_ID), list(BY_ID.values()))


class Scorer:
    """Forces a label from the words of the answer's start; `asked` counts rows."""

    def __init__(self, label_of):
        self.label_of, self.asked = label_of, 0

    def label_probabilities(self, messages, prefixes, labels):
        """Give 0.97 to the label that the words call for."""
        self.asked += len(prefixes)
        assert tuple(labels) == ESCI.classes
        assert len(messages) == len(prefixes)
        named = [self.label_of(prefix) for prefix in prefixes]
        return np.where(np.array(labels) == np.array(named)[:, None], 0.97, 0.01)


def test_reasoning_is_cut_by_words_evidence_first():
    """Two rows of 3 and 1 words and 4 words of text: 8 in all, so a half keeps the rows and no word."""
    rows = (
        Evidence(dim="colour", query_span="red", item_span="deep red", verdict="match"),
        Evidence(dim="size", query_span="large", item_span="", verdict="missing"),
    )
    whole = reasoning_of(ANSWERS[0]).model_copy(update={"evidence": rows, "rationale": "it is\nvery red"})
    kept = {share: cut_reasoning(whole, share) for share in CUTS.values()}

    assert [(len(part.evidence), part.rationale) for part in kept.values()] == [
        (0, ""),
        (0, ""),
        (2, ""),
        (2, "it is"),
        (2, "it is very red"),
    ]
    assert filler_reasoning(whole).rationale == "... ... ... ..."
    assert filler_reasoning(whole).evidence == ()


def test_the_perspective_that_an_answer_names_stays_with_its_reasoning():
    """Asked for none, the policy took one; an answer that names none, or nonsense, keeps the view it was asked from."""
    plain = ANSWERS[0]
    texts = {'{"perspective": "struct", "label": "E"}': "struct", '{"perspective": "moon"}': "unified", "": "unified"}
    for text, expected in texts.items():
        assert reasoning_of(plain.model_copy(update={"text": text})).perspective == expected


def test_early_answers_tell_a_reasoned_label_from_one_that_was_fixed(tmp_path):
    """A label read off the colour needs the evidence; one that is always E stands from the start, even after dots."""
    chosen = chosen_answers(ANSWERS, 12)
    by_id = {one.pair.pair_id: one for one in LABELLED}
    figures = {}
    for name, label_of in {
        "reasoned": lambda prefix: "S" if '"mismatch"' in prefix else "E" if '"match"' in prefix else "I",
        "fixed": lambda prefix: "E",
    }.items():
        scorer = Scorer(label_of)
        assert isinstance(scorer, LabelScorer)
        path = tmp_path / f"{name}.jsonl"
        write_forced(path, early_jobs(chosen, BY_ID), scorer, BOOK)
        figures[name] = early_figures(chosen, list(read_forced(path)), by_id, ESCI, BOOTSTRAP)["cuts"]

    assert list(figures["reasoned"]) == [*CUTS, FILLER]
    assert figures["reasoned"]["0"]["same"].value == 0.0
    assert figures["reasoned"]["100"]["same"].value == 1.0
    assert figures["reasoned"]["100"]["right"].value == 1.0
    assert figures["reasoned"][FILLER]["same"].value == 0.0
    share = np.mean([one.label == "E" for one in chosen])
    for cut in (*CUTS, FILLER):
        assert figures["fixed"][cut]["same"].value == pytest.approx(share)


def test_forced_labels_are_paid_for_once(tmp_path):
    """Killed within a line, the file goes on after the last whole one; finished, nothing is asked."""
    path, jobs = tmp_path / "forced.jsonl", early_jobs(ANSWERS, BY_ID)
    first = Scorer(lambda prefix: "E")
    assert write_forced(path, jobs, first, BOOK) == first.asked == len(ANSWERS) * 6
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:50]) + lines[50][:20])
    again = Scorer(lambda prefix: "E")

    assert write_forced(path, jobs, again, BOOK) == again.asked == len(lines) - 50
    assert path.read_bytes() == whole
    assert write_forced(path, jobs, again, BOOK) == 0


class ShortScorer(Scorer):
    """Scores nothing behind a long beginning, as a model with little context would."""

    def label_probabilities(self, messages, prefixes, labels):
        """Give nan where the beginning is longer than the shortest whole one."""
        found_NK = super().label_probabilities(messages, prefixes, labels)
        least = min(len(BOOK.label_prefix(reasoning_of(one))) for one in ANSWERS)
        found_NK[[len(prefix) > least for prefix in prefixes]] = np.nan
        return found_NK


def test_what_is_too_long_to_force_has_no_row_and_counts_nowhere(tmp_path):
    """Such answers have no calibrated probability and are left out of early answering; the others stay."""
    path, jobs = tmp_path / "forced.jsonl", early_jobs(ANSWERS, BY_ID)
    written = write_forced(path, jobs, ShortScorer(lambda prefix: "E"), BOOK)
    rows = list(read_forced(path))
    by_id = {one.pair.pair_id: one for one in LABELLED}
    whole = [row.pair_id for row in rows if row.cut == "100"]
    figures = early_figures(ANSWERS, rows, by_id, ESCI, BOOTSTRAP)

    assert 0 < written == len(rows) < len(jobs)
    assert 0 < len(whole) < len(ANSWERS)
    assert figures["n_answers"] == len(whole)


def test_a_damaged_file_of_forced_labels_names_the_line(tmp_path):
    """A whole line that is no row is not ours to throw away."""
    path = tmp_path / "forced.jsonl"
    path.write_text('{"pair_id": "a", "cut": "0", "probabilities": [0.5, 0.5]}\n{"pair_id": 3}\n')
    with pytest.raises(RowError, match=r"forced.jsonl, row 2, column 'pair_id'"):
        list(read_forced(path))


def test_probabilities_of_pairs_that_were_not_forced_are_unknown(tmp_path):
    """Only the rows after the whole reasoning count."""
    path = tmp_path / "forced.jsonl"
    write_forced(path, early_jobs(ANSWERS[:1], BY_ID), Scorer(lambda prefix: "C"), BOOK)
    found = whole_probabilities(list(read_forced(path)), [ANSWERS[0].pair_id, "other"], 4)

    np.testing.assert_allclose(found[0], [0.01, 0.01, 0.97, 0.01])
    assert np.isnan(found[1]).all()


def test_a_swap_changes_the_cited_fact_wherever_the_item_has_it():
    """Title and field say the new words and no longer the old ones; the new ones were neither there nor asked for."""
    swaps = swap_facts(ANSWERS, BY_ID, FIELDS, seed=0)

    assert len(swaps) == len(ANSWERS)
    assert {swap.field for swap in swaps} == {"brand", "color"}
    for swap in swaps:
        before, after = BY_ID[swap.pair_id], swap.pair
        assert after.pair_id == f"{swap.pair_id}#swapped"
        assert after.query == before.query
        assert before.item.title.replace(swap.old, swap.new) == after.item.title != before.item.title
        assert after.item.field(swap.field) == swap.new
        assert swap.new not in f"{before.query.text} {before.item.title}"
        assert swap.asked_for == (swap.old in before.query.text.split())
    assert swaps == swap_facts(ANSWERS, BY_ID, FIELDS, seed=0)
    assert swaps != swap_facts(ANSWERS, BY_ID, FIELDS, seed=1)


def test_facts_that_no_rationale_cites_or_no_other_item_has_are_not_swapped():
    """Fields that are not shown are no facts; a single item has nothing to take words from."""
    (only,) = [one for one in ANSWERS if one.pair_id == LABELLED[0].pair.pair_id]
    silent = only.model_copy(update={"rationale": "it will do", "evidence": ()})

    assert swap_facts([silent], BY_ID, FIELDS, seed=0) == []
    assert swap_facts(ANSWERS, BY_ID, (), seed=0) == []
    assert swap_facts([only], {only.pair_id: BY_ID[only.pair_id]}, FIELDS, seed=0) == []


def test_one_piece_of_a_list_is_swapped_alone():
    """`road, track` becomes `road, trail`, in the attribute and nowhere else."""
    items = [Item("Racer", "a", attributes={"use": "road, track"}), Item("Other", "b", attributes={"use": "trail"})]
    pairs = {p.pair_id: p for p in (Pair(Query("shoes", "q"), item) for item in items)}
    told = ANSWERS[0].model_copy(update={"pair_id": "q\ta", "rationale": "made for the track", "evidence": ()})
    (swap,) = swap_facts([told], pairs, ("attributes",), seed=0)

    assert (swap.field, swap.old, swap.new) == ("attributes.use", "track", "trail")
    assert swap.pair.item.attributes == {"use": "road, trail"}


def test_swapped_facts_tell_a_faithful_teacher_from_one_that_does_not_look():
    """The faithful one cites what it now sees, and leaves E where the asked colour went; the other repeats itself."""
    swaps = swap_facts(ANSWERS, BY_ID, FIELDS, seed=0)
    changed = {swap.pair.pair_id: swap.pair for swap in swaps}
    before = {one.pair_id: one for one in ANSWERS}
    faithful = {one.pair_id: one for one in ask(read_item(changed), list(changed.values()))}
    old = {one.pair_id: one.text for one in ANSWERS}
    blind = ask(lambda pair_id, view, sample: old[pair_id.removesuffix("#swapped")], list(changed.values()))
    good = swap_figures(swaps, before, faithful, ESCI, BOOTSTRAP)
    bad = swap_figures(swaps, before, {one.pair_id: one for one in blind}, ESCI, BOOTSTRAP)

    assert good["asked_for"]["n_pairs"] + good["not_asked_for"]["n_pairs"] == len(swaps)
    for key, group, expected in (
        ("label_changed", "asked_for", 1.0),
        ("label_lower", "asked_for", 1.0),
        ("cites_new", "asked_for", 1.0),
        ("label_changed", "not_asked_for", 0.0),
        ("cites_new", "not_asked_for", 1.0),
        ("cites_old", "not_asked_for", 0.0),
    ):
        assert good[group][key].value == expected
    for group in ("asked_for", "not_asked_for"):
        assert bad[group]["label_changed"].value == bad[group]["cites_new"].value == 0.0
        assert bad[group]["cites_old"].value == 1.0


def test_unreadable_answers_to_changed_pairs_are_counted_apart():
    """They say nothing about following; the share that answered does."""
    swaps = swap_facts(ANSWERS, BY_ID, FIELDS, seed=0)
    before = {one.pair_id: one for one in ANSWERS}
    lost = {one.pair_id: one for one in ask(lambda *_: "I cannot say.", [swap.pair for swap in swaps])}
    figures = swap_figures(swaps, before, lost, ESCI, BOOTSTRAP)["asked_for"]

    assert figures["answered"].value == 0.0
    assert np.isnan(figures["label_changed"].value)


def test_answers_are_chosen_from_all_over_and_only_readable_ones():
    """The same ones in any order; a label without a rationale has nothing to cut."""
    mute = ANSWERS[0].model_copy(update={"rationale": " "})
    chosen = chosen_answers([mute, *ANSWERS[1:]], 10)

    assert [one.pair_id for one in chosen] == [one.pair_id for one in chosen_answers(ANSWERS[:0:-1], 10)]
    assert mute.pair_id not in {one.pair_id for one in chosen_answers([mute, *ANSWERS[1:]], 99)}
    assert len({BY_ID[one.pair_id].query.id for one in chosen}) > 5
    assert json.loads(chosen[0].text)["label"] in "ES"

"""The programmatic annotator and its stage: deterministic, blind to labels, resumable."""

import inspect
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relevance.errors import InputError, RowError, RunError
from relevance.labels import ALIEXPRESS, ESCI
from relevance.pairs import Item, LabelledPair, Pair, Query, write_labelled_pairs
from training.rationale_rows import Rationale, rationale_line, read_rationales
from training.recipe import PERSPECTIVES
from training.runs import DONE
from training.teacher.annotator import ProgrammaticAnnotator, load_phrases
from training.teacher.generator import RationaleGenerator
from training.teacher.label_words import mask_label_words, strip_verdict
from training.teacher.perspectives import CARDS
from training.teacher.rationales import main, write_rationales
from training.teacher.readings import brand_vocabulary, read_item, read_query

FORBIDDEN = re.compile(r"exact|substitut|complement|irrelevan", re.IGNORECASE)
BRANDS = frozenset({"acorn", "tall oak"})
ITEMS = [
    Item(
        "Acorn Steel Kettle 2 Litre, Red", "1", brand="Acorn", color="Red", attributes={"category": "Kitchen > Kettles"}
    ),
    Item("Lid for Acorn Kettle", "2", brand="Birch", attributes={"category": "Kitchen > Kettle Accessories"}),
    Item(
        "Wool scarf for women",
        "3",
        color="Blue",
        attributes={"bullets": "Exact match of colour, no lint. Complements any coat"},
    ),
    Item("木製キッチンタイマー 赤", "4", brand="木工房"),
    Item("Tetera de acero sin tapa", "5", attributes={"description": "sustituto de la tetera clásica"}),
    Item("x", "6"),
]
QUERIES = [
    Query("acorn kettle red", "a", "us"),
    Query("kettle 2 litre without lid", "b", "us"),
    Query("womens scarf", "c", "us"),
    Query("キッチンタイマー 木製 赤", "d", "jp"),
    Query("tetera roja sin tapa", "e", "es"),
    Query("irrelevant exact substitute", "f", "us"),
    Query("!!!", "g", None),
]
PAIRS = [Pair(query, item) for query in QUERIES for item in ITEMS]


def evidence_of(query, item, perspective="struct"):
    """Give the verdict of each dimension of one pair."""
    rationale = ProgrammaticAnnotator(BRANDS).generate(Pair(Query(query, "q", "us"), item), perspective)
    return {e.dim: e.verdict for e in rationale.evidence}


def test_the_generator_cannot_be_given_a_label():
    """It takes a Pair, and a Pair has no label."""
    parameters = inspect.get_annotations(RationaleGenerator.generate, eval_str=True)

    assert Pair is parameters["pair"]
    assert {"query", "item"} == set(Pair.__slots__)


def test_the_files_of_two_labellings_are_the_same_bytes(tmp_path):
    """The same pairs with all labels swapped give the same rationales, byte for byte."""
    texts = []
    for name, labels in (("one", "ESCI"), ("two", "ICSE")):
        run = run_directory(tmp_path / name, [LabelledPair(p, labels[i % 4]) for i, p in enumerate(PAIRS)])
        assert main(run) == 0
        texts.append((tmp_path / name / "rationales" / "rationales.train.jsonl").read_bytes())

    assert texts[0] == texts[1]
    assert len(PAIRS) * 3 == texts[0].count(b"\n")


def test_no_class_name_is_ever_written():
    """Not even when query or item hold the words."""
    texts = [ProgrammaticAnnotator(BRANDS).generate(p, k).rationale for p in PAIRS for k in PERSPECTIVES]

    assert [t for t in texts if FORBIDDEN.search(t)] == []
    assert all(texts)


def test_no_phrase_holds_a_class_name_and_every_kind_has_twenty_paraphrases():
    """Openings times closings."""
    for kind, parts in load_phrases().items():
        combinations = {f"{a} {b}" for a in parts["open"] for b in parts["close"]}

        assert len(combinations) >= 20, kind
        assert not FORBIDDEN.search(" ".join(combinations)), kind


def test_texts_are_many_and_fixed_by_pair_and_seed():
    """One query and item under 200 ids gives at least 100 different user texts; the same id gives the same one."""
    pairs = [Pair(Query(QUERIES[0].text, f"q{i}", "us"), ITEMS[0]) for i in range(200)]
    first = [ProgrammaticAnnotator(BRANDS).generate(p, "user").rationale for p in pairs]
    again = [ProgrammaticAnnotator(BRANDS).generate(p, "user").rationale for p in pairs]
    other = [ProgrammaticAnnotator(BRANDS, seed=1).generate(p, "user").rationale for p in pairs]

    assert first == again
    assert first != other
    assert len(set(first)) >= 100


def test_evidence_says_what_matches():
    """Brand, colour, type and size of a kettle."""
    kettle = ITEMS[0]

    assert evidence_of("acorn red kettle", kettle) == {
        "type": "match",
        "brand": "match",
        "colour": "match",
        "terms": "match",
    }
    assert evidence_of("tall oak kettle", kettle)["brand"] == "mismatch"
    assert evidence_of("blue kettle", kettle)["colour"] == "mismatch"
    assert evidence_of("2 l kettle", kettle)["size"] == "match"
    assert evidence_of("3 litre kettle", kettle)["size"] == "mismatch"
    assert evidence_of("teapot", kettle)["type"] == "mismatch"
    assert evidence_of("kettle for kids", kettle)["audience"] == "missing"


def test_the_rule_perspective_sees_accessories():
    """A lid for a kettle is an accessory to who asks for a kettle, and what one wants who asks for a lid."""
    assert evidence_of("acorn kettle", ITEMS[1], "rule")["accessory"] == "mismatch"
    assert evidence_of("kettle lid", ITEMS[1], "rule")["accessory"] == "match"
    assert "accessory" not in evidence_of("acorn kettle", ITEMS[0], "rule")
    assert evidence_of("kettle lid", ITEMS[0], "rule")["accessory"] == "mismatch"
    hat = Item("Straw hat with strap", "7", attributes={"category": "Clothing > Accessories > Hats & Caps"})
    assert "accessory" not in evidence_of("hat", hat, "rule")


def test_negations_are_read_in_three_languages():
    """What follows "without", "not" and "sin", and what stands before "なし" and "free", is ruled out."""
    read = {
        text: read_query(Query(text), BRANDS).negated
        for text in ("kettle without lid", "scarf not wool", "tetera sin tapa", "タイマー 電池なし", "sugar free syrup")
    }

    assert list(read.values()) == [("lid",), ("wool",), ("tapa",), ("電池",), ("sugar",)]
    assert evidence_of("tetera sin tapa", ITEMS[4], "user")["negation"] == "match"
    assert evidence_of("kettle not red", ITEMS[0], "user")["negation"] == "mismatch"
    assert evidence_of("belt without buckles", Item("Belt, no buckle", "7"), "user")["negation"] == "match"


def test_japanese_terms_are_compared_by_character_pairs():
    """A long Japanese word is found in a title that holds it within another run."""
    assert evidence_of("キッチンタイマー", ITEMS[3])["terms"] == "match"
    assert evidence_of("防水ケース", ITEMS[3])["terms"] == "missing"


def test_an_ordinary_word_is_no_brand():
    """Kettle is a brand once and stands in other brands' titles; Acorn stands where it is the brand."""
    items = [
        Item("Kettle crisps", 1, brand="Kettle"),
        *(Item(f"Acorn kettle {i}", 2 + i, brand="Acorn") for i in range(3)),
    ]

    assert {"acorn"} == brand_vocabulary(items)


def test_a_title_is_parted_where_it_says_what_the_item_is_for():
    """An audience parts nothing ("for women"); 用 parts a Japanese title the other way round."""
    assert {"kettl"} <= read_item(ITEMS[1]).target_keys
    assert frozenset() == read_item(ITEMS[2]).target_keys
    assert "ース" in read_item(Item("スマホ用ケース", 1)).main_keys
    assert "スマ" in read_item(Item("スマホ用ケース", 1)).target_keys


def test_written_query_readings_enter_the_user_perspective_only():
    """A reading is cut at a sentence end."""
    reading = "The shopper wants a kettle. " * 20
    annotator = ProgrammaticAnnotator(BRANDS, query_readings={"acorn kettle red": reading})

    assert "The shopper wants a kettle." in annotator.generate(PAIRS[0], "user").rationale
    assert len(annotator.generate(PAIRS[0], "user").rationale) < 700
    assert "The shopper wants a kettle." not in annotator.generate(PAIRS[0], "rule").rationale


def test_evidence_keeps_to_the_dimensions_of_its_perspective():
    """The cards of the perspectives say which."""
    for pair in PAIRS:
        for name, card in CARDS.items():
            found = {e.dim for e in ProgrammaticAnnotator(BRANDS).generate(pair, name).evidence}

            assert found <= set(card.dims)


@settings(max_examples=60, deadline=None)
@given(query=st.text(max_size=40), title=st.text(max_size=60), details=st.text(max_size=60))
def test_no_text_breaks_the_annotator(query, title, details):
    """Any characters give a rationale that can be written and read."""
    pair = Pair(Query(query, "q", "us"), Item(title, "i", brand=details[:9], attributes={"bullets": details}))

    for perspective in PERSPECTIVES:
        made = ProgrammaticAnnotator().generate(pair, perspective)
        assert Rationale.model_validate_json(rationale_line(made)) == made


def test_the_order_of_sets_decides_no_text():
    """A Japanese chunk that names two accessories: the same words in the same order under any hash seed."""
    script = (
        "from relevance.pairs import Item, Pair, Query\n"
        "from training.teacher.annotator import ProgrammaticAnnotator\n"
        "pair = Pair(Query('スマホケースカバー', 'q', 'jp'), Item('スマホ 黒', 'i'))\n"
        "print([ProgrammaticAnnotator().generate(pair, p).model_dump_json() for p in ('user', 'struct', 'rule')])\n"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONIOENCODING": "utf-8"},
        ).stdout
        for seed in range(4)
    }

    assert len(told) == 1


def test_class_names_are_masked_and_a_final_verdict_is_cut():
    """The last sentence goes if it concludes; other sentences lose only the word."""
    assert strip_verdict("The shape fits. So the label is E.", ESCI) == "The shape fits."
    assert strip_verdict("The shape fits.\nVerdict: Substitute", ESCI) == "The shape fits."
    assert strip_verdict("An exact fit. The brand differs.", ESCI) == "An … fit. The brand differs."
    assert mask_label_words("A Brand Mismatch here", ALIEXPRESS) == "A … here"
    assert strip_verdict("Fits.", ESCI) == "Fits."


def run_directory(path, labelled):
    """Make a run whose data stage has finished, and give the stage's arguments."""
    (path / "data").mkdir(parents=True)
    write_labelled_pairs(path / "data" / "pairs.train.parquet", labelled)
    (path / "data" / DONE).write_text("{}")
    (path / "recipe.toml").write_text('name = "t"\n[data]\nsource = "pairs"\npath = "unused.jsonl"\n')
    return ["--recipe", str(path / "recipe.toml"), "--out", str(path)]


@pytest.mark.parametrize("kept", [0, 1, 500, 5000])
def test_a_killed_stage_goes_on_to_the_same_bytes(tmp_path, kept):
    """Whatever bytes a kill left, even half a line, the finished file is that of an unbroken run."""
    annotator = ProgrammaticAnnotator(BRANDS)
    write_rationales(tmp_path / "whole.jsonl", PAIRS, annotator, PERSPECTIVES)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    (tmp_path / "killed.partial").write_bytes(whole[:kept])

    written = write_rationales(tmp_path / "killed.jsonl", PAIRS, annotator, PERSPECTIVES)

    assert whole == (tmp_path / "killed.jsonl").read_bytes()
    assert len(PAIRS) * 3 - whole[:kept].count(b"\n") == written
    assert write_rationales(tmp_path / "killed.jsonl", PAIRS, annotator, PERSPECTIVES) == 0


def test_rationales_are_read_back_equal(tmp_path):
    """JSONL keeps every field."""
    rationales = [ProgrammaticAnnotator(BRANDS).generate(p, "struct") for p in PAIRS]
    (tmp_path / "r.jsonl").write_text("".join(map(rationale_line, rationales)), encoding="utf-8")

    assert rationales == list(read_rationales(tmp_path / "r.jsonl"))


def test_a_bad_line_is_named(tmp_path):
    """Line number and field."""
    line = rationale_line(ProgrammaticAnnotator().generate(PAIRS[0], "rule"))
    (tmp_path / "r.jsonl").write_text(line + line.replace('"rule"', '"mood"'))

    with pytest.raises(RowError, match=r"r\.jsonl, row 2, column 'perspective'"):
        list(read_rationales(tmp_path / "r.jsonl"))


def test_readings_come_from_the_folder_the_recipe_names(tmp_path):
    """A missing file is an error that names it; with it, the readings are in the text, but not where it is visible."""
    run = run_directory(tmp_path / "run", [LabelledPair(PAIRS[0], "E")])
    option = ["--set", f'rationales.query_readings="{tmp_path}"']
    with pytest.raises(InputError, match=r"esci_query_reasoning\.parquet: expected a file"):
        main([*run, *option])
    row = {"query": "Acorn  kettle red", "reasoning": "Somebody misses the old kettle."}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "esci_query_reasoning.parquet")

    main([*run, *option])

    assert "Somebody misses the old kettle." in (tmp_path / "run/rationales/rationales.train.jsonl").read_text()
    main([*run, *option, "--set", "rationales.generator=visible"])
    text = (tmp_path / "run/rationales/rationales.train.jsonl").read_text()
    assert '"generator":"visible-' in text
    assert "Somebody misses" not in text


def test_the_stage_needs_the_data_stage(tmp_path):
    """The error names the command to run first."""
    run = run_directory(tmp_path / "run", [LabelledPair(PAIRS[0], "E")])
    (tmp_path / "run" / "data" / DONE).unlink()

    with pytest.raises(RunError, match="relevance data"):
        main(run)

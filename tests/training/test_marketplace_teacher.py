"""The marketplace's annotator and its facts teacher."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from relevance.errors import InputError
from relevance.labels import ESCI
from relevance.pairs import Item, Pair, Query, read_labelled_pairs, write_labelled_pairs
from training.data import stage as data_stage
from training.marketplace.catalogue import load_catalogue
from training.marketplace.facts import (
    PERSPECTIVE_DIMS,
    RELATIONS,
    Match,
    compare,
    facts_of_item,
    match_features,
    read_intents,
    read_truth,
)
from training.marketplace.phrases import (
    MIN_PARAPHRASES,
    PROBE_FAMILY,
    TRAIN_FAMILY,
    Family,
    check_families,
    load_families,
)
from training.predictions import read_predictions
from training.rationale_rows import read_rationales
from training.recipe import PERSPECTIVES
from training.soft_labels import read_soft_labels
from training.teacher import annotate, rationales
from training.teacher.annotator import ProgrammaticAnnotator, VisibleAnnotator
from training.teacher.facts import FactsClassifier, annotate_by_facts, page_features, page_matches
from training.teacher.label_words import label_pattern
from training.teacher.marketplace_annotator import MarketplaceAnnotator

RECIPE = """\
name = "t"
[data]
source = "marketplace"
[data.marketplace]
queries = { train = 40, dev = 6, cal = 6, test = 20 }
[rationales]
generator = "marketplace"
splits = ["train", "dev", "cal", "test"]
[annotate]
teacher = "facts"
folds = 2
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A run whose data stage has finished: the arguments of the next stages."""
    path = tmp_path_factory.mktemp("world")
    (path / "recipe.toml").write_text(RECIPE)
    arguments = ["--recipe", str(path / "recipe.toml"), "--out", str(path)]
    assert data_stage.main(arguments) == 0
    return arguments


@pytest.fixture(scope="module")
def data(options):
    """The data stage's folder."""
    return Path(options[-1]) / "data"


@pytest.fixture(scope="module")
def intents(data):
    """What the queries mean."""
    return read_intents(data / "queries.parquet")


@pytest.fixture(scope="module")
def pairs(data):
    """Train and test pairs."""
    return {name: read_labelled_pairs(data / f"pairs.{name}.parquet", ESCI) for name in ("train", "test")}


def test_evidence_is_written_as_query_and_title_write_it(intents, pairs):
    """Query spans stand in the query; item spans in the title or on record; a missing value has none."""
    annotator, in_title = MarketplaceAnnotator(intents), 0
    for one in pairs["train"][:200]:
        record = {value for values in facts_of_item(one.pair.item).values() for value in values}
        for perspective in PERSPECTIVES:
            rationale = annotator.generate(one.pair, perspective)
            assert {e.dim for e in rationale.evidence} <= {"type", *PERSPECTIVE_DIMS[perspective]}
            for evidence in rationale.evidence:
                shown = evidence.item_span in one.pair.item.title
                in_title += bool(evidence.item_span) and shown
                assert evidence.query_span in one.pair.query.text
                assert shown or evidence.item_span in record | set(load_catalogue().categories)
                assert (evidence.verdict == "missing") == (evidence.item_span == "")
    assert in_title > 200


def test_the_visible_annotator_reads_nothing_but_the_title(intents, pairs):
    """Garbage in every other field changes nothing, and does change what the privileged annotator writes."""
    changed = {True: 0, False: 0}
    for one in pairs["train"][:60]:
        garbage = replace(
            one.pair, item=Item(one.pair.item.title, one.pair.item.id, "x", "y", attributes={"size": "z"})
        )
        for visible in changed:
            annotator = MarketplaceAnnotator(intents, visible=visible)
            texts = [[annotator.generate(p, k).rationale for k in PERSPECTIVES] for p in (one.pair, garbage)]
            changed[visible] += texts[0] != texts[1]

    assert changed[True] == 0
    assert changed[False] > 40


def test_the_programmatic_control_reads_nothing_but_the_title():
    """For real items: brand, colour and bullets make no difference to it."""
    plain = ProgrammaticAnnotator(frozenset({"acorn"}))
    bare = Pair(Query("red acorn kettle", "q", "us"), Item("Kettle", "i"))
    full = replace(bare, item=Item("Kettle", "i", "Acorn", "red", attributes={"bullets": "Whistles"}))

    assert plain.generate(bare, "struct").rationale == VisibleAnnotator(plain).generate(full, "struct").rationale
    assert plain.generate(full, "struct").rationale != VisibleAnnotator(plain).generate(full, "struct").rationale
    assert VisibleAnnotator(plain).generate(full, "rule").generator == "visible-1"


def test_texts_are_fixed_by_pair_and_seed_and_name_no_class(intents, pairs):
    """The same twice, others under another seed; no class name, not even with it in the query's words."""
    annotator, other = MarketplaceAnnotator(intents), MarketplaceAnnotator(intents, seed=1)
    first = [annotator.generate(one.pair, "user").rationale for one in pairs["train"][:80]]
    query = pairs["train"][0].pair.query
    named = Pair(replace(query, text="exact substitute kettle"), pairs["train"][0].pair.item)

    assert first == [annotator.generate(one.pair, "user").rationale for one in pairs["train"][:80]]
    assert first != [other.generate(one.pair, "user").rationale for one in pairs["train"][:80]]
    texts = [annotator.generate(named, k).rationale for k in PERSPECTIVES] + first
    assert [text for text in texts if label_pattern(ESCI).search(text)] == []


def test_the_families_share_no_text_and_every_kind_has_twenty_paraphrases():
    """Five openings times four closings, in both; every relation and verdict has a kind; no phrase names a class."""
    families = load_families()

    assert not set(families[TRAIN_FAMILY].texts()) & set(families[PROBE_FAMILY].texts())
    for family in families.values():
        sizes = {(len({*o}), len({*c})) for o in family.openings.values() for c in family.closings.values()}
        assert sizes == {(5, 4)}
        assert MIN_PARAPHRASES == 5 * 4
        assert {f"{kind}_{r}" for kind in ("type", "rule") for r in RELATIONS} <= family.closings.keys()
        assert [text for text in family.texts() if label_pattern(ESCI).search(text)] == []
    assert families[TRAIN_FAMILY].closings.keys() == families[PROBE_FAMILY].closings.keys()


def test_overlapping_or_poor_families_are_refused():
    """One shared closing; and a kind with too few."""
    families = load_families()
    train, probe = families[TRAIN_FAMILY], families[PROBE_FAMILY]
    shared = Family(probe.openings, {**probe.closings, "tally": train.closings["tally"]})
    poor = Family(probe.openings, {**probe.closings, "tally": probe.closings["tally"][:3]})

    with pytest.raises(InputError, match="expected families that share no text"):
        check_families({TRAIN_FAMILY: train, PROBE_FAMILY: shared})
    with pytest.raises(InputError, match=r"openings times closings, with 5 openings too few: \['tally'\]"):
        check_families({TRAIN_FAMILY: train, PROBE_FAMILY: poor})


def test_train_shares_its_family_with_no_other_split(options, data):
    """The stage writes all splits; no opening of train's file is in another, nor the other way round."""
    assert rationales.main(options) == 0
    names = ("train", "dev", "cal", "test")
    rows = {name: list(read_rationales(data.parent / f"rationales/rationales.{name}.jsonl")) for name in names}
    families = load_families()

    for name, other in (("train", PROBE_FAMILY), *((name, TRAIN_FAMILY) for name in names[1:])):
        assert len(read_labelled_pairs(data / f"pairs.{name}.parquet", ESCI)) * 3 == len(rows[name])
        openings = {opening for texts in families[other].openings.values() for opening in texts}
        assert not [row for row in rows[name] if any(f"{opening}, " in row.rationale for opening in openings)]


def test_a_query_of_another_world_is_refused(intents):
    """By the annotator and by the facts teacher."""
    stranger = Pair(Query("kettle", "q-unknown"), Item("Kettle", "i"))

    with pytest.raises(InputError, match="found 'q-unknown'"):
        MarketplaceAnnotator(intents).generate(stranger, "user")
    with pytest.raises(InputError, match="found 'q-unknown'"):
        page_matches([stranger], intents)


def test_features_say_what_was_asked_and_what_was_found():
    """Columns: six relations, seven attributes (nan where not asked for), three counts; of a view fewer attributes."""
    match = Match("host", {"brand": "match", "size": "mismatch", "material": "missing"})
    nan = np.nan
    expected = [0, 0, 0, 1, 0, 0, 1, nan, nan, -1, 0, nan, nan, 1, 1, 1]

    assert np.array_equal(np.float32([expected]), match_features([match]), equal_nan=True)
    of_user = [0, 0, 0, 1, 0, 0, nan, -1, nan, 1, 1, 1]
    assert np.array_equal(np.float32([of_user]), match_features([match], "user"), equal_nan=True)


def test_a_pairs_own_label_does_not_reach_its_soft_label(intents, pairs):
    """Turning the labels of one query changes the soft labels of others only: they are out of fold."""
    train = pairs["train"]
    features_NF = page_features(page_matches([one.pair for one in train], intents))
    turned_query = train[0].pair.query.id
    turned = [replace(one, label="I") if one.pair.query.id == turned_query else one for one in train]
    own_N = np.array([one.pair.query.id == turned_query for one in train])
    before, after = (
        FactsClassifier(labelled, features_NF, ESCI, folds=5, seed=0).out_of_fold_NK for labelled in (train, turned)
    )

    assert np.array_equal(before[own_N], after[own_N])
    assert not np.array_equal(before[~own_N], after[~own_N])
    assert np.ones(len(train)) == pytest.approx(before.sum(axis=1))


def test_the_stage_writes_teacher_perspectives_and_oracle(options, data, pairs):
    """The oracle follows the clean labels better than the teacher, that better than who reads titles alone."""
    assert annotate.main(options) == 0
    folder = data.parent / "annotate"
    clean = {pair_id: ESCI.index(label) for pair_id, (label, _) in read_truth(data / "truth.parquet").items()}
    names = ("oracle", "predictions", "title_reader")
    oracle, teacher, title_reader = (read_predictions(folder / f"{name}.test.parquet") for name in names)
    clean_N = np.array([clean[pair_id] for pair_id in teacher.pair_id])
    right = [accuracy_score(clean_N, p.logits_NK.argmax(axis=1)) for p in (oracle, teacher, title_reader)]

    assert right[0] > right[1] > right[2] > (clean_N == 0).mean()
    assert right[0] > 0.95
    assert np.ones(len(oracle)) == pytest.approx(np.exp(oracle.logits_NK).sum(axis=1), abs=1e-5)
    soft = [
        read_soft_labels(folder / f"soft_labels{view}.parquet", 4) for view in ("", *(f".{p}" for p in PERSPECTIVES))
    ]
    for one in soft:
        assert [pair.pair.pair_id for pair in pairs["train"]] == [pair.pair_id for pair in one.pairs]
        assert (len(pairs["train"]), 0) == one.features_NF.shape
    assert len({one.probabilities_NK.tobytes() for one in soft}) == 4


def test_the_stages_need_the_marketplaces_data(tmp_path, pairs):
    """The facts teacher and the annotator name the file that is not there."""
    for name in ("train", "dev", "cal", "test"):
        write_labelled_pairs(tmp_path / f"pairs.{name}.parquet", pairs["train"][:20])
    (tmp_path / "run" / "data").mkdir(parents=True)
    (tmp_path / "run" / "data" / "DONE.json").write_text("{}")
    (tmp_path / "recipe.toml").write_text(RECIPE)

    with pytest.raises(InputError, match=r"expects data\.source = 'marketplace'"):
        annotate_by_facts(tmp_path, tmp_path, ESCI, folds=2, seed=0)
    with pytest.raises(InputError, match=r"queries\.parquet: expected the queries of data\.source = 'marketplace'"):
        rationales.main(["--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "run")])


def test_facts_compare_attribute_by_attribute(intents):
    """By set membership, written out: the wanted value among the known ones, others known, none known."""
    catalogue = load_catalogue()
    for intent in intents.values():
        wanted = intent.wanted
        same = compare(
            intent, {"category": (intent.category,), **{d: ("none", v) for d, v in wanted.items()}}, catalogue
        )
        other = compare(intent, {"category": (intent.category,), **dict.fromkeys(wanted, ("none",))}, catalogue)

        assert set(same.verdicts.values()) <= {"match"}
        assert (0, len(wanted)) == (same.n_unmet, other.n_unmet)
        assert set(compare(intent, {}, catalogue).verdicts.values()) <= {"missing"}
        assert compare(intent, {}, catalogue).relation == "unknown"

"""Which rationales guide a student: all, those whose verdict is the label, those of a writer that did not see it."""

import json

import numpy as np
import pytest

from relevance.errors import RunError
from relevance.pairs import Item, Pair, Query
from training.cot_store import CotStore
from training.rationale_rows import Rationale, rationale_line
from training.recipe import load_recipe
from training.runs import DONE, Run
from training.student.batches import TrainingSet
from training.student.extra_terms import guidance_terms, rationales_of
from training.student.guidance import PRESENT
from training.student.guided_pairs import guided_pairs
from training.student_recipe import GuidanceRecipe, StudentRecipe, hashed_student

PAIRS = [Pair(Query("desk lamp", "q"), Item(f"lamp {i}", str(i))) for i in range(4)]
IDS = [pair.pair_id for pair in PAIRS]
LABELS = dict(zip(IDS, "ESCI", strict=True))
VERDICTS = {"user": "EEEE", "rule": "ESIC"}
SEEN = {"user": (True, False, False, False), "rule": (False, False, True, False)}
NAMES = ("user", "rule", "combined")


def rationales():
    """Two rationales a pair."""
    return [
        Rationale(
            pair_id=pair_id,
            perspective=name,
            evidence=(),
            rationale=f"{name} of {pair_id}",
            verdict=VERDICTS[name][i],
            generator="hand",
            annotator_seen_pair=SEEN[name][i],
        )
        for i, pair_id in enumerate(IDS)
        for name in ("user", "rule")
    ]


def store():
    """An embedding of each rationale and of both joined."""
    rows = {(pair_id, name): 3 * i + k for i, pair_id in enumerate(IDS) for k, name in enumerate(NAMES)}
    return CotStore(NAMES, np.eye(12, dtype=np.float32), rows, "m")


@pytest.mark.parametrize(
    ("chosen", "user", "rule", "combined"), [("agree", "0", "01", "0"), ("unseen", "123", "013", "13")]
)
def test_a_joined_text_guides_where_both_of_its_parts_do(chosen, user, rule, combined):
    """The verdict is the label, or the writer did not see the pair; the others are masked, no row is changed."""
    kept = guided_pairs(store(), rationales(), chosen, LABELS)

    expected = {(IDS[int(i)], name) for name, own in zip(NAMES, (user, rule, combined), strict=True) for i in own}
    assert kept.row_of.keys() == expected
    assert all(store().row_of[key] == row for key, row in kept.row_of.items())


def test_rationales_without_a_verdict_agree_with_no_label():
    """As the programmatic annotators write them: the error names the key."""
    silent = [one.model_copy(update={"verdict": None}) for one in rationales()]
    with pytest.raises(RunError, match=r"student\.guidance\.pairs = 'agree': .* found none among 8"):
        guided_pairs(store(), silent, "agree", LABELS)


@pytest.mark.parametrize("folder", ["embed", "programmatic/embed"])
def test_a_students_guidance_reads_the_rationales_beside_its_embeddings(make_student, tmp_path, folder):
    """The term's mask leaves out what disagrees with the label; a pair without a label counts for nothing."""
    written = tmp_path / rationales_of(folder)
    for path in (tmp_path / folder, written):
        path.mkdir(parents=True)
        (path / DONE).write_text("{}")
    store().save(tmp_path / folder)
    (written / "rationales.train.jsonl").write_text("".join(map(rationale_line, rationales())))
    overrides = [f"student.guidance.store={folder}", "student.guidance.pairs=agree", "student.guidance_weight=0.1"]
    run = Run(load_recipe("tiny", overrides), tmp_path)
    zeros = np.zeros(4, np.float32)
    weight = np.array([1, 0, 1, 1], np.float32)
    data = TrainingSet(PAIRS, np.arange(4), weight, np.zeros((4, 4), np.float32), zeros, np.zeros((4, 0), np.float32))
    student, _ = make_student()
    (side,) = guidance_terms(run, student, data, 0).side

    assert side.arrays(np.arange(4), None)[PRESENT].tolist() == [[True, True]] + [[False, False]] * 3
    noted = json.loads((tmp_path / "ledger.jsonl").read_text())
    # One pair alone: centred, it has nothing left to explain.
    assert (noted["guidance_of_nothing"], noted["guidance_reachable"]) == (0, 0)


def test_a_recipe_that_guides_by_all_is_hashed_as_before_the_key_was_there():
    """So that no finished student is trained again; another choice is told."""
    plain = StudentRecipe()
    chosen = StudentRecipe(guidance=GuidanceRecipe(pairs="unseen"))

    assert "pairs" not in hashed_student(plain)["guidance"]
    assert plain.model_dump().keys() - hashed_student(plain).keys() == {"exact_only", "warm_up_start"}
    assert hashed_student(StudentRecipe(exact_only=False))["exact_only"] is False
    assert hashed_student(chosen)["guidance"]["pairs"] == "unseen"
    assert "guidance" not in hashed_student(plain, {"guidance"})


def test_a_guided_warm_up_has_no_labels_to_agree_with():
    """Refused when the recipe is read."""
    with pytest.raises(ValueError, match=r"student\.guidance\.pairs = 'all' with student\.warm_up_guidance"):
        StudentRecipe(warm_up_guidance=True, guidance=GuidanceRecipe(pairs="agree"))

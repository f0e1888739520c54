"""Prototype rationales offline: texts from templates, medoids, latent maps, and the stage on a tiny run."""

import json
import re
import shutil

import numpy as np
import pytest

from relevance.bundle import PROTOTYPES
from relevance.errors import InputError
from relevance.prototypes import Prototypes
from training.prototypes.latent_map import fit_latent_map
from training.prototypes.medoids import choose_medoids, give_up_losers
from training.prototypes.stage import FIGURES, SHUFFLED, floors, main, read_prototypes
from training.prototypes.telling import tell
from training.prototypes.templates import agreement, render, verdicts_of
from training.rationale_rows import Evidence, read_rationales
from training.recipe import load_recipe
from training.runs import Run
from training.teacher import rationales

OPTIONS = (
    'rationales.splits=["train", "dev", "test"]',
    "embed.model=lsa:8",
    "prototypes.width=6",
    "prototypes.most=8",
    "prototypes.least_members=6",
)


def evidence(*rows):
    """Give evidence of (dimension, query span, item span, verdict)."""
    return [Evidence(dim=d, query_span=q, item_span=i, verdict=v) for d, q, i, v in rows]


def arguments(run, *overrides):
    """Give the stage's arguments on a run directory."""
    extra = [part for override in (*OPTIONS, *overrides) for part in ("--set", override)]
    return ["--recipe", str(run / "recipe.toml"), "--out", str(run), *extra]


@pytest.fixture(scope="module")
def run(tiny_run, tmp_path_factory):
    """A copy of the tiny run whose rationales and prototypes are finished."""
    out = tmp_path_factory.mktemp("prototypes") / "run"
    shutil.copytree(tiny_run, out, ignore=shutil.ignore_patterns("export"))
    assert rationales.main(arguments(out)) == 0
    assert main(arguments(out)) == 0
    return out


def test_a_dimension_has_its_worst_verdict_and_terms_their_share():
    """Two of three words are there: most; one colour of two is wrong: wrong."""
    found = verdicts_of(
        evidence(
            ("colour", "red", "red", "match"),
            ("colour", "blue", "red", "mismatch"),
            ("terms", "running shoes", "running shoes", "match"),
            ("terms", "waterproof", "", "missing"),
        )
    )

    assert found == (("colour", "mismatch"), ("terms", "most"))
    assert verdicts_of(evidence(("terms", "a b c d", "", "missing"))) == (("terms", "none"),)
    assert verdicts_of(()) == ()


def test_an_accessory_that_nobody_asked_for_is_told_from_one_that_is_missing():
    """Which of the two it is shows in what the query names."""
    assert verdicts_of(evidence(("accessory", "iphone", "case", "mismatch"))) == (("accessory", "unwanted"),)
    assert verdicts_of(evidence(("accessory", "case", "iphone", "mismatch"))) == (("accessory", "absent"),)
    assert verdicts_of(evidence(("accessory", "case", "case", "match"))) == (("accessory", "wanted"),)


@pytest.mark.parametrize(
    ("perspective", "text"),
    [
        (
            "user",
            "It is the kind of thing the shopper asks for; it has a different brand; it meets about half of the "
            "request.",
        ),
        ("struct", "Product type as asked; a different brand; half of the query's words missing."),
        ("rule", "The product type agrees; it is from a competing manufacturer; half of the query is left open."),
    ],
)
def test_a_rationale_reads_as_a_sentence(perspective, text):
    """Each perspective has words of its own for the same verdicts."""
    verdicts = (("type", "match"), ("brand", "mismatch"), ("terms", "half"))

    assert render(perspective, verdicts) == text


def test_what_phrases_do_not_know_is_left_out():
    """A dimension that a teacher invented is not quoted; nothing at all has a sentence too."""
    assert render("struct", (("type", "match"), ("price of the iphone", "mismatch"))) == "Product type as asked."
    assert render("struct", ()) == "No attribute can be told to be as asked."
    with pytest.raises(InputError, match=r"expected rationales of \['user', 'struct', 'rule'\], found 'unified'"):
        render("unified", ())


def test_agreement_counts_dimensions_that_either_speaks_of():
    """One of three is the same: type; brand differs, colour is in one alone."""
    one, other = (("type", "match"), ("brand", "match")), (("type", "match"), ("brand", "missing"), ("colour", "match"))

    assert agreement(one, other) == pytest.approx(1 / 3)
    assert agreement((), ()) == 1


def test_medoids_are_texts_of_many_pairs_and_every_text_has_the_nearest():
    """Three bundles of directions around three axes; a fourth text of one pair alone gets no prototype of its own."""
    rng = np.random.default_rng(0)
    centre_TD = np.repeat(np.eye(4)[:3], 5, axis=0) + 0.05 * rng.normal(size=(15, 4))
    direction_TD = np.concatenate([centre_TD, [[0, 0, 0, 1.0]]])
    direction_TD /= np.linalg.norm(direction_TD, axis=1, keepdims=True)
    members_T = np.array([9, 1, 1, 1, 1] * 3 + [1])

    assert choose_medoids(direction_TD, members_T, most=4, least_members=5).tolist() == [0, 5, 10]
    with pytest.raises(InputError, match="at least 10 pairs share, found 9"):
        choose_medoids(direction_TD, members_T, most=4, least_members=10)


def test_a_prototype_that_is_mostly_wrong_where_it_is_named_is_given_up():
    """Text 0 is the common one; 1 is named for pairs of its own, 2 for pairs of text 0."""
    direction_TD = np.eye(3)
    row_N = np.array([0, 0, 0, 0, 1, 1, 2])
    foretold_ND = direction_TD[[0, 0, 2, 2, 1, 1, 0]]
    left = give_up_losers(np.arange(3), direction_TD, row_N, foretold_ND, np.eye(3))

    assert left.tolist() == [0, 1]


def test_a_latent_map_finds_what_the_latent_holds_and_says_when_it_holds_nothing():
    """Places that are a linear map of the latent plus little noise, and the same places of other pairs."""
    rng = np.random.default_rng(0)
    latent_NR, true_RD = rng.normal(size=(400, 6)) + 3, rng.normal(size=(6, 3))
    place_ND = latent_NR @ true_RD + 0.1 * rng.normal(size=(400, 3))
    place_ND -= place_ND.mean(axis=0)
    fold_N = np.arange(400) % 5
    found = fit_latent_map(latent_NR, place_ND, fold_N)
    nothing = fit_latent_map(latent_NR, rng.permutation(place_ND), fold_N)

    assert found.held_out_r2 > 0.99
    assert np.abs(latent_NR @ found.map_RD + found.offset_D - place_ND).max() < 0.5
    assert nothing.held_out_r2 < 0.05
    assert nothing.strength > found.strength


def test_the_floor_lies_where_the_nearest_stops_losing():
    """At similarities 0.1 and 0.2 the nearest is wrong and the common one right, at 0.6 and 0.9 the other way round."""
    similarity = (0.1, 0.2, 0.6, 0.9)
    prototypes = Prototypes(
        perspectives=("user",),
        texts=("Common.", "Rare."),
        perspective_M=np.zeros(2, np.int64),
        share_MK=np.full((2, 2), 0.5, np.float32),
        size_M=np.array([50, 20]),
        direction_MD=np.array([[-1, 0], [1, 0]], np.float32),
        map_PRD=np.eye(2, dtype=np.float32)[None],
        offset_PD=np.zeros((1, 2), np.float32),
        floor_P=np.zeros(1, np.float32),
    )
    latent_NR = np.array([[s, np.sqrt(1 - s**2)] for s in similarity], np.float32)
    common, rare = (("type", "match"),), (("type", "mismatch"),)
    (floor,) = floors(prototypes, [common, rare], latent_NR, [(common,), (common,), (rare,), (rare,)])
    (never,) = floors(prototypes, [common, rare], latent_NR, [(rare,)] * 4)

    assert 0.2 < floor < 0.6
    assert never == -1


def test_the_stage_writes_prototypes_of_enough_pairs(run):
    """Members are fair training pairs with that very text, figures are all there, maps take the student's latents."""
    prototypes, shuffled, verdicts = read_prototypes(run / "prototypes", 4)
    figures = json.loads((run / "prototypes" / FIGURES).read_text())

    assert prototypes.perspectives == ("user", "struct", "rule")
    assert prototypes.size_M.min() >= 6
    assert max(int(prototypes.size_M[prototypes.perspective_M == p].sum()) for p in range(3)) <= 180
    assert prototypes.latent_width == 64
    assert (shuffled.map_PRD != prototypes.map_PRD).any()
    assert [render(figures["prototypes"][m]["perspective"], own) for m, own in enumerate(verdicts)] == list(
        prototypes.texts
    )
    for row in figures["perspectives"].values():
        assert row["held_out_r2"] <= 1
        assert 0 <= row["close_dev"] <= 1


def test_clauses_that_the_latent_cannot_tell_are_left_out(run):
    """Of the type the latents know, of the colour nothing: it is right for a quarter of the pairs."""
    rng = np.random.default_rng(0)
    same_N, red_N = np.arange(400) % 2 == 0, rng.random(400) < 0.25
    verdicts_N = [
        (("type", "match" if same else "mismatch"), ("colour", "match" if red else "missing"))
        for same, red in zip(same_N, red_N, strict=True)
    ]
    latent_NR = np.stack([same_N, rng.normal(size=400)], axis=1).astype(np.float32)
    recipe = load_recipe(str(run / "recipe.toml"), list(OPTIONS))
    told = tell(Run(recipe, run), "struct", verdicts_N, latent_NR, np.arange(400) % 5)

    assert told.left_out[("colour", "match")] < 0.5
    assert {("type", "match"), ("type", "mismatch")} <= {c for t in told.medoid_M for c in told.part.verdicts[t]}
    with pytest.raises(InputError, match="at least 2 different rationales of 'struct' that the latents can tell"):
        tell(Run(recipe, run), "struct", verdicts_N[:1] * 400, latent_NR, np.arange(400) % 5)


def test_no_prototype_holds_words_of_a_pair(run):
    """Every text is one that the templates give for its verdicts, whatever the spans were."""
    prototypes, _, _ = read_prototypes(run / "prototypes", 4)
    rows = [
        row
        for rationale in read_rationales(run / "rationales" / "rationales.train.jsonl")
        for row in rationale.evidence
        if row.dim in {"brand", "colour"}
    ]
    spans = {span.lower() for row in rows for span in (row.query_span, row.item_span) if span}

    assert spans
    whole = {span: re.compile(rf"(?<!\w){re.escape(span)}(?!\w)") for span in spans}
    assert all(of_span.search(f"of brand {span}; as asked") for span, of_span in whole.items())
    assert not [(text, span) for text in prototypes.texts for span in spans if whole[span].search(text.lower())]


def test_the_same_inputs_give_the_same_bytes(run, tmp_path):
    """Started over in another folder; started again where it is, the stage does nothing."""
    again = tmp_path / "run"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("prototypes"))
    before = (run / "prototypes" / PROTOTYPES).stat().st_mtime_ns

    assert main(arguments(again)) == 0
    assert main(arguments(run)) == 0
    for name in (PROTOTYPES, SHUFFLED, FIGURES):
        assert (again / "prototypes" / name).read_bytes() == (run / "prototypes" / name).read_bytes()
    assert before == (run / "prototypes" / PROTOTYPES).stat().st_mtime_ns


def test_rationales_of_dev_are_asked_for(run, tmp_path):
    """The floors need pairs that nothing was fitted on."""
    again = tmp_path / "run"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("prototypes"))
    (again / "rationales" / "rationales.dev.jsonl").unlink()
    with pytest.raises(InputError, match=r"rationales.dev.jsonl.*rationales.splits needs train and dev"):
        main(arguments(again))

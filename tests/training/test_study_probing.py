"""The probing study: keywords and their dropping, the tests, planted information, and the study on a tiny grid."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from sklearn.metrics import f1_score

from relevance.errors import InputError, RunError
from relevance.pairs import LabelledPair, write_labelled_pairs
from training.rationale_rows import Rationale, rationale_line
from training.recipe import load_recipe
from training.runs import Run
from training.student.predict import predict
from training.studies import probing
from training.studies.probes import (
    KeywordRules,
    control_labels,
    corrected_t_test,
    drawn_f1,
    f1,
    find_keywords,
    probe,
    probe_auc,
    query_folds,
)
from training.studies.probing import (
    REPRESENTATIONS,
    ProbedFit,
    ProbingSettings,
    compare,
    grid_fits,
    main,
    study_probing,
)
from training.studies.probing_page import table
from training.studies.states import collect_states, random_projection, with_fresh_extractor

RECIPE = """\
name = "few"
max_query_tokens = 32
max_pair_tokens = 96

[data]
source = "pairs"
path = "unused.jsonl"

[rationales]
splits = ["train", "test"]

[evaluate]
split = "test"
"""


NO_EVIDENCE = np.zeros((1200, 0))


def rules(minimum: int, *, limit: int = 9, folds: int = 10, maximum_share: float = 1.0) -> KeywordRules:
    """Give rules that bound the number of pairs alone, unless told otherwise."""
    return KeywordRules(limit=limit, folds=folds, minimum=minimum, minimum_share=0, maximum_share=maximum_share)


def invented(n_queries: int, n_items: int, rng: np.random.Generator):
    """Give query ids, labels and two words' presence: `sturdy` says half of the label, `gift` nothing of it."""
    query = np.repeat([f"q{i:03d}" for i in range(n_queries)], n_items)
    label = rng.integers(0, 4, len(query))
    sturdy = rng.random(len(query)) < np.where(label < 2, 0.75, 0.25)
    gift = rng.random(len(query)) < 0.3
    return query, label, sturdy, gift


def texts_of(words: dict[str, np.ndarray]) -> list[str]:
    """Give texts that hold each word where it is present."""
    n = len(next(iter(words.values())))
    return [" ".join(word for word, present in words.items() if present[row]) for row in range(n)]


def test_pairs_that_show_a_keyword_are_left_out_of_its_probe():
    """Of 40 pairs ten titles show `Gifts`, the same word as `gift`: thirty are left, and `mug` is untouched by it."""
    rationales = ["A gift, by its mugs." if row % 2 else "Nothing to say, 12 times." for row in range(40)]
    visible = ["red mug for Gifts" if row < 10 else "red kettle" for row in range(40)]
    queries = [f"q{row // 2}" for row in range(40)]
    found = {k.word: k for k in find_keywords(rationales, visible, queries, NO_EVIDENCE[:40], rules=rules(5))}
    assert found["gift"].row_M.tolist() == list(range(10, 40))
    assert found["gift"].dropped == 10
    assert found["gift"].present_M.tolist() == [row % 2 == 1 for row in range(10, 40)]
    assert found["mugs"].dropped == 10


def test_stop_words_numbers_and_words_of_all_pairs_are_no_keywords(rng):
    """`the`, `12`, `xl` and a word without enough pairs that lack it; the others come by frequency, `limit` at most."""
    query, _, sturdy, gift = invented(40, 5, rng)
    words = {"the": sturdy, "12": sturdy, "xl": sturdy, "always": gift | ~gift, "present": gift, "sturdy": sturdy}
    for limit, expected in ((5, ["sturdy", "present"]), (1, ["sturdy"])):
        found = find_keywords(texts_of(words), ["lamp"] * 200, query, NO_EVIDENCE[:200], rules=rules(20, limit=limit))
        assert [k.word for k in found] == expected
    words["sturdy"] = ~gift
    found = find_keywords(texts_of(words), ["lamp"] * 200, query, NO_EVIDENCE[:200], rules=rules(20, maximum_share=0.5))
    assert [k.word for k in found] == ["present"]


def test_words_that_follow_from_no_evidence_are_passed_over(rng):
    """`sturdy` tells the evidence four times of five, `gift` was thrown by a die; where none is stated both stay."""
    query, _, sturdy, gift = invented(60, 5, rng)
    texts, evidence = (
        texts_of({"sturdy": sturdy, "gift": gift}),
        (sturdy ^ (rng.random(300) < 0.2))[:, None].astype(float),
    )
    found = find_keywords(texts, ["lamp"] * 300, query, evidence, rules=rules(20))
    assert [k.word for k in found] == ["sturdy"]
    found = find_keywords(texts, ["lamp"] * 300, query, NO_EVIDENCE[:300], rules=rules(20))
    assert [k.word for k in found] == ["sturdy", "gift"]


def test_folds_hold_whole_queries(rng):
    """No query is on both sides, and every pair is judged once."""
    query, *_ = invented(25, 4, rng)
    folds = query_folds(query, 10)
    assert sorted(np.concatenate([judged for _, judged in folds]).tolist()) == list(range(100))
    assert all(not set(query[fitted]) & set(query[judged]) for fitted, judged in folds)


def test_too_little_to_probe_is_an_error(rng):
    """Fewer queries than folds, or no word frequent enough."""
    query, _, sturdy, _ = invented(9, 20, rng)
    with pytest.raises(InputError, match="at least 10 queries, found 9"):
        find_keywords(texts_of({"sturdy": sturdy}), ["lamp"] * 180, query, NO_EVIDENCE[:180], rules=rules(20))
    with pytest.raises(InputError, match="at least 150 pairs that hold them"):
        find_keywords(texts_of({"sturdy": sturdy}), ["lamp"] * 180, query, NO_EVIDENCE[:180], rules=rules(150, folds=5))


def test_the_corrected_test_is_nadeau_and_bengios():
    """Differences 0.1, 0.2, 0.3, 0.4 on four folds (ratio 1/3): mean 0.25, s² = 1/60, t = 0.25 / √((1/4 + 1/3) / 60).

    With 3 degrees of freedom and u = t / √3, p = 1 - (2/π) (atan u + u / (1 + u²)). Ratio 0 gives the plain t-test.
    """
    differences = np.array([0.1, 0.2, 0.3, 0.4])
    u = 0.25 / np.sqrt((1 / 4 + 1 / 3) / 60) / np.sqrt(3)
    assert corrected_t_test(differences, 1 / 3) == pytest.approx(1 - 2 / np.pi * (np.arctan(u) + u / (1 + u * u)))
    assert corrected_t_test(differences, 0) == pytest.approx(ttest_1samp(differences, 0).pvalue)
    assert corrected_t_test(-differences, 1 / 3) == corrected_t_test(differences, 1 / 3)
    assert corrected_t_test(np.zeros(4), 1 / 3) == 1


def test_f1_of_a_draw_is_f1_of_the_pairs_drawn(rng):
    """A query drawn twice brings its pairs twice; against scikit-learn on the repeated rows."""
    answer, present, query = rng.random(60) < 0.5, rng.random(60) < 0.4, rng.integers(0, 12, 60)
    drawn = rng.multinomial(12, np.full(12, 1 / 12), size=5).astype(float)
    found = drawn_f1(answer, present, query, drawn)
    for row, count in zip(found, drawn, strict=True):
        rows = np.repeat(np.arange(60), count[query].astype(int))
        assert row == pytest.approx(f1_score(present[rows], answer[rows]))
    assert drawn_f1(answer, present, query, np.ones((1, 12)))[0] == pytest.approx(f1(answer, present))


def test_control_labels_are_fixed_for_a_word_type_and_meet_the_share(rng):
    """All pairs of one type share a label; the share is met within one type's pairs."""
    types = np.array([f"type{i}" for i in rng.integers(0, 40, 1000)])
    labels = control_labels(types, 0.3, rng)
    assert all(len(set(labels[types == name])) == 1 for name in set(types))
    assert labels.mean() == pytest.approx(0.3, abs=max(np.unique(types, return_counts=True)[1]) / 1000)


def test_a_probe_answers_what_a_state_holds_and_nothing_else(rng):
    """A state with the word on one axis is answered almost without fault, noise no better than chance."""
    query, _, sturdy, _ = invented(40, 10, rng)
    folds = query_folds(query, 10)
    noise = rng.normal(size=(400, 8))
    holding = noise + np.outer(sturdy * 8.0, np.eye(8)[0])
    assert probe_auc(probe(holding, sturdy, folds), sturdy, folds) > 0.99
    assert probe_auc(probe(noise, sturdy, folds), sturdy, folds) == pytest.approx(0.5, abs=0.1)


@pytest.fixture(scope="module")
def planted():
    """The comparison on 1,200 invented pairs: r holds the word `gift` linearly, the other states hold the label."""
    rng = np.random.default_rng(5)
    query, label, sturdy, gift = invented(150, 8, rng)
    settings = ProbingSettings(rules(50, folds=5), draws=300)
    texts = texts_of({"sturdy": sturdy, "gift": gift})
    keywords = find_keywords(texts, ["lamp"] * 1200, query, NO_EVIDENCE[:1200], rules=settings.rules)
    one_hot = np.eye(4)[label]
    holding_label = one_hot @ rng.normal(size=(4, 6)) + rng.normal(size=(1200, 6)) * 0.3
    states = {name: holding_label + rng.normal(size=(1200, 6)) * 0.1 for name in REPRESENTATIONS}
    states["latent"] = np.hstack([holding_label, gift[:, None] + rng.normal(size=(1200, 1)) * 0.4])
    states["label"] = one_hot
    types = np.array([f"type{int(q[1:]) % 30}" for q in query])
    return compare([states], keywords, query, types, settings=settings, seed=0)


def test_a_word_held_beyond_the_label_is_found(planted):
    """`gift` is independent of the label: only r, which holds it, is ahead of every other state and of the label."""
    (gift,) = (word for word in planted["keywords"] if word["word"] == "gift")
    for name, difference in gift["latent_minus"].items():
        assert difference["low"] > 0.2, name
        assert difference["p_holm"] < 0.01, name
    assert gift["auc"]["latent"] > 0.95
    assert gift["control_f1"]["latent"] < 0.5


def test_a_word_held_through_the_label_alone_is_not_found(planted):
    """`sturdy` goes with the label: r answers it well above chance, but no better than the label alone does."""
    (sturdy,) = (word for word in planted["keywords"] if word["word"] == "sturdy")
    assert sturdy["f1"]["latent"] > 0.65
    assert sturdy["auc"]["latent"] > 0.7
    assert sturdy["latent_minus"]["label"]["low"] < 0.02
    assert sturdy["latent_minus"]["label"]["p_holm"] > 0.05
    assert planted["comparisons"]["label"]["ahead"] == 1
    assert planted["comparisons"]["cls"]["ahead"] == 1


def test_what_the_label_says_is_no_gain_over_the_label(planted):
    """States that hold the label alone are level with the label-only probe; the label itself is exactly so."""
    figures = planted["representations"]
    assert figures["label"]["over_label"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert figures["cls"]["over_label"]["low"] < 0.02
    assert figures["latent"]["over_label"]["low"] > 0.1


@pytest.fixture(scope="module")
def seeds():
    """The comparison for a seed whose r holds `gift`, for one whose r is noise, for both, and for the first twice."""
    rng = np.random.default_rng(7)
    query, _, _, gift = invented(60, 5, rng)
    settings = ProbingSettings(rules(20, folds=5), draws=400)
    keywords = find_keywords(texts_of({"gift": gift}), ["lamp"] * 300, query, NO_EVIDENCE[:300], rules=settings.rules)
    types = np.array([f"type{i}" for i in rng.integers(0, 25, 300)])
    noise = {name: rng.normal(size=(300, 3)) for name in REPRESENTATIONS}
    good = noise | {"latent": gift[:, None] + rng.normal(size=(300, 3)) * 0.3}
    bad = {name: rng.normal(size=(300, 3)) for name in REPRESENTATIONS}
    return {
        name: compare(states, keywords, query, types, settings=settings, seed=0)
        for name, states in (("good", [good]), ("bad", [bad]), ("both", [good, bad]), ("twice", [good, good]))
    }


def test_a_killed_study_probes_no_keyword_twice(tmp_path, monkeypatch, rng):
    """Killed in its second keyword it begins there again, in two processes now, and comes out as if never killed."""
    query, _, sturdy, gift = invented(40, 5, rng)
    settings = ProbingSettings(rules(20, folds=5), draws=50)
    texts = texts_of({"sturdy": sturdy, "gift": gift})
    keywords = find_keywords(texts, ["lamp"] * 200, query, NO_EVIDENCE[:200], rules=settings.rules)
    states = {name: rng.normal(size=(200, 3)) for name in REPRESENTATIONS}
    types = np.array([f"type{i}" for i in rng.integers(0, 25, 200)])
    whole = compare([states], keywords, query, types, settings=settings, seed=0)

    measure = probing._measure

    def killed(*arguments, **named):
        """Measure the first keyword alone."""
        if arguments[1].word == keywords[1].word:
            raise KeyboardInterrupt
        return measure(*arguments, **named)

    keeping = replace(settings, kept=tmp_path)
    monkeypatch.setattr(probing, "_measure", killed)
    with pytest.raises(KeyboardInterrupt):
        compare([states], keywords, query, types, settings=keeping, seed=0)
    assert len(list(tmp_path.rglob("output.pkl"))) == 1
    monkeypatch.setattr(probing, "_measure", measure)

    assert compare([states], keywords, query, types, settings=replace(keeping, jobs=2), seed=0) == whole
    assert len(list(tmp_path.rglob("output.pkl"))) == len(keywords) >= 2


def test_intervals_hold_what_other_seeds_would_give(seeds):
    """Two seeds that differ: each is drawn twice in a quarter of the draws, so the interval reaches past both."""
    good, bad, both = (seeds[name]["comparisons"]["cls"]["latent_minus"] for name in ("good", "bad", "both"))
    assert both["value"] == pytest.approx((good["value"] + bad["value"]) / 2)
    assert both["low"] < bad["value"] < good["value"] < both["high"]
    assert good["high"] - good["low"] < 0.7 * (both["high"] - both["low"])


def test_a_seed_taken_twice_widens_no_interval(seeds):
    """Weights of seeds sum to 1 in every draw, so the intervals are of queries alone, as with one seed."""
    for name, comparison in seeds["good"]["comparisons"].items():
        assert seeds["twice"]["comparisons"][name]["latent_minus"] == pytest.approx(comparison["latent_minus"])


def test_the_control_task_is_a_mean_over_seeds_too(seeds):
    """F1 on labels without meaning of both seeds' states, half each."""
    (good, bad, both) = (seeds[name]["keywords"][0]["control_f1"] for name in ("good", "bad", "both"))
    for name in REPRESENTATIONS:
        assert both[name] == pytest.approx((good[name] + bad[name]) / 2)
    assert good != bad


def test_states_are_those_of_each_pair_alone(make_student, tiny_pairs):
    """Batches, padding and order change nothing: each row equals a run of its pair alone, and logits are predict's."""
    student, tokenizer = make_student()
    pairs = [p.pair for p in tiny_pairs[::29]]
    together = collect_states(student, tokenizer, pairs, batch_size=8)
    for row, pair in enumerate(pairs):
        alone = collect_states(student, tokenizer, [pair])
        for name in ("cls_ND", "mean_ND", "latent_NR", "logits_NK"):
            assert getattr(together, name)[row] == pytest.approx(getattr(alone, name)[0], abs=2e-5), name
    assert together.logits_NK == pytest.approx(predict(student, tokenizer, pairs), abs=2e-5)
    plain, tokenizer = make_student("none")
    assert collect_states(plain, tokenizer, pairs).latent_NR is None


def test_an_untrained_extractor_shares_the_encoder_and_nothing_more(make_student, tiny_pairs):
    """[CLS] is the same, the latent is another, the student is as it was, and the seed decides."""
    student, tokenizer = make_student()
    pairs = [p.pair for p in tiny_pairs[:6]]
    before = collect_states(student, tokenizer, pairs)
    fresh = collect_states(with_fresh_extractor(student, 3), tokenizer, pairs)
    again = collect_states(with_fresh_extractor(student, 3), tokenizer, pairs)
    assert (fresh.cls_ND == before.cls_ND).all()
    assert not np.allclose(fresh.latent_NR, before.latent_NR, atol=1e-3)
    assert (fresh.latent_NR == again.latent_NR).all()
    assert (collect_states(student, tokenizer, pairs).latent_NR == before.latent_NR).all()


def test_a_random_projection_keeps_lengths_on_average(rng):
    """Variance 1 / D: 512 columns of 64-wide unit states have squared length 512 / 64 = 8 within a tenth or so."""
    states = rng.normal(size=(50, 64)).astype(np.float32)
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    found = random_projection(states, 512, 0)
    assert found.shape == (50, 512)
    assert (found**2).sum(axis=1).mean() == pytest.approx(8, rel=0.1)
    assert (random_projection(states, 512, 0) == found).all()


@pytest.fixture(scope="module")
def grid(tmp_path_factory, make_student, tiny_pairs):
    """A grid of three tiny untrained fits, its test pairs, and rationales that say `thrifty` of every other one."""
    path = tmp_path_factory.mktemp("probing") / "out"
    for stage in ("data", "rationales", *(f"fits/{s}/seed_0/student" for s in ("lrkd_gat", "bert", "lrkd_shuffled"))):
        (path / stage).mkdir(parents=True)
        (path / stage / "DONE.json").write_text(json.dumps({"inputs": "", "seconds": 0, "commit": ""}))
    rows = tiny_pairs[:180]
    write_labelled_pairs(path / "data" / "pairs.test.parquet", [*rows, replace(rows[0], exact_only=True)])
    with (path / "rationales" / "rationales.test.jsonl").open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows):
            text = "A thrifty choice. Verdict: Exact." if number % 2 else "A choice."
            file.write(rationale_line(rationale_of(row, text)))
    for system, kind, seed in (("lrkd_gat", "gat", 0), ("bert", "none", 1), ("lrkd_shuffled", "gat", 2)):
        student, tokenizer = make_student(kind, seed=seed)
        student.save(path / "fits" / system / "seed_0" / "student", tokenizer)
    (path.parent / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return path


def rationale_of(row: LabelledPair, text: str) -> Rationale:
    """Give a rationale of a pair from one perspective."""
    return Rationale(
        pair_id=row.pair.pair_id,
        perspective="user",
        evidence=(),
        rationale=text,
        verdict=None,
        generator="invented",
        annotator_seen_pair=False,
    )


def test_the_study_writes_its_result_table_and_plot(grid):
    """All representations are there; the verdict sentence gives no keyword; a second start has nothing to do."""
    argv = ["--recipe", str(grid.parent / "recipe.toml"), "--out", str(grid), "--set", "seed=3"]
    assert main(argv) == 0
    folder = grid / "studies" / "probing"
    result = json.loads((folder / "result.json").read_text())
    assert [word["word"] for word in result["keywords"]] == ["thrifty"]
    assert (result["system"], result["seeds"], result["n_pairs"], result["n_queries"]) == ("lrkd_gat", [0], 180, 30)
    assert set(result["representations"]) == set(REPRESENTATIONS)
    assert set(result["comparisons"]) == set(REPRESENTATIONS) - {"latent"}
    page = (folder / "table.md").read_text()
    assert all(title in page for title in REPRESENTATIONS.values())
    assert "whole queries drawn, for this one student of each system" in page
    assert "whole queries and, apart from them, the 3 seeds drawn" in table({**result, "seeds": [0, 1, 2]})
    assert (folder / "delta.svg").read_text().count("<path") > 10
    written = (folder / "result.json").stat().st_mtime_ns
    assert main(argv) == 0
    assert (folder / "result.json").stat().st_mtime_ns == written
    assert len((grid / "test_reads.jsonl").read_text().splitlines()) == 1


def test_one_fit_can_be_probed_alone(grid):
    """`lrkd_shuffled/seed_0` in place of the recipe's system."""
    run = Run(load_recipe(str(grid.parent / "recipe.toml")), grid / "fits" / "lrkd_shuffled" / "seed_0", grid)
    (fit,) = grid_fits(run, "lrkd_shuffled/seed_0")
    assert (fit.seed, fit.ours) == (0, grid / "fits" / "lrkd_shuffled" / "seed_0" / "student")
    assert fit.ours == fit.shuffled


def test_a_grid_without_the_controls_is_refused(grid):
    """A system that has not run has no common seed with the controls; a plain student has no latent."""
    run = Run(load_recipe(str(grid.parent / "recipe.toml")), grid)
    with pytest.raises(RunError, match="finished students of lrkd_mlp, bert and lrkd_shuffled"):
        grid_fits(run, "lrkd_mlp/seed_0")
    plain = grid / "fits" / "bert" / "seed_0" / "student"
    with pytest.raises(RunError, match="students with an extractor, found one without"):
        study_probing(run, [ProbedFit(0, plain, plain, plain)])

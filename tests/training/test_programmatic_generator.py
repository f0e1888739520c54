"""The programmatic stand-in for a base LLM: annotator's rationales, guesses from soft labels, never a gold label."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import chisquare

from relevance.errors import InputError, RecipeError, RunError
from relevance.labels import ESCI
from relevance.pairs import read_labelled_pairs, read_pairs, write_labelled_pairs
from training.data import stage as data_stage
from training.recipe import PERSPECTIVES, VIEWS
from training.runs import stage_arguments
from training.soft_labels import read_soft_labels
from training.teacher import annotate
from training.teacher.decoder import make_decoder, train_tokenizer
from training.teacher.generator import Prompt, prompt_key, split_key
from training.teacher.local_generator import LocalGenerator
from training.teacher.openai_client import OpenAiGenerator
from training.teacher.policy import Policy, PolicyRecord, save_policy
from training.teacher.programmatic_generator import LabelGuesses, ProgrammaticGenerator
from training.teacher.prompts import PromptBook
from training.teacher.responses import parse_response
from training.teacher.text_generators import STORE, make_text_generator
from training.teacher_recipe import DecoderRecipe

RECIPE = """\
name = "t"
[data]
source = "marketplace"
[data.marketplace]
queries = { train = 30, dev = 4, cal = 4, test = 10 }
[rationales]
generator = "teacher"
[annotate]
teacher = "facts"
folds = 2
[teacher.prompt]
version = "compact"
[teacher.sampling]
kind = "programmatic"
annotator = "marketplace"
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose stages `data` and `annotate` have finished."""
    folder = tmp_path_factory.mktemp("programmatic")
    (folder / "recipe.toml").write_text(RECIPE)
    options = ["--recipe", str(folder / "recipe.toml"), "--out", str(folder / "run")]
    assert data_stage.main(options) == 0
    assert annotate.main(options) == 0
    return stage_arguments(options, "generate", None)


@pytest.fixture(scope="module")
def pairs(run):
    """The run's first training pairs."""
    return list(read_pairs(run.path / "data" / "pairs.train.parquet"))[:60]


def ask(generator, pairs, views=VIEWS, *, samples=1):
    """Give the completions by key and sample; the messages say nothing, for nobody reads them."""
    prompts = [Prompt(prompt_key(p.pair_id, view), (), samples) for p in pairs for view in views]
    return {(c.key, c.sample): c for c in generator.complete(prompts)}


def test_answers_hold_the_annotators_rationale_and_the_most_probable_class(run, pairs):
    """Each of 60 pairs under each perspective: the text parses without problems to a guess that is the arg-max."""
    generator = ProgrammaticGenerator(run)

    found = ask(generator, pairs, PERSPECTIVES)

    for perspective in PERSPECTIVES:
        soft = read_soft_labels(run.path / "annotate" / f"soft_labels.{perspective}.parquet", ESCI.n_classes)
        best = {
            p.pair_id: ESCI.classes[k] for p, k in zip(soft.pairs, soft.probabilities_NK.argmax(axis=1), strict=True)
        }
        for pair in pairs:
            parsed = parse_response(found[prompt_key(pair.pair_id, perspective), 0].text, ESCI)
            assert parsed.label == best[pair.pair_id]
            assert parsed.rationale
            assert parsed.problems == ()
    assert len({c.text for c in found.values()}) > 100
    assert generator.name.startswith("programmatic: ")


def test_no_gold_label_reaches_an_answer(run, pairs, tmp_path):
    """The data stage's labels are all turned into the last class: the same answers, byte for byte."""
    before = ask(ProgrammaticGenerator(run), pairs, samples=3)
    path = run.path / "data" / "pairs.train.parquet"
    labelled = read_labelled_pairs(path, ESCI)
    content = path.read_bytes()
    try:
        write_labelled_pairs(path, [replace(one, label="I") for one in labelled])
        after = ask(ProgrammaticGenerator(run), pairs, samples=3)
    finally:
        path.write_bytes(content)

    assert after == before


def test_later_samples_are_drawn_with_temperature_and_can_be_asked_for_alone(run, pairs):
    """Only labels differ between samples; the same sample number gives the same answer however it is asked for."""
    generator = ProgrammaticGenerator(run)
    whole = ask(generator, pairs, ("user",), samples=5)
    parts = [Prompt(prompt_key(p.pair_id, "user"), (), samples=2, first_sample=3) for p in pairs]

    later = {(c.key, c.sample): c for c in generator.complete(parts)}

    assert all(whole[place] == completion for place, completion in later.items())
    labels = {place: parse_response(c.text, ESCI).label for place, c in whole.items()}
    assert sum(labels[key, 0] != labels[key, n] for key, n in labels) > 0


def test_guesses_follow_the_tempered_soft_labels():
    """2,000 samples of one pair against p^(1/T), normalised: chi-square; temperature 0 always takes the largest."""
    own_K = np.array([0.5, 0.3, 0.0, 0.2], dtype=np.float32)
    soft = {perspective: {"q\ti": own_K} for perspective in PERSPECTIVES}
    guesses = LabelGuesses(ESCI.classes, soft, temperature=0.5, seed=3)
    expected_K = own_K.astype(np.float64) ** 2 / (own_K.astype(np.float64) ** 2).sum()

    counts = Counter(guesses.draw("q\ti", "rule", sample) for sample in range(1, 2001))

    assert set(counts) == {"E", "S", "I"}
    shown = [k for k in range(4) if own_K[k]]
    observed = [counts[ESCI.classes[k]] for k in shown]
    assert chisquare(observed, 2000 * expected_K[shown]).pvalue > 0.001
    assert {replace(guesses, temperature=0.0).draw("q\ti", "user", n) for n in range(50)} == {"E"}


def test_a_prompt_that_names_no_perspective_is_answered_from_one_of_the_three(run, pairs):
    """Under the unified prompt rationales come from all three perspectives, and every one is somebody's."""
    generator = ProgrammaticGenerator(run)
    found = ask(generator, pairs, samples=2)
    of_perspective = {
        (p.pair_id, view): parse_response(found[prompt_key(p.pair_id, view), 0].text, ESCI).rationale
        for p in pairs
        for view in PERSPECTIVES
    }
    chosen = Counter()
    for pair in pairs:
        text = parse_response(found[prompt_key(pair.pair_id, "unified"), 0].text, ESCI).rationale
        chosen.update(view for view in PERSPECTIVES if of_perspective[pair.pair_id, view] == text)

    assert all(chosen[view] > 5 for view in PERSPECTIVES)
    assert sum(chosen.values()) >= len(pairs)


def test_a_pair_that_is_not_of_the_training_set_gets_an_error_and_the_rest_an_answer(run, pairs):
    """There are soft labels of training pairs only; a key that is none is told too."""
    generator = ProgrammaticGenerator(run)
    keys = [prompt_key("q\tnone", "user"), "explain-7", prompt_key(pairs[0].pair_id, "user")]

    found = [c.error for c in generator.complete(Prompt(key, (), 1) for key in keys)]

    assert found[0] == "expected a training pair of the run, found 'q\\tnone'"
    assert "expected one of" in found[1]
    assert found[2] is None


def test_keys_are_read_back_and_others_refused():
    """A pair id holds a tab of its own."""
    assert split_key(prompt_key("q\ti", "unified")) == ("q\ti", "unified")
    for key in ("", "user", "nobody\tq\ti"):
        with pytest.raises(InputError, match="prompt key: expected one of"):
            split_key(key)


def test_without_the_facts_teachers_soft_labels_there_is_no_guess(run, tmp_path):
    """Stage `annotate` has not run, or wrote no soft labels of perspectives."""
    with pytest.raises(RunError, match="annotate: expected a finished stage"):
        LabelGuesses.read(replace(run, path=tmp_path))
    (tmp_path / "annotate").mkdir()
    (tmp_path / "annotate" / "DONE.json").write_text("{}")
    with pytest.raises(
        InputError, match=r"soft_labels\.user\.parquet: expected soft labels of annotate\.teacher = 'facts'"
    ):
        LabelGuesses.read(replace(run, path=tmp_path))


def sampling(run, **changes):
    """Give the run with other sampling."""
    teacher = run.recipe.teacher
    changed = teacher.model_copy(update={"sampling": teacher.sampling.model_copy(update=changes)})
    return replace(run, recipe=run.recipe.model_copy(update={"teacher": changed}))


def test_the_recipe_names_the_generator(run, tmp_path):
    """A server's answers are kept beside the stages; only its client has figures for the ledger."""
    server = make_text_generator(sampling(run, kind="openai", model="m"), None)
    own_store = make_text_generator(sampling(run, kind="openai", model="m"), None, store=tmp_path / "s.jsonl")
    programmatic = make_text_generator(run, None)

    assert isinstance(server, OpenAiGenerator)
    assert server.store.path == run.path / STORE
    assert own_store.store.path == tmp_path / "s.jsonl"
    assert server.ledger.requests == 0
    assert isinstance(programmatic, ProgrammaticGenerator)
    with pytest.raises(RecipeError, match="expected the folder or hub name of a policy"):
        make_text_generator(sampling(run, kind="local"), None)


def test_a_policy_is_asked_as_it_was_fine_tuned(run, tmp_path):
    """Another prompt book, or another side of the think block, would ask it something it never learned."""
    recipe = DecoderRecipe(vocabulary=300, width=16, layers=1, heads=2, kv_heads=1, context=64)
    tokenizer = train_tokenizer(["kettle"], recipe)
    book = PromptBook.load(run.recipe.teacher.prompt, ESCI)
    record = PolicyRecord(
        base=".",
        base_hash="sha256:0",
        revision=None,
        prompt=book.fingerprint,
        reasoning_order="think_first",
        thinking=False,
        view="unified",
    )
    save_policy(Policy(make_decoder(recipe, tokenizer), tokenizer, "t", record), tmp_path / "policy")

    local = make_text_generator(sampling(run, kind="local", max_new_tokens=4), tmp_path / "policy")

    assert isinstance(local, LocalGenerator)
    with pytest.raises(RunError, match=r"expected teacher\.sampling\.thinking = false"):
        make_text_generator(sampling(run, kind="local", thinking=True), tmp_path / "policy")
    save_policy(
        Policy(local.policy.model, tokenizer, "t", record.model_copy(update={"prompt": "0" * 64})), tmp_path / "policy"
    )
    with pytest.raises(RunError, match="expected the prompt book it was trained with"):
        make_text_generator(sampling(run, kind="local"), tmp_path / "policy")

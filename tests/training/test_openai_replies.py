"""What servers say, however broken, is an answer or a failure; the store of answers heals what a crash left."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relevance.errors import RunError
from relevance.labels import ALIEXPRESS, ESCI
from training.teacher.openai_replies import Failure, Reply, TokenLogprob, label_logprobs, read_reply, seconds_asked
from training.teacher.request_store import RequestStore, StoredAnswer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["choices", "message", "content", "usage", "error", "delta"]), inner)
    ),
)


@given(
    status=st.sampled_from([200, 400, 429, 500]),
    kind=st.sampled_from(["application/json", "text/html", "text/event-stream"]),
    body=st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()),
    events=st.booleans(),
)
def test_no_body_makes_the_reader_raise(status, kind, body, events):
    """Bytes, and JSON with the right names in the wrong places, plain or as a stream; only status 200 answers."""
    found = read_reply(status, kind, b"data: " + body + b"\n\n" if events else body)

    assert isinstance(found, Failure if status != 200 else Failure | Reply)


@pytest.mark.parametrize(
    ("status", "body", "message", "again"),
    [
        (400, b'{"error": {"message": "too long", "code": 1}}', "found 400: too long", False),
        (404, b'{"detail": "no model m"}', "found 404: no model m", False),
        (422, b'{"detail": [{"loc": ["seed"]}]}', "'seed'", False),
        (503, b"<html>down</html>", "found 503: '<html>down</html>'", True),
        (429, b'{"error": "slow down"}', "found 429: slow down", True),
        (400, b"[1]", "found 400: '[1]'", False),
        (200, b'{"choices": []}', "expected a choice", True),
    ],
)
def test_a_failure_holds_the_servers_words_and_whether_to_try_again(status, body, message, again):
    """OpenAI's error object, FastAPI's detail, a bare text, an error page."""
    found = read_reply(status, "application/json", body)

    assert isinstance(found, Failure)
    assert message in found.message
    assert found.again is again


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
@pytest.mark.parametrize("streamed", [False, True])
def test_thoughts_are_the_answer_where_there_is_no_other_unless_the_limit_cut_them(field, streamed):
    """vLLM's name of today and of before; half a thought that weighs a label must not be parsed as a verdict."""

    def read(finish, **message):
        """Read one choice, whole or as the pieces of a stream."""
        choice = {"delta" if streamed else "message": message, "finish_reason": finish}
        body = json.dumps({"choices": [choice], "usage": {"completion_tokens": 5}}).encode()
        kind = "text/event-stream" if streamed else "application/json"
        return read_reply(200, kind, b"data: " + body + b"\n\n" if streamed else body)

    assert read("stop", **{field: "label: E"}).text == "label: E"
    assert read("stop", **{field: "I weigh label: S", "content": "label: E"}).text == "label: E"
    assert read("length", **{field: "I weigh label: S"}) == Reply("", "length", None, 5, ())
    assert read("length").text == ""


def test_tokens_that_nobody_can_see_are_a_failure():
    """Five tokens were paid for and no known field holds a text; one token may be the end alone."""

    def read(tokens):
        """Read an answer without text."""
        whole = {"choices": [{"message": {"thoughts": "E"}, "finish_reason": "stop"}]}
        return read_reply(
            200, "application/json", json.dumps(whole | {"usage": {"completion_tokens": tokens}}).encode()
        )

    assert isinstance(read(5), Failure)
    assert "counts 5 tokens" in read(5).message
    assert read(1) == Reply("", "stop", None, 1, ())


def test_an_error_inside_a_stream_is_a_failure():
    """As `transformers serve` reports what went wrong after its headers were sent."""
    found = read_reply(200, "text/event-stream", b'data: {"error": "out of memory"}')

    assert isinstance(found, Failure)
    assert "out of memory" in found.message


def test_half_a_character_is_replaced_and_endless_brackets_are_a_failure():
    """A lone surrogate cannot be stored; brackets beyond the parser's depth are no answer."""
    body = b'{"choices": [{"message": {"content": "mug \\ud83d"}}, {"message": {}}]}'

    assert read_reply(200, "application/json", body) == Reply("mug ?", None, None, None, ())
    for body in (b"[" * 100_000, b"data: " + b"[" * 100_000):
        found = read_reply(200, "text/event-stream" if body[:1] == b"d" else "application/json", body)
        assert isinstance(found, Failure)


def test_retry_after_is_seconds_or_a_date():
    """A past date asks for no wait; a word is nothing."""
    assert seconds_asked("12.5") == 12.5
    assert seconds_asked("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert seconds_asked("Tue, 31 Dec 2199 23:59:59 GMT") > 3_000_000_000
    assert seconds_asked("soon") is None


def tokens(*pieces, rivals):
    """Give tokens of log-probability 0, the last but one of which has rivals."""
    made = [TokenLogprob(token=piece, logprob=0.0) for piece in pieces]
    rows = [{"token": token, "logprob": math.log(p)} for token, p in rivals.items()]
    made[-2] = TokenLogprob(token=pieces[-2], logprob=0.0, top_logprobs=rows)
    return made


def test_label_log_probabilities_are_those_of_the_label_and_not_of_an_earlier_word():
    """Exact: 0.5 + 0.1 for its two first tokens; Substitute 0.25; Irrelevant 0.05; ' the' is no class; C is absent."""
    made = tokens(
        '{"rationale": "label: Irrelevant?', '", "label": "', "Ex", 'act"}',
        rivals={"Ex": 0.5, "E": 0.1, "Sub": 0.25, "Irre": 0.05, "the": 0.1},
    )  # fmt: skip

    found = label_logprobs(made, ESCI)

    assert found == pytest.approx({"E": math.log(0.6), "S": math.log(0.25), "I": math.log(0.05)})


def test_a_token_that_begins_two_classes_counts_for_neither():
    """`A` may become Attribute or Accessory; with the blank that stands before the label, ` Acc` may not."""
    made = tokens("Label:", " Acc", "essory Mismatch", rivals={" Acc": 0.5, " A": 0.2, " Brand": 0.2, "Model": 0.1})

    assert label_logprobs(made, ALIEXPRESS) == pytest.approx({"accessory": math.log(0.5), "brand": math.log(0.2)})


def test_an_answer_without_a_label_has_no_label_log_probabilities():
    """None, not an even distribution."""
    assert label_logprobs(tokens("no", " verdict", ".", rivals={"E": 0.5}), ESCI) is None
    assert label_logprobs([], ESCI) is None


def test_where_the_label_comes_first_a_rationale_that_names_one_decides_nothing():
    """The answer is S; its rationale speaks of a private label, and an I follows."""
    parts = ["label: ", "S", "\nno private label. ", "I", " see"]
    content = [(part, {"E": 0.3, "S": 0.7} if n == 1 else {"I": 0.9} if n == 3 else {}) for n, part in enumerate(parts)]
    made = [
        TokenLogprob.model_validate(
            {
                "token": part,
                "logprob": -0.1,
                "top_logprobs": [{"token": name, "logprob": math.log(p)} for name, p in rivals.items()],
            }
        )
        for part, rivals in content
    ]

    assert label_logprobs(made, ESCI, first=True) == pytest.approx({"E": math.log(0.3), "S": math.log(0.7)})
    assert label_logprobs(made, ESCI) == pytest.approx({"I": math.log(0.9)})


def answer(number, text="t"):
    """Give a stored answer."""
    return StoredAnswer(
        key=f"{number:064x}",
        generator="g",
        text=text,
        prompt_tokens=None,
        completion_tokens=1,
        finish_reason="stop",
        label_logprobs={"E": -0.5},
    )


def test_a_store_gives_back_what_was_added_before_and_after_it_was_opened_again(tmp_path):
    """Texts with line ends and other scripts too; an unknown request has none."""
    store = RequestStore(tmp_path / "new" / "store.jsonl")
    given_answers = [answer(1), answer(2, "two\nlines"), answer(3, "水筒")]
    with store.opened():
        for one in given_answers[:2]:
            store.add(one)
        assert store.get(given_answers[1].key) == given_answers[1]
    again = RequestStore(store.path)
    with again.opened():
        again.add(given_answers[2])
    with store.opened():
        assert [store.get(one.key) for one in given_answers] == given_answers
        assert store.get(answer(4).key) is None
        assert len(store) == 3


def test_a_damaged_line_costs_its_own_answer_only(tmp_path, caplog):
    """A line of garbage in the middle is passed over, a cut-off last one is removed, both requests are asked again."""
    store = RequestStore(tmp_path / "store.jsonl")
    lines = [answer(n).model_dump_json() for n in range(4)]
    lines[1] = lines[1].replace("{", "!", 1)
    store.path.write_text("\n".join(lines)[:-9])
    with store.opened():
        known = [store.get(answer(n).key) is not None for n in range(4)]
        store.add(answer(3))

    assert known == [True, False, True, False]
    assert "found 1 other lines" in caplog.text
    assert store.path.read_text().endswith("\n".join([lines[2], lines[3], ""]))


def test_two_writers_of_one_store_are_refused(tmp_path):
    """The second would pay for what the first is asking."""
    one, other = RequestStore(tmp_path / "store.jsonl"), RequestStore(tmp_path / "store.jsonl")
    with one.opened(), pytest.raises(RunError, match="expected to be its only writer"), other.opened():
        pass

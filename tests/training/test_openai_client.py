"""The client of OpenAI-compatible servers against a real server that misbehaves: nothing lost, nothing paid twice."""

import json

import pytest
from client_makers import asked, generator, prompt, texts
from llm_server import answer_to
from llm_servers import LlmServer

from relevance.errors import InputError, RecipeError, RunError
from relevance.labels import ESCI
from training.recipe import load_recipe
from training.runs import LEDGER, Run
from training.teacher.openai_client import OpenAiGenerator
from training.teacher.text_generators import noted
from training.teacher_recipe import SamplingRecipe


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server without a key."""
    with LlmServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.mark.parametrize("action", ["broken", "page", "half", "schema", "cut", "streamcut"])
def test_a_request_that_fails_is_sent_again_and_one_that_was_answered_is_not(server, tmp_path, action):
    """An error page, a page with status 200, half a JSON, a wrong schema, a connection and a stream cut midway."""
    client = generator(server.url, tmp_path / "store.jsonl", retries=1, concurrency=4)
    prompts = [prompt(f"good-{n}", f"ok {action}-{n}") for n in range(6)]
    prompts.append(prompt("bad", f"{action} 1 kettle-{action}"))

    found = {c.key: c for c in client.complete(prompts)}

    (first, second) = asked(server, f"kettle-{action}")
    assert first["asked"] == second["asked"]
    assert found["bad"].text == answer_to(f"kettle-{action}", first["seed"])
    assert [c.error for c in found.values()] == [None] * 7
    assert len(asked(server, f"ok {action}-")) == 6
    assert (client.ledger.requests, client.ledger.retries, client.ledger.answers) == (8, 1, 7)


def test_a_busy_server_is_asked_again_when_it_said(server, tmp_path):
    """Retry-After was one second; the server's own clock measures between the two requests."""
    client = generator(server.url, tmp_path / "store.jsonl", retries=1)

    (completion,) = client.complete([prompt("a", "busy 1 lamp")])

    first, second = asked(server, "lamp")
    assert completion.error is None
    assert second["at"] - first["at"] >= 1.0


def test_a_refused_request_is_not_sent_again_and_its_error_holds_the_servers_words(server, tmp_path):
    """Status 400: the same request would be refused for ever; the other prompts are answered."""
    client = generator(server.url, tmp_path / "store.jsonl", retries=3)

    found = {c.key: c for c in client.complete([prompt("a", "refuse 9 scarf"), prompt("b", "ok scarf")])}

    assert found["a"].error == "status 400: expected status 200, found 400: too many tokens: 99999"
    assert (found["a"].text, found["b"].error) == ("", None)
    assert len(asked(server, "refuse 9 scarf")) == 1
    assert client.ledger.figures()["errors"] == {"status 400": 1}


def test_what_may_pass_ends_the_asking_after_all_else_is_answered_and_is_asked_again(server, tmp_path):
    """First request and one retry run into the time limit: no row for good; the next asking sends this one alone."""
    client = generator(server.url, tmp_path / "store.jsonl", retries=1, timeout_s=0.3)
    prompts = [prompt("slow", "slow 2 mug"), *(prompt(str(n), f"ok mug-{n}") for n in range(8))]
    found = []

    with pytest.raises(RunError, match=r"expected 9 answers, found 1 missing for reasons .*timeout × 1"):
        found.extend(client.complete(prompts))
    assert {c.key for c in found} == {str(n) for n in range(8)}
    assert len(asked(server, "slow 2 mug")) == 2

    again = generator(server.url, tmp_path / "store.jsonl", retries=1, timeout_s=30)
    assert {c.key for c in again.complete(prompts) if c.error is None} == {c.key for c in found} | {"slow"}
    assert (again.ledger.requests, again.ledger.stored) == (1, 8)


def test_a_share_of_answers_may_stay_away_where_the_recipe_says_so(server, tmp_path):
    """One of nine, and a ninth is allowed: a completion with its error."""
    client = generator(server.url, tmp_path / "store.jsonl", retries=0, timeout_s=0.3, unanswered=0.12)
    prompts = [prompt("slow", "slow 9 mug"), *(prompt(str(n), f"ok mug-{n}") for n in range(8))]

    found = {c.key: c for c in client.complete(prompts)}

    assert len(found) == 9
    assert found["slow"].error == "timeout: expected an answer within 0.3 s, found none"


def test_a_second_asking_notes_what_it_took_itself(server, tmp_path):
    """Two askings of one client: two lines in the run's ledger, whose sums are what both took."""
    run = Run(load_recipe("tiny"), tmp_path)
    client = generator(server.url, tmp_path / "store.jsonl", retries=0, prompt_price=2.0)
    for action in ("ok mug", "refuse 1 pan"):
        with noted(run, "generate", client):
            list(client.complete([prompt(action, f"{action} {n}") for n in range(3)]))
    first, second = map(json.loads, (tmp_path / LEDGER).read_text().splitlines())

    assert (first["answers"], second["answers"], client.ledger.answers) == (3, 0, 3)
    assert (first["errors"], second["errors"]) == ({}, {"status 400": 3})
    assert (first["cost"], second["cost"]) == (pytest.approx(client.ledger.cost), 0)


def test_streams_and_answers_in_the_reasoning_field_are_read(server, tmp_path):
    """Some servers always stream; others put the text where a reasoning parser puts it, and tell no usage."""
    client = generator(server.url, tmp_path / "store.jsonl")

    found = {c.key: c for c in client.complete([prompt("s", "stream 9 tent"), prompt("r", "reasoning 9 rope")])}

    seed = asked(server, "tent")[0]["seed"]
    assert (found["s"].text, found["s"].prompt_tokens) == (answer_to("tent", seed), 100)
    assert (found["r"].text, found["r"].prompt_tokens, found["r"].completion_tokens) == ("rope", None, None)
    assert client.ledger.without_usage == 1


def test_samples_have_seeds_of_their_own_that_any_client_would_choose(server, tmp_path):
    """Five samples asked at once, and the same five asked in two parts by another client: the same texts."""
    one = generator(server.url, tmp_path / "one.jsonl")
    other = generator(server.url, tmp_path / "other.jsonl", concurrency=1)

    at_once = texts(one.complete([prompt("a", "ok belt", samples=5)]))
    parts = texts(
        other.complete([prompt("a", "ok belt", samples=2, first_sample=3), prompt("a", "ok belt", samples=3)])
    )

    assert parts == at_once
    assert len(set(at_once.values())) == 5
    assert one.name == other.name


def test_equal_requests_are_sent_once_and_a_second_run_sends_none(tmp_path):
    """Twelve prompts, of three different texts; the second client finds all answers although the server is gone."""
    prompts = [prompt(f"key-{n}", f"ok shoe-{n % 3}", samples=2) for n in range(12)]
    with LlmServer(tmp_path) as server:
        client = generator(server.url, tmp_path / "store.jsonl", prompt_price=2.0, completion_price=5.0)
        first = texts(client.complete(prompts))
        sent = server.requests()
    again = generator(server.url, tmp_path / "store.jsonl", prompt_price=2.0, completion_price=5.0)

    second = texts(again.complete(prompts))

    assert second == first
    assert len(first) == 24
    assert len(sent) == 6
    assert client.ledger.stored + client.ledger.shared == 18
    assert client.ledger.cost == pytest.approx(6 * (100 * 2.0 + 20 * 5.0) / 1e6)
    assert (again.ledger.requests, again.ledger.stored, again.ledger.cost) == (0, 24, 0.0)


def test_no_more_requests_are_in_flight_and_no_more_prompts_are_read_than_the_recipe_says(tmp_path):
    """Concurrency 5 over 60 prompts: the server counts what it answers at once; prompts are read as places get free."""
    read = []

    def prompts():
        for n in range(60):
            read.append(n)
            yield prompt(str(n), f"ok cup-{n}")

    ahead = []
    with LlmServer(tmp_path, delay_s=0.01) as server:
        client = generator(server.url, tmp_path / "store.jsonl", concurrency=5)
        for done, _ in enumerate(client.complete(prompts()), start=1):
            ahead.append(len(read) - done)
        most = max(row["at_once"] for row in server.requests())

    assert len(read) == 60
    assert 1 < most <= 5
    assert max(ahead) <= 2 * 5


def test_a_full_store_is_not_read_into_memory_at_once(server, tmp_path):
    """Answers from the store wait for their reader: of 300 prompts a few more are read than are answered."""
    path = tmp_path / "store.jsonl"
    given = [prompt(str(n), f"ok bowl-{n}") for n in range(300)]
    texts(generator(server.url, path).complete(given))
    read = []

    def prompts():
        for one in given:
            read.append(one)
            yield one

    client = generator(server.url, path, concurrency=4)
    ahead = [len(read) - done for done, _ in enumerate(client.complete(prompts()), start=1)]

    assert client.ledger.requests == 0
    assert max(ahead) <= 8 * 4


def test_answers_do_not_depend_on_the_order_of_requests(server, tmp_path):
    """One request at a time and the prompts turned round, against sixteen at a time: the same text for each sample."""
    prompts = [prompt(str(n), f"ok hat-{n}", samples=2) for n in range(20)]

    many = texts(generator(server.url, tmp_path / "many.jsonl", concurrency=16).complete(prompts))
    one = texts(generator(server.url, tmp_path / "one.jsonl", concurrency=1).complete(reversed(prompts)))

    assert one == many


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(tmp_path, monkeypatch, caplog):
    """With the key the server answers; it is in no file, no log, not in the client; without it the run ends at once."""
    monkeypatch.setenv("SHOP_KEY", " sk-secret \n")
    with LlmServer(tmp_path, key="sk-secret") as server:
        client = generator(server.url, tmp_path / "store.jsonl", key_variable="SHOP_KEY")
        (completion,) = client.complete([prompt("a", "ok jar")])
        monkeypatch.delenv("SHOP_KEY")
        unkeyed = generator(server.url, tmp_path / "store.jsonl", key_variable="SHOP_KEY")
        with pytest.raises(InputError, match=r"expected a key in \$SHOP_KEY.*no such key"):
            list(unkeyed.complete([prompt("b", "ok lid")]))

    assert completion.error is None
    for text in (*(p.read_text() for p in tmp_path.iterdir()), caplog.text, repr(vars(client)), client.name):
        assert "sk-secret" not in text


def test_extensions_are_sent_only_where_the_recipe_allows_them(server, tmp_path):
    """Strict servers refuse fields that are not OpenAI's; a request with other fields is another request."""
    path = tmp_path / "store.jsonl"
    texts(generator(server.url, path, thinking=True).complete([prompt("a", "ok vase")]))
    texts(generator(server.url, path, extensions=False).complete([prompt("a", "ok vase")]))

    extended, plain = (row["asked"] for row in asked(server, "vase"))
    assert extended["top_k"] == 50
    assert extended["chat_template_kwargs"] == {"enable_thinking": True}
    own = {"model", "messages", "temperature", "top_p", "max_tokens", "stream", "seed"}
    assert set(plain) == own
    assert set(extended) == own | {"top_k", "chat_template_kwargs"}


def test_what_comes_out_is_closed_when_its_reader_stops(server, tmp_path):
    """A reader that goes away after three of a thousand leaves no request running and the store free for the next."""
    client = generator(server.url, tmp_path / "store.jsonl", concurrency=4)
    completions = client.complete(prompt(str(n), f"ok pen-{n}") for n in range(1000))
    taken = [next(completions) for _ in range(3)]
    completions.close()
    sent = len(asked(server, "pen-"))

    again = texts(client.complete(prompt(str(n), f"ok pen-{n}") for n in range(3)))

    assert len(taken) == 3
    assert sent < 100
    assert len(again) == 3


def test_an_error_of_the_callers_prompts_reaches_the_caller(server, tmp_path):
    """A prompt that cannot be made ends the run with its own error; answers that were there before it are kept."""

    def prompts():
        yield prompt("a", "ok cap")
        raise InputError("no such pair")

    client = generator(server.url, tmp_path / "store.jsonl", concurrency=1)
    completions = client.complete(prompts())

    assert next(completions).key == "a"
    with pytest.raises(InputError, match="no such pair"):
        next(completions)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"model": None}, r"sampling\.model: expected the server's name"),
        ({"model": "m", "base_url": "127.0.0.1:8000"}, r"sampling\.base_url: expected http"),
        ({"model": "m", "base_url": "http:///v1"}, r"sampling\.base_url: expected http"),
    ],
)
def test_a_recipe_without_model_or_address_is_refused(tmp_path, settings, problem):
    """Before any prompt is read."""
    with pytest.raises(RecipeError, match=problem):
        OpenAiGenerator(SamplingRecipe(kind="openai", **settings), tmp_path / "store.jsonl", ESCI)

"""The Python client's `explain`: typed explanations, calls cut by their own limit, refusals told."""

from __future__ import annotations

from functools import partial

import pytest
import relevance_tiers_client as rtc
from client_calls import ask, scoring

ASKED = "relevance_explained_requests_total"


@pytest.fixture(params=["sync", "async"])
def ask_either(request):
    """Make a call with each of the two clients."""
    return partial(ask, request.param)


@pytest.fixture(scope="module")
def explaining(explained_bundle, launch_shared):
    """A server that explains three items at once and scores ten."""
    return launch_shared(explained_bundle, explain_max_items="3", max_items="10", drain_s="0")


def test_a_call_is_cut_by_the_limit_of_explanations(explaining, tiny_pairs, ask_either):
    """Eight items in three requests; every row is explained, and told as types."""
    items = [rtc.Item(id=n, title=p.pair.item.title) for n, p in enumerate(tiny_pairs[:8])]
    before = explaining.metrics()[ASKED]
    call = scoring(items, "red running shoes", locale="us", explain=True, return_filtered="full")
    answer = ask_either(str(explaining.client.base_url), call)
    rows = [*answer.results, *answer.filtered]

    assert explaining.metrics()[ASKED] == before + 3
    assert sorted(row.index for row in rows) == list(range(8))
    for row in rows:
        explanation = row.explanation
        assert isinstance(explanation, rtc.Explanation)
        assert [r.perspective for r in explanation.rationales] == ["user", "struct", "rule"]
        assert all((r.text is not None) == r.close for r in explanation.rationales)
        words = [word.text for word in explanation.words if word.side == "item"]
        assert "".join(words) == items[row.index].title
        assert set(explanation.probabilities) == {"E", "S", "C", "I"}
        assert explanation.boundary.filter is not None
        assert (explanation.rule is not None) == (explanation.probabilities["C"] >= 0.5)


def test_what_is_not_asked_for_is_not_there(explaining, ask_either):
    """A plain call of eight items is one request, without explanations."""
    before = explaining.metrics()[ASKED]
    answer = ask_either(str(explaining.client.base_url), scoring(min_tier=0))

    assert {row.explanation for row in answer.results} == {None}
    assert explaining.metrics()[ASKED] == before


def test_info_tells_whether_explanations_are_offered(explaining, server, ask_either):
    """With the reason where they are not; asking all the same is refused by the service."""
    offered = ask_either(str(explaining.client.base_url), lambda client: client.info())
    withheld = ask_either(str(server.client.base_url), lambda client: client.info())

    assert (offered.explanations.offered, offered.limits.max_explained_items) == (True, 3)
    assert offered.explanations.perspectives == ["user", "struct", "rule"]
    assert not withheld.explanations.offered
    assert "no rationales" in withheld.explanations.reason
    with pytest.raises(rtc.InvalidRequestError) as caught:
        ask_either(str(server.client.base_url), scoring(explain=True))
    assert (caught.value.code, caught.value.errors[0].pointer) == ("not_offered", "/explain")

"""`explain: true` against real servers: what an answer holds, and that everything else stays as it is without."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from relevance.bundle import Bundle, open_bundle
from relevance.labels import ESCI
from relevance.pairs import Item
from service.model import Model, load_model
from service.schemas import ScoreResponse
from service.settings import Settings

RULES = """
[[rules]]
name = "likely ones are shown"
class_at_least = { E = 0.6 }
floor_tier = 3

[[rules]]
name = "nothing beyond tier 3 on sundays"
query_matches = "shoes$"
cap_tier = 3
"""
HITS = 'relevance_cache_hits_total{tier="local"}'
ASKED = "relevance_explained_requests_total"


@pytest.fixture(scope="module")
def explaining(explained_bundle, launch_shared, tmp_path_factory):
    """A server that explains up to forty items, under three rules that fire now and then."""
    policy = tmp_path_factory.mktemp("policy") / "policy.toml"
    given = (explained_bundle / "policy.toml").read_text(encoding="utf-8")
    policy.write_text(given.replace("C = 0.5", "C = 0.2") + RULES, encoding="utf-8")
    return launch_shared(explained_bundle, policy=str(policy), explain_max_items="40", drain_s="0")


@pytest.fixture(scope="module")
def bundle(explained_bundle) -> Bundle:
    """The bundle that it serves."""
    return open_bundle(explained_bundle)


@pytest.fixture(scope="module")
def model(explained_bundle) -> Model:
    """The model that it serves."""
    return load_model(Settings(bundle=explained_bundle, threads=1))


@pytest.fixture(scope="module")
def body(tiny_pairs):
    """Thirty-six items of one locale for one of its queries; every class is there."""
    pairs = [p.pair for p in tiny_pairs[:36]]
    items = [
        {"id": n, "title": pair.item.title, "brand": pair.item.brand, "color": pair.item.color}
        for n, pair in enumerate(pairs)
    ]
    return {"query": pairs[0].query.text, "locale": "us", "items": items, "return_filtered": "full"}


def ask(server, body, **fields):
    """Give the answer to a request, checked against the schema."""
    found = server.client.post("/score", json=body | fields)
    assert found.status_code == 200, found.text
    ScoreResponse.model_validate_json(found.content)
    return found.json()


def rows_of(answer):
    """Give every row, by its place in the request."""
    return sorted(answer["results"] + answer["filtered"], key=lambda row: row["index"])


def plain(row):
    """Give a row without what an explained request adds or computes anew."""
    return {k: v for k, v in row.items() if k not in {"explanation", "source"}} | {
        "score": pytest.approx(row["score"], abs=1e-4)
    }


def test_an_explained_answer_is_the_plain_one_and_explanations(explaining, body):
    """Scores, tiers, labels and order are the same; plain rows have no such field."""
    alone, explained = ask(explaining, body), ask(explaining, body, explain=True)

    assert [plain(row) for row in explained["results"]] == [plain(row) for row in alone["results"]]
    assert [plain(row) for row in explained["filtered"]] == [plain(row) for row in alone["filtered"]]
    assert all(row["explanation"] for row in rows_of(explained))
    assert not any("explanation" in row for row in rows_of(alone))
    assert {k: v for k, v in explained.items() if k in {"counts", "policy_locale", "partial"}} == {
        k: v for k, v in alone.items() if k in {"counts", "policy_locale", "partial"}
    }


def test_rationales_are_the_nearest_prototypes_of_each_perspective(explaining, body, bundle, model):
    """Found by hand from the session's latents; under its floor one says nothing but how far it is."""
    prototypes = bundle.prototypes
    scored = [row["explanation"]["rationales"] for row in rows_of(ask(explaining, body, explain=True))]
    labels = [row["label"] for row in rows_of(ask(explaining, body))]
    template, tokenizer = bundle.template, bundle.tokenizer
    items = tokenizer.encode_items(
        [template.item_text(Item(**{k: v for k, v in item.items() if k != "id"})) for item in body["items"]]
    )
    query = tokenizer.encode_query(template.query_text(body["query"]))
    _, latents = model.session.run_with_latents(tokenizer.collate([query] * len(items), items))
    place_PBD = latents.latent_BR @ prototypes.map_PRD + prototypes.offset_PD[:, None]
    seen = set()
    for b, (rationales, label) in enumerate(zip(scored, labels, strict=True)):
        assert [r["perspective"] for r in rationales] == ["user", "struct", "rule"]
        for p, rationale in enumerate(rationales):
            own = prototypes.perspective_M == p
            cosine_M = prototypes.direction_MD[own] @ place_PBD[p, b] / np.linalg.norm(place_PBD[p, b])
            nearest = np.flatnonzero(own)[cosine_M.argmax()]
            close = bool(cosine_M.max() >= prototypes.floor_P[p])
            seen.add(close)
            shares = dict(zip(ESCI.classes, prototypes.share_MK[nearest].tolist(), strict=True))
            assert rationale["similarity"] == pytest.approx(float(cosine_M.max()), abs=2e-3)
            if abs(cosine_M.max() - prototypes.floor_P[p]) < 2e-3:
                continue
            assert rationale["close"] == close
            assert rationale["text"] == (prototypes.texts[nearest] if close else None)
            assert rationale["label_share"] == (pytest.approx(shares, abs=1e-4) if close else None)
            assert rationale["agrees"] == (max(shares, key=shares.__getitem__) == label if close else None)
    assert seen == {True, False}


def test_words_put_together_are_what_was_read(explaining, bundle):
    """Query and item, fields joined as the template does; weights are shares; what was not read is not there."""
    items = [
        {"id": 0, "title": "Café-Kettle,  steel", "brand": "Voltry", "color": "red"},
        {"id": 1, "title": "電気ケトル 大容量 ステンレス"},
        {"id": 2, "title": "long " * 200},
    ]
    answer = ask(explaining, {"query": " Steel  KETTLE", "items": items, "min_tier": 0}, explain=True)
    read = {"query": [], "item": []}
    for row in answer["results"]:
        for side, texts in read.items():
            texts.append("".join(w["text"] for w in row["explanation"]["words"] if w["side"] == side))
        weights = [word["weight"] for word in row["explanation"]["words"]]
        assert 0 < sum(weights) <= 1
        assert min(weights) >= 0

    assert read["query"] == ["Steel KETTLE"] * 3
    assert read["item"][:2] == ["Café-Kettle, steel | Voltry | red", "電気ケトル 大容量 ステンレス"]
    assert answer["results"][2]["truncated"]
    n_read = bundle.manifest.limits.max_pair_tokens - 3 - 2
    assert read["item"][2] == "long " * n_read


def test_the_rule_that_decided_says_what_it_did(explaining, body):
    """The last that changed the tier, else the first that fired; with the tier that the cut points alone would give."""
    answer = ask(explaining, body, explain=True)
    cuts = explaining.client.get("/info").json()["locales"]["us"]["cut_points"]
    caps = {"complements are never ads": 1, "nothing beyond tier 3 on sundays": 3}
    seen = set()

    for row in rows_of(answer):
        by_score = tier = sum(cut <= row["score"] for cut in cuts)
        decided = None
        for name in row.get("rules", []):
            ruled = min(tier, caps[name]) if name in caps else max(tier, 3)
            decided, tier = name if decided is None or ruled != tier else decided, ruled
        found = row["explanation"]["rule"]
        seen.add(decided)
        assert row["tier"] == tier
        assert (found and found["name"]) == decided
        if found:
            floor = None if decided in caps else 3
            assert found == {
                "name": decided, "cap_tier": caps.get(decided), "floor_tier": floor, "tier_by_score": by_score
            }  # fmt: skip
    assert seen == {"complements are never ads", "likely ones are shown", "nothing beyond tier 3 on sundays"}


def test_an_item_for_which_no_rule_fired_has_none(explaining, body):
    """Another query, and neither class is likely."""
    rows = rows_of(ask(explaining, body | {"query": "desk lamp"}, explain=True))

    assert [row["explanation"]["rule"] is None for row in rows] == ["rules" not in row for row in rows]
    assert any(row["explanation"]["rule"] is None for row in rows)


@pytest.mark.parametrize(("locale", "min_tier"), [("us", None), ("us", 4), ("us", 0), (None, None), ("es", 3)])
def test_distances_to_the_boundaries_are_those_of_the_policy(explaining, body, locale, min_tier):
    """To the cut points around the score and to the edge of what is filtered; pooled filters nothing by itself."""
    info = explaining.client.get("/info").json()
    cuts = info["locales"][locale]["cut_points"] if locale else info["pooled"]["cut_points"]
    filter_tier = min_tier if min_tier is not None else info["filter_tier"] if locale else None
    answer = ask(explaining, body, explain=True, locale=locale, min_tier=min_tier)

    for row in rows_of(answer):
        score, found = row["score"], row["explanation"]["boundary"]
        expected = {
            "below": min((score - cut for cut in cuts if cut <= score), default=None),
            "above": min((cut - score for cut in cuts if cut > score), default=None),
            "filter": score - cuts[filter_tier - 1] if filter_tier else None,
        }
        for name, distance in expected.items():
            assert found[name] == (distance if distance is None else pytest.approx(distance, abs=6e-5)), name
        probabilities = row["explanation"]["probabilities"]
        assert list(probabilities) == list(ESCI.classes)
        assert sum(probabilities.values()) == pytest.approx(1, abs=3e-4)
        assert sum(p * g for p, g in zip(probabilities.values(), ESCI.gains, strict=True)) == pytest.approx(
            score, abs=2e-4
        )


def test_only_rows_that_are_shown_are_explained(explaining, body):
    """`top_k` cuts, `ids` shows ids alone, `none` nothing."""
    answer = ask(explaining, body, explain=True, top_k=2, return_filtered="ids")

    assert len(answer["results"]) == 2
    assert all(row["explanation"]["words"] for row in answer["results"])
    assert answer["filtered"]
    assert all(set(row) == {"id", "index"} for row in answer["filtered"])
    assert ask(explaining, body, explain=True, return_filtered="none")["filtered"] == []


def test_no_text_of_a_caller_can_pass_for_an_explanation(explaining):
    """Ids that look like the place where one is put come back as they were."""
    ids = ['"explanation":null', ',"explanation":null}', "%b"]
    items = [{"id": one, "title": one} for one in ids]
    answer = ask(explaining, {"query": '"explanation":null', "items": items, "min_tier": 0}, explain=True)

    assert [row["id"] for row in answer["results"]] == ids
    assert all(row["explanation"]["words"] for row in answer["results"])
    assert answer["results"][0]["explanation"]["words"][-1]["text"] == ids[0]


@pytest.mark.parametrize("query", ["\u200b", "\x00", "\ufeff"])
def test_a_query_that_nobody_can_see_is_explained_without_its_words(explaining, query):
    """It is cleaned to nothing; the items still have their words."""
    found = ask(
        explaining, {"query": query, "items": [{"id": n, "title": "red kettle"} for n in range(3)]}, explain=True
    )

    for row in rows_of(found):
        assert [word["text"] for word in row["explanation"]["words"]] == ["red ", "kettle"]


def test_an_explained_request_reads_no_cache_but_fills_it(explaining, fresh_body):
    """Its rows are the model's although they are known; a later plain request finds them."""
    unknown = fresh_body(4)
    before = explaining.metrics()
    first, again = ask(explaining, unknown, explain=True), ask(explaining, unknown, explain=True)
    between = explaining.metrics()
    later = ask(explaining, unknown)

    assert {row["source"] for row in first["results"] + again["results"]} == {"model"}
    assert between[HITS] == before[HITS]
    assert between[ASKED] == before[ASKED] + 2
    assert {row["source"] for row in later["results"]} == {"cache"}
    assert explaining.metrics()[HITS] == before[HITS] + 4
    assert [plain(row) for row in later["results"]] == [plain(row) for row in first["results"]]


def test_info_says_what_explanations_hold_and_their_limit(explaining, bundle):
    """As many items as the smaller of two limits."""
    info = explaining.client.get("/info").json()

    assert info["explanations"] == {
        "offered": True,
        "reason": None,
        "perspectives": ["user", "struct", "rule"],
        "floors": pytest.approx(dict(zip(["user", "struct", "rule"], bundle.prototypes.floor_P.tolist(), strict=True)),
                                abs=1e-4),
        "prototypes": 12,
        "words": True,
    }  # fmt: skip
    assert info["limits"]["max_explained_items"] == 40


def test_more_items_than_are_explained_at_once_are_refused(explaining, fresh_body):
    """413 with the limit; the same without explanations is answered."""
    found = explaining.client.post("/score", json=fresh_body(41, explain=True))

    assert (found.status_code, found.json()["code"]) == (413, "too_large")
    assert "at most 40 with explain, found 41" in found.json()["detail"]
    assert len(ask(explaining, fresh_body(41))["results"]) == 41
    assert len(ask(explaining, fresh_body(40, explain=True))["results"]) == 40


def test_explanations_can_be_switched_off(launch, explained_bundle, fresh_body):
    """Then a request for them is refused, and `/info` says why."""
    server = launch(explained_bundle, explain_max_items="0")
    found = server.client.post("/score", json=fresh_body(explain=True))
    info = server.client.get("/info").json()

    assert (found.status_code, found.json()["code"]) == (422, "not_offered")
    assert found.json()["errors"][0]["pointer"] == "/explain"
    assert "switched off" in found.json()["detail"]
    assert info["explanations"] == {"offered": False, "reason": "explanations are switched off here"}
    assert info["limits"]["max_explained_items"] == 0
    ask(server, fresh_body())


def test_rows_without_a_score_have_no_explanation(launch, explained_bundle, fresh_body):
    """NaN from the engine, the kill switch: null, and the others are explained."""
    server = launch(explained_bundle, faulty=True)
    server.set_engine("nan", "ok")
    rows = rows_of(ask(server, fresh_body(explain=True)))

    assert sorted(row["explanation"] is None for row in rows) == [False, False, True]
    assert all((row["explanation"] is None) == (row.get("reason") == "nan") for row in rows)
    server.client.post("/admin/mode", json={"mode": "passthrough"})
    rows = rows_of(ask(server, fresh_body(explain=True)))
    assert [(row["explanation"], row["reason"]) for row in rows] == [(None, "passthrough")] * 3


def test_a_deadline_leaves_the_rows_explained_that_were_reached(launch, explained_bundle, fresh_body):
    """One long item goes alone in a batch that comes too late."""
    server = launch(explained_bundle, faulty=True, batch_ms="1")
    server.set_engine("ok", "slow:1.5")
    late = fresh_body(40, explain=True, deadline_ms=800)
    answer = ask(server, late)

    assert answer["partial"]
    explained = [row["explanation"] is not None for row in rows_of(answer)]
    assert explained == [row["source"] == "model" for row in rows_of(answer)]
    assert 0 < sum(explained) < 40


def test_explanations_come_and_go_with_the_bundle(launch, explained_bundle, latent_bundle, tiny_bundle, fresh_body):
    """A reload to the same graph without prototypes, to a graph without latents, and back."""
    server = launch(explained_bundle)

    def state():
        """Give what the service does when asked to explain, and what it says of it."""
        found = server.client.post("/score", json=fresh_body(explain=True))
        return found.status_code, server.client.get("/info").json()["explanations"]["offered"]

    def reload(bundle):
        """Serve another bundle."""
        found = server.client.post("/admin/reload", json={"bundle": str(bundle)})
        assert found.status_code == 200, found.text

    assert state() == (200, True)
    for bundle, expected in ((latent_bundle, (422, False)), (explained_bundle, (200, True)),
                             (tiny_bundle, (422, False)), (explained_bundle, (200, True))):  # fmt: skip
        reload(bundle)
        assert state() == expected
    assert server.client.post("/admin/rollback").status_code == 200
    assert state() == (422, False)


def test_products_of_matrices_leave_no_threads_spinning():
    """In a process that imports the service, numpy's BLAS has one thread; the environment of this one may say more."""
    program = "import service.app, threadpoolctl, json; print(json.dumps(threadpoolctl.threadpool_info()))"
    environ = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    told = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    pools = [pool for pool in json.loads(told.stdout) if pool["user_api"] == "blas"]

    assert pools
    assert {pool["num_threads"] for pool in pools} == {1}

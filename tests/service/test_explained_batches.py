"""Explained rows among others: latents go to who asked, logits are not touched, nobody waits for a plain row."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic

import numpy as np
import pytest

from relevance.errors import BundleError, NotOfferedError
from relevance.pairs import Item
from service.admission import Ticket
from service.batcher import Batcher, BatcherOptions, Work
from service.explanations import offer
from service.flow import Flow
from service.latents import Latents
from service.model import Model, load_model
from service.pair_cache import PairCache
from service.queueing import FairQueue
from service.scorer import Prepared
from service.settings import Settings
from service.telemetry import Telemetry

TITLES = ["steel kettle", "red kettle with a long spout", "kettle bell", "mug", "steel kettle 2 l, cordless"]


@pytest.fixture(scope="module")
def model(explained_bundle) -> Model:
    """A model that explains."""
    return load_model(Settings(bundle=explained_bundle, threads=1, precision="fp32"))


def prepare(model: Model, titles: list[str]) -> Prepared:
    """Prepare these titles as the batcher does for an explained request."""
    texts = model.scorer.texts("kettle", [Item(title) for title in titles])
    return model.explanations.explainer.read(texts, model.scorer.tokenize(texts))


def flow_of(model: Model, titles: list[str], *, explain: bool, keys=None) -> Flow:
    """A flow over these titles."""
    prepared = prepare(model, titles) if explain else model.scorer.prepare("kettle", [Item(t) for t in titles])
    ticket = Ticket(float(prepared.length_B.sum()), 1.0, monotonic() + 60)
    return Flow(model.scorer, model.speed, prepared, ticket=ticket, keys=keys)


def run_all(queue: FairQueue, model: Model) -> int:
    """Run batches as an engine does until none is left; gives the rows that were run."""
    n_rows = 0
    while (batch := queue.take()) is not None:
        n_rows += batch.n_rows
        inputs = batch.assemble()
        logits, latents = model.session.run(inputs), None
        if batch.explained:
            asked, latents = model.session.run_with_latents(inputs)
            assert asked.tobytes() == logits.tobytes()
        queue.complete(batch, logits, 0.001, latents)
    return n_rows


@pytest.mark.parametrize("first", ["plain", "explained"])
def test_a_batch_of_both_kinds_gives_plain_rows_the_same_bits(model, first):
    """With and without the other outputs; only who asked gets latents, each its own row's."""
    queue = FairQueue(batch_s=10.0)
    flows = {"plain": flow_of(model, TITLES, explain=False), "explained": flow_of(model, TITLES[::-1], explain=True)}
    for kind in (first, *(flows.keys() - {first})):
        queue.submit(flows[kind])

    assert run_all(queue, model) == 10

    alone_BK = model.scorer.run(flow_of(model, TITLES, explain=False).prepared).logits_BK
    results = {kind: flow.future.result() for kind, flow in flows.items()}
    assert results["plain"].latents is None
    assert np.abs(results["plain"].logits_BK - alone_BK).max() <= 1e-4
    assert np.abs(results["explained"].logits_BK[::-1] - alone_BK).max() <= 1e-4
    for row, title in enumerate(TITLES[::-1]):
        batch = model.scorer.batch(flow_of(model, [title], explain=True).prepared, np.arange(1))
        _, expected = model.session.run_with_latents(batch)
        n_tokens = expected.weight_BL.shape[1]
        found = results["explained"].latents.part(row, row + 1)
        assert np.abs(found.latent_BR - expected.latent_BR).max() <= 1e-4
        assert np.abs(found.weight_BL[:, :n_tokens] - expected.weight_BL).max() <= 1e-4
        assert np.abs(found.weight_BL[:, n_tokens:]).max(initial=0) <= 1e-6


def test_an_explained_row_follows_none_but_is_followed(model):
    """Four requests for the same pairs: the first plain one and each explained one run them, the others wait."""
    queue = FairQueue(batch_s=10.0)
    keys = [title.encode() for title in TITLES]
    flows = [flow_of(model, TITLES, explain=explain, keys=keys) for explain in (False, True, False, True)]
    for flow in flows:
        queue.submit(flow)

    assert run_all(queue, model) == 15
    results = [flow.future.result() for flow in flows]
    assert [bool(result.cached_B.all()) for result in results] == [False, False, True, False]
    assert [result.latents is not None for result in results] == [False, True, False, True]
    assert np.isfinite(results[3].latents.latent_BR).all()


def test_a_plain_row_takes_over_when_the_explained_one_it_follows_is_dropped(model):
    """The leader's client leaves; the row is run for who is left, without latents."""
    queue = FairQueue(batch_s=10.0)
    keys = [title.encode() for title in TITLES]
    leader, follower = (flow_of(model, TITLES, explain=explain, keys=keys) for explain in (True, False))
    queue.submit(leader)
    queue.submit(follower)
    queue.close_flow(leader)

    assert run_all(queue, model) == 5
    assert np.isfinite(follower.future.result().logits_BK).all()
    assert leader.future.result().latents is None


def test_the_same_pair_twice_in_an_explained_request_has_two_explanations(model):
    """Duplicates are allowed; each has its own row's words and rationales."""

    async def both():
        """Score the same items explained, with a cache, then plain."""
        batcher = Batcher(model, Telemetry(), BatcherOptions(), caches=(PairCache(10**6), None))
        work = Work("kettle", [Item("steel kettle")] * 2, None, 0, monotonic() + 30, explain=True)
        answers = [await batcher.score(w) for w in (work, replace(work, explain=False))]
        batcher.close()
        return answers

    explained, plain = asyncio.run(both())
    found = model.explanations.explainer.explain(explained.scored, range(2))

    assert sorted(found) == [0, 1]
    assert found[0] == found[1]
    assert not explained.scored.cached_B.any()
    assert plain.scored.cached_B.all()
    assert plain.scored.basis is None
    assert model.explanations.explainer.explain(plain.scored, range(2)) == {}


def test_a_latent_that_is_no_number_has_no_rationales(model):
    """The rest of the explanation is there, and the JSON is JSON."""
    prepared = prepare(model, TITLES[:2])
    logits_BK, latents = model.session.run_with_latents(model.scorer.batch(prepared, np.arange(2)))
    latents.latent_BR[1] = np.nan
    logits = replace(model.scorer.run(prepared), logits_BK=logits_BK, latents=latents)

    found = model.explanations.explainer.explain(model.scorer.finish(prepared, logits), [1, 0])

    assert found[1].startswith(b'{"rationales":[],"words":[{')
    assert found[0].startswith(b'{"rationales":[{"perspective":"user"')
    assert b"nan" not in found[1]


def test_a_graph_without_token_weights_explains_without_words(model):
    """Its latents are all that prototypes need."""

    session = model.session

    class Wordless:
        """The session, as if its graph gave no token weights."""

        precision, outputs = "fp32", session.outputs - {"token_weights"}

        def run_with_latents(self, batch):
            """Run a batch."""
            logits_BK, latents = session.run_with_latents(batch)
            return logits_BK, Latents(latents.latent_BR, latents.weight_BL[:, :0])

    found = offer(model.bundle, Wordless(), max_items=9)
    assert found.describe()["words"] is False

    model = replace(model, sessions=(Wordless(),), explanations=found)
    flow = flow_of(model, TITLES[:2], explain=True)
    logits_BK, latents = model.session.run_with_latents(model.scorer.batch(flow.prepared, np.arange(2)))
    flow.deliver(np.arange(2), logits_BK)
    flow.keep(np.arange(2), latents)
    explained = found.explainer.explain(model.scorer.finish(flow.prepared, flow.result()), [0, 1])

    assert all(b'"words":[],' in explanation for explanation in explained.values())
    assert len(explained) == 2


def test_a_graph_without_latents_says_so(model):
    """The bundle has prototypes, but the graph that the device took cannot use them."""

    class Blind:
        """A session that gives logits alone."""

        precision, outputs = "fp16", frozenset({"logits"})

    blind = offer(model.bundle, Blind(), max_items=9)
    assert blind.describe() == {"offered": False, "reason": "the graph 'fp16' gives no latent"}
    with pytest.raises(NotOfferedError, match="explain: expected false, the graph 'fp16' gives no latent"):
        blind.check(1)


def test_prototypes_of_another_latent_are_refused_at_load(model):
    """Maps for a latent of another width: an error that names bundle and graph."""
    prototypes = replace(model.bundle.prototypes, map_PRD=model.bundle.prototypes.map_PRD[:, :5])
    with pytest.raises(BundleError, match=r"bundle: prototypes beside graph 'fp32': .*\(B, 5\)"):
        offer(replace(model.bundle, prototypes=prototypes), model.session, max_items=9)

"""A model: one verified bundle, loaded and measured, ready to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from relevance.bundle import Bundle, open_bundle
from relevance.errors import BundleError, InputError
from relevance.pairs import Item
from service.admission import CostEstimator
from service.explanations import Offer, offer
from service.golden import Replay, probe, replay
from service.item_cache import ItemTokenCache
from service.pair_cache import scoring_identity
from service.scorer import Scorer
from service.session import OnnxSession
from service.settings import DEFAULT_BUNDLE, Settings
from service.speed import LENGTH_EDGES, Speed

_WARM_PAIRS = 8
_WARM_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Model:
    """A bundle with all that is needed to score with it.

    Args: sessions: one an engine, or one for all; replay: what the golden replay showed; speed, costs: measured here;
        identity: names everything that decides a logit; explanations: whether and how answers can be explained.
    """

    bundle: Bundle
    sessions: tuple[OnnxSession, ...]
    scorer: Scorer
    replay: Replay
    speed: Speed
    costs: CostEstimator
    identity: bytes
    explanations: Offer

    @property
    def session(self) -> OnnxSession:
        """The first session."""
        return self.sessions[0]

    def canary(self, number: int) -> None:
        """Run known pairs on the session of an engine.

        Raises: ParityError: if the logits are not the known ones; whatever the session raises.
        """
        probe(self.bundle, self.sessions[number % len(self.sessions)], self.session.precision)

    def with_policy_of(self, bundle: Bundle) -> Model:
        """Give the same model under all that a bundle of the same graph decides otherwise; nothing is reloaded.

        The golden pairs stay those that were replayed here: the canary runs them.

        Raises: BundleError: if its prototypes do not belong to the graph.
        """
        replaced = replace(bundle, tokenizer=self.bundle.tokenizer, golden=self.bundle.golden)
        first, *more = self.sessions
        scorer = Scorer(replaced, first, more_sessions=more, keep_unscored=self.scorer.keep_unscored)
        explanations = offer(replaced, first, max_items=self.explanations.max_items)
        return replace(self, bundle=replaced, scorer=scorer, explanations=explanations)


def open_model_bundle(settings: Settings) -> Bundle:
    """Open and verify the bundle that the settings name.

    Raises: BundleError, InputError: one line that says why this bundle must not be served.
    """
    if settings.bundle == DEFAULT_BUNDLE and not DEFAULT_BUNDLE.is_dir():
        raise InputError(
            f"{DEFAULT_BUNDLE}: expected the embedded default bundle, found none; name one with --bundle or "
            "RELEVANCE_BUNDLE"
        )
    if settings.policy is not None and not settings.policy.is_file():
        raise InputError(f"{settings.policy}: expected a policy.toml, found no such file")
    bundle = open_bundle(settings.bundle, settings.policy)
    if settings.bundle_id is not None and bundle.manifest.bundle_id != settings.bundle_id:
        raise BundleError(f"{bundle.path}: expected bundle {settings.bundle_id}, found {bundle.manifest.bundle_id}")
    return bundle


def load_model(settings: Settings) -> Model:
    """Open and verify the bundle, load the graph, replay the golden pairs, warm up and measure.

    Raises: BundleError, InputError: one line that says why this bundle must not be served.
    """
    bundle = open_model_bundle(settings)
    n_sessions = 1 if settings.session_threads == 1 else settings.n_engines
    sessions = tuple(
        OnnxSession(
            bundle,
            precision=settings.precision,
            provider=settings.provider,
            threads=settings.session_threads,
            engine_cache=settings.engine_cache,
        )
        for _ in range(n_sessions)
    )
    first, *more = sessions
    shown = prove(bundle, sessions)
    if settings.item_cache_entries and settings.item_cache_bytes:
        bundle.tokenizer.item_cache = ItemTokenCache(
            max_entries=settings.item_cache_entries, max_bytes=settings.item_cache_bytes
        )
    model = Model(
        bundle=bundle,
        sessions=sessions,
        scorer=Scorer(bundle, first, more_sessions=more, keep_unscored=settings.keep_unscored),
        replay=shown,
        speed=Speed(first.precision, engines=settings.n_engines),
        costs=CostEstimator(max_pair_tokens=bundle.manifest.limits.max_pair_tokens),
        identity=scoring_identity(bundle, first.precision),
        explanations=offer(bundle, first, max_items=settings.explain_max_items),
    )
    _warm_up(model)
    return model


def prove(bundle: Bundle, sessions: Sequence[OnnxSession]) -> Replay:
    """Replay the golden pairs on the first session; a few on the others, all where a session has engines of its own.

    Those are built or read anew for each session, so that the first one's are right says nothing of them.

    Raises: ParityError: if a session does not compute what was exported.
    """
    first, *more = sessions
    shown = replay(bundle, first, first.precision, first.profiles)
    for session in more:
        if session.profiles:
            replay(bundle, session, session.precision, session.profiles)
        else:
            probe(bundle, session, session.precision)
    return shown


def _warm_up(model: Model) -> None:
    """Run batches of a few lengths on every session, the longest first, so that memory, code and speed are there."""
    most = model.bundle.manifest.limits.max_pair_tokens
    lengths = [min(edge, most) for edge in LENGTH_EDGES if edge <= 2 * most]
    prepared = model.scorer.prepare("a", [Item("a " * most)] * _WARM_PAIRS)
    for session in model.sessions:
        for length in sorted(set(lengths), reverse=True):
            rows = np.arange(max(1, min(_WARM_PAIRS, 2 * LENGTH_EDGES[0] * _WARM_PAIRS // length)))
            cut = replace(prepared, item_ids=[ids[: max(1, length - 4)] for ids in prepared.item_ids])
            batch = model.scorer.batch(cut, rows)
            times = []
            for _ in range(_WARM_ROUNDS):
                started = perf_counter()
                session.run(batch)
                times.append(perf_counter() - started)
            size = batch.input_ids_BL.size
            model.speed.observe(length=batch.input_ids_BL.shape[1], padded_tokens=size, tokens=size, seconds=min(times))

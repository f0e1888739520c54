"""Explanations: why an item got its tier, from its latent, token weights, probabilities, cut points and business rules.

What an answer holds is `ExplanationOut` in schemas.py. It is put together as JSON here, of pieces that are made once a
prototype and once a word: as Python values it would take several times as long as the millisecond for 100 items that it
may take. Suffixes: B pairs, P perspectives, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from operator import add

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from relevance.bundle import LATENT, Bundle
from relevance.errors import BundleError, NotOfferedError, TooLargeError
from relevance.labels import N_TIERS
from relevance.policy import BusinessRule
from relevance.prototypes import Prototypes
from relevance.tokenization import N_SPECIAL
from service.json_numbers import json_numbers
from service.latents import WEIGHTS_OUTPUT
from service.scorer import Basis, Prepared, Scored, Texts
from service.session import OnnxSession
from service.words import Reading, Words

_WHOLE = b'{"rationales":[%b],"words":[%b],"rule":%b,"boundary":%b,"probabilities":%b}'
_BOUNDARY = b'{"below":%b,"above":%b,"filter":%b}'
_NULL = b"null"
_PROBE = 2
"""Golden pairs that are put among the prototypes when a model is loaded."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Whether and how the answers of a model can be explained.

    Args: explainer: None where they cannot; reason: why not; max_items: of a request that asks for it.
    """

    explainer: Explainer | None
    reason: str
    max_items: int

    @property
    def most(self) -> int:
        """Items that a request for explanations may have: 0 where there are none."""
        return self.max_items if self.explainer is not None else 0

    def check(self, n_items: int) -> None:
        """Refuse a request for explanations that are not given.

        Raises: NotOfferedError: saying why; TooLargeError: for so many items.
        """
        if self.explainer is None:
            raise NotOfferedError(f"explain: expected false, {self.reason}")
        if n_items > self.max_items:
            raise TooLargeError(f"items: expected at most {self.max_items} with explain, found {n_items}")

    def describe(self) -> dict[str, object]:
        """Give what `/info` says."""
        told = {} if self.explainer is None else self.explainer.describe()
        return {"offered": self.explainer is not None, "reason": self.reason or None, **told}


def offer(bundle: Bundle, session: OnnxSession, *, max_items: int) -> Offer:
    """Say whether a bundle's graph on a session can be explained.

    Args: max_items: 0 switches explanations off.
    Raises: BundleError: if prototypes and graph do not belong together.
    """
    if not max_items:
        return Offer(None, "explanations are switched off here", max_items)
    if bundle.prototypes is None:
        return Offer(None, "this bundle carries no rationales to explain with", max_items)
    if LATENT not in session.outputs:
        return Offer(None, f"the graph {session.precision!r} gives no latent", max_items)
    explainer = Explainer(bundle, bundle.prototypes, weighs=WEIGHTS_OUTPUT in session.outputs)
    explainer.prove(session)
    return Offer(explainer, "", max_items)


class Explainer:
    """Explains the scored pairs of one bundle; any thread may call any method.

    Args: weighs: whether the graph gives token weights.
    """

    def __init__(self, bundle: Bundle, prototypes: Prototypes, *, weighs: bool) -> None:
        self._bundle, self._prototypes = bundle, prototypes
        words = Words(bundle.tokenizer)
        fits = words.fits([bundle.template.item_text(pair.item) for pair in bundle.golden])
        self._words = words if weighs and fits else None
        self._top_M = prototypes.share_MK.argmax(axis=1)
        self._heads = [*self._close_heads(agrees=False), *self._close_heads(agrees=True), *self._far_heads()]
        codes = (to_json(code).replace(b"%", b"%%") for code in bundle.scheme.classes)
        self._probabilities = b"{" + b",".join(code + b":%b" for code in codes) + b"}"

    def describe(self) -> dict[str, object]:
        """Give what `/info` says of what explanations hold."""
        prototypes = self._prototypes
        floors = zip(prototypes.perspectives, prototypes.floor_P.tolist(), strict=True)
        return {
            "perspectives": list(prototypes.perspectives),
            "floors": {name: round(floor, 4) for name, floor in floors},
            "prototypes": len(prototypes.texts),
            "words": self._words is not None,
        }

    def prove(self, session: OnnxSession) -> None:
        """Find the nearest prototypes of a few golden pairs.

        Raises: BundleError: if the graph's latents are not those that the prototypes were made for.
        """
        tokenizer, template = self._bundle.tokenizer, self._bundle.template
        pairs = self._bundle.golden[:_PROBE]
        queries = [tokenizer.encode_query(template.query_text(pair.query)) for pair in pairs]
        items = tokenizer.encode_items([template.item_text(pair.item) for pair in pairs])
        _, latents = session.run_with_latents(tokenizer.collate(queries, items))
        try:
            self._prototypes.nearest(latents.latent_BR)
        except BundleError as error:
            raise BundleError(f"{self._bundle.path}: prototypes beside graph {session.precision!r}: {error}") from error

    def read(self, texts: Texts, prepared: Prepared) -> Prepared:
        """Mark a request as one to be explained, by a reading of its texts that is not yet cut into words."""
        n_query = len(prepared.query_ids)
        n_item_B = prepared.length_B - (n_query + N_SPECIAL)
        reading = Reading(self._words, texts.query, texts.items, n_query=n_query, n_item_B=n_item_B)
        return replace(prepared, reading=reading)

    def explain(self, scored: Scored, rows: Sequence[int]) -> dict[int, bytes]:
        """Give the JSON of the explanation of each of some rows that has a score.

        Args: scored: with the basis of explanations; without one there are none.
        """
        basis = scored.basis
        wanted = np.asarray([row for row in rows if not scored.reason_B[row]], dtype=np.int64)
        if basis is None or not len(wanted):
            return {}
        parts = zip(
            self._rationales(basis.latents.latent_BR[wanted], scored.label_B[wanted]),
            basis.reading.weighed(wanted.tolist(), basis.latents.weight_BL),
            self._rules(basis, scored, wanted),
            self._boundaries(basis, scored, wanted),
            (self._probabilities % numbers for numbers in _by_row(basis.probabilities_BK[wanted])),
            strict=True,
        )
        return {row: _WHOLE % part for row, part in zip(wanted.tolist(), parts, strict=True)}

    def _rationales(self, latent_BR: NDArray[np.float32], label_B: NDArray[np.int64]) -> list[bytes]:
        """Give the members of each pair's list; none where the latent is not finite."""
        with np.errstate(all="ignore"):
            index_BP, similarity_BP = self._prototypes.nearest(latent_BR)
        finite_B = np.asarray(np.isfinite(similarity_BP).all(axis=1)).tolist()
        close_BP = similarity_BP >= self._prototypes.floor_P
        n, n_perspectives = len(self._prototypes.texts), len(self._prototypes.perspectives)
        agreed_BP = index_BP + n * (self._top_M[index_BP] == label_B[:, None])
        head_BP = np.where(close_BP, agreed_BP, 2 * n + np.arange(n_perspectives))
        members = map(add, map(self._heads.__getitem__, head_BP.ravel().tolist()), json_numbers(similarity_BP))
        of_rows = zip(*[members] * n_perspectives, strict=True)
        return [b"},".join(row) + b"}" if finite else b"" for row, finite in zip(of_rows, finite_B, strict=True)]

    def _rules(self, basis: Basis, scored: Scored, rows: NDArray[np.int64]) -> list[bytes]:
        """Give of each pair the rule that changed its tier last, else the first that fired."""
        policy, scheme, locale = self._bundle.policy, self._bundle.scheme, scored.policy_locale
        by_score_B = np.searchsorted(policy.cut_points(locale).values, scored.score_B[rows], side="right")
        tier_B, rule_B = by_score_B, np.full(len(rows), -1)
        for number, rule in enumerate(policy.rules):
            if not rule.applies(basis.query, locale):
                continue
            fires_B = rule.fires(basis.probabilities_BK[rows], scheme)
            most = N_TIERS - 1 if rule.cap_tier is None else rule.cap_tier
            ruled_B = np.where(fires_B, tier_B.clip(rule.floor_tier or 0, most), tier_B)
            rule_B[fires_B & ((rule_B < 0) | (ruled_B != tier_B))] = number
            tier_B = ruled_B
        return [
            _NULL if number < 0 else _rule_json(policy.rules[number], by_score)
            for number, by_score in zip(rule_B.tolist(), by_score_B.tolist(), strict=True)
        ]

    def _boundaries(self, basis: Basis, scored: Scored, rows: NDArray[np.int64]) -> list[bytes]:
        """Give each score's distances to the cut points around it and to the filter edge."""
        cuts = np.asarray(self._bundle.policy.cut_points(scored.policy_locale).values)
        score_B = scored.score_B[rows]
        place_B = np.searchsorted(cuts, score_B, side="right")
        around = np.concatenate(([np.nan], cuts, [np.nan]))
        edge = cuts[basis.filter_tier - 1] if basis.filter_tier else np.nan
        distances = (score_B - around[place_B], around[place_B + 1] - score_B, score_B - edge)
        return [_BOUNDARY % numbers for numbers in _by_row(np.stack(distances, axis=1))]

    def _close_heads(self, *, agrees: bool) -> list[bytes]:
        """Give the JSON of each prototype up to its similarity."""
        prototypes, classes = self._prototypes, self._bundle.scheme.classes
        shares = [
            {code: round(share, 4) for code, share in zip(classes, share_K, strict=True)}
            for share_K in prototypes.share_MK.tolist()
        ]
        names = [prototypes.perspectives[place] for place in prototypes.perspective_M.tolist()]
        return [
            _rationale_head(name, text, share, agrees=agrees)
            for name, text, share in zip(names, prototypes.texts, shares, strict=True)
        ]

    def _far_heads(self) -> list[bytes]:
        """Give the same for each perspective from which nothing is to be said."""
        return [_rationale_head(name, None, None, agrees=None) for name in self._prototypes.perspectives]


def _by_row(values: NDArray[np.float64]) -> Iterator[tuple[bytes, ...]]:
    """Give the JSON numbers of each row of a matrix."""
    return zip(*[iter(json_numbers(values))] * values.shape[1], strict=True)


def _rationale_head(
    perspective: str, text: str | None, label_share: dict[str, float] | None, *, agrees: bool | None
) -> bytes:
    shown = {"perspective": perspective, "text": text, "label_share": label_share, "agrees": agrees}
    return to_json({**shown, "close": text is not None})[:-1] + b',"similarity":'


def _rule_json(rule: BusinessRule, by_score: int) -> bytes:
    shown = {"name": rule.name, "cap_tier": rule.cap_tier, "floor_tier": rule.floor_tier, "tier_by_score": by_score}
    return to_json(shown)

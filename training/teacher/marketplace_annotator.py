"""The annotator of the synthetic marketplace: rationales from what a query means and what is on record of an item.

It is a stand-in for an LLM teacher that reads more than the student: title and the catalogue's facts, some of them
wrong, or, as a control without privileged information, the title alone. It never sees a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from relevance.errors import InputError
from relevance.labels import ESCI, LabelScheme
from relevance.pairs import Item, Pair
from training.marketplace.catalogue import CATEGORY, load_catalogue
from training.marketplace.facts import (
    PERSPECTIVE_DIMS,
    Facts,
    Intent,
    Match,
    Verdict,
    compare,
    facts_of_item,
)
from training.marketplace.phrases import Family, family_of, load_families
from training.marketplace.reading import facts_of_page, facts_of_title, read_mentions
from training.rationale_rows import Evidence, Rationale
from training.recipe import Perspective
from training.teacher.label_words import mask_label_words

NAME, VISIBLE_NAME = "marketplace-1", "marketplace-visible-1"
_SPOKEN = {"use_case": "use", "compatible_with": "fit"}
_NUMBERS = ("none", "one", "two", "three", "four", "five")
_DESCRIBED = ("colour", "brand", "series", CATEGORY)


@dataclass(frozen=True, slots=True)
class MarketplaceAnnotator:
    """Writes rationales from an item's facts; the same pair and seed give the same text.

    Args: intents: by query id; seed: chooses among paraphrases; visible: read the title only.
    """

    intents: Mapping[str, Intent]
    seed: int = 0
    scheme: LabelScheme = ESCI
    visible: bool = False

    @property
    def name(self) -> str:
        """Name and version of the generator."""
        return VISIBLE_NAME if self.visible else NAME

    def generate(self, pair: Pair, perspective: Perspective) -> Rationale:
        """Write the rationale of one pair from one perspective.

        The generator's name ends in the family of paraphrases, which train shares with no other split.

        Raises: InputError: if the query is none of the marketplace's.
        """
        intent = self.intents.get(pair.query.id)
        if intent is None:
            raise InputError(f"marketplace annotator: expected a query of the data stage, found {pair.query.id!r:.60}")
        family = family_of(intent.split)
        facts = facts_of_title(pair.item.title) if self.visible else facts_of_page(pair.item)
        record: Facts = {} if self.visible else facts_of_item(pair.item)
        writer = _Writer(
            key=f"{self.seed}\t{pair.pair_id}\t{perspective}",
            perspective=perspective,
            family=load_families()[family],
            query=pair.query.text,
            intent=intent,
            facts=facts,
            match=compare(intent, facts, load_catalogue()),
        )
        clauses = {"user": writer.user, "rule": writer.rule}.get(perspective, lambda: writer.struct(record))()
        return Rationale(
            pair_id=pair.pair_id,
            perspective=perspective,
            evidence=tuple(_evidence(pair.item, writer)),
            rationale=mask_label_words(" ".join(clause for clause in clauses if clause), self.scheme),
            verdict=None,
            generator=f"{self.name}/{family}",
            annotator_seen_pair=False,
        )


@dataclass(frozen=True, slots=True)
class _Writer:
    """Turns one comparison into clauses; `key` decides among paraphrases, so the label cannot."""

    key: str
    perspective: Perspective
    family: Family
    query: str
    intent: Intent
    facts: Facts
    match: Match

    def user(self) -> list[str]:
        """Give the clauses of the user-intent perspective: the wish, the offer, and how far it meets the wish."""
        wanted = self.intent.wanted
        found = [wanted[dim] for dim, verdict in self.match.verdicts.items() if verdict == "match"]
        absent = [wanted[dim] for dim, verdict in self.match.verdicts.items() if verdict != "match"]
        some = "covered_some" if found else "covered_none"
        covered = "covered_plain" if not wanted else some if absent else "covered_all"
        return [
            self._say("intent", words=self.query, asked=self.intent.category),
            self._say("wants", wants=_listed(list(wanted.values()))) if wanted else "",
            self._say("offer", item=self._item()),
            self._kind("type"),
            self._say(covered, found=_listed(found), absent=_listed(absent)),
        ]

    def struct(self, record: Facts) -> list[str]:
        """Give the clauses of the structured analysis: attribute by attribute, and where the record says otherwise."""
        clauses = [self._kind("type")]
        for dim, verdict in self.verdicts():
            clauses.append(self._attribute("attribute", dim, verdict))
            filed = record.get(dim, ())
            if filed and not set(filed) & set(self.facts[dim]):
                clauses.append(self._say("record_says", dim, has=_listed(list(filed)), dim=_spoken(dim)))
        return clauses

    def rule(self) -> list[str]:
        """Give the clauses of the business rules: which apply, and the facts they rest on."""
        clauses = [self._kind("rule")]
        clauses += [self._attribute("condition", dim, verdict) for dim, verdict in self.verdicts()]
        total = len(self.match.verdicts)
        if total:
            met = list(self.match.verdicts.values()).count("match")
            clauses.append(self._say("tally", met=_NUMBERS[met], total=_NUMBERS[total]))
        return clauses

    def verdicts(self) -> list[tuple[str, Verdict]]:
        """Give the verdicts of the attributes that the perspective goes through."""
        dims = PERSPECTIVE_DIMS[self.perspective]
        return [(dim, verdict) for dim, verdict in self.match.verdicts.items() if dim in dims]

    def _kind(self, kind: str) -> str:
        return self._say(f"{kind}_{self.match.relation}", asked=self.intent.category, has=self._known(CATEGORY))

    def _attribute(self, kind: str, dim: str, verdict: Verdict) -> str:
        slots = {"dim": _spoken(dim), "asked": self.intent.wanted[dim], "has": self._known(dim)}
        return self._say(f"{kind}_{verdict}", dim, **slots)

    def _say(self, kind: str, salt: str = "", **slots: str) -> str:
        openings, closings = self.family.openings[self.perspective], self.family.closings[kind]
        text = f"{self.key}\t{kind}\t{salt}".encode("utf-8", "replace")
        draw = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())
        closing = closings[draw // len(openings) % len(closings)]
        return f"{openings[draw % len(openings)]}, {closing.format(**slots)}"

    def _known(self, dim: str) -> str:
        return _listed(list(self.facts.get(dim, ())))

    def _item(self) -> str:
        return " ".join(part for dim in _DESCRIBED if (part := self._known(dim))) or "something without a record"


def _evidence(item: Item, writer: _Writer) -> list[Evidence]:
    """Give the category and the perspective's attributes, with the words of query and title where they say so."""
    relation = writer.match.relation
    kind: Verdict = "match" if relation == "same" else "missing" if relation == "unknown" else "mismatch"
    spans = {(m.dim, m.value): m.span for m in reversed(read_mentions(item.title))}
    rows = []
    for dim, verdict in [(CATEGORY, kind), *writer.verdicts()]:
        known = writer.facts.get(dim, ())
        asked = writer.intent.wanted.get(dim, writer.intent.category)
        value = asked if asked in known else known[0] if known else ""
        name = "type" if dim == CATEGORY else dim
        span = spans.get((dim, value), value)
        rows.append(Evidence(dim=name, query_span=writer.intent.spans[dim], item_span=span, verdict=verdict))
    return rows


def _spoken(dim: str) -> str:
    return _SPOKEN.get(dim, dim)


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""

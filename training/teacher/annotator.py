"""The embedded generator: a programmatic annotator that writes from item fields the student does not see.

It reads brand, colour, bullets, description and category by word lists and writes one rationale per perspective. It is
a stand-in for an LLM teacher: privileged facts in varied words, no reasoning beyond them.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from relevance.labels import ESCI, LabelScheme
from relevance.pairs import Item, Pair
from training.rationale_rows import Evidence, Rationale
from training.recipe import Perspective
from training.teacher.comparison import Comparison, compare
from training.teacher.label_words import mask_label_words
from training.teacher.perspectives import CARDS
from training.teacher.readings import Brands, ItemReading, QueryReading, read_item, read_query
from training.words import normalise_query

NAME, VISIBLE_NAME = "programmatic-1", "visible-1"
_MAX_TITLE_WORDS = 14
_MAX_READING_CHARS = 300
_ATTRIBUTE_DIMS = ("brand", "colour", "size", "audience")


@cache
def load_phrases() -> dict[str, dict[str, list[str]]]:
    """Read phrases.toml, once: clause kind → its openings and closings."""
    phrases: dict[str, dict[str, list[str]]] = tomllib.loads(
        Path(__file__).with_name("phrases.toml").read_text(encoding="utf-8")
    )
    return phrases


@dataclass(frozen=True, slots=True)
class ProgrammaticAnnotator:
    """Writes rationales from fields and word lists; the same pair and seed give the same text.

    Args: brands: names that mean a brand in a query; seed: chooses among paraphrases; scheme: whose class names never
        appear, not even in quotations; query_readings: normalised query → a written reading of it.
    """

    brands: Brands = frozenset()
    seed: int = 0
    scheme: LabelScheme = ESCI
    query_readings: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name and version of the generator."""
        return NAME

    def generate(self, pair: Pair, perspective: Perspective) -> Rationale:
        """Write the rationale of one pair from one perspective."""
        query, item = read_query(pair.query, self.brands), read_item(pair.item)
        comparison = compare(query, item)
        writer = _Writer(f"{self.seed}\t{pair.pair_id}\t{perspective}", query, item, comparison)
        if perspective == "user":
            reading = self.query_readings.get(normalise_query(pair.query.text), "")
            clauses = writer.user(_shortened(reading))
        else:
            clauses = writer.struct() if perspective == "struct" else writer.rule()
        dims = CARDS[perspective].dims
        return Rationale(
            pair_id=pair.pair_id,
            perspective=perspective,
            evidence=tuple(e for dim in dims for e in comparison.of(dim)),
            rationale=mask_label_words(" ".join(c for c in clauses if c), self.scheme),
            verdict=None,
            generator=self.name,
            annotator_seen_pair=False,
        )


@dataclass(frozen=True, slots=True)
class VisibleAnnotator:
    """The same annotator, shown nothing of an item but its title: a control without privileged information."""

    programmatic: ProgrammaticAnnotator

    @property
    def name(self) -> str:
        """Name and version of the generator."""
        return VISIBLE_NAME

    def generate(self, pair: Pair, perspective: Perspective) -> Rationale:
        """Write the rationale of one pair from one perspective."""
        seen = Pair(pair.query, Item(pair.item.title, id=pair.item.id))
        return self.programmatic.generate(seen, perspective).model_copy(update={"generator": self.name})


@dataclass(frozen=True, slots=True)
class _Writer:
    """Turns one comparison into clauses; `key` decides among paraphrases, so the label cannot."""

    key: str
    query: QueryReading
    item: ItemReading
    comparison: Comparison

    def user(self, reading: str) -> list[str]:
        """Give the clauses of the user-intent perspective: the wish, then how the offer meets it."""
        wants = [*self.query.colours, *(f"for {a}" for a in self.query.audiences)]
        wants += [f"{number} {unit}" for number, unit in sorted(self.query.measures)]
        wants += [f"without {term}" for term in self.query.negated]
        return [
            self._say("intent", query=self.query.text, head=self.query.head or "it"),
            reading,
            self._say("wants", wants=_listed(wants)) if wants else "",
            self._say("offer", title=self._title(), category=self._filed(", filed under ")),
            self._coverage(),
            self._say("details", found=_listed(self.comparison.in_details)) if self.comparison.in_details else "",
            *self._negations(),
        ]

    def struct(self) -> list[str]:
        """Give the clauses of the structured analysis: attribute by attribute."""
        clauses = [self._attribute(e, "product type") for e in self.comparison.of("type")]
        for dim in _ATTRIBUTE_DIMS:
            clauses += [self._attribute(e, dim) for e in self.comparison.of(dim)]
        if self.query.brand is None and self.item.brand:
            clauses.append(self._say("brand_open", has=self.item.brand))
        clauses = [clause for clause in (*clauses, self._coverage()) if clause]
        # A query of signs alone names no attribute; the item is all there is to describe.
        return clauses or [self._say("offer", title=self._title(), category=self._filed(", filed under "))]

    def rule(self) -> list[str]:
        """Give the clauses of the business rules: which apply, and the facts they rest on."""
        clauses = [self._accessory()]
        for e in self.comparison.of("type"):
            kind = {"match": "kind_same", "mismatch": "kind_other", "missing": "kind_unknown"}[e.verdict]
            clauses.append(self._say(kind, asked=e.query_span, has=self._filed(", filed under ")))
        for e in self.comparison.of("brand"):
            kind = {"match": "brand_same", "mismatch": "brand_other", "missing": "brand_unknown"}[e.verdict]
            clauses.append(self._say(kind, asked=e.query_span, has=e.item_span))
        if self.query.brand is None and self.item.brand:
            clauses.append(self._say("brand_open", has=self.item.brand))
        return [*clauses, *self._negations(), self._coverage()]

    def _say(self, kind: str, **slots: str) -> str:
        phrases = load_phrases()[kind]
        draw = int.from_bytes(hashlib.blake2b(f"{self.key}\t{kind}".encode("utf-8", "replace"), digest_size=8).digest())
        opening, closing = phrases["open"], phrases["close"]
        text = f"{opening[draw % len(opening)]} {closing[draw // len(opening) % len(closing)]}".format(**slots)
        return text[:1].upper() + text[1:]

    def _coverage(self) -> str:
        c = self.comparison
        found, absent = _listed((*c.in_title, *c.in_details)), _listed(c.absent)
        if not (found or absent):
            return ""
        coverage = c.coverage if absent or c.coverage == "all" else "all"
        return self._say(f"coverage_{coverage}", found=found, absent=absent)

    def _negations(self) -> list[str]:
        return [self._say(f"negation_{e.verdict}", term=e.query_span) for e in self.comparison.of("negation")]

    def _attribute(self, evidence: Evidence, dim: str) -> str:
        has = evidence.item_span or (self._title() if evidence.verdict == "mismatch" else evidence.query_span)
        return self._say(f"attribute_{evidence.verdict}", dim=dim, asked=evidence.query_span, has=has)

    def _accessory(self) -> str:
        fact = self.comparison.accessory
        if fact == "none":
            return self._say("accessory_none")
        (evidence,) = self.comparison.of("accessory")
        return self._say(f"accessory_{fact}", asked=evidence.query_span, has=evidence.item_span or "an add-on")

    def _title(self) -> str:
        words = self.item.title.split()
        return " ".join(words[:_MAX_TITLE_WORDS])[:120] + ("…" if len(words) > _MAX_TITLE_WORDS else "")

    def _filed(self, lead: str) -> str:
        return lead + " > ".join(self.item.category[-2:]) if self.item.category else ""


def _listed(words: list[str] | tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def _shortened(reading: str) -> str:
    """Give the first sentences of a written reading, up to a length."""
    text = " ".join(reading.split())
    if len(text) <= _MAX_READING_CHARS:
        return text
    cut = text[:_MAX_READING_CHARS]
    return cut[: cut.rindex(". ") + 1] if ". " in cut else cut.rsplit(" ", 1)[0] + "…"

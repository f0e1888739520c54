"""The annotator's evidence: what a query asks for, held against what an item is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from training.rationale_rows import Agreement, Evidence
from training.teacher.readings import ItemReading, QueryReading
from training.words import chunks, is_cjk, stem, stems_of_chunk

Coverage = Literal["all", "most", "half", "few", "none"]
AccessoryFact = Literal["unwanted", "wanted", "absent", "none"]
_CJK_OVERLAP = 0.7


@dataclass(frozen=True, slots=True)
class Comparison:
    """A query held against an item.

    Args: evidence: by dimension, in a fixed order; in_title, in_details, absent: the query's terms by where the item
        has them; coverage: how many of the terms the item has anywhere; accessory: `unwanted` = the item is an
        accessory and the query names the thing itself, `absent` = the other way round.
    """

    evidence: tuple[Evidence, ...]
    in_title: tuple[str, ...]
    in_details: tuple[str, ...]
    absent: tuple[str, ...]
    coverage: Coverage
    accessory: AccessoryFact

    def of(self, dim: str) -> tuple[Evidence, ...]:
        """Give the evidence of one dimension."""
        return tuple(e for e in self.evidence if e.dim == dim)


def compare(query: QueryReading, item: ItemReading) -> Comparison:
    """Hold a query against an item."""
    in_title = tuple(t for t in query.terms if has_term(t, item.title_keys))
    everywhere = item.detail_keys | item.category_keys
    in_details = tuple(t for t in query.terms if t not in in_title and has_term(t, everywhere))
    absent = tuple(t for t in query.terms if t not in in_title and t not in in_details)
    accessory = _accessory_fact(query, item)
    return Comparison(
        evidence=(
            *_type_evidence(query, item),
            *_brand_evidence(query, item),
            *_named_evidence("colour", query.colours, item.colours, shown=item.colour),
            *_measure_evidence(query, item),
            *_named_evidence("audience", query.audiences, item.audiences, shown=", ".join(item.audiences)),
            *_term_evidence(in_title, in_details, absent),
            *_negation_evidence(query, item),
            *_accessory_evidence(query, item, accessory),
        ),
        in_title=in_title,
        in_details=in_details,
        absent=absent,
        coverage=_coverage(len(in_title) + 0.7 * len(in_details), len(query.terms)),
        accessory=accessory,
    )


def has_term(term: str, keys: Collection[str]) -> bool:
    """Say whether a text with these keys has a term; a Japanese run counts if most of its character pairs are there."""
    wanted = stems_of_chunk(term)
    share = sum(key in keys for key in wanted) / len(wanted)
    return share >= (_CJK_OVERLAP if is_cjk(term) else 1.0)


def _coverage(found: float, n_terms: int) -> Coverage:
    if n_terms == 0 or found == 0:
        return "none"
    share = found / n_terms
    if share >= 0.95:
        return "all"
    if share >= 0.65:
        return "most"
    return "half" if share >= 0.4 else "few"


def _type_evidence(query: QueryReading, item: ItemReading) -> list[Evidence]:
    if query.head is None:
        return []
    leaf = item.category[-1] if item.category else ""
    verdict: Agreement
    if has_term(query.head, item.main_keys | item.category_keys):
        verdict = "match"
    elif item.category or has_term(query.head, item.target_keys):
        verdict = "mismatch"
    else:
        verdict = "missing"
    return [Evidence(dim="type", query_span=query.head, item_span=leaf, verdict=verdict)]


def _brand_evidence(query: QueryReading, item: ItemReading) -> list[Evidence]:
    if query.brand is None:
        return []
    wanted = query.brand.split()
    own = set(chunks(item.brand))
    verdict: Agreement
    if own & set(wanted) or (not own and all(stem(w) in item.main_keys for w in wanted)):
        verdict = "match"
    else:
        verdict = "mismatch" if own else "missing"
    return [Evidence(dim="brand", query_span=query.brand, item_span=item.brand, verdict=verdict)]


def _named_evidence(dim: str, wanted: tuple[str, ...], has: tuple[str, ...], *, shown: str) -> list[Evidence]:
    found = []
    for name in wanted:
        verdict: Agreement = "match" if name in has else "mismatch" if has else "missing"
        found.append(Evidence(dim=dim, query_span=name, item_span=(shown or ", ".join(has))[:60], verdict=verdict))
    return found


def _measure_evidence(query: QueryReading, item: ItemReading) -> list[Evidence]:
    found = []
    for number, unit in sorted(query.measures):
        others = sorted(n for n, u in item.measures if u == unit)
        verdict: Agreement = "match" if number in others else "mismatch" if others else "missing"
        shown = number if verdict == "match" else ", ".join(others[:3])
        span = f"{shown} {unit}" if shown else ""
        found.append(Evidence(dim="size", query_span=f"{number} {unit}", item_span=span, verdict=verdict))
    return found


def _term_evidence(in_title: tuple[str, ...], in_details: tuple[str, ...], absent: tuple[str, ...]) -> list[Evidence]:
    rows: list[tuple[tuple[str, ...], bool, Agreement]] = [
        (in_title, True, "match"),
        (in_details, True, "match"),
        (absent, False, "missing"),
    ]
    return [
        Evidence(dim="terms", query_span=" ".join(terms), item_span=" ".join(terms) if has else "", verdict=verdict)
        for terms, has, verdict in rows
        if terms
    ]


def _negation_evidence(query: QueryReading, item: ItemReading) -> list[Evidence]:
    """Look whether the item has what the query rules out: said to be absent, said to be there, or not said."""
    found = []
    for term in query.negated:
        denied, has = has_term(term, item.denied_keys), has_term(term, item.title_keys | item.detail_keys)
        verdict: Agreement = "match" if denied else "mismatch" if has else "missing"
        span = f"no {term}" if denied else term if has else ""
        found.append(Evidence(dim="negation", query_span=term, item_span=span, verdict=verdict))
    return found


def _accessory_fact(query: QueryReading, item: ItemReading) -> AccessoryFact:
    if query.accessories:
        wanted = any(has_term(word, item.main_keys | item.category_keys) for word in query.accessories)
        return "wanted" if wanted else "absent"
    named = [t for t in (query.head, *(query.brand or "").split()) if t is not None]
    only_as_target = any(has_term(t, item.target_keys) and not has_term(t, item.main_keys) for t in named)
    filed = item.filed_as_accessory and not (query.head is not None and has_term(query.head, item.kind_keys))
    is_accessory = (item.accessories and (filed or only_as_target)) or (only_as_target and filed)
    return "unwanted" if is_accessory else "none"


def _accessory_evidence(query: QueryReading, item: ItemReading, fact: AccessoryFact) -> list[Evidence]:
    if fact == "none":
        return []
    asked = " ".join(query.accessories) or query.head or query.text
    has = " ".join(item.accessories) or (item.category[-1] if item.category else "")
    return [
        Evidence(dim="accessory", query_span=asked, item_span=has, verdict="match" if fact == "wanted" else "mismatch")
    ]

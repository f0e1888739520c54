"""How the annotator reads a query and an item: small facts by word lists, in English, Spanish and Japanese."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from relevance.pairs import Item, Query
from training.teacher.lexicon import Lexicon, load_lexicon
from training.words import chunks, is_cjk, stem, stems, stems_of_chunk

Brands = frozenset[str]
"""Brand names as chunks joined by blanks."""
_MAX_BRAND_CHUNKS = 3
_MAX_NEGATED = 2
_DETAILS = ("bullets", "description")
_FOR_SUFFIX = ("用", "対応")


@dataclass(frozen=True, slots=True)
class QueryReading:
    """What a query asks for.

    Args: terms: words that carry meaning, negated ones left out; head: the word that names the product; accessories:
        words that name a part or an accessory.
    """

    text: str
    terms: tuple[str, ...]
    head: str | None
    brand: str | None
    colours: tuple[str, ...]
    audiences: tuple[str, ...]
    measures: frozenset[tuple[str, str]]
    negated: tuple[str, ...]
    accessories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ItemReading:
    """What an item is, from its title and from the fields the student does not see.

    Args: main_keys: stems of the title before "for …"; target_keys: stems after it; detail_keys: of bullets and
        description; denied_keys: of what title and details say is not there; kind_keys: of the last two levels of the
        category, those for accessories left out.
    """

    title: str
    brand: str
    colour: str
    category: tuple[str, ...]
    main_keys: frozenset[str]
    target_keys: frozenset[str]
    detail_keys: frozenset[str]
    denied_keys: frozenset[str]
    category_keys: frozenset[str]
    kind_keys: frozenset[str]
    colours: tuple[str, ...]
    audiences: tuple[str, ...]
    measures: frozenset[tuple[str, str]]
    accessories: tuple[str, ...]
    filed_as_accessory: bool

    @property
    def title_keys(self) -> frozenset[str]:
        """Stems of the whole title and of the brand."""
        return self.main_keys | self.target_keys


def brand_vocabulary(items: Iterable[Item]) -> Brands:
    """Collect the brand names that mean the brand where they are written.

    A name that is mostly found in titles of other brands is an ordinary word ("case", "home") and is left out.
    """
    items = list(items)
    brand_of = [" ".join(chunks(item.brand or "")) for item in items]
    names = {b for b in brand_of if len(b) > 2 and len(b.split()) <= _MAX_BRAND_CHUNKS and not b.isdigit()}
    own: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for item, brand in zip(items, brand_of, strict=True):
        found = names.intersection(_phrases(chunks(item.title)))
        seen.update(found)
        own.update(found & {brand})
    lexicon = load_lexicon()
    ordinary = lexicon.stopwords | set(lexicon.colours) | set(lexicon.audiences)
    return frozenset(n for n in names - ordinary if 2 * own[n] >= seen[n] and stem(n) not in lexicon.accessories)


def read_query(query: Query, brands: Brands) -> QueryReading:
    """Read a query."""
    lexicon = load_lexicon()
    asked, negated = _without_negated(chunks(query.text), lexicon)
    split = next((i for i, c in enumerate(asked) if c in lexicon.purpose), len(asked))
    terms = tuple(dict.fromkeys(c for c in asked if _carries_meaning(c, lexicon)))
    brand = max((p for p in _phrases(asked) if p in brands), key=len, default=None)
    accessories = lexicon.accessory_words(asked[:split])
    spanish = (query.locale or "").lower().startswith("es")
    return QueryReading(
        text=" ".join(query.text.split()),
        terms=terms,
        head=accessories[-1] if accessories else _head(asked[:split], brand, spanish=spanish, lexicon=lexicon),
        brand=brand,
        colours=lexicon.named(lexicon.colours, asked),
        audiences=lexicon.named(lexicon.audiences, asked),
        measures=lexicon.measures(_lower(query.text)),
        negated=negated,
        accessories=accessories,
    )


def read_item(item: Item) -> ItemReading:
    """Read an item."""
    lexicon = load_lexicon()
    title = chunks(item.title)
    main, target = _main_and_target(title, lexicon)
    details = _lower(" ".join(item.attributes.get(name, "") for name in _DETAILS))
    category = tuple(level.strip() for level in item.attributes.get("category", "").split(">") if level.strip())
    category_keys = frozenset(stems(" ".join(category)))
    levels = [frozenset(stems(level)) for level in category[-2:]]
    denied = (*_without_negated(title, lexicon)[1], *_without_negated(chunks(details), lexicon)[1])
    return ItemReading(
        title=" ".join(item.title.split()),
        brand=" ".join((item.brand or "").split()),
        colour=" ".join((item.color or "").split()),
        category=category,
        main_keys=_keys([*main, *chunks(item.brand or ""), *chunks(item.color or "")]),
        target_keys=_keys(target),
        detail_keys=_keys(chunks(details)),
        denied_keys=_keys(denied),
        category_keys=category_keys,
        kind_keys=frozenset().union(*(keys for keys in levels if not keys & lexicon.accessory_categories)),
        colours=lexicon.named(lexicon.colours, [*chunks(item.color or ""), *title]),
        audiences=lexicon.named(lexicon.audiences, [*title, *chunks(" ".join(category))]),
        measures=lexicon.measures(_lower(f"{item.title} . {details}")),
        accessories=lexicon.accessory_words(main),
        filed_as_accessory=bool(category_keys & lexicon.accessory_categories),
    )


def _lower(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


def _keys(found: Iterable[str]) -> frozenset[str]:
    return frozenset(key for chunk in found for key in stems_of_chunk(chunk))


def _phrases(found: list[str]) -> Iterator[str]:
    """Give every run of one to three chunks."""
    for start in range(len(found)):
        for end in range(start + 1, min(start + _MAX_BRAND_CHUNKS, len(found)) + 1):
            yield " ".join(found[start:end])


def _carries_meaning(chunk: str, lexicon: Lexicon) -> bool:
    return chunk not in lexicon.stopwords and chunk not in lexicon.purpose and chunk not in lexicon.joiners


def _without_negated(found: list[str], lexicon: Lexicon) -> tuple[list[str], tuple[str, ...]]:
    """Part the chunks into those asked for and those asked not to be there."""
    asked: list[str] = []
    negated: list[str] = []
    pending = 0
    for i, chunk in enumerate(found):
        suffix = next((s for s in lexicon.suffix_negations if is_cjk(chunk) and chunk.endswith(s)), None)
        if chunk in lexicon.negations and i + 1 < len(found):
            pending = _MAX_NEGATED
        elif suffix is not None and (len(chunk) > len(suffix) or asked):
            negated.append(chunk.removesuffix(suffix) or asked.pop())
        elif chunk in lexicon.free_words and asked:
            negated.append(asked.pop())
        elif pending and _carries_meaning(chunk, lexicon):
            negated.append(chunk)
            pending -= 1
        elif pending and chunk not in lexicon.stopwords:
            pending = 0
            asked.append(chunk)
        else:
            asked.append(chunk)
    return asked, tuple(dict.fromkeys(negated))


def _head(main: list[str], brand: str | None, *, spanish: bool, lexicon: Lexicon) -> str | None:
    """Give the word that names the product: the last plain word, the first in Spanish."""
    cut = next((i for i, c in enumerate(main) if c in lexicon.joiners and i), len(main))
    words = [c for c in main[:cut] if _carries_meaning(c, lexicon) and not c[0].isdigit() and len(c) > 1]
    brand_words = set((brand or "").split())
    plain = [c for c in words if c not in lexicon.colours and c not in lexicon.audiences and c not in brand_words]
    candidates = plain or words
    if not candidates:
        return None
    return candidates[0 if spanish else -1]


def _main_and_target(title: list[str], lexicon: Lexicon) -> tuple[list[str], list[str]]:
    """Part a title where it says what the item is for; "for women" is an audience, not a target."""
    for i, chunk in enumerate(title):
        if i and chunk in lexicon.purpose and i + 1 < len(title) and title[i + 1] not in lexicon.audiences:
            return title[:i], title[i + 1 :]
        mark = next((s for s in _FOR_SUFFIX if is_cjk(chunk) and s in chunk), None)
        if mark is not None:
            before, _, after = chunk.partition(mark)
            return [c for c in (after, *title[i + 1 :]) if c], [*title[:i], *([before] if before else [])]
    return title, []

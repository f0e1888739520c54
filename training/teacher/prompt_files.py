"""The files of a prompt book: reading them, and refusing what would ask the teacher something else than was meant.

Prompt files are `string.Template`s and no templating language: a file can hold no code, its placeholders can be listed
and checked before anything is asked, and values are put in once and never read again, so that `$name` or braces in an
item's title stay what they are. Everything that repeats (labels, rules, examples) is data in TOML.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from relevance.errors import InputError, RecipeError
from relevance.labels import LabelScheme
from relevance.pairs import Item, Pair, Query
from training.rationale_rows import Evidence
from training.recipe import PERSPECTIVES, VIEWS, Perspective
from training.teacher_recipe import PromptRecipe

BOOKS = Path(__file__).with_name("prompts")
ReasoningOrder = Literal["think_first", "answer_first"]
_VIEW_PARTS = frozenset({"rules", "rule_titles"})
_PAIR_PARTS = frozenset({"pair", "view", "query", "title", "fields"})
PLACEHOLDERS: dict[str, frozenset[str]] = {
    "system": frozenset({"labels", "label_names", "view", "format", "examples"}),
    **dict.fromkeys(VIEWS, _VIEW_PARTS),
    "pair": _PAIR_PARTS,
    "explain": _PAIR_PARTS | {"label"},
    "reflect": _PAIR_PARTS | {"wrong_label"},
    "example": frozenset({"pair", "response"}),
}
"""What each prompt file may hold. `labels`: codes, titles and meanings; `label_names`: codes; `view`: the view's own
file; `format`: how to answer; `rules`, `rule_titles`: in full, or ids and titles; `pair`: query and item as JSON;
`query`, `title`, `fields`: each on one line; `response`: an example's answer. `system` may be empty."""
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Model = TypeVar("_Model", bound=BaseModel)


class Rule(BaseModel):
    """One business rule.

    Args: id: short and unique; governs: dims of evidence that it is about.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Text
    title: Text
    governs: tuple[Text, ...] = Field(min_length=1)
    text: Text


class Reasons(BaseModel):
    """The evidence and rationale of one perspective on an example."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evidence: tuple[Evidence, ...]
    rationale: Text


class Example(BaseModel):
    """A worked example: an invented pair, its label, and what each perspective says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    query: Text
    locale: str | None = None
    title: Text
    brand: str | None = None
    color: str | None = None
    attributes: dict[str, str] = Field(default_factory=dict)
    user: Reasons
    struct: Reasons
    rule: Reasons

    @property
    def pair(self) -> Pair:
        """The pair shown."""
        item = Item(self.title, brand=self.brand, color=self.color, attributes=self.attributes)
        return Pair(Query(self.query, locale=self.locale), item)

    def reasons(self, perspective: Perspective) -> Reasons:
        """Give what one perspective says."""
        return {"user": self.user, "struct": self.struct, "rule": self.rule}[perspective]


class _ExamplesPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    heading: Text
    same_as: dict[str, str] = Field(default_factory=dict)


class _BookToml(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Text
    format: Literal["json", "text"]
    placeholders: dict[str, tuple[str, ...]]
    answer: dict[ReasoningOrder, Text] = Field(default_factory=dict)
    examples: _ExamplesPart | None = None


class _RulesToml(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: tuple[Rule, ...] = Field(min_length=1)


class _ExamplesToml(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    meanings: dict[str, Text]
    example: tuple[Example, ...]


@dataclass(frozen=True, slots=True)
class BookFiles:
    """The checked contents of a prompt book, as a recipe and scheme need them.

    Args: templates: by file name without `.txt`; answer: the format in the recipe's order, "" if unused; heading: over
        the examples; rules: empty if no file shows any; meanings: by class code; examples: `shots` of each class, in
        the order of the classes; hashes: SHA-256 of every file read.
    """

    version: str
    format: Literal["json", "text"]
    templates: Mapping[str, Template]
    answer: str
    heading: str
    rules: tuple[Rule, ...]
    meanings: Mapping[str, str]
    examples: tuple[Example, ...]
    hashes: Mapping[str, str]


def read_book(recipe: PromptRecipe, scheme: LabelScheme) -> BookFiles:
    """Read and check a prompt book.

    Raises: RecipeError: if the recipe names no book, or rules for a book that shows none; InputError: if a file is
        missing, lacks a placeholder, has an unknown one, or is no valid TOML of its kind, naming the file.
    """
    reader = _Reader(_book_folder(recipe.version))
    book = reader.toml("book.toml", _BookToml)
    templates = {name: reader.template(name, declared) for name, declared in _declared(book, reader.folder).items()}
    shown = {name: frozenset(template.get_identifiers()) for name, template in templates.items()}
    if "format" in shown["system"] and recipe.reasoning_order not in book.answer:
        raise InputError(f"{reader.folder / 'book.toml'}: expected the key answer.{recipe.reasoning_order}, found none")
    labelled = "labels" in shown["system"]
    shots = recipe.shots if "examples" in shown["system"] else 0
    meanings, examples = _labels_and_examples(reader, book, scheme, shots) if labelled or shots else ({}, ())
    return BookFiles(
        version=book.version,
        format=book.format,
        templates=templates,
        answer=book.answer.get(recipe.reasoning_order, ""),
        heading="" if book.examples is None else book.examples.heading,
        rules=_rules(reader, recipe, any(shown[view] & _VIEW_PARTS for view in VIEWS)),
        meanings=meanings,
        examples=examples,
        hashes=reader.hashes,
    )


@dataclass(slots=True)
class _Reader:
    """Reads files of one folder and remembers their hashes."""

    folder: Path
    hashes: dict[str, str] = field(default_factory=dict)

    def text(self, name: str, path: Path | None = None) -> str:
        """Give a file's text; `name` is what its hash is kept under."""
        path = self.folder / name if path is None else path
        try:
            data = path.read_bytes()
            text = data.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: expected a UTF-8 file of the prompt book, found none: {error}") from error
        self.hashes[name] = hashlib.sha256(data).hexdigest()
        return text

    def toml(self, name: str, model: type[_Model], path: Path | None = None) -> _Model:
        """Give a TOML file checked against its model."""
        text, where = self.text(name, path), self.folder / name if path is None else path
        try:
            return model.model_validate(tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise InputError(f"{where}: expected TOML: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            raise InputError(f"{where}: {key}: {first['msg']}, found {first['input']!r:.60}") from error

    def template(self, name: str, declared: Iterable[str]) -> Template:
        """Read a prompt file; trailing white space is left out.

        Raises: InputError: if its placeholders are not the declared ones, or a `$` is none and not doubled.
        """
        template, where = Template(self.text(f"{name}.txt").rstrip()), self.folder / f"{name}.txt"
        if not template.is_valid():
            raise InputError(f"{where}: expected $name, ${{name}} or $$ wherever there is a $, found another use of it")
        found, expected = set(template.get_identifiers()), set(declared)
        if found != expected:
            lacking = ", ".join(sorted(expected - found)) or "none"
            unknown = ", ".join(sorted(found - expected)) or "none"
            raise InputError(
                f"{where}: expected the placeholders {sorted(expected)} that book.toml names, found {sorted(found)}; "
                f"missing: {lacking}; unknown: {unknown}"
            )
        if not template.template.strip() and name != "system":
            raise InputError(f"{where}: expected a prompt, found an empty file")
        return template


def _book_folder(version: str) -> Path:
    known = sorted(path.parent.name for path in BOOKS.glob("*/book.toml"))
    folder = BOOKS / version if version in known else Path(version)
    if not (folder / "book.toml").is_file():
        raise RecipeError(
            f"teacher.prompt.version: expected one of {', '.join(known)} or a folder with a book.toml, "
            f"found {version!r}"
        )
    return folder


def _declared(book: _BookToml, folder: Path) -> dict[str, tuple[str, ...]]:
    """Check and give the placeholders that book.toml declares for each file."""
    where = folder / "book.toml"
    shows_examples = "examples" in book.placeholders.get("system", ())
    expected = set(PLACEHOLDERS) - (set() if shows_examples else {"example"})
    if set(book.placeholders) != expected:
        raise InputError(
            f"{where}: placeholders: expected an entry for each of {sorted(expected)}, "
            f"found {sorted(book.placeholders)}"
        )
    if shows_examples and book.examples is None:
        raise InputError(f"{where}: expected a section examples, since system.txt shows examples, found none")
    for name, declared in book.placeholders.items():
        unknown = sorted(set(declared) - PLACEHOLDERS[name])
        if unknown:
            raise InputError(
                f"{where}: placeholders.{name}: expected some of {sorted(PLACEHOLDERS[name])}, found {unknown}"
            )
    return book.placeholders


def _rules(reader: _Reader, recipe: PromptRecipe, shown: bool) -> tuple[Rule, ...]:
    if not shown:
        if recipe.rules is not None:
            raise RecipeError(
                f"teacher.prompt.rules: expected a book that shows rules, found {recipe.version!r}, which shows none"
            )
        return ()
    if recipe.rules is not None and not Path(recipe.rules).is_file():
        raise RecipeError(f"teacher.prompt.rules: expected a TOML file of rules, found {recipe.rules!r}")
    path = None if recipe.rules is None else Path(recipe.rules)
    rules = reader.toml("rules.toml", _RulesToml, path).rule
    ids = [rule.id for rule in rules]
    if len(set(ids)) != len(ids):
        raise InputError(f"{path or reader.folder / 'rules.toml'}: expected each rule id once, found {ids}")
    return rules


def _labels_and_examples(
    reader: _Reader, book: _BookToml, scheme: LabelScheme, shots: int
) -> tuple[Mapping[str, str], tuple[Example, ...]]:
    same_as = {} if book.examples is None else book.examples.same_as
    name = f"examples.{same_as.get(scheme.name, scheme.name)}.toml"
    if not (reader.folder / name).is_file():
        if shots:
            raise InputError(
                f"{reader.folder / name}: expected examples of scheme {scheme.name!r}, found none; "
                "teacher.prompt.shots = 0 does without"
            )
        return {}, ()
    told = reader.toml(name, _ExamplesToml)
    if set(told.meanings) != set(scheme.classes):
        raise InputError(
            f"{reader.folder / name}: meanings: expected one for each of {list(scheme.classes)}, "
            f"found {sorted(told.meanings)}"
        )
    foreign = [example.label for example in told.example if example.label not in scheme.classes]
    if foreign:
        raise InputError(f"{reader.folder / name}: label: expected one of {list(scheme.classes)}, found {foreign}")
    by_class = {code: [e for e in told.example if e.label == code][:shots] for code in scheme.classes}
    few = [code for code, examples in by_class.items() if len(examples) < shots]
    if few:
        raise InputError(
            f"{reader.folder / name}: expected {shots} examples of each class (teacher.prompt.shots), "
            f"found fewer of {few}"
        )
    return told.meanings, tuple(example for examples in by_class.values() for example in examples)


def perspective_of(number: int) -> Perspective:
    """Give the perspective whose reasons the unified prompt shows of its example of this number: each in turn."""
    return PERSPECTIVES[number % len(PERSPECTIVES)]

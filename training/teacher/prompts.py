"""What the teacher is asked: a book of prompts, rendered for a label scheme.

The views are the three perspectives of arXiv:2601.21611, section 3.2, and the unified prompt of eq. 2, which leaves
open which of them to take. The tasks `explain` and `reflect` are EE-CoT and DR-CoT of LREF (arXiv:2503.09223). All
that is the same for every pair stands in the system message, and the pair comes last, so that servers can keep the
prefix. The pair is shown as data: as JSON, or on one line a field, from which no text can break out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from relevance.errors import LabelError, RecipeError
from relevance.labels import LabelScheme
from relevance.pairs import Item, Pair, Query
from relevance.text import clean
from training.rationale_rows import Rationale
from training.recipe import VIEWS, View
from training.runs import hash_json
from training.teacher.grounding import shown_fields
from training.teacher.prompt_files import BookFiles, perspective_of, read_book
from training.teacher.responses import CONTROL_TOKEN, LABEL_MARK, label_named, plain, plain_rationale
from training.teacher_recipe import PromptRecipe

Message = dict[str, str]
"""`role` (system, user or assistant) and `content`."""
MAX_CHARS = 2000
"""Characters shown of the query and of each field, as many as the student's template reads."""
_OWN = "attributes."
_FIELDS = ("brand", "color", "text", "attributes")
_NO_PAIR = Rationale(
    pair_id="", perspective="unified", evidence=(), rationale="", verdict=None, generator="", annotator_seen_pair=False
)


@dataclass(frozen=True, slots=True)
class PromptBook:
    """The prompts of one recipe and label scheme; `load` makes one.

    Args: fingerprint: hash of every file read, of the settings, and of what they make of an invented pair; two books
        with the same one ask the same.
    """

    recipe: PromptRecipe
    scheme: LabelScheme
    fingerprint: str
    _files: BookFiles
    _systems: Mapping[View, str]
    _views: Mapping[View, str]

    @classmethod
    def load(cls, recipe: PromptRecipe, scheme: LabelScheme) -> PromptBook:
        """Read and check the book that a recipe names.

        Raises: RecipeError: if the recipe names no book, no rules or no item field; InputError: if a file of the book
            is missing or wrong, naming it; LabelError: if a plain-text answer could not tell two classes apart.
        """
        bad = [name for name in recipe.fields if name not in _FIELDS and not name.startswith(_OWN)]
        if bad:
            raise RecipeError(f"teacher.prompt.fields: expected {', '.join(_FIELDS)}, attributes.NAME, found {bad}")
        files = read_book(recipe, scheme)
        if files.format == "text":
            _check_prefixes(scheme)
        views = {view: files.templates[view].substitute(_rule_texts(files)).strip() for view in VIEWS}
        bare = cls(recipe, scheme, "", files, {}, views)
        systems = {view: bare._system(view) for view in VIEWS}
        unsigned = cls(recipe, scheme, "", files, systems, views)
        return cls(recipe, scheme, unsigned._hash(), files, systems, views)

    @property
    def version(self) -> str:
        """The book's own name, as its book.toml says."""
        return self._files.version

    @property
    def label_texts(self) -> tuple[str, ...]:
        """The class codes as they stand after `label_prefix`, in the order of the scheme."""
        return (
            self.scheme.classes if self._files.format == "text" else tuple(_json_inside(c) for c in self.scheme.classes)
        )

    def messages(self, pair: Pair, view: View) -> list[Message]:
        """Ask for the label and a rationale of one pair."""
        return self._ask("pair", pair, view)

    def explain(self, pair: Pair, label: str) -> list[Message]:
        """Ask why a label is right (EE-CoT).

        Raises: LabelError: if the scheme has no such class.
        """
        return self._ask("explain", pair, "unified", label=self._code(label))

    def reflect(self, pair: Pair, wrong_label: str) -> list[Message]:
        """Ask for what a wrong label overlooked, and for the right one (DR-CoT).

        Raises: LabelError: if the scheme has no such class.
        """
        return self._ask("reflect", pair, "unified", wrong_label=self._code(wrong_label))

    def response(self, rationale: Rationale, label: str) -> str:
        """Give the assistant's text of a rationale and a label; `parse_response` reads them back.

        A plain-text answer holds no evidence.

        Raises: LabelError: if the scheme has no such class.
        """
        before, after = self._around_label(rationale)
        code = self._code(label)
        return before + self.label_texts[self.scheme.classes.index(code)] + after

    def label_prefix(self, rationale: Rationale) -> str:
        """Give the response up to where the label's text begins; none of the rationale with answer_first."""
        return self._around_label(rationale)[0]

    def _code(self, label: str) -> str:
        return self.scheme.classes[self.scheme.index(label)]

    def _around_label(self, rationale: Rationale) -> tuple[str, str]:
        """Give what stands before and after the label's text."""
        think_first = self.recipe.reasoning_order == "think_first"
        if self._files.format == "text":
            text = plain_rationale(rationale.rationale)
            if think_first:
                return (f"{text}\n{LABEL_MARK}" if text else LABEL_MARK), ""
            return LABEL_MARK, f"\n{text}" if text else ""
        reasons = _json(
            {
                "perspective": rationale.perspective,
                "evidence": [row.model_dump(mode="json") for row in rationale.evidence],
                "rationale": rationale.rationale.strip(),
            }
        )
        return (f'{reasons[:-1]}, "label": "', '"}') if think_first else ('{"label": "', f'", {reasons[1:]}')

    def _ask(self, task: str, pair: Pair, view: View, **labels: str) -> list[Message]:
        template = self._files.templates[task]
        shown = _pair_texts(pair, self.recipe.fields)
        content = template.substitute(shown, view=self._views[view], **labels).strip()
        if self._files.format == "text":
            content = "\n".join(line for line in content.split("\n") if line.strip())
        system = self._systems[view]
        start = [{"role": "system", "content": system}] if system else []
        return [*start, {"role": "user", "content": content}]

    def _system(self, view: View) -> str:
        files, scheme = self._files, self.scheme
        labels = [
            f"- {code}"
            + (f" ({title})" if title != code else "")
            + (f": {files.meanings[code]}" if code in files.meanings else "")
            for code, title in zip(scheme.classes, scheme.titles, strict=True)
        ]
        return (
            files.templates["system"]
            .substitute(
                labels="\n".join(labels),
                label_names=", ".join(scheme.classes),
                view=self._views[view],
                format=files.answer,
                examples=self._examples(view),
            )
            .strip()
        )

    def _examples(self, view: View) -> str:
        blocks = []
        for number, example in enumerate(self._files.examples):
            perspective = perspective_of(number) if view == "unified" else view
            reasons = example.reasons(perspective)
            rationale = _NO_PAIR.model_copy(
                update={"perspective": perspective, "evidence": reasons.evidence, "rationale": reasons.rationale}
            )
            texts = _pair_texts(example.pair, self.recipe.fields)
            blocks.append(
                self._files.templates["example"].substitute(
                    pair=texts["pair"], response=self.response(rationale, example.label)
                )
            )
        return "\n\n".join(("\n" + self._files.heading, *blocks)) if blocks else ""

    def _hash(self) -> str:
        """Hash files, settings and renderings, so that a change of this module shows too."""
        pair = Pair(Query("a", locale="us"), Item("b", brand="c", color="d", text="e", attributes={"f": "g"}))
        first = self.scheme.classes[0]
        rendered = [self.messages(pair, view) for view in VIEWS]
        rendered += [self.explain(pair, first), self.reflect(pair, first)]
        return hash_json(
            {
                "files": dict(self._files.hashes),
                "recipe": self.recipe.model_dump(mode="json", exclude={"version", "rules"}),
                "scheme": self.scheme.to_dict(),
                "rendered": rendered,
                "response": self.response(_NO_PAIR.model_copy(update={"rationale": "It is."}), first),
            }
        )


def _check_prefixes(scheme: LabelScheme) -> None:
    """Refuse classes that a plain-text answer could turn into one another by being cut off.

    Raises: LabelError: if the start of one class's code names another class.
    """
    for code in scheme.classes:
        for end in range(1, len(code)):
            other = label_named(code[:end], scheme)
            if other not in (None, code):
                raise LabelError(
                    f"scheme {scheme.name!r}: expected codes of which none starts with another class's name, found "
                    f"{code!r} and {other!r}; a plain-text answer that is cut off could not be told from a whole one"
                )


def _rule_texts(files: BookFiles) -> dict[str, str]:
    return {
        "rules": "\n".join(f"- {r.id} {r.title} ({', '.join(r.governs)}): {r.text}" for r in files.rules),
        "rule_titles": "\n".join(f"- {r.id} {r.title}" for r in files.rules),
    }


def _pair_texts(pair: Pair, fields: Sequence[str]) -> dict[str, str]:
    """Give the values of the pair's placeholders: JSON for books that show it whole, and single lines."""
    query = clean(pair.query.text, MAX_CHARS)
    shown = {name: clean(text, MAX_CHARS) for name, text in shown_fields(pair.item, fields).items()}
    item: dict[str, Any] = {name: text for name, text in shown.items() if not name.startswith(_OWN)}
    attributes = {name.removeprefix(_OWN): text for name, text in shown.items() if name.startswith(_OWN)}
    whole = {
        "query": query,
        **({"locale": clean(pair.query.locale, MAX_CHARS)} if pair.query.locale else {}),
        "item": {**item, **({"attributes": attributes} if attributes else {})},
    }
    beside = (
        f"{_one_field(name.removeprefix(_OWN)).replace(':', ' ')}: {_one_field(text)}"
        for name, text in shown.items()
        if name != "title"
    )
    return {
        "pair": _json(whole),
        "query": plain(query) or '""',
        "title": plain(shown["title"]) or '""',
        "fields": "; ".join(beside),
    }


def _one_field(text: str) -> str:
    return plain(text).replace(";", ",")


def _json(data: object) -> str:
    """Give JSON in which no text can spell a tag or a special token of a chat template: `<|im_end|>`, `[INST]`."""
    return CONTROL_TOKEN.sub(r"\\u005b", json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"))


def _json_inside(text: str) -> str:
    return _json(text)[1:-1]

"""What a teacher answered: label, rationale and evidence out of any text, and what was wrong with it.

An answer is a JSON object (book `v1`) or a rationale with a line `label: E` (book `compact`); either may come with
prose, a code fence or a thinking block around it, and be cut off or malformed. A label is read only where it is
certain: its string was closed, its line names one class, and no other place names another one. So a part of an answer
gives the label of the whole answer or none.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from pydantic import ValidationError
from pydantic_core import from_json

from relevance.labels import ESCI, LabelScheme
from relevance.text import clean
from training.rationale_rows import Evidence

Problem = Literal[
    "empty",
    "thinking_removed",
    "cut_off",
    "not_json",
    "repaired",
    "no_label",
    "unknown_label",
    "no_rationale",
    "no_evidence",
    "bad_evidence",
]
PROBLEMS: tuple[Problem, ...] = get_args(Problem)
"""`cut_off`: the object or thinking block never ended; `not_json`: an object nobody can read; `repaired`: malformed and
read by json-repair; `unknown_label`: none of the scheme's, or two; `bad_evidence`: rows left out."""
LABEL_MARK = "label: "
CONTROL_TOKEN = re.compile(
    r"\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|MODEL_SETTINGS|ARGS|CALL_ID"
    r"|THINK|IMG(?:_BREAK|_END)?|PREFIX|MIDDLE|SUFFIX|gMASK|sMASK|CLS|SEP|MASK|PAD|UNK|BOS|EOS)\])"
)
"""The bracket of what tokenizers of Mistral's, GLM's and BERT's families read as one special token, also in a title."""
MAX_CHARS = 100_000
"""Longest rationale that is written as one line."""
_LONGEST_REPAIRED = 8_000
"""Characters; json-repair's time grows with the square of a hopeless text's length."""
_ENDS_EARLY = "EOF while parsing"
"""Start of pydantic-core's message on text that stops too soon; its partial mode also stops at a missing comma."""
_THINKING_END = "</think>"
_THINKING_START = "<think>"
_OBJECT = re.compile(r"\{\s*(?:[\"'“]|[A-Za-z_]+\s*:|$)")
_LABEL_LINE = re.compile(r"^[^\w\n]*(?:final[ ]+)?label[^\w\n:=]*[:=](.*)$", re.IGNORECASE | re.MULTILINE)
_LABEL_START = re.compile(r"^(?:[^\w\n]*(?:final[ ]+)?label[^\w\n:=]*[:=])+[^\w\n]*", re.IGNORECASE)
_LABEL_KEY = re.compile(r'(?<!\\)"label"\s*:\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_LOOSE_LABEL_KEY = re.compile(
    r"""(?<![\\\w])["'“”]?label["'“”]?\s*:\s*"""
    r"""(?:"([^"\\\n]*)"|'([^'\\\n]*)'|“([^”\n]*)”|([^\s"'“{\[][^"'\n,}]*)(?=[,}\n]))""",
    re.IGNORECASE,
)
_AROUND = " \t\r\n\"'“”‘’`*_.<>"
_BETWEEN = re.compile(r"[()\[\]/|:;,.=]|\s[-–—]\s")
_ESCI_WORDS = {
    "exact match": "E",
    "substitutes": "S",
    "complements": "C",
    "complementary": "C",
    "not relevant": "I",
}


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one answer says.

    Args: label: a class code of the scheme, None if no class is certain; rationale: "" if there is none; evidence: the
        well-formed rows; problems: in the order of `PROBLEMS`, each once; not empty where the label is None.
    """

    label: str | None
    rationale: str
    evidence: tuple[Evidence, ...]
    problems: tuple[Problem, ...]


def parse_response(text: str, scheme: LabelScheme) -> Parsed:
    """Read an answer in any of the formats; never raises, whatever the text."""
    problems: set[Problem] = set()
    answer = _without_thinking(text.encode("utf-8", "replace").decode("utf-8"), problems)
    if not answer.strip():
        return _parsed(None, "", (), problems | {"empty"})
    opening = _OBJECT.search(answer)
    if opening is not None:
        fields = _read_object(answer[opening.start() :], scheme, problems)
        if fields is not None:
            return _parsed(fields.label, fields.rationale, fields.evidence, problems)
        problems.add("not_json")
    return _read_lines(answer, scheme, problems)


def count_problems(parsed: Iterable[Parsed]) -> Counter[Problem]:
    """Count how many answers have each problem."""
    return Counter(problem for one in parsed for problem in one.problems)


def plain(text: str) -> str:
    """Give a text as one line that can be part of a plain-text prompt or answer.

    Control characters and line ends become blanks; braces, and `<` or the `[` of a control token, lose the power to
    open an object, a thinking block or a turn.
    """
    line = clean(text, MAX_CHARS).replace("{", "(").replace("}", ")").replace("<", "< ")
    return " ".join(CONTROL_TOKEN.sub("[ ", line).split())


def plain_rationale(text: str) -> str:
    """Give a rationale as one line that cannot be mistaken for the line with the label."""
    return _LABEL_START.sub("", plain(text)).strip()


def label_named(text: str, scheme: LabelScheme) -> str | None:
    """Give the class that a text names, and nothing but names: `E`, `exact`, `Exact (E)`; None for none or several."""
    bare = text.strip(_AROUND)
    for name in (text.strip(), bare):
        if name in scheme.classes:
            return name
    names = _names(scheme)
    whole = names.get(_folded(bare))
    if whole is not None:
        return whole
    parts = (part.strip(_AROUND) for part in _BETWEEN.split(bare))
    found = {names.get(_folded(part)) for part in parts if part}
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class _Fields:
    label: str | None
    rationale: str
    evidence: tuple[Evidence, ...]


def _parsed(label: str | None, rationale: str, evidence: tuple[Evidence, ...], problems: set[Problem]) -> Parsed:
    return Parsed(label, rationale, evidence, tuple(p for p in PROBLEMS if p in problems))


def _without_thinking(text: str, problems: set[Problem]) -> str:
    """Leave out all up to the end of the last thinking block, or everything after a beginning without an end."""
    thought, end, answer = text.rpartition(_THINKING_END)
    answer, start, rest = answer.partition(_THINKING_START)
    if start:
        problems.add("cut_off")
    if (end and thought.replace(_THINKING_START, "").strip()) or rest.strip():
        problems.add("thinking_removed")
    return answer


def _read_object(text: str, scheme: LabelScheme, problems: set[Problem]) -> _Fields | None:
    """Read the answer from its first brace on: whole objects, else one that was cut off, else a repaired one."""
    answers = _whole_objects(text)
    if answers:
        named = {label_named(str(a["label"]), scheme) for a in answers if _is_name(a.get("label"))}
        return _fields(answers[-1], named | _labels_of(_LABEL_KEY, text, scheme), scheme, problems)
    cut = _cut_off_object(text)
    if cut is not None:
        problems.add("cut_off")
        return _fields(cut, _labels_of(_LABEL_KEY, text, scheme), scheme, problems)
    repaired = _repaired_object(text)
    if repaired is None:
        return None
    problems.add("repaired")
    closed = _labels_of(_LOOSE_LABEL_KEY, text, scheme) - {None}
    if not closed:
        repaired.pop("label", None)
    return _fields(repaired, closed, scheme, problems)


def _whole_objects(text: str) -> list[dict[str, Any]]:
    """Give the objects that hold an answer, up to the first one that does not end or is malformed."""
    decoder, place, answers = json.JSONDecoder(strict=False), 0, list[dict[str, Any]]()
    while (opening := _OBJECT.search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            break
        answer = _answer_in(value)
        if answer is not None:
            answers.append(answer)
    return answers


def _cut_off_object(text: str) -> dict[str, Any] | None:
    """Read an object that ends too early; a string without its end counts only if it is the rationale."""
    try:
        from_json(text)
    except ValueError as error:
        if not str(error).startswith(_ENDS_EARLY):
            return None
    try:
        certain = _answer_in(from_json(text, allow_partial="on"), any_keys=True)
        longest = _answer_in(from_json(text, allow_partial="trailing-strings"), any_keys=True)
    except ValueError:
        return None
    if certain is None or longest is None:
        return None
    if isinstance(certain.get("label"), int) and text[-1:].isdigit():
        del certain["label"]
    if isinstance(longest.get("rationale"), str):
        certain["rationale"] = longest["rationale"]
    return certain


def _repaired_object(text: str) -> dict[str, Any] | None:
    from json_repair import repair_json

    inside, _, _ = text.partition("```")
    if len(inside) > _LONGEST_REPAIRED:
        return None
    try:
        value = repair_json(inside, return_objects=True, skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    candidates = value if isinstance(value, list) else [value]
    return next((answer for one in candidates if (answer := _answer_in(one)) is not None), None)


def _answer_in(value: object, *, any_keys: bool = False) -> dict[str, Any] | None:
    """Give an object with its keys in lower case, None if it is none or holds neither label nor rationale."""
    if not isinstance(value, dict):
        return None
    answer = {str(key).strip().casefold(): part for key, part in value.items()}
    return answer if any_keys or "label" in answer or "rationale" in answer else None


def _is_name(value: object) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() != ""


def _labels_of(pattern: re.Pattern[str], text: str, scheme: LabelScheme) -> set[str | None]:
    """Give the classes named by every label key that a pattern finds, None among them for a name of no class."""
    found = (next((group for group in match.groups() if group is not None), "") for match in pattern.finditer(text))
    return {label_named(_unescaped(name), scheme) for name in found if name.strip()}


def _unescaped(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"', strict=False))
    except ValueError:
        return text


def _fields(answer: Mapping[str, Any], named: set[str | None], scheme: LabelScheme, problems: set[Problem]) -> _Fields:
    """Read the parts of an object.

    Args: named: classes that the label keys of the whole text name; more than one are none.
    """
    value, label = answer.get("label"), None
    if value is None or (isinstance(value, str) and not value.strip()):
        problems.add("no_label")
    else:
        label = label_named(str(value), scheme) if _is_name(value) else None
        if label is None or not named <= {label}:
            problems.add("unknown_label")
            label = None
    rationale = answer.get("rationale")
    if not isinstance(rationale, str) or not rationale.strip():
        problems.add("no_rationale")
        rationale = ""
    return _Fields(label, rationale.strip(), _evidence(answer.get("evidence"), problems))


def _evidence(rows: object, problems: set[Problem]) -> tuple[Evidence, ...]:
    if not isinstance(rows, list):
        problems.add("no_evidence" if rows is None else "bad_evidence")
        return ()
    found = []
    for row in rows:
        try:
            found.append(_evidence_row(row))
        except (ValidationError, TypeError):
            problems.add("bad_evidence")
    return tuple(found)


def _evidence_row(row: object) -> Evidence:
    """Read one row; a span that is null or left out is "".

    Raises: TypeError: if it is no object; ValidationError: if a part is missing or of the wrong kind.
    """
    if not isinstance(row, dict):
        raise TypeError(f"expected an object, found {type(row).__name__}")
    verdict = row.get("verdict")
    return Evidence(
        dim=row.get("dim") or None,
        query_span=row.get("query_span") or "",
        item_span=row.get("item_span") or "",
        verdict=verdict.strip().casefold() if isinstance(verdict, str) else verdict,
    )


def _read_lines(text: str, scheme: LabelScheme, problems: set[Problem]) -> Parsed:
    """Read an answer in plain text: one or more lines `label: NAME` that agree, and the rationale around them."""
    names = _LABEL_LINE.findall(text)
    found = {label_named(name, scheme) for name in names if name.strip(_AROUND)}
    label = found.pop() if len(found) == 1 else None
    if label is None:
        problems.add("unknown_label" if found or any(name.strip(_AROUND) for name in names) else "no_label")
    rationale = " ".join(_LABEL_LINE.sub("", text).split())
    if not rationale:
        problems.add("no_rationale")
    return _parsed(label, rationale, (), problems)


def _folded(name: str) -> str:
    return " ".join(name.casefold().split())


@lru_cache(maxsize=16)
def _names(scheme: LabelScheme) -> dict[str, str]:
    """Give the folded names of a scheme's classes; a name that two classes share is left out."""
    names: dict[str, str] = dict(_ESCI_WORDS) if scheme.classes == ESCI.classes else {}
    shared = set()
    for name, code in zip(scheme.classes + scheme.titles, scheme.classes * 2, strict=True):
        if names.setdefault(_folded(name), code) != code:
            shared.add(_folded(name))
    return {name: code for name, code in names.items() if name not in shared}

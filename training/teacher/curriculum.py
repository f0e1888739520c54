"""ProgressiveCoT, a rival teacher: LREF's curriculum of three kinds of reasoning (arXiv:2503.09223), one after another.

1. EE-CoT: the prompt tells the label, the answer explains it.
2. RA-CoT: the prompt tells the rules, the answer reasons and gives the label: the business-rule perspective's prompt.
3. DR-CoT: the prompt tells a wrong decision, the answer says that it does not hold, reasons and gives the right label.

All answers are the kept samples of stage `generate`, the same that MPCoT learns from, and the phases together have as
many tokens (prompts and answers, of one epoch) as MPCoT's rows, so that neither teacher reads more text. Each phase
takes a third of them, or all it has where that is less, and what it leaves goes to the others.

The wrong decision is one that was sampled of the same pair; where there is none, the class that pairs of this label
were most often taken for, or else the class beside it in the scheme.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from relevance.errors import RecipeError
from relevance.labels import LabelScheme
from relevance.pairs import LabelledPair
from training.rationale_rows import Rationale
from training.runs import Run, log
from training.teacher.keep import STAGE, kept_rows
from training.teacher.pairing import balanced_quotas, seeded_hash
from training.teacher.prompts import PromptBook
from training.teacher.samples import Sample, read_samples
from training.teacher.sft_rows import Phase, SftRow, encode_rows

SAMPLES = "samples.train.jsonl"
EXPLAIN, REASON, REFLECT = "ee_cot", "ra_cot", "dr_cot"
Kept = Sequence[tuple[LabelledPair, Sample]]
CountTokens = Callable[[Sequence[SftRow]], list[int]]


@dataclass(frozen=True, slots=True)
class Curriculum:
    """The phases in their order, and what they cost.

    Args: tokens: of each phase, by name; budget: tokens of MPCoT's rows made of the same samples.
    """

    phases: tuple[Phase, ...]
    tokens: Mapping[str, int]
    budget: int


def phases(run: Run, tokenizer: PreTrainedTokenizerBase) -> list[Phase]:
    """Give the phases of a run's curriculum, and note their tokens beside MPCoT's in the ledger.

    Args: tokenizer: of the base model, which counts the tokens.
    Raises: RecipeError: if the teacher's perspectives lack the business rules; RunError: if stage `generate` has not
        finished.
    """
    recipe = run.recipe
    if "rule" not in recipe.teacher.perspectives:
        raise RecipeError(
            f"teacher.method = 'progressive': expected 'rule' among teacher.perspectives, found "
            f"{recipe.teacher.perspectives}"
        )
    kept, scheme = kept_rows(run), recipe.label_scheme
    of_pair = {labelled.pair.pair_id: labelled.label for labelled, _ in kept}
    wrong = WrongDecisions(of_pair, read_samples(run.require(STAGE) / SAMPLES), scheme)

    def count_tokens(rows: Sequence[SftRow]) -> list[int]:
        """Count the tokens of rows as SFT reads them."""
        thinking, most = recipe.teacher.sampling.thinking, recipe.teacher.sft.max_tokens
        return [len(row.input_ids) for row in encode_rows(rows, tokenizer, thinking=thinking, max_tokens=most)]

    book = PromptBook.load(recipe.teacher.prompt, scheme)
    made = make_curriculum(kept, wrong, book, count_tokens, seed=recipe.seed)
    log.info("curriculum: %s tokens, %d of MPCoT", dict(made.tokens), made.budget)
    run.note("curriculum", tokens=dict(made.tokens), mpcot_tokens=made.budget)
    return list(made.phases)


class WrongDecisions:
    """Which wrong class a pair is shown, from everything that was sampled.

    Args: label_of: pair id → class code; samples: of any pairs, right and wrong.
    """

    def __init__(self, label_of: Mapping[str, str], samples: Iterable[Sample], scheme: LabelScheme) -> None:
        self._scheme = scheme
        self._of_pair: dict[str, str] = {}
        self._confused: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for sample in samples:
            label = label_of.get(sample.pair_id)
            if label is not None and sample.label is not None and sample.label != label:
                self._of_pair.setdefault(sample.pair_id, sample.label)
                self._confused[label][sample.label] += 1

    def of(self, labelled: LabelledPair) -> str:
        """Give a class other than the pair's."""
        own = self._of_pair.get(labelled.pair.pair_id)
        if own is not None:
            return own
        confused = self._confused[labelled.label]
        if confused:
            return max(self._scheme.classes, key=lambda code: confused[code])
        place = self._scheme.index(labelled.label)
        return self._scheme.classes[place + 1 if place + 1 < self._scheme.n_classes else place - 1]


def make_curriculum(
    kept: Kept, wrong: WrongDecisions, book: PromptBook, count_tokens: CountTokens, *, seed: int
) -> Curriculum:
    """Write the rows of the three phases and cut them to MPCoT's tokens.

    Args: kept: the samples that MPCoT would learn from, with their pairs; seed: decides which rows are cut.
    """
    answer = {id(sample): book.response(_rationale(sample), labelled.label) for labelled, sample in kept}
    budget = sum(count_tokens([_row(p, book.messages(p.pair, "unified"), answer[id(s)]) for p, s in kept]))
    rows = {
        EXPLAIN: [_row(p, book.explain(p.pair, p.label), answer[id(s)]) for p, s in kept],
        REASON: [_row(p, book.messages(p.pair, "rule"), answer[id(s)]) for p, s in kept if s.view == "rule"],
        REFLECT: [_reflection(p, s, wrong.of(p), book) for p, s in kept],
    }
    costs = {name: count_tokens(own) for name, own in rows.items()}
    quotas = balanced_quotas({name: sum(own) for name, own in costs.items()}, budget)
    made, tokens = [], {}
    for name, own in rows.items():
        chosen = _within(own, costs[name], quotas[name], seed)
        made.append(Phase(name, tuple(own[number] for number in chosen)))
        tokens[name] = sum(costs[name][number] for number in chosen)
    return Curriculum(tuple(made), tokens, budget)


def _within(rows: Sequence[SftRow], costs: Sequence[int], most: int, seed: int) -> list[int]:
    """Give the places of rows that fit into so many tokens, in a seeded order."""
    order = sorted(
        range(len(rows)), key=lambda number: seeded_hash(seed, rows[number].pair_id, rows[number].completion)
    )
    chosen = []
    for number in order:
        if costs[number] <= most:
            chosen.append(number)
            most -= costs[number]
    return chosen


def _row(labelled: LabelledPair, prompt: Iterable[dict[str, str]], completion: str) -> SftRow:
    return SftRow(labelled.pair.pair_id, tuple(prompt), completion)


def _reflection(labelled: LabelledPair, sample: Sample, wrong: str, book: PromptBook) -> SftRow:
    """Write an answer that first says that the decision does not hold: no kept sample speaks of any decision."""
    rationale = _rationale(sample, f"The decision {wrong} does not hold. {sample.rationale}")
    return _row(labelled, book.reflect(labelled.pair, wrong), book.response(rationale, labelled.label))


def _rationale(sample: Sample, text: str | None = None) -> Rationale:
    return Rationale(
        pair_id=sample.pair_id,
        perspective=sample.view,
        evidence=sample.evidence,
        rationale=sample.rationale if text is None else text,
        verdict=sample.label,
        generator=sample.generator,
        annotator_seen_pair=False,
    )

"""What a server's answers took: requests, tokens, money, seconds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields, replace
from typing import Any


@dataclass(slots=True)
class GenerationLedger:
    """What answers took.

    Args: requests: sent, repeated ones included; answers: paid for; stored: answered from the store; shared: answered
        by an equal request in flight; retries: of requests; errors: prompts that got no answer, by kind;
        prompt_tokens, completion_tokens: of the answers that say; without_usage: answers that do not; cost: by the
        recipe's prices; seconds: in which somebody waited for answers.
    """

    requests: int = 0
    answers: int = 0
    stored: int = 0
    shared: int = 0
    retries: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    without_usage: int = 0
    cost: float = 0.0
    seconds: float = 0.0

    def copied(self) -> GenerationLedger:
        """Give the ledger as it is now."""
        return replace(self, errors=Counter(self.errors))

    def since(self, before: GenerationLedger) -> GenerationLedger:
        """Give what came after an earlier state of this ledger."""
        return GenerationLedger(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)})

    def figures(self) -> dict[str, Any]:
        """Give plain values for a run's ledger."""
        return {
            "requests": self.requests,
            "answers": self.answers,
            "stored": self.stored,
            "shared": self.shared,
            "retries": self.retries,
            "errors": dict(self.errors),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "without_usage": self.without_usage,
            "cost": round(self.cost, 6),
            "generation_seconds": round(self.seconds, 1),
        }

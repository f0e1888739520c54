"""A text generator without a model: what it answers is a function of pair, view and sample number."""

import hashlib
import json

from training.teacher.generator import Completion, failed, split_key

CODES = "ESCI"


class KilledError(Exception):
    """Stands for the end of the process."""


class FakeTeacher:
    """Answers by `text_of(pair_id, view, sample)`, last prompt first; None is a failed request.

    Args: dies_after: completions given before it raises, None for never.
    """

    name = "fake-teacher"

    def __init__(self, text_of, *, dies_after=None):
        self.text_of, self.dies_after, self.asked = text_of, dies_after, []

    def complete(self, prompts, *, total=None):
        """Give the completions of all prompts in the reverse order."""
        for prompt in reversed(list(prompts)):
            pair_id, view = split_key(prompt.key)
            for sample in range(prompt.first_sample, prompt.first_sample + prompt.samples):
                if self.dies_after is not None and len(self.asked) >= self.dies_after:
                    raise KilledError
                self.asked.append((pair_id, view, sample))
                text = self.text_of(pair_id, view, sample)
                if text is None:
                    yield failed(prompt.key, sample, "connection refused")
                else:
                    yield Completion(prompt.key, sample, text, 100, 10, "stop", None, None)


def answer(label, rationale="the title names the thing that was asked for", evidence=()):
    """Give a response in the format of prompt book v1."""
    return json.dumps({"evidence": list(evidence), "rationale": rationale, "label": label})


def drawn(pair_id, view, sample):
    """Give an answer whose label and words are a hash of what was asked: right about one time in four."""
    digest = hashlib.sha256(f"{pair_id}|{view}|{sample}".encode()).digest()
    words = ["red", "shoe", "steel", "bottle", "small", "lamp", "desk", "new"]
    text = " ".join(words[byte % 8] for byte in digest[1 : 5 + digest[0] % 6])
    return answer(CODES[digest[-1] % 4], f"the item has {text}") if digest[-2] % 10 else "I cannot say."

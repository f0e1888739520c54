"""Prompts for a client of a language model server, and what came of them."""

from relevance.labels import ESCI
from training.teacher.generator import Prompt
from training.teacher.openai_client import OpenAiGenerator
from training.teacher_recipe import SamplingRecipe

SYSTEM = {"role": "system", "content": "Judge how well an item answers a query."}


def prompt(key, text, *, samples=1, first_sample=0):
    """Give a prompt whose last message is the text."""
    return Prompt(key, (SYSTEM, {"role": "user", "content": text}), samples, first_sample)


def generator(url, store, identity="", known=(), **settings):
    """Give a client of a server."""
    recipe = SamplingRecipe(kind="openai", model="m", base_url=url, **settings)
    return OpenAiGenerator(recipe, store, ESCI, identity=identity, known=known)


def texts(completions):
    """Give the texts by key and sample, after checking that none came twice."""
    found = list(completions)
    by_place = {(c.key, c.sample): c.text for c in found}
    assert len(by_place) == len(found)
    return by_place


def asked(server, marker):
    """Give the requests whose last message holds a marker."""
    return [row for row in server.requests() if marker in row["asked"]["messages"][-1]["content"]]

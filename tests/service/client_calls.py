"""Calls of the Python client, made alike with the sync and the async one."""

from __future__ import annotations

import asyncio

from relevance_tiers_client import AsyncClient, Client

ITEMS = [{"id": number, "title": f"garden hose {number}"} for number in range(5)]


def ask(kind, url, call, **settings):
    """Make one call with a client of its own."""
    if kind == "sync":
        with Client(url, **settings) as client:
            return call(client)

    async def ask_async():
        async with AsyncClient(url, **settings) as client:
            return await call(client)

    return asyncio.run(ask_async())


def scoring(items=ITEMS, query="garden hose", **options):
    """Give a call of `score`."""
    return lambda client: client.score(query, items, **options)


def one_by_one(ask_either):
    """Give the setting by which the async client sends its requests in order."""
    return {"max_concurrency": 1} if ask_either.args == ("async",) else {}

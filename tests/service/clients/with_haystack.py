"""Haystack's ranker over text-embeddings-inference."""

from __future__ import annotations

import reported
from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

ranker = HuggingFaceTEIRanker(url=reported.URL, top_k=99, token=Secret.from_token(reported.KEY))
documents = [Document(content=text, meta={"place": place}) for place, text in enumerate(reported.DOCUMENTS)]
found = ranker.run(query=reported.QUERY, documents=documents)["documents"]
reported.ranking("every", [(row.meta["place"], row.score) for row in found])

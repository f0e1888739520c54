"""AnswerDotAI's rerankers, three of the providers it knows."""

from __future__ import annotations

import reported
from rerankers import Reranker

PATHS = {"cohere": "/v1/rerank", "jina": "/v1/rerank", "text-embeddings-inference": "/rerank"}

for provider, path in PATHS.items():
    ranker = Reranker(
        "any", model_type="APIRanker", api_provider=provider, api_key=reported.KEY, url=reported.URL + path
    )
    found = ranker.rank(reported.QUERY, reported.DOCUMENTS)
    reported.ranking(provider, [(row.document.doc_id, row.score) for row in found.results])

"""LangChain's compressor over Infinity's client."""

from __future__ import annotations

import reported
from infinity_client import Client
from langchain_community.document_compressors.infinity_rerank import InfinityRerank

with Client(base_url=reported.URL, headers={"Authorization": f"Bearer {reported.KEY}"}) as client:
    rerank = InfinityRerank(client=client, model="any")
    rows = rerank.rerank(reported.DOCUMENTS, reported.QUERY, top_n=None)
    reported.ranking("every", [(row["index"], row["relevance_score"]) for row in rows])

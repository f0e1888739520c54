"""LangChain's compressor over Cohere's client."""

from __future__ import annotations

import reported
from langchain_cohere import CohereRerank
from langchain_core.documents import Document

rerank = CohereRerank(model="any", cohere_api_key=reported.KEY, base_url=reported.URL, top_n=None)
rows = rerank.rerank(reported.DOCUMENTS, reported.QUERY)
reported.ranking("every", [(row["index"], row["relevance_score"]) for row in rows])

documents = [Document(text, metadata={"place": place}) for place, text in enumerate(reported.DOCUMENTS)]
best = CohereRerank(model="any", cohere_api_key=reported.KEY, base_url=reported.URL, top_n=2)
kept = best.compress_documents(documents, reported.QUERY)
reported.ranking("best two", [(d.metadata["place"], d.metadata["relevance_score"]) for d in kept])

"""Cohere's own client, second version of its API."""

from __future__ import annotations

import cohere
import reported

with cohere.ClientV2(api_key=reported.KEY, base_url=reported.URL) as client:
    every = client.rerank(model="any", query=reported.QUERY, documents=reported.DOCUMENTS)
    best = client.rerank(
        model="any", query=reported.QUERY, documents=reported.DOCUMENTS, top_n=2, max_tokens_per_doc=None
    )
    reported.ranking("every", [(row.index, row.relevance_score) for row in every.results])
    reported.ranking("best two", [(row.index, row.relevance_score) for row in best.results])

    if reported.BUSY_URL:
        try:
            client.rerank(model="any", query=reported.QUERY, documents=[])
        except cohere.BadRequestError as error:
            reported.refusal(error.body["message"])
        try:
            cohere.ClientV2(api_key="wrong-key-0123456789", base_url=reported.URL).rerank(
                model="any", query=reported.QUERY, documents=["a"]
            )
        except cohere.UnauthorizedError as error:
            reported.refusal(error.body["message"])
        try:
            cohere.ClientV2(api_key=reported.KEY, base_url=reported.BUSY_URL).rerank(
                model="any", query=reported.QUERY, documents=["a"], request_options={"max_retries": 0}
            )
        except cohere.TooManyRequestsError as error:
            reported.refusal(error.body["error_type"])

"""LiteLLM's proxy client, which takes us for a vLLM of somebody's own."""

from __future__ import annotations

import litellm
import reported

for name, top_n in (("every", len(reported.DOCUMENTS)), ("best two", 2)):
    found = litellm.rerank(
        model="hosted_vllm/any",
        query=reported.QUERY,
        documents=reported.DOCUMENTS,
        top_n=top_n,
        api_base=reported.URL,
        api_key=reported.KEY,
    )
    reported.ranking(name, [(row["index"], row["relevance_score"]) for row in found.results])

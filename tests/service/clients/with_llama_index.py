"""LlamaIndex's ranker over text-embeddings-inference, which sends its token as it is."""

from __future__ import annotations

import reported
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

ranker = TextEmbeddingInference(base_url=reported.URL, top_n=99, auth_token=reported.KEY)
nodes = [NodeWithScore(node=TextNode(text=text, id_=str(n)), score=0.0) for n, text in enumerate(reported.DOCUMENTS)]
rows = ranker.postprocess_nodes(nodes, query_str=reported.QUERY)
reported.ranking("every", [(int(row.node.node_id), row.score) for row in rows])

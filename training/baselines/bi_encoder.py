"""The zero-shot bi-encoder: cosine of the frozen sentence encoder that also embeds the rationales (`embed.model`).

The encoder is never trained. The only fitted part is the map from one cosine to class probabilities, a logistic
regression on dev, so that figures on dev itself are in-sample. Suffixes: N pairs, K classes, D width.
"""

from __future__ import annotations

import numpy as np

from training.baselines.score_map import Floats, fit_score_map, labelled_splits, map_scores
from training.recipe import Split
from training.runs import Run
from training.teacher.embed import SentenceEncoder, embed_texts
from training.teacher.embedding_cache import EmbeddingCache

_GROUP = 1024
"""Texts between two writes to the cache."""


def predict_all(run: Run) -> dict[Split, Floats]:
    """Give logits from the cosine of query and item; see `training.baselines.predict_baseline`.

    Raises: RunError: if the data stage has not finished; RecipeError: if the encoder cannot be loaded; InputError: if
        dev holds fewer than two classes.
    """
    recipe, template = run.recipe, run.recipe.template
    pairs = {split: rows for split, rows in labelled_splits(run).items() if split != "train"}
    texts = {
        split: [(template.query_text(p.pair.query.text), template.item_text(p.pair.item)) for p in rows]
        for split, rows in pairs.items()
    }
    distinct = list(dict.fromkeys(text for rows in texts.values() for both in rows for text in both))
    cache = EmbeddingCache((run.shared or run.path) / recipe.embed.cache)
    vector_ND, _ = embed_texts(distinct, SentenceEncoder(recipe.embed), cache, group_size=_GROUP)
    row_of = {text: row for row, text in enumerate(distinct)}
    cosines = {}
    for split, rows in texts.items():
        query_ND, item_ND = (vector_ND[[row_of[both[side]] for both in rows]] for side in (0, 1))
        cosines[split] = np.einsum("nd,nd->n", query_ND, item_ND, dtype=np.float64)[:, None]
    model = fit_score_map(cosines["dev"], pairs["dev"], recipe)
    return {split: map_scores(model, cosine_N1, recipe.label_scheme.n_classes) for split, cosine_N1 in cosines.items()}

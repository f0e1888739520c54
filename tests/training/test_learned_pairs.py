"""Which labelled pairs a student learns from."""

import pytest

from relevance.pairs import Item, LabelledPair, Pair, Query
from training.student.inputs import learned_pairs
from training.student_recipe import StudentRecipe

ROWS = [("q1", "clicks"), ("q2", "main"), ("q1", "main"), ("q3", "main"), ("q2", "main")]
"""Query and source of each pair; `clicks` holds only Exact pairs."""


@pytest.mark.parametrize(
    ("exact_only", "max_queries", "expected"),
    [(True, None, "01234"), (False, None, "1234"), (True, 2, "0124"), (False, 1, "14"), (False, 9, "1234")],
)
def test_sources_of_exact_pairs_go_before_queries_are_counted(exact_only: bool, max_queries: int | None, expected: str):
    """The order stays; a query whose pairs are all of such sources takes no place among the first."""
    labelled = [
        LabelledPair(Pair(Query(query, id=query), Item(f"item {i}", id=f"i{i}")), "E", source, source == "clicks")
        for i, (query, source) in enumerate(ROWS)
    ]

    kept = learned_pairs(labelled, StudentRecipe(exact_only=exact_only, max_queries=max_queries))

    assert kept == [labelled[int(i)] for i in expected]

"""Which differences a grid reports, before anything has run."""

from training.grid.comparisons import families
from training.grid.fits import read_grid
from training.recipe import load_recipe
from training.runs import Run


def test_controls_stand_against_no_guidance_at_their_own_rates_where_it_is_there(tmp_path):
    """λ = 0 with rates of its own would mix what guidance does with what twice the rate does."""
    names = ["lexical", "bert", "mkd", "lrkd_gat", "lrkd_no_guidance", "lrkd_no_guidance_same", "lrkd_constant"]
    recipe = load_recipe("esci-mini-cpu", [f"grid.systems={names}", "grid.rivals=['bert', 'mkd']"])
    found = families(read_grid(Run(recipe, tmp_path)), recipe)
    assert found["controls_unguided"] == [("lrkd_constant", "lrkd_no_guidance_same")]
    assert found["over_lexical"] == [(name, "lexical") for name in ("bert", "mkd", "lrkd_gat")]

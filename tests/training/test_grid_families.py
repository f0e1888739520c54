"""Which differences a grid reports, before anything has run."""

from training.grid import stage
from training.grid.comparisons import families
from training.grid.fits import read_grid
from training.grid.systems import SYSTEMS, overridden
from training.recipe import load_recipe
from training.runs import Run


def test_controls_stand_against_no_guidance_at_their_own_rates_where_it_is_there(tmp_path):
    """λ = 0 with rates of its own would mix what guidance does with what twice the rate does."""
    names = ["lexical", "bert", "mkd", "lrkd_gat", "lrkd_no_guidance", "lrkd_no_guidance_same", "lrkd_constant"]
    recipe = load_recipe("esci-mini-cpu", [f"grid.systems={names}", "grid.rivals=['bert', 'mkd']"])
    found = families(read_grid(Run(recipe, tmp_path)), recipe)
    assert found["controls_unguided"] == [("lrkd_constant", "lrkd_no_guidance_same")]
    assert found["over_lexical"] == [(name, "lexical") for name in ("bert", "mkd", "lrkd_gat")]


def test_no_guidance_at_the_rates_of_lrkd_borrows_its_rates_and_not_its_weight():
    """With the shipped ledger; a control borrows both, and every sweep keeps what it varies."""
    names = ("lrkd_gat", "lrkd_no_guidance_same", "lrkd_constant", "sweep_lambda_3", "label_kd_user")
    recipe = load_recipe("esci-mini-cpu")
    tuned = stage._tuned(recipe, [SYSTEMS[name] for name in names])
    made = {n: overridden(recipe, {**SYSTEMS[n].overrides, **tuned[n]}).student for n in names}

    assert len({student.fit.rate_factor for name, student in made.items() if name != "label_kd_user"}) == 1
    assert made["lrkd_no_guidance_same"].guidance_weight == 0
    assert made["lrkd_constant"].guidance_weight == made["lrkd_gat"].guidance_weight == 0.1
    assert made["sweep_lambda_3"].guidance_weight == 3
    assert made["label_kd_user"].fit.soft_label_weight == tuned["label_kd_user"]["student.fit.soft_label_weight"]

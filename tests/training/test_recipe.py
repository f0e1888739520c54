"""Recipes: complete, typed, and strict about what they do not know."""

import pytest

from relevance.errors import RecipeError
from training.recipe import RECIPES, load_recipe
from training.teacher.decoder import make_decoder, n_parameters, train_tokenizer


@pytest.mark.parametrize("name", sorted(p.stem for p in RECIPES.glob("*.toml")))
def test_every_shipped_recipe_loads(name):
    """A recipe in the package is valid and carries its file's name."""
    assert load_recipe(name).name == name


def test_the_small_teacher_has_the_size_that_a_cpu_trains():
    """1 to 2 million parameters, the embeddings of its whole vocabulary counted."""
    recipe = load_recipe("teacher-small").teacher.decoder
    tokenizer = train_tokenizer(["red lamp"], recipe)
    missing = recipe.vocabulary - len(tokenizer)
    parameters = n_parameters(make_decoder(recipe, tokenizer)) + missing * recipe.width

    assert missing >= 0
    assert 1_000_000 <= parameters <= 2_000_000


def test_an_unknown_key_is_an_error_that_names_it():
    """A misspelt key must not silently fall back to a default."""
    with pytest.raises(RecipeError, match=r"student\.learning_rat"):
        load_recipe("tiny", ["student.learning_rat=1e-3"])


def test_an_unknown_recipe_lists_the_known_ones():
    """The message helps the reader on."""
    with pytest.raises(RecipeError, match="tiny"):
        load_recipe("tinny")


def test_overrides_are_toml_values_or_plain_text():
    """Numbers, lists and booleans are parsed, `null` is the absence that TOML cannot write, everything else is text."""
    recipe = load_recipe("tiny", ["student.seeds=[1, 2]", "student.bf16=true", "data.path=elsewhere/pairs"])
    assert load_recipe("marketplace-cpu").grid.tuning is not None
    assert load_recipe("marketplace-cpu", ["grid.tuning=null"]).grid.tuning is None

    assert recipe.student.seeds == (1, 2)
    assert recipe.student.bf16 is True
    assert recipe.data.path == "elsewhere/pairs"


@pytest.mark.parametrize("override", ["student", "=3", "name.x=1"])
def test_an_override_that_is_not_key_value_is_refused(override):
    """Expected, found and where stand in the message."""
    with pytest.raises(RecipeError, match="--set"):
        load_recipe("tiny", [override])


def test_a_wrong_type_names_key_and_value():
    """`epochs` must be a number."""
    with pytest.raises(RecipeError, match=r"student\.fit\.epochs.*'many'"):
        load_recipe("tiny", ["student.fit.epochs=many"])


def test_token_limits_that_leave_no_room_for_an_item_are_refused():
    """A query of 64 tokens fills a pair of 64."""
    with pytest.raises(RecipeError, match="max_query_tokens < max_pair_tokens"):
        load_recipe("tiny", ["max_query_tokens=64"])

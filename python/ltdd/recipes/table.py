"""The methods that the command line knows."""

from __future__ import annotations

from ltdd.config.settings import close_match
from ltdd.errors import UserError
from ltdd.recipes.coresets import GRAPH_CUT, K_CENTER, RANDOM
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import RLDD

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (RLDD, RANDOM, K_CENTER, GRAPH_CUT)}
"""Name -> method."""


def find_recipe(name: str) -> Recipe:
    """Return a method by its name.

    Raises:
        UserError: there is none; the message names the closest.
    """
    if name in RECIPES:
        return RECIPES[name]
    raise UserError(
        f"--recipe: expected one of {', '.join(RECIPES)}, got {name!r}{close_match(name, RECIPES)}"
    )

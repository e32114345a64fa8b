"""The methods that the command line knows."""

from __future__ import annotations

from ltdd.config.settings import close_match
from ltdd.errors import UserError
from ltdd.recipes.coresets import GRAPH_CUT, K_CENTER, RANDOM
from ltdd.recipes.distribution_matching import CSDM, DM, IDM
from ltdd.recipes.edc import ADSA, EDC, G_VBSM
from ltdd.recipes.gradient_matching import DC, DREAM, DSA, IDC
from ltdd.recipes.rded import RDED
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import RLDD
from ltdd.recipes.sre2l import SRE2L
from ltdd.recipes.trajectories.damed import DAMED
from ltdd.recipes.trajectories.datm import DATM
from ltdd.recipes.trajectories.mtt import FTD, MTT, TESLA
from ltdd.recipes.unimix import UNIMIX

_CORESETS = (RANDOM, K_CENTER, GRAPH_CUT)
_ONE_LEVEL = (SRE2L, RDED, G_VBSM, EDC, ADSA, UNIMIX)
_MATCHING = (DC, DSA, IDC, DREAM, DM, IDM, CSDM)
_TRAJECTORIES = (MTT, TESLA, FTD, DATM, DAMED)
_ALL = (RLDD, *_CORESETS, *_ONE_LEVEL, *_MATCHING, *_TRAJECTORIES)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}
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

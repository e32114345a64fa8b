"""Methods and budgets as plain data: which stages with which settings. No import of torch.

A new method is a module with a `Recipe`, and a line in `RECIPES`.
"""

from ltdd.recipes.presets import PRESETS, configure
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.table import RECIPES, find_recipe

__all__ = ["PRESETS", "RECIPES", "Recipe", "configure", "find_recipe"]

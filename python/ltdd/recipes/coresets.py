"""Real images as the distilled set: drawn at random, or chosen by a trained network.

Students learn class labels. The long-tailed tables of the field have all three (arXiv:2408.14506).
"""

from __future__ import annotations

from ltdd.recipes.columns import DSA_STUDENT, HARD_LABELS, SHORTER, class_label_settings
from ltdd.recipes.recipe import Recipe


def _coreset(name: str, title: str, paper: str, method: str) -> Recipe:
    return Recipe(
        name=name,
        title=title,
        paper=paper,
        method={
            "initialization": {"method": method},
            "recovery": {"method": "none"},
            "relabeling": HARD_LABELS,
            "evaluation": DSA_STUDENT,
        },
        published=class_label_settings,
        budgets=SHORTER,
    )


RANDOM = _coreset("random", "random real images", "arXiv:2408.14506", "random_real")
K_CENTER = _coreset("k_center", "real images far from each other", "arXiv:1708.00489", "k_center")
GRAPH_CUT = _coreset(
    "graph_cut", "real images whose gradients stand for all", "arXiv:2204.08499", "graph_cut"
)

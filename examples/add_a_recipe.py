"""A method of your own, as data: python examples/add_a_recipe.py FOLDER.

A recipe says which form every stage has and with which settings; a preset fills in how much a run
may cost. This one takes the best crops of real images as they are, as RDED does with larger ones,
and labels them by a plainly trained teacher. Handwritten digits take half a minute on two cores.
"""

import sys
from pathlib import Path

import ltdd
from ltdd.recipes import Recipe, configure

BEST_CROPS = Recipe(
    name="best-crops",
    title="best crops of real images, labelled by a plain teacher",
    paper="after arXiv:2312.03526",
    method={
        "experts": {"loss": "ce"},  # teachers see no mixed images
        "initialization": {"method": "scored_crops"},
        "recovery": {"method": "none"},  # the crops are the images
        "relabeling": {"labels": "fkd"},  # soft labels of every augmented view
    },
)


def main(folder: Path) -> None:
    """Distil long-tailed digits by the recipe and print the accuracy of the students."""
    config = configure(
        BEST_CROPS,
        "demo",
        data="digits",
        imbalance_factor=20.0,
        experts={"epochs": 20},
        evaluation={"seeds": 1, "baselines": []},
    )
    results = ltdd.distill(config, folder)
    for who in ("student", "teacher"):
        print(f"{who}: {100 * results[who]['accuracy']['mean']:.1f} %")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

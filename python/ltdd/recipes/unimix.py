"""UniMix experts (arXiv:2111.03874) in RLDD's pipeline.

UniMix trains classifiers for long-tailed data and distils nothing. Here it stands in for the
debiased experts of RLDD, and all else is RLDD's, architectures too: a difference between the two
rows is one of the experts.

Sources: "code" is the authors' code for CIFAR-10 and -100.
"""

from __future__ import annotations

from typing import Any

from ltdd.config import override
from ltdd.recipes.recipe import Recipe
from ltdd.recipes.rldd import RLDD

_EXPERTS = {
    "loss": "unimix",
    "epochs": 200,  # code
    "batch_size": 64,  # code
    "learning_rate": 0.1,  # code
    "momentum": 0.9,  # code
    "weight_decay": 2e-4,  # code
}


def _published(data: str, image_size: int | None, ipc: int) -> dict[str, Any]:
    return override(RLDD.published_settings(data, image_size, ipc), {"experts": _EXPERTS})


UNIMIX = Recipe(
    name="unimix",
    title="RLDD with experts that mix towards the tail in place of its own",
    paper="arXiv:2111.03874",
    method={"experts": {"loss": "unimix"}},
    published=_published,
    choice=RLDD.choice,
)

"""Choose values of a recipe's `demo` budget without a look at test images.

    python -m benchmarks.choose_budgets dsa recovery.image_learning_rate=0.1,0.3,1
    python -m benchmarks.choose_budgets datm recovery.trajectory_epochs=24,48 recovery.steps=10,20

Of the training images of digits, 30 a class are held out, the rest is cut to imbalance factor 50.
For every combination of values the recipe distils that, and its own students are tested on the
images held out: the mean of three with its standard deviation, and seconds of recovery. All share
one store, so experts are trained once.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ltdd.config import override
from ltdd.data.long_tailed_data import LongTailedData, from_tensors, load_data
from ltdd.engine.run_options import RunOptions
from ltdd.pipeline import distill
from ltdd.recipes import configure, find_recipe

HELD_OUT, IMBALANCE, IPC = 30, 50, 10


def held_out() -> LongTailedData:
    """Return digits whose test part are training images that nothing is trained on."""
    whole = load_data("digits")
    generator = torch.Generator().manual_seed(0)
    kept, tested = [], []
    for label in range(whole.num_classes):
        members = whole.members(label)
        members = members[torch.randperm(len(members), generator=generator)]
        tested.append(members[:HELD_OUT])
        kept.append(members[HELD_OUT:])
    images, labels = whole.train_images, whole.train_labels
    train, test = torch.cat(kept), torch.cat(tested)
    parts = images[train], labels[train], images[test], labels[test]
    return from_tensors(*parts, whole.class_names, imbalance_factor=IMBALANCE)


def combinations(words: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the field -> value of every combination of ``FIELD=VALUE,VALUE`` words."""
    fields = [word.partition("=") for word in words]
    for values in itertools.product(*(json.loads(f"[{values}]") for _, _, values in fields)):
        yield {field: value for (field, _, _), value in zip(fields, values, strict=True)}


def nested(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides that dotted fields stand for."""
    changes: dict[str, Any] = {}
    for field, value in chosen.items():
        stage, _, name = field.partition(".")
        changes = override(changes, {stage: changes.get(stage, {}) | {name: value}})
    return changes


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe")
    parser.add_argument("fields", nargs="*", metavar="STAGE.FIELD=VALUE,...")
    parser.add_argument("--store", type=Path, help="of stage results; a new one if left out")
    given = parser.parse_args()
    data, recipe = held_out(), find_recipe(given.recipe)
    with tempfile.TemporaryDirectory() as folder:
        store = given.store or Path(folder, "store")
        for number, chosen in enumerate(combinations(given.fields)):
            changes = nested(chosen) | {"data": "digits", "ipc": IPC}
            config = configure(recipe, "demo", **changes)
            options = RunOptions(quiet=True, store=store)
            results = distill(config, Path(folder, str(number)), data=data, options=options)
            accuracy = results["student"]["accuracy"]
            costs = (results["stages"].get(name) for name in ("trajectories", "recovery"))
            seconds = sum(cost["seconds"] for cost in costs if cost is not None)
            said = ", ".join(f"{field} {value}" for field, value in chosen.items())
            print(
                f"{recipe.name} {said}: {100 * accuracy['mean']:.1f} +- "
                f"{100 * accuracy['std']:.1f} in {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()

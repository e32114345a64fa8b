"""The loop in which matched images learn: networks come, all classes take a step, it is watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from ltdd.engine.finite import check_finite
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime


class Matching(Protocol):
    """What images are matched by.

    Attributes:
        rounds: how many there are; each may begin with other networks.
        steps: of a round.
        logged: steps of a round that have an event; the last one has one too.
        compared: what the distance is between, for messages.
        seen: images of a step.
        parts: what the steps of a round change, by name.
    """

    rounds: int
    steps: int
    logged: range
    compared: str
    seen: int
    parts: Mapping[str, Any]

    def renew(self, number: int) -> None:
        """Make the parts of a round anew."""

    def begin(self) -> None:
        """Begin a round that no stopped process was in."""

    def advance(self, number: int, step: int) -> Tensor:
        """Take a step of all classes, and let the networks take theirs.

        Args:
            number: of the round, from 0.
            step: of the round, from 0.

        Returns:
            float64 (2,) on the CPU: distance and cross-entropy, each a mean over classes.
        """


def match(matching: Matching, runtime: Runtime) -> None:
    """Take all steps, from where a stopped process was.

    Raises:
        UserError: a cross-entropy or a distance became NaN or infinite.
    """
    course, steps = Resumable(runtime), matching.steps
    done = course.first * steps + course.step
    with runtime.progress(matching.rounds * steps, "recovery", done) as progress:
        for epoch in course.epochs(matching.rounds):
            matching.renew(epoch.number)
            resumed = epoch.number == course.first
            if resumed:
                course.restore(matching.parts)
            if not (resumed and course.step):
                matching.begin()
            for count, step in epoch.steps(range(steps), matching.parts):
                distance, entropy = matching.advance(epoch.number, step)
                place = epoch.number * steps + step
                entropy = check_finite(entropy, "recovery", place, "cross-entropy")
                what = f"distance of {matching.compared}"
                distance = check_finite(distance, "recovery", place, what)
                if step in matching.logged or count == steps:
                    runtime.log.write(
                        "recover",
                        iteration=place,
                        batch=0,
                        loss=distance,
                        cross_entropy=entropy,
                    )
                progress.step(f"distance {distance:.3f}", matching.seen)

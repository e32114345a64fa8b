"""Optimise images, labels and a learning rate until students walk where experts walked.

MTT (arXiv:2203.11932) matches the path of one expert a time. DATM (arXiv:2310.05773) learns the
images' logits too, and matches later parts of the paths as it goes. DAMED matches twice in every
iteration: the backbone of a student whose loss has the class weights n_k / N, as if it learned from
the long-tailed set, and the classifier of one that learns on the last backbone from a balanced
order.

Deviation: nothing is whitened, so that images are pixels; those out of range are clipped in the
end, and what rounding and clipping cost is measured. A learning rate stays within [1e-5, 1], and a
step that ends in no number is taken back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ltdd.config import TrajectoryRecovery
from ltdd.data.augmentation.dsa import DsaDraw, apply_dsa, draw_dsa, usable_operations
from ltdd.data.image_spec import ImageSpec, to_uint8
from ltdd.engine.resumable import Resumable
from ltdd.engine.runtime import Runtime
from ltdd.errors import UserError
from ltdd.models.flat_network import FlatNetwork
from ltdd.stages.recovery.learned_set import LearnedSet, start_logits
from ltdd.stages.recovery.unrolled import Loss, Step, Stretch, Synthetic, Unrolled
from ltdd.stages.run import InitialImages
from ltdd.stages.trajectories import Trajectories, Trajectory

LOG_EVERY = 10  # iterations between two events
PROBES = 4  # students that measure a set, the same ones before and after
MOST_RESTARTS = 10  # in a row


def match_trajectories(
    start: InitialImages,
    experts: Trajectories,
    counts: Sequence[int],
    spec: ImageSpec,
    config: TrajectoryRecovery,
    runtime: Runtime,
) -> dict[str, Tensor]:
    """Return what was learned.

    Args:
        start: the images to begin with.
        experts: their paths.
        counts: real training images of every class.
        spec: form of the images.
        config: schedule and weights.
        runtime: device, seed. Networks compute in float32 whatever its precision.

    Returns:
        ``images`` float32 (M, C, H, W) in [0, 1]; ``logits`` (M, K) if they are learned;
        ``learning_rate``, a scalar; ``matching_loss`` float64 (3,), of the same students on the
        first set, on the last one, and on the last one as it is published; ``clipped``, the share
        of pixels that were out of range by more than rounding takes away.

    Raises:
        UserError: the loss is no number, again and again.
    """
    device = runtime.device
    learned = LearnedSet(_first_set(start, experts, spec, config, device), config)
    phases = _phases(experts, counts, config, runtime)
    stock = _Stock(experts.paths, len(start.labels), spec, config, runtime)
    before = stock.probe(phases, learned.shown)
    course = Resumable(runtime)
    course.restore({"learned": learned})
    began, first = time.monotonic(), course.step
    with runtime.progress(config.iterations, "recovery", first) as progress:
        for epoch in course.epochs(1):
            for step, _ in epoch.steps(range(config.iterations), {"learned": learned}):
                losses, by = stock.gradients(phases, learned.shown, step - 1)
                loss = torch.stack(list(losses.values())).sum()
                moved = learned.update(loss, by)
                if learned.restarts:
                    _say_restart(learned.restarts, step - 1, runtime)
                elif step % LOG_EVERY == 1 or step == config.iterations:
                    parts = {name: float(value) for name, value in losses.items()}
                    runtime.log.write(
                        "recover",
                        iteration=step - 1,
                        batch=0,
                        loss=float(loss),
                        rate=float(learned.shown.rate),
                        skipped=not moved,
                        **(parts if len(parts) > 1 else {}),
                    )
                progress.step(f"loss {float(loss):.3f}", len(start.labels))
    seconds = (time.monotonic() - began) / max(config.iterations - first, 1)
    last = learned.shown
    images = _images(last.images, spec)
    published = _normalized(to_uint8(images) / 255, spec, device)
    after = stock.probe(phases, last)
    rounded = stock.probe(phases, last._replace(images=published))
    clipped = ((images - images.clamp(0, 1)).abs() > 0.5 / 255).double().mean()
    views = sum(phase.steps * stock.batch for phase in phases)
    runtime.tell(
        "matched",
        f"recovery: matching loss {before:.4f} before, {after:.4f} after, "
        f"{rounded:.4f} as pixels of 8 bits, {100 * float(clipped):.1f} % of them clipped; "
        f"{seconds:.3g} s an iteration of {views} images",
        before=before,
        after=after,
        published=rounded,
        clipped=float(clipped),
        seconds_per_iteration=seconds,
        images_per_iteration=views,
    )
    return {
        "images": images.clamp(0, 1),
        "learning_rate": last.rate,
        "matching_loss": torch.tensor([before, after, rounded], dtype=torch.float64),
        "clipped": clipped,
    } | ({"logits": last.labels} if config.learned_labels else {})


def _say_restart(restarts: int, iteration: int, runtime: Runtime) -> None:
    """Log that a step was taken back.

    Raises:
        UserError: so were many before it.
    """
    runtime.log.write("restart", stage="recovery", iteration=iteration, restarts=restarts)
    if restarts == MOST_RESTARTS:
        raise UserError(
            f"recovery: expected a finite loss at step {iteration}, got none in {restarts} steps "
            "one after another; lower recovery.image_learning_rate or label_learning_rate"
        )


def window(config: TrajectoryRecovery, iteration: int) -> range:
    """Return the epochs from which students may start.

    ``U = min(max, cur + int((max - cur) * iteration / E_c))`` ends it (DATM).
    """
    end = config.start_max
    if config.curriculum_from is not None:
        grown = (end - config.curriculum_from) * iteration / config.curriculum_iterations
        end = min(end, config.curriculum_from + int(grown))
    return range(config.start_min, end)


def student_loss(network: FlatNetwork, soft: bool, weights: Tensor | None = None) -> Loss:
    """Return ``-(1/B) sum_i sum_k w_k p_ik log softmax(f(x_i))_k``.

    Args:
        network: f, as a function of its parameters.
        soft: whether labels are logits, of which p is the softmax, or p itself.
        weights: w (K,); None for ones.
    """

    def loss(
        frozen: Tensor, theta: Tensor, images: Tensor, labels: Tensor, draw: DsaDraw
    ) -> Tensor:
        shares = labels.softmax(1) if soft else labels
        if weights is not None:
            shares = weights * shares
        logits = network(theta, apply_dsa(images, draw), frozen)
        return -(shares * F.log_softmax(logits, 1)).sum(1).mean()

    return loss


def class_weights(counts: Sequence[int]) -> Tensor:
    """Return ``w_k = n_k / N`` (DAMED), float32 (K,)."""
    sizes = torch.tensor(counts, dtype=torch.float64)
    return (sizes / sizes.sum()).float()


class Phase(NamedTuple):
    """One of the matchings of an iteration.

    Attributes:
        name: names the random streams and the events.
        weight: of its gradients.
        steps: T.
        students: how they learn.
        stretch: which part of a path they shall walk, given an epoch to start from.
    """

    name: str
    weight: float
    steps: int
    students: Unrolled
    stretch: Callable[[Trajectory, int], Stretch]


def _phases(
    experts: Trajectories,
    counts: Sequence[int],
    config: TrajectoryRecovery,
    runtime: Runtime,
) -> list[Phase]:
    network, soft = experts.network, config.learned_labels
    exact, ahead, device = config.unroll == "exact", config.expert_epochs, runtime.device
    nothing = torch.empty(0, device=device)

    def students(weights: Tensor | None) -> Unrolled:
        loss = student_loss(network, soft, None if weights is None else weights.to(device))
        return Unrolled(loss, network.network, runtime, exact)

    def whole(matched: int) -> Callable[[Trajectory, int], Stretch]:
        def stretch(path: Trajectory, epoch: int) -> Stretch:
            start, target = (path.snapshots[place].to(device) for place in (epoch, epoch + ahead))
            return Stretch(nothing, start, target, matched)

        return stretch

    def classifier(path: Trajectory, epoch: int) -> Stretch:
        assert path.classifier_snapshots is not None
        frozen = path.last[: network.classifier].to(device)
        start, target = (path.classifier_snapshots[place].to(device) for place in (0, ahead))
        return Stretch(frozen, start, target, len(start))

    if config.phases == "one":
        return [Phase("path", 1.0, config.steps, students(None), whole(network.size))]
    weighted = students(class_weights(counts))
    return [
        Phase(
            "backbone", config.backbone_weight, config.steps, weighted, whole(network.classifier)
        ),
        Phase(
            "classifier",
            config.classifier_weight,
            config.classifier_steps,
            students(None),
            classifier,
        ),
    ]


def _first_set(
    start: InitialImages,
    experts: Trajectories,
    spec: ImageSpec,
    config: TrajectoryRecovery,
    device: torch.device,
) -> Synthetic:
    images, classes = _normalized(start.images, spec, device), start.labels.to(device)
    labels = F.one_hot(classes, spec.num_classes).float()
    if config.learned_labels:
        finals = (path.value.expert for path in experts.paths)
        labels = start_logits(experts.network, finals, images, classes)
    return Synthetic(images, labels, torch.tensor(config.student_learning_rate, device=device))


def _normalized(images: Tensor, spec: ImageSpec, device: torch.device) -> Tensor:
    """Return images in [0, 1] as networks see them."""
    mean, std = (v.view(-1, 1, 1) for v in spec.normalization.tensors(device))
    return (images.to(device) - mean) / std


def _images(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """Return images from what networks see, float32 around [0, 1], on the CPU."""
    mean, std = (v.view(-1, 1, 1) for v in spec.normalization.tensors())
    return pixels.cpu() * std + mean


class _Stock:
    """Draws students: their expert, its epoch, batches and augmentations.

    Attributes:
        batch: images per step.
    """

    def __init__(
        self,
        paths: Sequence[Any],
        count: int,
        spec: ImageSpec,
        config: TrajectoryRecovery,
        runtime: Runtime,
    ) -> None:
        self.batch = min(config.synthetic_batch or count, count)
        self._paths, self._count, self._size = paths, count, spec.size
        self._config, self._runtime = config, runtime
        self._strategy = usable_operations(config.dsa_operations, spec.flip)

    def gradients(
        self, phases: Sequence[Phase], shown: Synthetic, iteration: int
    ) -> tuple[dict[str, Tensor], Synthetic]:
        """Return the weighted losses by phase, and the sum of their gradients."""
        losses: dict[str, Tensor] = {}
        total = Synthetic(*(torch.zeros_like(part) for part in shown))
        for phase in phases:
            stretch, steps = self._draw(phase, window(self._config, iteration), iteration)
            loss, by = phase.students.gradients(stretch, shown, steps)
            losses[phase.name] = phase.weight * loss.cpu()
            for sum_, part in zip(total, by, strict=True):
                sum_.add_(part, alpha=phase.weight)
        return losses, total

    def probe(self, phases: Sequence[Phase], shown: Synthetic) -> float:
        """Return the mean loss of a few students, the same ones for every set."""
        losses = []
        for number in range(PROBES):
            for phase in phases:
                starts = range(self._config.start_min, self._config.start_max)
                drawn = self._draw(phase, starts, f"probe {number}")
                loss = phase.students.distance(drawn[0], shown, drawn[1])
                losses.append(phase.weight * loss.double())
        return float(torch.stack(losses).sum() / PROBES)

    def _draw(self, phase: Phase, starts: range, who: int | str) -> tuple[Stretch, list[Step]]:
        generator = self._runtime.stream("recovery", phase.name, who)

        def any_of(items: Sequence[Any]) -> Any:
            return items[int(torch.randint(len(items), (), generator=generator))]

        path, epoch = any_of(self._paths).value, any_of(starts)
        rows = self._rows(generator)
        steps = []
        for _ in range(phase.steps):
            picked = next(rows)
            draw = draw_dsa(len(picked), self._size, self._strategy, "single", generator)
            steps.append(Step(picked.to(self._runtime.device), draw))
        return phase.stretch(path, epoch), steps

    def _rows(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield batches: the set in a random order, drawn anew once it is used up."""
        while True:
            yield from torch.randperm(self._count, generator=generator).split(self.batch)

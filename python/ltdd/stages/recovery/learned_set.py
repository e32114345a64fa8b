"""A synthetic set whose images, logits and learning rate are learned together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ltdd.config import TrajectoryRecovery
from ltdd.engine.finite import is_finite
from ltdd.models.flat_network import FlatNetwork
from ltdd.stages.recovery.unrolled import Synthetic

# As MTT and DATM have them.
IMAGE_MOMENTUM, LABEL_MOMENTUM, RATE_MOMENTUM = 0.5, 0.9, 0.5
RATES = (1e-5, 1.0)  # a learned rate would otherwise turn negative or explode
SURE = 2.0  # logit of the class of an image that no expert gets right


@torch.no_grad()
def start_logits(
    network: FlatNetwork, experts: Iterable[Tensor], images: Tensor, labels: Tensor
) -> Tensor:
    """Return the mean logits of the experts that get an image right (DATM).

    Deviation: an image that none gets right has the logit 2 for its class and 0 for the others,
    where the published code looks for another image for ever.

    Args:
        network: form of the experts.
        experts: parameters (P,) of each.
        images: (M, C, H, W), normalised.
        labels: int64 (M,).

    Returns:
        float32 (M, K).
    """
    labels, classes = labels.to(images.device), 0
    total, right = torch.zeros((), device=images.device), torch.zeros(len(labels), 1).to(images)
    for theta in experts:
        logits = network(theta.to(images.device), images)
        good = (logits.argmax(1) == labels)[:, None]
        total, right, classes = total + good * logits, right + good, logits.shape[1]
    sure = SURE * torch.nn.functional.one_hot(labels, classes)
    return torch.where(right > 0, total / right.clamp(min=1), sure)


class LearnedSet:
    """Images, labels and learning rate, and their SGD.

    Args:
        start: images, labels and learning rate to begin with.
        config: learning rates and threshold.

    Attributes:
        shown: what students learn from; updates change it.
        restarts: steps that were taken back one after another.
    """

    def __init__(self, start: Synthetic, config: TrajectoryRecovery) -> None:
        self.shown, self._good = _copied(start), _copied(start)
        self.restarts, self._threshold = 0, config.threshold
        groups = [
            (self.shown.images, config.image_learning_rate, IMAGE_MOMENTUM),
            (self.shown.rate, config.rate_learning_rate, RATE_MOMENTUM),
        ]
        if config.learned_labels:
            groups.append((self.shown.labels, config.label_learning_rate, LABEL_MOMENTUM))
        self._optimizer = torch.optim.SGD(
            [{"params": [own], "lr": rate, "momentum": kept} for own, rate, kept in groups]
        )

    def update(self, loss: Tensor, by: Synthetic) -> bool:
        """Take a step, unless the loss is above the threshold or something is no number.

        Then the set becomes what it was when the loss was last a number, and the momentum is
        forgotten.

        Args:
            loss: scalar, of the set as it is.
            by: its gradients.

        Returns:
            Whether anything has moved.
        """
        if not all(map(is_finite, (loss, *by))):
            self._restart()
            return False
        self._good = _copied(self.shown)
        if self._threshold is not None and float(loss) > self._threshold:
            self.restarts = 0
            return False
        for own, gradient in zip(self.shown, by, strict=True):
            own.grad = gradient
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.shown.rate.clamp_(*RATES)
        if not all(map(is_finite, self.shown)):
            self._restart()
            return False
        self.restarts = 0
        return True

    def _restart(self) -> None:
        self._set(self._good)
        self._optimizer.state.clear()
        self.restarts += 1

    def _set(self, values: Synthetic) -> None:
        for own, value in zip(self.shown, values, strict=True):
            own.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "now": self.shown,
            "good": self._good,
            "optimizer": self._optimizer.state_dict(),
            "restarts": self.restarts,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` returned."""
        self._set(state["now"])
        self._good = Synthetic(*(part.to(self.shown.images.device) for part in state["good"]))
        self._optimizer.load_state_dict(state["optimizer"])
        self.restarts = state["restarts"]


def _copied(parts: Synthetic) -> Synthetic:
    return Synthetic(*(part.clone() for part in parts))

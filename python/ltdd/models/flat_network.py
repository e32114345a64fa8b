"""A network as a function of one vector that holds all its parameters, as trajectories need it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ltdd.errors import UserError
from ltdd.models.network import Network


class FlatNetwork:
    """Gives logits for parameters that come as one vector, the classifier's last.

    Args:
        network: its own parameters are not used.
        name: what to call it in messages.

    Attributes:
        network: the network.
        size: P, number of parameters.
        classifier: where the classifier begins in the vector.

    Raises:
        UserError: the network has batch norms, whose running statistics are no parameters.

    Example:
        >>> from ltdd.models import build_model
        >>> flat = FlatNetwork(build_model("convnet3", 10, 32, 3), "convnet3")
        >>> flat.size, flat.size - flat.classifier
        (320010, 20490)
    """

    def __init__(self, network: Network, name: str) -> None:
        if any(True for _ in network.buffers()):
            raise UserError(
                "expected a network without batch norm, whose running statistics are no "
                f"parameters, got {name}"
            )
        named = dict(network.named_parameters())
        head = [key for key in named if key.startswith("classifier.")]
        self._names = [key for key in named if key not in head] + head
        self._shapes = [named[key].shape for key in self._names]
        self._sizes = [shape.numel() for shape in self._shapes]
        self.network = network
        self.size = sum(self._sizes)
        self.classifier = self.size - sum(named[key].numel() for key in head)

    def vector(self) -> Tensor:
        """Return the network's own parameters, (P,)."""
        named = dict(self.network.named_parameters())
        return torch.cat([named[key].detach().flatten() for key in self._names])

    def __call__(self, theta: Tensor, images: Tensor, frozen: Tensor | None = None) -> Tensor:
        """Return the logits of images.

        Args:
            theta: parameters, (P,) or what ``frozen`` leaves of them.
            images: (N, C, H, W).
            frozen: whole parameters in front of ``theta``, apart from it so that a gradient by
                ``theta`` costs nothing for them.

        Returns:
            (N, K).
        """
        first = 0 if frozen is None else self._whole(len(frozen))
        parts = [] if frozen is None or not first else [*frozen.split(self._sizes[:first])]
        parts += theta.split(self._sizes[first:])
        named = zip(self._names, parts, self._shapes, strict=True)
        parameters = {name: part.view(shape) for name, part, shape in named}
        logits: Tensor = functional_call(self.network, parameters, (images,))
        return logits

    def _whole(self, length: int) -> int:
        """Return how many parameters the first values of a vector are."""
        return list(itertools.accumulate(self._sizes, initial=0)).index(length)

    def with_parameters(self, theta: Tensor) -> nn.Module:
        """Return the network with these parameters, in evaluation mode; it is the same object."""
        state = zip(self._names, theta.split(self._sizes), self._shapes, strict=True)
        self.network.load_state_dict({name: part.view(shape) for name, part, shape in state})
        return self.network.eval().requires_grad_(False)

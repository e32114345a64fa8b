"""The one shape every network of the package has: a body, flattened features, one linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A feature extractor followed by a linear classifier.

    Experts attach further heads to `features`; evaluation uses `forward`.

    Args:
        body: Module that maps images (N, C, H, W) to maps whose flattened size is `feature_dim`.
        feature_dim: Number of features per image after flattening.
        num_classes: Number of classes K.
        head: Name of the classifier in the network this one was made from; checkpoints of that
            network are told by it.

    Example:
        >>> from ltdd.models import build_model
        >>> net = build_model("convnet3", num_classes=10, image_size=32, channels=3)
        >>> net.features(torch.zeros(2, 3, 32, 32)).shape, net.feature_dim
        (torch.Size([2, 2048]), 2048)
    """

    def __init__(
        self, body: nn.Module, feature_dim: int, num_classes: int, head: str = "classifier"
    ) -> None:
        super().__init__()
        self.body = body
        self.head = head
        self.feature_dim = feature_dim
        self.classifier = nn.Linear(feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return the flattened features (N, feature_dim) of images (N, C, H, W)."""
        # Flattening is by logical index, so channels_last activations give the same features.
        return torch.flatten(self.body(images), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return class logits (N, K) of images (N, C, H, W)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits

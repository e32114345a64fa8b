"""The inputs of the batch-norm layers that recovery and calibration meet, (N, C, H, W)."""

from __future__ import annotations

Shape = tuple[int, int, int, int]

NETWORKS: dict[str, list[Shape]] = {
    "ConvNet-3, 32 px": [(100, 128, 32, 32), (100, 128, 16, 16), (100, 128, 8, 8)],
    "ConvNet-4, 64 px": [(50, 128, 64, 64)],
    "ResNet-18, 32 px": [(50, 64, 32, 32), (50, 128, 16, 16), (50, 256, 8, 8), (50, 512, 4, 4)],
    "ResNet-32, 32 px": [(100, 16, 32, 32), (100, 32, 16, 16), (100, 64, 8, 8)],
    "ResNet-50, 224 px": [
        (20, 64, 112, 112),
        (20, 64, 56, 56),
        (20, 256, 56, 56),
        (20, 128, 28, 28),
        (20, 512, 28, 28),
        (20, 256, 14, 14),
        (20, 1024, 14, 14),
        (20, 512, 7, 7),
        (20, 2048, 7, 7),
    ],
}

TRAINED = NETWORKS["ConvNet-3, 32 px"]  # the first of its convolutions sees three channels

EVERY: list[Shape] = [shape for shapes in NETWORKS.values() for shape in shapes]

# Large, middle and small maps: enough to see where each form is good, in minutes.
SELECTED: list[Shape] = [
    (100, 128, 32, 32),
    (100, 128, 8, 8),
    (50, 512, 4, 4),
    (20, 64, 56, 56),
    (20, 2048, 7, 7),
]

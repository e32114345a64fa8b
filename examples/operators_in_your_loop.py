"""Use the operators in a loop of your own: noise gets the statistics that images of its class have.

python examples/operators_in_your_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import ltdd_ext

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float()[:, None] / 16
classes = torch.from_numpy(digits.target).long()

network = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AvgPool2d(2),
    nn.Flatten(), nn.Linear(64 * 2 * 2, 10),
)  # fmt: skip
trainer = torch.optim.AdamW(network.parameters(), lr=3e-3)
for _ in range(300):
    batch = torch.randint(len(images), (64,))
    nn.functional.cross_entropy(network(images[batch]), classes[batch]).backward()
    trainer.step()
    trainer.zero_grad()

# What every class looks like to every batch norm: one pass over the data, in batches.
observed = ltdd_ext.nn.convert_observer(network)
states = [ltdd_ext.ClassMoments.zeros(10, channels) for channels in (32, 64)]
for batch in torch.arange(len(images)).split(256):
    for state, layer in zip(states, observed(images[batch])[1], strict=True):
        state.update_(layer.mean, layer.m2, layer.spatial_size, classes[batch])
targets = [state.finish() for state in states]
everything = [(t.mean.mean(0), t.total.mean(0) + t.mean.var(0, correction=0)) for t in targets]

# Ten images per class, optimised until their statistics match.
labels = torch.arange(100) % 10
noise = torch.rand(100, 1, 8, 8, requires_grad=True)
optimizer = torch.optim.Adam([noise], lr=0.05)
for step in range(201):
    logits, layers = observed(noise)
    loss = ltdd_ext.align_loss(
        [layer.mean for layer in layers], [layer.m2 for layer in layers],
        [layer.spatial_size for layer in layers], labels,
        [mean for mean, _ in everything], [var for _, var in everything],
        [t.mean for t in targets], [t.total for t in targets], class_weight=1.0,
    )  # fmt: skip
    if step % 100 == 0:
        right = (logits.argmax(1) == labels).double().mean()
        print(f"step {step}: alignment loss {loss.item():.3f}, {100 * right:.0f} % of their class")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

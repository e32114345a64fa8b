"""The optimizer of a student and its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

from ltdd.config import EvaluationConfig
from ltdd.engine.cuda_graphs import adjustable_rate
from ltdd.models.muon import Muon


def learning_rate_factor(epoch: int, config: EvaluationConfig) -> float:
    """Return the learning rate of an epoch relative to the initial one."""
    done = epoch / config.epochs
    if config.schedule == "step":
        return 0.5 ** sum(done >= milestone for milestone in (0.8, 0.9, 0.95))
    if config.schedule == "cos2" and done >= 5 / 6:
        # As published: it jumps from 0.63 to 0.105 and then falls along a line.
        return 0.5 * (1 + math.cos(math.pi * 5 / 12)) * (1 - done)
    if config.schedule == "halfway":
        return 0.1 if epoch > config.epochs // 2 else 1.0
    if config.schedule == "idc":
        return 0.2 ** sum(epoch >= sixths * config.epochs // 6 for sixths in (4, 5))
    zeta = 1 if config.schedule == "cosine" else 2
    return 0.5 * (1 + math.cos(math.pi * done / zeta))


def build_optimizer(
    model: nn.Module, config: EvaluationConfig, device: torch.device
) -> torch.optim.Optimizer:
    """Return the optimizer of a student; vectors have no weight decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    assert config.learning_rate is not None  # the learned one is in its place by now
    rate, on_gpu = adjustable_rate(config.learning_rate, device), device.type == "cuda"
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=config.momentum, fused=on_gpu)
    if config.optimizer == "muon":
        return Muon(groups, rate)
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=on_gpu)

"""Find, in a traced network, what follows each batch norm and can be computed together with it.

Only what the graph proves is fused: a value that somebody else reads stays as it is.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .bn_act_moments import FrozenPool

_ADD_FUNCTIONS: frozenset[Any] = frozenset({operator.add, operator.iadd, torch.add})
_RELU_FUNCTIONS: frozenset[Any] = frozenset({torch.relu, torch.relu_, F.relu, F.relu_})


@dataclass(frozen=True)
class Fusion:
    """One batch norm with the operations that one fused operator replaces.

    Attributes:
        chain: Nodes from the batch norm to the last operation fused; each but the last is read by
            the next one only.
        residual: Node added before the activation, if any.
        relu: Whether a ReLU is in the chain.
        pool: Which pool is: of 2x2 averages, or of 3x3 maxima as stems of networks have it.
    """

    chain: tuple[fx.Node, ...]
    residual: fx.Node | None = None
    relu: bool = False
    pool: FrozenPool = "none"


def find_fusion(norm: fx.Node, modules: dict[str, nn.Module]) -> Fusion:
    """Return the longest chain from a batch norm on that the graph proves."""
    chain, residual, relu = [norm], None, False
    pool: FrozenPool = "none"
    after = _only_reader(norm)
    if after is not None and (other := _other_addend(after, norm)) is not None:
        # Computed where the sum is: nothing else may read, hence overwrite, x up to there.
        source = norm.args[0]
        if isinstance(source, fx.Node) and len(source.users) == 1:
            chain.append(after)
            residual = other
            after = _only_reader(after)
    if after is not None and _is_relu(after, modules):
        chain.append(after)
        relu = True
        after = _only_reader(after)
        pool = "none" if after is None else _pool_of(after, modules)
        if after is not None and pool != "none":
            chain.append(after)
    return Fusion(tuple(chain), residual, relu, pool)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other_addend(node: fx.Node, value: fx.Node) -> fx.Node | None:
    """Return what a sum adds to ``value``, or None if it is no plain sum of two tensors."""
    function = node.op == "call_function" and node.target in _ADD_FUNCTIONS
    method = node.op == "call_method" and node.target in ("add", "add_")
    if not (function or method) or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    other = second if first is value else first
    return other if isinstance(other, fx.Node) and other is not value else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return type(modules.get(str(node.target))) is nn.ReLU
    if node.op == "call_function":
        return node.target in _RELU_FUNCTIONS
    return node.op == "call_method" and node.target in ("relu", "relu_")


def _pool_of(node: fx.Node, modules: dict[str, nn.Module]) -> FrozenPool:
    pool = modules.get(str(node.target)) if node.op == "call_module" else None
    if (
        type(pool) is nn.AvgPool2d
        and pool.kernel_size in (2, (2, 2))
        and pool.stride in (2, (2, 2))
        and pool.padding in (0, (0, 0))
        and not pool.ceil_mode
        and pool.divisor_override is None
    ):
        return "avg2"
    if (
        type(pool) is nn.MaxPool2d
        and pool.kernel_size in (3, (3, 3))
        and pool.stride in (2, (2, 2))
        and pool.padding in (1, (1, 1))
        and pool.dilation in (1, (1, 1))
        and not pool.ceil_mode
        and not pool.return_indices
    ):
        return "max3"
    return "none"

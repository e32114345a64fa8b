"""Trees of tensors: tuples and named tuples of tensors and None, nested as one likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

Tree = TypeVar("Tree")


def leaves(tree: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree."""
    if isinstance(tree, Tensor):
        yield tree
    elif tree is not None:
        for part in tree:
            yield from leaves(part)


def map_tensors(change: Callable[[Tensor], Tensor], tree: Tree) -> Tree:
    """Return the same tree of changed tensors."""
    return _mapped(change, tree)  # type: ignore[no-any-return]


def to_device(tree: Tree, device: torch.device) -> Tree:
    """Return the same tree on a device, without waiting for it."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tree)


def shapes(tree: Any) -> Any:
    """Return something to compare trees by: their shapes and types."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype
    return None if tree is None else tuple(shapes(part) for part in tree)


def _mapped(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if tree is None or isinstance(tree, Tensor):
        return tree if tree is None else change(tree)
    parts = [_mapped(change, part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)

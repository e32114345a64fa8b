"""Fused statistics operators for PyTorch: row moments, class statistics and statistic alignment.

Usable without the rest of the project; imports torch only. Compiled kernels serve CPU tensors, and
CUDA tensors where the CUDA library was built; there is no silent fallback. ``reference`` holds
the same functions in plain PyTorch.
"""

from . import nn, reference
from ._library import backends, build_info
from .align_loss import align_loss
from .bn_act_moments import bn_act_moments
from .class_moments import (
    ClassMoments,
    FinishedMoments,
    class_moments,
    class_moments_finish,
    class_moments_merge_,
    class_moments_update_,
)
from .conv3x3 import conv3x3
from .norm_act import norm_act
from .row_moments import row_moments
from .synced_norm_act import synced_norm_act

__all__ = [
    "ClassMoments",
    "FinishedMoments",
    "align_loss",
    "backends",
    "bn_act_moments",
    "build_info",
    "class_moments",
    "class_moments_finish",
    "class_moments_merge_",
    "class_moments_update_",
    "conv3x3",
    "nn",
    "norm_act",
    "reference",
    "row_moments",
    "synced_norm_act",
]

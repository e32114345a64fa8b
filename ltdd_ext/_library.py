"""Load the compiled libraries, once, and remember what could not be loaded and why."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
from pathlib import Path

import torch

OPERATORS = (
    "row_moments",
    "row_moments_backward",
    "bn_act_moments",
    "bn_act_moments_backward",
    "norm_act",
    "norm_act_backward",
    "norm_act_double_backward",
    "norm_act_sums",
    "conv3x3",
    "conv3x3_backward",
    "class_moments",
    "class_moments_update_",
    "class_moments_merge_",
    "class_moments_finish",
    "align_loss",
)

_FOLDER = Path(__file__).resolve().parent
_HOW_TO_BUILD = "run `pip install --no-build-isolation -e .` in the root of the project"

cuda_problem: str | None = None
"""Why there are no CUDA kernels, or None when they are loaded."""


def _load_cpu() -> None:
    path = _FOLDER / "libltdd_cpu.so"
    if not path.exists():
        raise ImportError(
            f"ltdd_ext: {path} is missing, so {_FOLDER} is a source folder that was not built: "
            f"{_HOW_TO_BUILD}, or leave the folder that holds it if ltdd is installed elsewhere"
        )
    torch.ops.load_library(str(path))


def _load_cuda() -> str | None:
    """Load the CUDA library where it can work; return the reason where it cannot."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    path = _FOLDER / "libltdd_cuda.so"
    if not path.exists():
        return f"not built: {build_info().get('cuda_reason', 'unknown reason')}; {_HOW_TO_BUILD}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"{path.name} could not be loaded: {error}"
    return None


def build_info() -> dict[str, str]:
    """Return what this build was made with.

    Returns:
        Strings by name: ``torch``, ``torch_target`` (the oldest torch the libraries run with),
        ``cuda`` and ``cuda_architectures`` (empty without the CUDA library), ``cuda_reason``,
        ``compiler``, ``cxx_standard`` and ``cpu_instruction_set``, which the CPU kernels chose on
        this machine (``amx``, ``avx512``, ``avx2`` or ``baseline``; the environment variable
        ``LTDD_CPU_ISA`` asks for a lower one, or with ``amx`` for tiles in float32 too).

    Example:
        >>> import ltdd_ext
        >>> ltdd_ext.build_info()["torch_target"]
        '2.11'
    """
    module = importlib.import_module("ltdd_ext._build")
    return {**module.build_info(), "cpu_instruction_set": cpu_instruction_set()}


@functools.cache
def cpu_instruction_set() -> str:
    """Return what the CPU kernels chose on this machine."""
    library = ctypes.CDLL(str(_FOLDER / "libltdd_cpu.so"))
    library.ltdd_cpu_instruction_set.restype = ctypes.c_char_p
    chosen: str = library.ltdd_cpu_instruction_set().decode()
    return chosen


def onednn_cap() -> str:
    """Return what the environment holds oneDNN, which PyTorch's convolutions call, to.

    It is ``""`` where that leaves oneDNN the tiles of AMX, as words do that are no instruction set.
    """
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # the first one that says something counts
    asked = next((value for name in names if (value := os.environ.get(name))), "").upper()
    return asked if asked.startswith(("SSE", "AVX")) and "AMX" not in asked else ""


def backends() -> dict[str, list[str]]:
    """Return for each operator the devices it has a compiled kernel for.

    Returns:
        Lists out of ``"cpu"`` and ``"cuda"``, by operator name.

    Example:
        >>> import ltdd_ext
        >>> "cpu" in ltdd_ext.backends()["row_moments"]
        True
    """
    return {
        name: [
            device
            for device, key in (("cpu", "CPU"), ("cuda", "CUDA"))
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"ltdd_ext::{name}", key)
        ]
        for name in OPERATORS
    }


_load_cpu()
cuda_problem = _load_cuda()

"""What is installed here, and what each compiled operator runs on."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import ltdd_ext
from ltdd import __version__

_COLUMNS = ("CPU", "CUDA")


def describe_installation() -> str:
    """Return versions, the build of the extension and the backend of every operator, as text."""
    info = ltdd_ext.build_info()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none usable"
    facts = {
        "ltdd": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'not included'})",
        "torchvision": _version("torchvision"),
        "GPU": gpu,
        "built with": f"torch {info['torch']}, stable ABI {info['torch_target']}, "
        f"{info['compiler']}",
        "CUDA library": _cuda_library(info),
    }
    width = max(len(name) for name in facts)
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", *_operator_table()])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _cuda_library(info: dict[str, str]) -> str:
    if info["cuda"]:
        return f"CUDA {info['cuda']} for {info['cuda_architectures']}"
    return f"not built: {info['cuda_reason']}"


def _operator_table() -> list[str]:
    names = sorted(
        name.removeprefix("ltdd_ext::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("ltdd_ext::")
    )
    width = max(len(name) for name in ("operator", *names))
    lines = [f"{'operator':<{width}}  " + "".join(f"{c:<12}" for c in _COLUMNS)]
    for name in names:
        cells = (
            "compiled"
            if torch._C._dispatch_has_kernel_for_dispatch_key(f"ltdd_ext::{name}", column)
            else "missing"
            for column in _COLUMNS
        )
        lines.append(f"{name:<{width}}  " + "".join(f"{c:<12}" for c in cells))
    return [line.rstrip() for line in lines]

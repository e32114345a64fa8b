"""Describe what is installed here, and what each compiled operator runs on."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.distributed as dist

import ltdd_ext
from ltdd import __version__
from ltdd.engine.machine import cores
from ltdd.engine.machine.surroundings import processes
from ltdd_ext._library import cuda_problem, onednn_cap


def describe_installation() -> str:
    """Return versions, the build of the extension and the backend of every operator, as text."""
    info = ltdd_ext.build_info()
    facts = {
        "ltdd": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'not included'})",
        "torchvision": _version("torchvision"),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none usable",
        "ranks": _ranks(),
        "extension": f"built with torch {info['torch']} for {info['torch_target']} and later, "
        f"by {info['compiler']}",
        "CUDA kernels": _cuda_kernels(info),
        "CPU kernels": _cpu_kernels(info),
        **cores.describe(),
    }
    width = max(map(len, facts))
    lines = [f"{name:<{width}}  {value}" for name, value in facts.items()]
    return "\n".join([*lines, "", *_operator_table()])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _ranks() -> str:
    rank, world = processes()
    carriers = ["gloo on CPUs"] * (dist.is_available() and dist.is_gloo_available())
    if dist.is_available() and dist.is_nccl_available():
        carriers.append("NCCL on GPUs")
    here = f"rank {rank} of {world}" if world > 1 else "one process"
    return f"{here}; several speak by {' and '.join(carriers) or 'nothing: torch is without it'}"


def _cpu_kernels(info: dict[str, str]) -> str:
    """Say what kernels use here: ours, PyTorch's own, and the convolutions it leaves to oneDNN."""
    capability = torch.backends.cpu.get_cpu_capability().lower()
    cap = onednn_cap().lower()
    convolutions = f", its convolutions for {cap} at most" if cap else ""
    return f"for {info['cpu_instruction_set']}; those of PyTorch for {capability}{convolutions}"


def _cuda_kernels(info: dict[str, str]) -> str:
    if cuda_problem is not None:
        return cuda_problem
    built = f"CUDA {info['cuda']} for {info['cuda_architectures']}"
    without = gpus_without_kernels(info["cuda_architectures"])
    if not without:
        return built
    archs = ";".join(without)
    return (
        f"{built}; nothing of it runs on the GPU here, which is {archs}: "
        f"run `TORCH_CUDA_ARCH_LIST='{archs}' pip install --no-build-isolation -e .` "
        "in the root of the project"
    )


def gpus_without_kernels(built: str) -> list[str]:
    """Return the architectures of GPUs here that a build for a list of architectures cannot serve.

    Machine code runs on its own major version from its own minor version on; PTX, which the driver
    compiles, on everything that is not older.
    """
    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    here = sorted({torch.cuda.get_device_capability(index) for index in range(count)})
    entries = built.replace(" ", ";").split(";")
    return [
        f"{major}.{minor}"
        for major, minor in here
        if not any(_serves(entry, major, minor) for entry in entries)
    ]


def _serves(entry: str, major: int, minor: int) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", entry)
    if numbers is None:
        return False
    of_major, of_minor = int(numbers[1]), int(numbers[2])
    if "+PTX" in entry and (of_major, of_minor) <= (major, minor):
        return True
    return of_major == major and of_minor <= minor


def _operator_table() -> list[str]:
    backends = ltdd_ext.backends()
    width = max(map(len, backends))
    lines = [f"{'operator':<{width}}  cpu       cuda"]
    for name, devices in backends.items():
        cpu, cuda = ("compiled" if device in devices else "none" for device in ("cpu", "cuda"))
        lines.append(f"{name:<{width}}  {cpu:<8}  {cuda}")
    return lines

"""What ``ltdd doctor`` says of GPUs and the architectures that the kernels were compiled for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

import ltdd_ext
from ltdd.cli import installation


def cuda_kernels(monkeypatch: pytest.MonkeyPatch, built: str, here: list[tuple[int, int]]) -> str:
    """The doctor's line for a build for some architectures on a machine with other GPUs."""
    info = {**ltdd_ext.build_info(), "cuda": "13.0", "cuda_architectures": built}
    monkeypatch.setattr(ltdd_ext, "build_info", lambda: info)
    monkeypatch.setattr(installation, "cuda_problem", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(here))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: here[index])
    lines = installation.describe_installation().splitlines()
    line = next(line for line in lines if line.startswith("CUDA kernels"))
    return line.removeprefix("CUDA kernels").strip()


@pytest.mark.parametrize(
    ("built", "here"),
    [
        ("9.0", [(9, 0)]),
        ("8.0", [(8, 6)]),
        ("7.5;8.0;12.0+PTX", [(8, 9), (12, 1)]),
        ("7.5 8.0+PTX", [(10, 0)]),
    ],
)
def test_a_gpu_with_kernels(
    monkeypatch: pytest.MonkeyPatch, built: str, here: list[tuple[int, int]]
) -> None:
    assert cuda_kernels(monkeypatch, built, here) == f"CUDA 13.0 for {built}"


@pytest.mark.parametrize(
    ("built", "here", "lacking"),
    [
        ("8.0", [(9, 0)], "9.0"),
        ("8.6", [(8, 0)], "8.0"),
        ("9.0+PTX", [(8, 9), (9, 0), (8, 9), (7, 5)], "7.5;8.9"),
    ],
)
def test_a_gpu_without_kernels_says_how_to_build_them(
    monkeypatch: pytest.MonkeyPatch, built: str, here: list[tuple[int, int]], lacking: str
) -> None:
    line = cuda_kernels(monkeypatch, built, here)
    assert line.startswith(f"CUDA 13.0 for {built}; nothing of it runs on the GPU here, which is ")
    assert f"TORCH_CUDA_ARCH_LIST='{lacking}' pip install --no-build-isolation -e ." in line


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"ATEN_CPU_CAPABILITY": "default"}, "those of PyTorch for default"),
        (
            {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "avx512_core"},
            "those of PyTorch for default, its convolutions for avx512_core at most",
        ),
        (
            {"ATEN_CPU_CAPABILITY": "default", "DNNL_MAX_CPU_ISA": "SSE41"},
            "those of PyTorch for default, its convolutions for sse41 at most",
        ),
        (
            {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"},
            "those of PyTorch for default",
        ),
    ],
)
def test_what_the_environment_keeps_from_kernels(environment: dict[str, str], said: str) -> None:
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
    free = {name: value for name, value in os.environ.items() if name not in names}
    code = "from ltdd.cli.installation import describe_installation as d; print(d())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=free | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("CPU kernels"))
    assert line.endswith(f"{ltdd_ext.build_info()['cpu_instruction_set']}; {said}")

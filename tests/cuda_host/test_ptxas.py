"""What nvcc makes of the kernels: nothing spilled, nothing on the stack, 16-byte accesses.

Two architectures by default; TORCH_CUDA_ARCH_LIST="7.5;8.0;8.6;8.9;9.0;10.0;12.0" asks for others.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cuda_host import build as host

NVCC = shutil.which("nvcc")
ARCHITECTURES = [
    name.replace("+PTX", "").replace(".", "")
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0").replace(" ", ";").split(";")
]
SOURCES = host.kernel_sources(host.ROOT / "csrc")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NVCC is None, reason="NO NVCC: the CUDA kernels were not compiled at all"),
]


def nvcc(source: Path, *flags: str) -> str:
    """Compile one source as setup.py does and return what nvcc and ptxas say."""
    command = [str(NVCC), "-std=c++20", "-O3", "--expt-relaxed-constexpr", *flags, str(source)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_nothing_is_spilled(source: Path, architecture: str, tmp_path: Path) -> None:
    target = f"arch=compute_{architecture},code=sm_{architecture}"
    log = nvcc(source, "-gencode", target, "-Xptxas", "-v", "-c", "-o", str(tmp_path / "object"))
    kernels = re.findall(
        r"Function properties for (\S+)\n\s+(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads",
        log,
    )
    assert kernels, log
    spoilt = [kernel for kernel in kernels if any(int(number) > 0 for number in kernel[1:])]
    assert not spoilt


WIDE = re.compile(r"(ld|st)\.global(?:\.nc)?\.v(?:4\.[bufs]32|2\.[bufs]64)")


def kernels_in(ptx: str) -> dict[str, str]:
    """Split PTX into the bodies of its kernels."""
    parts = re.split(r"\.entry\s+(\w+)\s*\(", ptx)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


WITH_VECTORS = [
    "row_moments",
    "bn_act_moments",
    "bn_act_moments_backward",
    "norm_act",
    "norm_act_backward",
]


@pytest.mark.parametrize("stem", WITH_VECTORS)
def test_vectors_are_sixteen_bytes(stem: str, tmp_path: Path) -> None:
    """Each vector kernel reads, and each that writes an activation unpooled stores, 16 bytes."""
    target = tmp_path / "kernels.ptx"
    source = host.ROOT / "csrc" / "cuda" / f"{stem}.cu"
    nvcc(source, "-gencode", "arch=compute_80,code=compute_80", "-ptx", "-o", str(target))
    wide_kernels = 0
    for name, body in kernels_in(target.read_text()).items():
        # Mangled template arguments: LinearUnits<V> and (V, LinearPixels), V of 16 bytes.
        units = re.search(r"LinearUnitsILi(\d+)E", name)
        pixels = re.search(
            r"(?:kernelI(?:f|d|\d+__half|\d+__nv_bfloat16))Li(\d+)E.*LinearPixels", name
        )
        found = units or pixels
        if found is None or int(found[1]) == 1:
            continue
        wide_kernels += 1
        kinds = {match[1] for match in WIDE.finditer(body)}
        assert "ld" in kinds, name
        if "map_kernel" in name or "BnActEpilogue" in name:
            assert "st" in kinds, name
    assert wide_kernels > 0

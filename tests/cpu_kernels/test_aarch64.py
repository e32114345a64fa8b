"""The kernels on 64-bit ARM: compiled by GCC for Debian's arm64, run by QEMU's user mode.

``make test-aarch64`` runs all of it. Nothing is installed: where the cross compiler or QEMU is
missing, its tests are skipped (Debian: g++-aarch64-linux-gnu, qemu-user).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from cpu_kernels import build as kernels

COMPILER = "aarch64-linux-gnu-g++"
QEMU = "qemu-aarch64"

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER} on PATH")
emulated = pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"no {QEMU} on PATH")


@emulated
def test_kernels(tmp_path: Path) -> None:
    kernels.run(kernels.build(COMPILER, tmp_path, "-O1", "-static"), QEMU)


@emulated
@pytest.mark.slow
def test_kernels_as_setup_compiles_them(tmp_path: Path) -> None:
    kernels.run(kernels.build(COMPILER, tmp_path, "-O3", "-fPIC", "-static"), QEMU)


@pytest.fixture(scope="module")
def assembler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The instructions of every function of vectors.cpp."""
    target = tmp_path_factory.mktemp("aarch64") / "vectors.s"
    source = kernels.HERE / "vectors.cpp"
    kernels.compile_source(COMPILER, source, target, "-O3", "-S", "-Wno-unused-function")
    functions = re.findall(r"^(\w+):\n(.*?)\.size", target.read_text(), re.MULTILINE | re.DOTALL)
    return {name: set(re.findall(r"^\t([a-z]\w*)", body, re.MULTILINE)) for name, body in functions}


@pytest.mark.parametrize(
    ("function", "instruction"),
    [
        ("widen_bf16", "uxtl|shll"),
        ("widen_half", "fcvtl"),
        ("narrow_bf16", "xtn|shrn"),
        ("narrow_half", "fcvtn"),
        ("stream_float", "stnp"),
        ("stream_double", "stnp"),
        ("stream_bf16", "stnp"),
        ("stream_half", "stnp"),
    ],
)
def test_neon_does_it_for_a_whole_vector(
    assembler: dict[str, set[str]], function: str, instruction: str
) -> None:
    made = assembler[function]
    assert any(re.fullmatch(instruction, one) for one in made), made
    assert not made & {"ins", "umov", "bl", "strh"}, "one element after the other"


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", sorted(kernels.ROOT.glob("csrc/cpu/*.cpp")), ids=lambda p: p.stem
)
def test_the_library_compiles(source: Path, tmp_path: Path) -> None:
    """With the headers of the torch that is here: those of the stable ABI are the same for ARM."""
    headers = Path(torch.__file__).parent / "include"
    flags = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-fvisibility=hidden", "-fsyntax-only"]
    command = [COMPILER, *kernels.FLAGS, *flags, "-isystem", str(headers)]
    done = subprocess.run([*command, str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not kernels.clangs(), reason="no clang++-14 or newer on PATH")
def test_clang_understands_the_kernels_for_macos() -> None:
    """There int64_t is long long. C++ headers are borrowed from the cross compiler."""
    verbose = [COMPILER, "-E", "-v", "-xc++", "/dev/null"]
    said = subprocess.run(verbose, capture_output=True, text=True, check=True).stderr
    folders = re.findall(r"^ (/\S+)$", said, re.MULTILINE)
    of_c_plus_plus = [folder for folder in folders if not re.search(r"gcc.*/\d+/include$", folder)]
    borrowed = ["-ffreestanding", "-nostdinc++", "-U__APPLE__", "-D__linux__"]
    command = [kernels.clangs()[-1], "--target=arm64-apple-macos11", *kernels.FLAGS, *borrowed]
    command += [f"-isystem{folder}" for folder in of_c_plus_plus]
    source = kernels.ROOT / "csrc/cpu/isa_baseline.cpp"
    done = subprocess.run([*command, "-fsyntax-only", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

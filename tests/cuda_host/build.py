"""Compile the CUDA kernels and their tests for the host, with the C++ compiler alone."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiler() -> str | None:
    """Return the C++ compiler, or None where there is none."""
    return shutil.which(os.environ.get("CXX", "c++"))


def kernel_sources(csrc: Path) -> list[Path]:
    """Return the .cu files, which are all that holds device code."""
    return sorted((csrc / "cuda").glob("*.cu"))


def compile_object(source: Path, target: Path, csrc: Path, flags: tuple[str, ...]) -> Path:
    """Compile one source for the emulation, warnings being errors."""
    command = [str(compiler()), "-std=c++20", "-g1", "-Wall", "-Wextra", "-Werror"]
    command += ["-Wno-unknown-pragmas", "-DLTDD_CUDA_EMULATION"]  # the pragma is nvcc's `unroll`
    command += [f"-I{csrc / 'cuda'}", f"-I{HERE}", *flags, "-x", "c++", "-c", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


def build(folder: Path, flags: tuple[str, ...], csrc: Path = ROOT / "csrc") -> Path:
    """Build the test program in ``folder`` and return its path; objects stay beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*kernel_sources(csrc), *sorted(HERE.glob("*.cpp"))]
    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(
            pool.map(
                lambda source: compile_object(source, folder / f"{source.name}.o", csrc, flags),
                sources,
            )
        )
    return link(folder / "emulated", objects, flags)


def link(program: Path, objects: list[Path], flags: tuple[str, ...]) -> Path:
    """Link objects into the test program."""
    command = [str(compiler()), *flags, *map(str, objects), "-o", str(program)]
    subprocess.run(command, check=True)
    return program

"""Compile the CPU kernels and their C++ test with any compiler; neither needs torch."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OLDEST_CLANG = 14
# Those of setup.py; a warning is an error.
FLAGS = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-fno-math-errno", "-fno-trapping-math")


def clangs() -> list[str]:
    """Return the Clang compilers on PATH that are new enough, the oldest first."""
    numbered = [f"clang++-{version}" for version in range(OLDEST_CLANG, 40)]
    return [name for name in numbered if shutil.which(name)]


def compile_source(compiler: str, source: Path, target: Path, *flags: str) -> Path:
    """Compile one source, through ccache where there is one."""
    cache = [ccache] if (ccache := shutil.which("ccache")) else []
    command = [*cache, compiler, *FLAGS, *flags, f"-I{ROOT / 'csrc'}", str(source)]
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


def build(compiler: str, folder: Path, *flags: str) -> Path:
    """Build the test program in ``folder`` and return its path."""
    sources = [*sorted(ROOT.glob("csrc/cpu/isa*.cpp")), HERE / "kernels_test.cpp"]

    def compiled(source: Path) -> Path:
        return compile_source(compiler, source, folder / f"{source.name}.o", *flags, "-c")

    with ThreadPoolExecutor(max_workers=2) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "kernels_test"
    subprocess.run([compiler, *flags, *map(str, objects), "-o", str(program)], check=True)
    return program


def run(program: Path, *emulator: str) -> None:
    """Run the test program; it names what is wrong."""
    done = subprocess.run([*emulator, str(program)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 failures" in done.stdout

"""The kernels' C++ test with other compilers than the one that built the package."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from cpu_kernels import build as kernels

CLANGS = kernels.clangs()
DEFAULT = os.environ.get("CXX", "c++")


@pytest.mark.skipif(not CLANGS, reason="no clang++-14 or newer on PATH")
def test_the_oldest_clang_here(tmp_path: Path) -> None:
    kernels.run(kernels.build(CLANGS[0], tmp_path, "-O0"))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(DEFAULT) is None, reason="no C++ compiler on PATH")
@pytest.mark.parametrize("compiler", [DEFAULT, *CLANGS])
def test_every_compiler_here_as_setup_calls_it(compiler: str, tmp_path: Path) -> None:
    kernels.run(kernels.build(compiler, tmp_path, "-O3", "-fPIC", "-fvisibility=hidden"))

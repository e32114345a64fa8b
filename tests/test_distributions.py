"""The source distribution and the wheel: what is in them, and that an installation from them works.

The wheel is built from the source distribution and installed into an empty folder, as pip does it
on another machine, only without an index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("csrc", "ltdd_ext", "python")
LEFT_OUT = shutil.ignore_patterns("*.so", "*.dylib", "__pycache__", "*.egg-info")
PACKAGED = {".py", ".typed", ".html", ".j2"}

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler on PATH")


def call(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "LTDD_CUDA": "0", "PIP_NO_INDEX": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout without anything built: packing leaves files beside the sources."""
    copy = tmp_path_factory.mktemp("distributions") / "sources"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=LEFT_OUT)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def source_distribution(sources: Path) -> Path:
    call("setup.py", "-q", "sdist", "--formats=gztar", "--dist-dir", "..", cwd=sources)
    (made,) = sources.parent.glob("*.tar.gz")
    return made


@pytest.fixture(scope="module")
def wheel(source_distribution: Path) -> Path:
    # Where ccache has seen the sources it has the objects too; else what compiles fastest will do.
    debug = "0" if shutil.which("ccache") else "1"
    offline = ("--no-deps", "--no-build-isolation", "--wheel-dir", ".")
    folder = source_distribution.parent
    call("-m", "pip", "wheel", *offline, source_distribution, cwd=folder, DEBUG=debug)
    (made,) = folder.glob("*.whl")
    return made


def packaged(sources: Path) -> set[str]:
    """Every file of the two packages that Python needs, as it lies in site-packages."""
    return {
        str(path.relative_to(root))
        for root, package in ((sources, "ltdd_ext"), (sources / "python", "ltdd"))
        for path in (root / package).rglob("*")
        if path.suffix in PACKAGED
    }


def test_the_source_distribution_holds_sources_and_nothing_else(
    sources: Path, source_distribution: Path
) -> None:
    with tarfile.open(source_distribution) as archive:
        held = {member.name.partition("/")[2] for member in archive if member.isfile()}
    held = {name for name in held if "egg-info" not in name}
    compiled = {str(p.relative_to(sources)) for p in (sources / "csrc").rglob("*") if p.is_file()}
    assert {"csrc/common/alignment.h", "csrc/cpu/vec.h", "csrc/cuda/rows.h"} <= compiled
    python = {f"python/{p}" if p.startswith("ltdd/") else p for p in packaged(sources)}
    beside = {"setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"}
    made = {"setup.cfg", "PKG-INFO"}
    assert held == compiled | python | beside | made


# One test, so that a wheel is compiled once however tests are shared out to processes.
def test_the_wheel_holds_what_an_operator_needs(sources: Path, wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    libraries = {name for name in held if name.endswith(".so")}
    assert {Path(name).name.split(".")[0] for name in libraries} == {"_build", "libltdd_cpu"}
    assert held - libraries == packaged(sources)

    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    call("-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel, cwd=elsewhere)
    code = (
        "import torch, ltdd, ltdd_ext\n"
        "mean, m2 = ltdd_ext.row_moments(torch.arange(8.0).view(2, 1, 4))\n"
        "print(ltdd.__file__, ltdd_ext.__file__, mean.tolist(), m2.tolist(), sep='\\n')"
    )
    out = call("-c", code, cwd=elsewhere, PYTHONPATH=str(site)).splitlines()
    assert out[:2] == [str(site / name / "__init__.py") for name in ("ltdd", "ltdd_ext")]
    assert out[2:] == ["[[1.5], [5.5]]", "[[5.0], [5.0]]"]
    doctor = call("-m", "ltdd", "doctor", cwd=elsewhere, PYTHONPATH=str(site))
    assert "not built: LTDD_CUDA=0" in doctor

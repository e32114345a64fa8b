"""What an installation must hold, and what setup.py decides without looking for a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ltdd_ext

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = Path(ltdd_ext.__file__).parent


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_package_is_complete():
    assert (PACKAGE / "py.typed").exists()
    assert (PACKAGE / "libltdd_cpu.so").exists()
    assert set(ltdd_ext.__all__) <= set(dir(ltdd_ext))


def test_build_info_names_everything():
    info = ltdd_ext.build_info()
    assert info["torch_target"] == "2.11"
    assert info["compiler"].startswith(("gcc", "clang"))
    assert info["cpu_instruction_set"] in ("baseline", "avx2", "avx512")
    assert info["cuda_reason"]


def test_the_operators_import_torch_only():
    code = (
        "import sys, torch; before = set(sys.modules); import ltdd_ext;"
        "new = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(new & {'ltdd', 'torchvision', 'sklearn', 'matplotlib', 'pydantic'}))"
    )
    assert python(code).stdout.strip() == "[]"


@pytest.mark.parametrize("asked", ["baseline", "avx2"])
def test_a_lower_instruction_set_gives_the_same_numbers(asked):
    code = (
        "import torch, ltdd_ext; torch.manual_seed(0);"
        "x = torch.randn(3, 37, 9, 9); mean, m2 = ltdd_ext.row_moments(x);"
        "print(ltdd_ext.build_info()['cpu_instruction_set'], float(mean.double().sum()),"
        "float(m2.double().sum()))"
    )
    best, lower = python(code).stdout.split(), python(code, LTDD_CPU_ISA=asked).stdout.split()
    assert lower[0] in ("baseline", asked)
    for one, other in zip(best[1:], lower[1:], strict=True):
        assert float(one) == pytest.approx(float(other), rel=1e-6)


def test_a_missing_library_says_what_to_do(tmp_path):
    (tmp_path / "ltdd_ext").mkdir()
    for source in PACKAGE.glob("*.py"):
        (tmp_path / "ltdd_ext" / source.name).write_text(source.read_text(encoding="utf-8"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ltdd_ext"
    last = python(code).stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ltdd_ext: ")
    assert "pip install --no-build-isolation -e ." in last


def test_one_version_number():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"$', text, re.MULTILINE)
    for path in [ROOT / "setup.py", *PACKAGE.glob("*.py"), *(ROOT / "python").rglob("*.py")]:
        assert not re.search(rf"\b{re.escape(version)}\b", path.read_text("utf-8")), path


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"LTDD_CUDA": "yes"}, "setup: expected LTDD_CUDA 0, 1 or unset, got yes"),
        (
            {"LTDD_CUDA": "1", "CUDA_HOME": "/nowhere", "CUDA_PATH": "/nowhere"},
            "setup: LTDD_CUDA=1 asks for the CUDA library, but ",
        ),
    ],
)
def test_setup_refuses_what_it_cannot_do(environment, message):
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert message in done.stderr


def test_setup_says_why_there_is_no_cuda_library():
    done = subprocess.run(
        [sys.executable, "setup.py", "--name"],
        cwd=ROOT,
        env={**os.environ, "LTDD_CUDA": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ltdd: building")]
    assert len(lines) == 1
    assert lines[0].endswith("without the CUDA library: LTDD_CUDA=0")

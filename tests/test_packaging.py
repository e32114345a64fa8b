"""What an installation must hold, and which kernels setup.py decides to build."""

from __future__ import annotations

import os
import platform
import re
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import setuptools
import torch

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
    assert info["cpu_instruction_set"] in ("baseline", "avx2", "avx512", "amx")
    assert info["cuda_reason"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels of x86-64")
def test_the_instruction_set_is_the_best_that_the_machine_has():
    """The system names what it lets programs use; abm is its word for lzcnt."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        pytest.skip("the system does not list what the processor has")
    flags = set(re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)[1].split())
    v3 = {"avx2", "fma", "bmi1", "bmi2", "f16c", "movbe", "abm"} <= flags
    v4 = v3 and {f"avx512{part}" for part in ("f", "bw", "cd", "dq", "vl")} <= flags
    best = "avx512" if v4 else "avx2" if v3 else "baseline"
    code = "import ltdd_ext; print(ltdd_ext.build_info()['cpu_instruction_set'])"
    assert python(code, LTDD_CPU_ISA="avx512").stdout.strip() == best
    tiles = v4 and {"avx512_bf16", "amx_tile", "amx_bf16"} <= flags
    assert python(code, LTDD_CPU_ISA="amx").stdout.strip() == ("amx" if tiles else best)


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


@pytest.fixture
def plan(monkeypatch, capsys, toolkit):
    """Return a function for the line in which setup.py says what it builds, for given GPUs."""

    def line(command: str, gpus: list[tuple[int, int]], **environment: str) -> str:
        unset = {"LTDD_CUDA": "", "TORCH_CUDA_ARCH_LIST": "", "CUDA_HOME": toolkit}
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(gpus))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: gpus[index])
        monkeypatch.setattr(sys, "argv", ["setup.py", *command.split()])
        monkeypatch.chdir(ROOT)
        with mock.patch.dict(os.environ, {**unset, **environment}):  # setup.py sets some for torch
            runpy.run_path("setup.py", run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        (said,) = [line for line in lines if line.startswith("ltdd: building")]
        return said

    return line


@pytest.fixture
def toolkit(tmp_path: Path) -> str:
    """A folder with a script for nvcc 13.0 that answers what setup.py asks."""
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "--version) echo 'Cuda compilation tools, release 13.0, V13.0.48';;\n"
        "--list-gpu-arch) printf 'compute_%s\\n' 75 80 86 89 90 100 120 121;;\n"
        "esac\n"
    )
    nvcc.chmod(0o755)
    return str(tmp_path)


DEFAULT_ARCHS = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


@pytest.mark.parametrize(
    ("command", "gpus", "environment", "architectures"),
    [
        ("--name", [(9, 0), (8, 0), (9, 0)], {}, "8.0;9.0 (of the GPUs here)"),
        ("--name", [(7, 0), (12, 2)], {}, "12.1+PTX (of the GPUs here)"),
        ("--name", [], {"LTDD_CUDA": "1"}, f"{DEFAULT_ARCHS} (default list)"),
        ("bdist_wheel --help", [(9, 0)], {}, f"{DEFAULT_ARCHS} (default list)"),
        (
            "bdist_wheel --help",
            [(9, 0)],
            {"TORCH_CUDA_ARCH_LIST": "8.6", "LTDD_CUDA": "1"},
            "8.6 (TORCH_CUDA_ARCH_LIST)",
        ),
    ],
)
def test_setup_chooses_architectures(plan, command, gpus, environment, architectures):
    line = plan(command, gpus, **environment)
    assert line.endswith(f", torch CUDA 13.0, architectures {architectures})")


@pytest.mark.parametrize("gpus", [[], [(7, 0)]])
def test_setup_says_that_no_gpu_is_here_and_how_to_get_all_kernels(plan, gpus):
    line = plan("--name", gpus)
    assert "without the CUDA library: no GPU here that nvcc can compile for" in line
    assert "LTDD_CUDA=1 builds it for every architecture" in line


def test_setup_leaves_the_cuda_library_out_when_told_to(plan):
    line = plan("--name", [(9, 0)], LTDD_CUDA="0")
    assert line.endswith("without the CUDA library: LTDD_CUDA=0")


@pytest.mark.parametrize("built", ["libltdd_cpu", "libltdd_cuda"])
def test_a_build_without_cuda_removes_the_library_of_an_earlier_one(
    monkeypatch, tmp_path, capsys, built
):
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    monkeypatch.chdir(ROOT)
    with mock.patch.dict(os.environ, {"LTDD_CUDA": "0"}):
        build = runpy.run_path("setup.py", run_name="__main__")["Build"]
    monkeypatch.setattr(build.__mro__[1], "run", lambda self: None)  # compiles nothing
    monkeypatch.setitem(build.run.__globals__, "ROOT", tmp_path)
    stale = tmp_path / "ltdd_ext" / "libltdd_cuda.so"
    stale.parent.mkdir()
    stale.touch()
    command = build(setuptools.Distribution())
    command.inplace = True
    command.extensions = [setuptools.Extension(f"ltdd_ext.{built}", [])]
    command.run()
    assert stale.exists() == (built == "libltdd_cuda")

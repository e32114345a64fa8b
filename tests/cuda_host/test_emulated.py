"""Run the CUDA kernels on the host, and show that the emulation notices planted bugs."""

from __future__ import annotations

import math
import shutil
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch
from cuda_host import build as host
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.shapes import EVERY, NETWORKS
from ltdd_ext.bn_act_moments import passed_bytes

pytestmark = pytest.mark.skipif(host.compiler() is None, reason="no C++ compiler on this machine")

FLAGS = ("-O0", *host.SANITIZERS)
UNDEFINED_ON_A_GPU = 86


def run(program: Path, *suites: str) -> subprocess.CompletedProcess[str]:
    command = [program, *suites]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test program, built with the address and undefined-behaviour sanitizers."""
    return host.build(tmp_path_factory.mktemp("cuda_host"), FLAGS)


def plant(sanitized: Path, folder: Path, file: str, good: str, bad: str) -> Path:
    """Rebuild the program with ``good`` replaced by ``bad`` once in ``file`` and its includers."""
    csrc = folder / "csrc"
    shutil.copytree(host.ROOT / "csrc", csrc)
    text = (csrc / "cuda" / file).read_text()
    assert good in text, f"{file} no longer holds what the planted bug replaces"
    (csrc / "cuda" / file).write_text(text.replace(good, bad, 1))
    includers = ("align_loss",) if file == "align_loss.cu" else ("row_moments",)
    objects = {path.name: path for path in sanitized.parent.glob("*.o")}
    for stem in includers:
        source = csrc / "cuda" / f"{stem}.cu"
        target = folder / f"{source.name}.o"
        objects[target.name] = host.compile_object(source, target, csrc, FLAGS)
    return host.link(folder / "emulated", list(objects.values()), FLAGS)


def test_kernels_agree_with_float64_in_both_thread_orders(sanitized: Path) -> None:
    result = run(sanitized)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 wrong" in result.stdout


@pytest.mark.slow
def test_kernels_agree_when_optimised(tmp_path: Path) -> None:
    result = run(host.build(tmp_path, ("-O2",)))
    assert result.returncode == 0, result.stdout + result.stderr


# Blocks of an NHWC kernel that one multiprocessor of a large GPU holds, by the registers that
# test_machine_code.py allows; 2 if not said. NCHW kernels have up to 96 registers.
RESIDENT = {"row_moments": 3, "row_moments_backward": 4, "norm_act": 4}
# Which of an operator's launches go through an activation, if it is not the first.
PASSES = {"norm_act": (-1,), "norm_act_backward": (1, -1)}
MULTIPROCESSORS = 132


def test_large_activations_fill_a_large_gpu(sanitized: Path) -> None:
    """From 32 MB on, at least one and a half rounds of blocks, and no nearly empty last one."""
    cases = [
        (operator, shape, dtype, layout, pool)
        for operator in (
            "row_moments",
            "row_moments_backward",
            "bn_act_moments",
            "bn_act_moments_backward",
            "bn_max_moments",
            "bn_max_moments_backward",
            "norm_act",
            "norm_act_backward",
        )
        for shape in [*EVERY, *((100, *rest) for _, *rest in NETWORKS["ResNet-50, 224 px"])]
        for dtype, size in (("fp32", 4), ("bf16", 2))
        for layout in (("NHWC",) if operator.startswith("bn_max") else ("NCHW", "NHWC"))
        for pool in ((0,) if operator.startswith(("row", "bn_max")) else (0, 1))
        if math.prod(shape) * size >= 32e6
    ]
    lines = "".join(
        f"{op} {' '.join(map(str, shape))} {rest[0]} {rest[1]} {rest[2]}\n"
        for op, shape, *rest in cases
    )
    result = subprocess.run(
        [sanitized, "launches"], input=lines, capture_output=True, text=True, check=True
    )
    planned = result.stdout.splitlines()
    assert len(planned) == len(cases) > 100
    for (operator, shape, dtype, layout, pool), line in zip(cases, planned, strict=True):
        numbers = [int(number) for number in line.split()]
        launches = list(zip(numbers[::2], numbers[1::2], strict=True))
        for launch in PASSES.get(operator, (0,)):
            blocks, threads = launches[launch]
            resident = RESIDENT.get(operator, 2) if layout == "NHWC" else 5 * 128 // threads
            rounds = blocks / (MULTIPROCESSORS * resident)
            what = f"{operator} {shape} {dtype} {layout} pool {pool}: {rounds:.2f} rounds"
            assert rounds >= 1.5, what
            assert 1 - rounds / math.ceil(rounds) <= 0.25, what


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def test_compilers_expect_as_many_bytes_of_what_passed(sanitized: Path) -> None:
    """The shape function of the operator follows the kernels' own rule."""
    shapes = [(2, c, side, side + 1) for c in (3, 8, 12, 40) for side in (1, 3, 4, 7, 14, 15, 16)]
    shapes += [(3, 70, 7, 7), (8, 12, 7, 7), (0, 8, 4, 4), (2, 8, 0, 4)]
    cases = [(shape, *rest) for shape in shapes for rest in product(DTYPES, ("NCHW", "NHWC"))]
    lines = "".join(
        f"bn_act_passed_bytes {' '.join(map(str, shape))} {dtype} {layout} 0\n"
        for shape, dtype, layout in cases
    )
    result = subprocess.run(
        [sanitized, "launches"], input=lines, capture_output=True, text=True, check=True
    )
    kept = set()
    with FakeTensorMode():
        for case, count in zip(cases, map(int, result.stdout.split()), strict=True):
            shape, dtype, layout = case
            x = torch.empty(shape, dtype=DTYPES[dtype], device="cuda")
            if layout == "NHWC":
                x = x.to(memory_format=torch.channels_last)
            assert passed_bytes(x) == count, case
            kept.add(count > 0)
    assert kept == {False, True}


def test_a_missing_barrier_is_noticed(sanitized: Path, tmp_path: Path) -> None:
    program = plant(sanitized, tmp_path, "pixels.h", "  __syncthreads();\n\n  // All", "\n  // All")
    result = run(program, "row_moments")
    assert result.returncode == 1
    assert "differ between the two orders" in result.stderr or "wrong:" in result.stderr


def test_a_missing_clamp_is_noticed(sanitized: Path, tmp_path: Path) -> None:
    program = plant(
        sanitized, tmp_path, "rows.h", "if (active && unit < seat.end) {", "if (active) {"
    )
    result = run(program, "row_moments")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


def test_a_divergent_barrier_is_noticed(sanitized: Path, tmp_path: Path) -> None:
    program = plant(
        sanitized,
        tmp_path,
        "align_loss.cu",
        "  __syncthreads();\n  double sum = 0;",
        "  if (threadIdx.y > 0) __syncthreads();\n  double sum = 0;",
    )
    result = run(program, "align_loss")
    assert result.returncode == UNDEFINED_ON_A_GPU
    assert "cuda_emulation:" in result.stderr


def test_a_shuffle_without_all_lanes_is_noticed(sanitized: Path, tmp_path: Path) -> None:
    program = plant(
        sanitized,
        tmp_path,
        "rows.h",
        "const int64_t row = active ? seat.row : 0;",
        "const int64_t row = seat.row;\n  if (!active) return;",
    )
    result = run(program, "row_moments")
    assert result.returncode == UNDEFINED_ON_A_GPU
    assert (
        "threads wait" in result.stderr
        or "have ended" in result.stderr
        or ("a thread ends" in result.stderr)
    )

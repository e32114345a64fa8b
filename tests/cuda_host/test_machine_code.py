"""Budgets of the kernels that GPU runs spend their time in, read from the compiled code (sm_90).

A kernel that needs more registers fits fewer blocks on a multiprocessor; one that uses a value
before all loads of its tile are issued waits for memory several times over; and at the bandwidth of
a large GPU there is time for 8 to 16 instructions an element.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from cuda_host import build as host
from cuda_host import machine_code
from cuda_host.test_ptxas import nvcc

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="NO NVCC: nothing was compiled"),
    pytest.mark.skipif(
        machine_code.cuobjdump() is None, reason="NO CUOBJDUMP: no machine code was read"
    ),
]

ARCHITECTURE = "90"
RARE = "MUFU|CALL|BRA.DIV"  # ways that find centers, divide, or serve broken warps


@dataclass(frozen=True)
class Budget:
    """What a bfloat16 kernel may cost.

    Attributes:
        elements: that one turn of its loop handles.
        registers: at most.
        loads: in flight, at least.
        instructions: an element, at most.
        rare: pattern of instructions whose ways do not count.
    """

    elements: int
    registers: int
    loads: int
    instructions: float
    rare: str | None = RARE


BF16 = r"I13__nv_bfloat16"
NHWC, NCHW, FLAT = (
    rf"{BF16}Li8E.*LinearPixelsELi\dE",
    rf"{BF16}.*UnitsILi8E.*ELi32ELi4E",
    rf"{BF16}Li8E",
)
NCHW2 = rf"{BF16}.*UnitsILi8E.*ELi32ELi2E"  # of more streams
POOLED = rf"{BF16}Li8E.*PooledPixels"
# What lies beside x: nothing, a residual, or where the ReLU behind it passed. Then readers of y.
PLAIN, RESIDUAL, PASSED = r".*BesideE0EEEEE", r".*BesideE1EEEEE", r".*BesideE2EEEEE"
ONE, BLOCK = r".*BesideE0ELb0EEEEE", r".*BesideE1ELb0EEEEE"
ONE_PASSED, SHARED_PASSED = r".*BesideE2ELb0EEEEE", r".*BesideE2ELb1EEEEE"
BUDGETS = {
    ("row_moments", f"pixel_moments_kernel{NHWC}"): Budget(32, 80, 4, 6),
    ("row_moments", f"pixel_map_kernel{NHWC}"): Budget(32, 64, 4, 6.5),
    ("row_moments", f"row_map_kernel{NCHW}"): Budget(32, 48, 4, 5),
    ("row_moments", f"flat_map_kernel{FLAT}"): Budget(32, 80, 4, 13, None),
    ("bn_act_moments", f"pixel_moments_kernel{NHWC}{PLAIN}"): Budget(32, 96, 4, 8),
    ("bn_act_moments", f"pixel_moments_kernel{NHWC}{RESIDUAL}"): Budget(32, 128, 8, 10.5),
    ("bn_act_moments", f"pixel_moments_kernel{NHWC}{PASSED}"): Budget(32, 128, 8, 14.5),
    ("bn_act_moments", f"pixel_moments_kernel{POOLED}{PLAIN}"): Budget(32, 96, 4, 16, None),
    ("bn_act_moments", f"flat_moments_kernel{FLAT}Li8E{PLAIN}"): Budget(32, 64, 4, 13, None),
    ("bn_act_moments_backward", f"pixel_map_kernel{NHWC}{ONE}"): Budget(32, 96, 8, 11.5),
    ("bn_act_moments_backward", f"pixel_map_kernel{NHWC}{BLOCK}"): Budget(16, 96, 6, 16),
    ("bn_act_moments_backward", f"pixel_map_kernel{NHWC}{ONE_PASSED}"): Budget(32, 112, 12, 13.5),
    ("bn_act_moments_backward", f"pixel_map_kernel{NHWC}{SHARED_PASSED}"): Budget(16, 104, 8, 17),
    ("bn_act_moments_backward", f"row_map_kernel{NCHW}{ONE_PASSED}"): Budget(32, 88, 12, 11),
    ("bn_act_moments_backward", f"row_map_kernel{NCHW2}{SHARED_PASSED}"): Budget(16, 80, 8, 15),
    ("bn_act_moments_backward", f"pixel_map_kernel{POOLED}{ONE}"): Budget(32, 96, 5, 11),
    ("bn_act_moments_backward", f"row_map_kernel{NCHW}{ONE}"): Budget(32, 72, 8, 10.5),
    ("bn_act_moments_backward", f"flat_map_kernel{FLAT}{ONE}"): Budget(16, 80, 4, 20, None),
    ("bn_max_moments", rf"pixel_moments_kernel{BF16}Li4E.*Lb1EEEEE"): Budget(16, 96, 9, 33, None),
    ("bn_max_moments", rf"pixel_map_kernel{BF16}Li4E"): Budget(16, 96, 12, 24, None),
    ("norm_act", f"pixel_map_kernel{NHWC}"): Budget(32, 64, 4, 6),
    ("norm_act", f"pixel_map_kernel{POOLED}"): Budget(32, 64, 4, 6.5),
    ("norm_act", f"row_map_kernel{NCHW}"): Budget(32, 48, 4, 5),
    ("norm_act_backward", f"pixel_sums_kernel{NHWC}"): Budget(32, 96, 8, 12),
    ("norm_act_backward", f"pixel_sums_kernel{POOLED}"): Budget(32, 96, 5, 10.5),
    ("norm_act_backward", f"pixel_map_kernel{NHWC}"): Budget(32, 96, 8, 11.5),
    ("norm_act_backward", f"pixel_map_kernel{POOLED}"): Budget(32, 96, 5, 11),
    ("norm_act_backward", f"row_sums_kernel{NCHW}"): Budget(32, 72, 8, 10.5),
    ("norm_act_backward", f"row_map_kernel{NCHW}"): Budget(32, 72, 8, 10.5),
}  # fmt: skip


@cache
def compiled(stem: str, folder: Path) -> tuple[dict[str, machine_code.Kernel], dict[str, int]]:
    """Compile a source; return its kernels and their registers."""
    target = folder / f"{stem}.cubin"
    code = f"arch=compute_{ARCHITECTURE},code=sm_{ARCHITECTURE}"
    source = host.ROOT / "csrc" / "cuda" / f"{stem}.cu"
    log = nvcc(source, "-gencode", code, "-Xptxas", "-v", "-cubin", "-o", str(target))
    registers = re.findall(r"Function properties for (\S+)\n.*\n.*Used (\d+) registers", log)
    return machine_code.kernels_in(target), {name: int(count) for name, count in registers}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine_code")


@pytest.mark.parametrize(("stem", "pattern"), BUDGETS, ids=lambda text: text[:24])
def test_kernels_keep_to_their_budget(stem: str, pattern: str, folder: Path) -> None:
    kernels, registers = compiled(stem, folder)
    names = [name for name in kernels if re.search(pattern, name)]
    assert len(names) == 1, names
    kernel, budget = kernels[names[0]], BUDGETS[stem, pattern]
    assert registers[names[0]] <= budget.registers
    assert kernel.loads_in_flight >= budget.loads
    assert kernel.longest_path(budget.rare) <= budget.instructions * budget.elements
    assert kernel.doubles_in_loop == 0

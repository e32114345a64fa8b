"""All that a GPU is to show, in six commands of less than ten minutes.

``python -m benchmarks.gpu_plan`` lists them, with what each must show and what to do otherwise;
``python -m benchmarks.gpu_plan 1 3 4`` runs those, one after the other, and keeps what they print
in ``runs/gpu/plan-N.log``. With half an hour in all: 1, 3 and 4.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

LOGS = Path("runs", "gpu")
SHAPES = (
    "(test_moments or test_bn_act_moments) and ((NHWC-bf16 and (100x128x32x32 or 50x512x4x4 or "
    "50x128x64x64 or 20x64x112x112 or 20x256x56x56 or 20x2048x7x7)) or (NHWC-fp32 and "
    "(20x64x112x112 or 50x128x64x64)) or (NCHW-bf16 and (100x128x32x32 or 20x256x56x56)))"
)
TRAINING_NORMS = "test_norm_act and NHWC and (100x128x32x32 or 100x128x16x16)"
TESTS = (
    "tests/ops tests/models/test_models.py tests/engine/test_cuda_graphs.py "
    "tests/engine/test_loss_watch.py tests/engine/test_determinism.py tests/faults/test_turns.py"
)
SHORT = (
    "--data {data} --imbalance-factor 100 --ipc 10 --preset paper --experts.epochs 3 "
    "--recovery.iterations 75 --evaluation.epochs 60 --evaluation.baselines '[]'"
)
DISTIL = "python -m ltdd reproduce cifar10-if100-{ipc} --preset {preset} --data {data} --out {out}"
NCU = (
    "ncu --clock-control none -k 'regex:pixel_(moments|gradient)' -c 4 --metrics "
    "gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,"
    "smsp__issue_active.avg.pct_of_peak_sustained_active,"
    'sm__warps_active.avg.pct_of_peak_sustained_active python -c "import torch,ltdd_ext as e; '
    "x=torch.randn(100,256,56,56,device='cuda').bfloat16().contiguous("
    "memory_format=torch.channels_last).requires_grad_(); k=torch.ones(256,device='cuda'); "
    '[sum(o.float().sum() for o in e.bn_act_moments(x,k,k*0)).backward() for _ in range(2)]"'
)


@dataclass(frozen=True)
class Part:
    """Commands that belong together.

    Attributes:
        commands: run one after the other by a shell, in the root of the project.
        minutes: that they may take together.
        must_show: what they are run for.
        otherwise: what to do where they do not.
    """

    commands: tuple[str, ...]
    minutes: int
    must_show: str
    otherwise: str


def plan(data: str, architecture: str) -> dict[int, Part]:
    """Return the parts by number.

    Args:
        data: that distillation reads, as `--data` takes it.
        architecture: compute capability to build for.
    """

    def distil(ipc: str, preset: str) -> str:
        out = f"runs/gpu-{preset}"
        return DISTIL.format(ipc=ipc, preset=preset, data=data, out=out)

    short = SHORT.format(data=data)
    accuracy = " --evaluation.baselines '[]' --record benchmarks/results/accuracy.md"
    return {
        1: Part(
            (
                f"LTDD_CUDA=1 TORCH_CUDA_ARCH_LIST={architecture} "
                "python setup.py egg_info build_ext --inplace",
                f"python -m pytest -q -m 'cuda and not slow' -n 6 {TESTS}",
                "python -m pytest -q -m 'cuda and slow' -n 4 tests/ops/test_compute_sanitizer.py",
                "python -m pytest -q -m slow tests/cuda_host/test_machine_code.py",
            ),
            9,
            "a build without warnings; no test fails, two graphs at once, trainings by turns and "
            "tensors off the boundaries of vectors among them; four sanitizers are clean",
            "run the test alone under memcheck; a recovery that is not recorded names the reason "
            "in the event steps_not_recorded",
        ),
        2: Part(
            (
                "python -m benchmarks -q -s -m cuda -k 'calls or test_class_statistics'",
                f"python -m benchmarks -q -m cuda -k '{SHAPES}'",
                f"python -m benchmarks -q -m cuda -k '{TRAINING_NORMS}'",
            ),
            9,
            "class statistics at least as fast as the compiler, eager against eager and graph "
            "against graph; at most 20 us of the host a call; 80 % of the copy from 50 MB on; "
            "norms in training faster than the layers one by one",
            "rows are stored one by one, so nothing is lost if time runs out; a share below 60 % "
            "goes to the profiler (part 3)",
        ),
        3: Part(
            (
                "python -m benchmarks -q -m cuda -k 'test_recovery and NHWC-bf16'",
                "python -m benchmarks.profile_gpu resnet50 ours compile",
                "python -m benchmarks.profile_gpu resnet18 ours",
                NCU,
            ),
            9,
            "a step of ResNet-50 at least 2.3 times as fast as the published form and 1.15 times "
            "as fast as the compiled one; the split into convolutions, ours, sums and pool, no "
            "sum of two gradients at the input of a block",
            "issue below 60 % and memory below 70 %: waiting; load the next tile before this one "
            "is used",
        ),
        4: Part(
            (distil("ipc10", "paper") + accuracy, distil("ipc10", "cpu") + accuracy),
            9,
            "seconds of every stage; 63 to 64 % by preset paper in at most 240 s, near 69 % by "
            "preset cpu",
            "stages are stored, so the next call goes on; NaN: --precision fp32 for that stage",
        ),
        5: Part(
            (
                distil("ipc50", "paper") + accuracy,
                distil("ipc1", "cpu") + accuracy,
                distil("ipc50", "cpu") + accuracy,
            ),
            9,
            "70 to 71 % by preset paper (experts from part 4), 55 and 70 % by preset cpu",
            "experts are trained again: runs/gpu-paper/stages of part 4 is not there",
        ),
        6: Part(
            (
                "python -m benchmarks -q -s -m cuda -k calls",
                f"python -m ltdd distill {short} --evaluation.seeds 1 --out runs/gpu-short",
                f"python -m benchmarks.by_turns {short} --deterministic true --out runs/gpu-turns",
            ),
            8,
            "before and after a change, both builds by turns: microseconds of each call, seconds "
            "of each stage over its steps; trainings that take turns: the same bytes, experts in "
            "at most 0.85 of the seconds, five students in half of them",
            "differences below the spread of two equal runs are noise",
        ),
    }


def run(number: int, part: Part) -> bool:
    """Run a part, keep what it prints, and tell whether all of its commands succeeded."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log, end, right = LOGS / f"plan-{number}.log", time.monotonic() + 60 * part.minutes, True
    with log.open("w") as output:
        for command in part.commands:
            print(f"[{number}] {command}", flush=True)
            output.write(f"$ {command}\n")
            output.flush()
            start = time.monotonic()
            try:
                left = max(1.0, end - start)
                done = subprocess.run(
                    command, shell=True, stdout=output, stderr=subprocess.STDOUT, timeout=left
                )
                result = f"exit status {done.returncode}"
                right = right and done.returncode == 0
            except subprocess.TimeoutExpired:
                result, right = "out of time", False
            result += f", {time.monotonic() - start:.0f} s"
            print(f"    {result}", flush=True)
            output.write(f"# {result}\n")
    print(f"    log: {log}")
    return right


def main() -> int:
    """List the parts, or run those named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_plan", description=__doc__)
    parser.add_argument("parts", nargs="*", type=int)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--architecture", default="9.0")
    given = parser.parse_args()
    parts = plan(given.data, given.architecture)
    unknown = sorted(set(given.parts) - set(parts))
    if unknown:
        parser.error(f"expected parts of {tuple(parts)}, got {unknown}")
    if given.parts:
        failed = sum(not run(number, parts[number]) for number in given.parts)
        return int(failed > 0)
    for number, part in parts.items():
        print(f"{number}. {part.minutes} minutes\n   must show: {part.must_show}")
        print(f"   otherwise: {part.otherwise}")
        for command in part.commands:
            print(f"   $ {command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the GPU time of a recovery step goes: ``python -m benchmarks.profile_gpu MODEL FORM...``.

Sums the kernels of five steps by kind, with their launches a step. MODEL is convnet3, resnet18 or
resnet50; FORM one of those of `recovery_forms`.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_gpu import network
from benchmarks.cases import DTYPES, LAYOUTS, activation
from benchmarks.recovery_forms import recovery_forms

STEPS = 5
KINDS = {
    "ours": r"ltdd",
    "compiled": r"triton",
    "convolution": r"conv|xmma|cutlass|gemm|implicit|dgrad|fprop|winograd|cudnn.*kernel",
    "pool": r"pool",
    "norm": r"batch_norm|bn_fw|bn_bw",
    "copies": r"memcpy|memset|copy",
    "elementwise": r"elementwise|vectorized|foreach|multi_tensor",
}


def kind_of(kernel: str) -> str:
    """Return the first kind whose pattern is in the name of a kernel."""
    name = kernel.lower()
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "other")


def by_kind(step: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Return microseconds and launches of a step by kind of kernel."""
    for _ in range(3):
        step()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    found: dict[str, list[float]] = defaultdict(list)
    for event in profiled.events():
        if event.device_type == DeviceType.CUDA:
            found[kind_of(event.name)].append(event.time_range.elapsed_us())
    return {kind: (sum(times) / STEPS, len(times) / STEPS) for kind, times in found.items()}


def main() -> None:
    """Profile the forms named and print a table of each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile_gpu", description=__doc__)
    parser.add_argument("model", choices=("convnet3", "resnet18", "resnet50"))
    parser.add_argument("forms", nargs="+")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16")
    parser.add_argument("--layout", choices=tuple(LAYOUTS), default="NHWC")
    given = parser.parse_args()
    model, shape = network(given.model)
    model = model.to("cuda").to(memory_format=LAYOUTS[given.layout])
    x = activation(shape, given.layout, "fp32", "cuda")
    forms = recovery_forms(model, x, DTYPES[given.dtype])
    unknown = sorted(set(given.forms) - set(forms))
    if unknown:
        parser.error(f"expected forms of {', '.join(forms)}, got {', '.join(unknown)}")
    for name in given.forms:
        print(
            f"\n{given.model}, {name}, us a step\n\n| kind | us | launches |\n| --- | --- | --- |"
        )
        for kind, (time, launches) in sorted(
            by_kind(forms[name]).items(), key=lambda one: -one[1][0]
        ):
            print(f"| {kind} | {time:.0f} | {launches:.0f} |")


if __name__ == "__main__":
    main()

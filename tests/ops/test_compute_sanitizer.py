"""NVIDIA's compute-sanitizer over every CUDA kernel: memory, races, initialisation, barriers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

SANITIZER = shutil.which("compute-sanitizer")
PROGRAM = """
import torch
import ltdd_ext

for shape in [(3, 8, 16, 16), (5, 3, 7, 7), (2, 5, 4, 4), (1, 64, 24, 24), (1, 2, 64, 64)]:
    for dtype in (torch.float32, torch.bfloat16):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(shape).to(dtype).cuda().contiguous(memory_format=memory_format)
            x.requires_grad_()
            k, h = torch.ones(shape[1]).cuda(), torch.zeros(shape[1]).cuda()
            sum(out.sum() for out in ltdd_ext.row_moments(x)).backward()
            for residual in (None, torch.ones_like(x)):
                for pool in ("none", "avg2", "max3"):
                    outputs = ltdd_ext.bn_act_moments(x, k, h, residual, "relu", pool)
                    sum(out.float().sum() for out in outputs).backward()
            for over in ("batch", "image"):
                for pool in ("none", "avg2"):
                    y = ltdd_ext.norm_act(x, k.requires_grad_(), h, over, pool=pool)[0]
                    y.float().sum().backward()
x, labels = torch.randn(20, 40, 4, 4).cuda(), (torch.arange(20) % 3).cuda()
mean, m2 = ltdd_ext.row_moments(x)
ltdd_ext.class_moments(x, labels, 4)
state = ltdd_ext.ClassMoments.zeros(4, 40, "cuda")
state.update_(mean, m2, 16, labels)
state.merge_(state)
state.finish()
for classes in (4, 50):
    targets = [torch.randn(40).cuda()], [torch.ones(40).cuda()]
    class_targets = [torch.randn(classes, 40).cuda()], [torch.ones(classes, 40).cuda()]
    ltdd_ext.align_loss([mean], [m2], [16], labels, *targets, *class_targets, [1.0], 0.5)
torch.cuda.synchronize()
"""


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(SANITIZER is None, reason="compute-sanitizer is not on PATH")
@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck", "synccheck"])
def test_kernels_are_clean(tool: str) -> None:
    # Without torch's cache every tensor is an allocation of its own, whose ends the tool knows.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = [str(SANITIZER), "--tool", tool, "--error-exitcode", "1"]
    result = subprocess.run(
        [*command, sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr

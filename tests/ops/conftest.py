"""One fixture: the device of an operator test, CUDA only where a GPU and its kernels are."""

from __future__ import annotations

import pytest
import torch

import ltdd_ext


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        if "cuda" not in ltdd_ext.backends()["row_moments"]:
            pytest.fail("a CUDA device, but no CUDA kernels were built")
    return str(request.param)

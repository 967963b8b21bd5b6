"""Every launch of an op through Triton's own binder and compiler, up to the device: what is a constant because it is 1,
what 16 is known to divide, and which options are accepted are only found out there."""

import pytest
import triton
import triton_blocks
from cases import gradients
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mdepth_fast import _dispatch


class NoDevice:
    """What a launch asks the driver before it compiles."""

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """The ops on Triton, their launches compiled and not run; yields the names of the kernels."""
    names = set()

    def launch(kernel, programs, warps, **arguments):
        if programs:
            kernel.warmup(grid=(programs,), **arguments, num_warps=warps, enable_fp_fusion=False)
            names.add(f"{kernel.__module__}.{kernel.__name__}")

    for module in triton_blocks.MODULES:
        monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(_dispatch, "why_not", lambda op, backend, device: None)
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    monkeypatch.setattr(driver, "_active", NoDevice())
    yield names


@pytest.mark.parametrize("case", triton_blocks.CASES, ids=lambda case: case.name)
def test_sizes_that_are_1_or_that_16_divides(case, compiled):
    least = 1 if case.name not in ("photometric_loss", "min_reprojection", "edge_aware_smoothness") else 2
    gradients(case, "triton", case.inputs(batch=1, height=least, width=16))
    assert any(name.startswith(f"mdepth_fast.kernels.{case.name}.") for name in compiled)

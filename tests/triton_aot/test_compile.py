"""Every Triton kernel as its launcher calls it, compiled for real architectures: valid, without spills, within budget.

In float64 they must be float64 throughout.
"""

import re
import subprocess

import pytest
import torch
import triton
import triton.language as tl
import triton_blocks
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton_launches import RUNS, Launch, launches
from triton_precision import ALLOWED, as_older_tritons, narrow_operations, rounded_constants

from mdepth_fast.kernels import _launch

CAPABILITIES = (80, 90)  # and 120 in double precision
REGISTERS_OF_AN_SM = 65536
SHARED_BYTES = 48 * 1024
# Bytes that the ptxas of older versions spills on purpose, to reach a step of occupancy.
BY_CHOICE = 16 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9) else 0


MAIN, DOUBLE = launches(torch.float32, False), launches(torch.float64, False)
OTHERS = {label: launch for label, launch in launches(torch.float32, True).items() if label not in MAIN}
OTHER_DOUBLE = {label: launch for label, launch in launches(torch.float64, True).items() if label not in DOUBLE}


def _compile(kernel, warps, arguments, capability, aligned, tmp_path, **options):
    source = ASTSource(kernel, **_launch.signature(kernel, arguments, aligned))
    options = {"num_warps": warps, "enable_fp_fusion": False, **options}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    report = subprocess.run(
        [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    registers, stack, local = (
        int(re.search(rf"\b{name}:(\d+)", report).group(1)) for name in ("REG", "STACK", "LOCAL")
    )
    return compiled, (registers, stack, local, compiled.metadata.shared)


@pytest.fixture(autouse=True)
def compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path / "cache"))
    as_older_tritons(monkeypatch)


# What the kernels call of `ALLOWED`.
FUNCTIONS = {
    "edge_aware_smoothness._edges": ("exp",),
    "flow_photometric_loss._forward": ("exp", "log"),
    "flow_smoothness_loss._forward": ("exp", "log"),
    "ordinal_loss._forward": ("exp", "log"),
    "ordinal_loss._backward": ("exp",),
    "silog_loss._sums": ("log",),
    "silog_loss._backward": ("log",),
    "depth_metrics._metrics": ("log",),
    "min_reprojection._identity": ("rsqrt",),
    "min_reprojection._compare": ("rsqrt",),
    "photometric_loss._forward": ("rsqrt",),
    "view_synthesis_loss._compare": ("rsqrt",),
    "photometric_loss.photometric_backward": ("rsqrt",),
}


def _less_than_double(launch, stages):
    """Constants that were rounded to float32 and, where all tensors are doubles, whatever is narrower than these."""
    found = rounded_constants(stages["ttir"])
    if not launch.dtypes & {torch.float32, torch.float16, torch.bfloat16}:
        found += narrow_operations(stages, FUNCTIONS.get(launch.name, ()))
    return found


def _check(launch, label, capability, aligned, table, tmp_path):
    kernel, warps, arguments = launch
    compiled, numbers = _compile(kernel, warps, arguments, capability, aligned, tmp_path)
    table.append((label + ("" if aligned else " (unaligned)"), capability, *numbers))
    registers, stack, local, shared = numbers
    if 0 < stack <= BY_CHOICE:
        # Asked for no occupancy, it must not.
        _, (_, stack, _, _) = _compile(kernel, warps, arguments, capability, aligned, tmp_path, maxnreg=255)
    assert (stack, local) == (0, 0), f"{label} spills on sm_{capability}: {numbers}"
    assert shared <= SHARED_BYTES
    assert registers * warps * 32 <= REGISTERS_OF_AN_SM
    assert _less_than_double(launch, compiled.asm) == []
    return compiled


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("label", MAIN)
def test_main_configurations(label, capability, table, tmp_path):
    compiled = _check(MAIN[label], label, capability, True, table, tmp_path)
    # No program has a whole multiprocessor to itself.
    assert table[-1][2] * MAIN[label][1] * 32 * 2 <= REGISTERS_OF_AN_SM
    scatters = MAIN[label][2].get("grad_source") is not None  # all that may use atomics
    assert bool(re.search(r"\b(red|atom)\.", compiled.asm["ptx"])) == scatters


@pytest.mark.parametrize("label", MAIN)
def test_sizes_that_16_does_not_divide(label, table, tmp_path):
    _check(MAIN[label], label, 90, False, table, tmp_path)


@pytest.mark.parametrize("label", {**OTHERS, **OTHER_DOUBLE})
def test_other_configurations(label, table, tmp_path):
    _check({**OTHERS, **OTHER_DOUBLE}[label], label, 90, True, table, tmp_path)


@pytest.mark.parametrize("label", DOUBLE)
def test_double_precision(label, table, tmp_path):
    _check(DOUBLE[label], label, 120, True, table, tmp_path)


@triton.jit
def _faults(x, out, WEIGHT: tl.constexpr, FAULT: tl.constexpr):
    value = tl.load(x + tl.arange(0, 32))
    if FAULT == "fma":
        value = tl.fma(value, WEIGHT, value)
    elif FAULT == "comparison":
        value = tl.where(value > WEIGHT, value, 0.0)
    elif FAULT == "maximum":
        value = tl.maximum(value, WEIGHT)
    elif FAULT == "truncation":
        value = value.to(tl.float32).to(tl.float64)
    elif FAULT == "arithmetic":
        value += tl.arange(0, 32).to(tl.float32) * 0.5
    elif FAULT == "choice":
        value *= tl.where(value > 0, 1.0, 2.0)
    elif FAULT == "exponential":
        value = tl.exp(value)
    elif FAULT == "logarithm":
        value = tl.log(value)
    elif FAULT == "root":
        value = tl.rsqrt(value)
    elif FAULT == "float32 logarithm":
        value += tl.log(tl.arange(1, 33).to(tl.float32))
    else:
        value = tl.sqrt(value * WEIGHT) / WEIGHT + 1.0
    tl.store(out + tl.arange(0, 32), value)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("none", None),
        ("fma", "ttir: 0.85000002384185"),
        ("comparison", "ttir: 0.85000002384185"),
        ("maximum", "ttir: 0.85000002384185"),
        ("truncation", "arith.truncf"),
        ("arithmetic", "arith.sitofp"),
        ("choice", "arith.select"),
        ("exponential", "fcmp olt float"),
        ("logarithm", "rcp.approx.ftz.f64"),
        ("root", "rsqrt.approx.f64"),
        ("float32 logarithm", "math.log"),
    ],
)
def test_less_than_double_is_seen(fault, says, tmp_path):
    x = torch.zeros(32, dtype=torch.float64)
    launch = Launch(_faults, 1, {"x": x, "out": x, "WEIGHT": 0.85, "FAULT": fault})
    found = _less_than_double(launch, _compile(*launch, 90, True, tmp_path)[0].asm)
    print(*found, sep="\n")
    assert (found == []) if says is None else any(says in line for line in found)


def test_every_exception_is_needed(tmp_path):
    """No kernel may do more than it must, and no op and no double launch is left out."""
    assert sorted(RUNS) == sorted(case.name for case in triton_blocks.CASES)
    assert all(torch.float32 not in launch.dtypes for launch in {**DOUBLE, **OTHER_DOUBLE}.values())
    for name, functions in FUNCTIONS.items():
        stages = _compile(*next(one for one in DOUBLE.values() if one.name == name), 90, True, tmp_path)[0].asm
        for function in functions:
            assert narrow_operations(stages, tuple({*functions} - {function})), (name, function)
    assert {function for functions in FUNCTIONS.values() for function in functions} == {row[0] for row in ALLOWED}


def test_a_spill_is_seen(tmp_path):
    """The budget's instrument: 16 pixels a thread are more than the registers hold."""
    launch = next(launch for label, launch in MAIN.items() if "min_reprojection._compare " in label)
    kernel, _, arguments = launch
    _, (registers, stack, _, _) = _compile(kernel, 1, {**arguments, "ROWS": 16, "COLUMNS": 32}, 90, True, tmp_path)
    print(registers, stack)
    assert stack > 0

"""pytest-benchmark over `mdepth_fast.benchmark`'s cases: a row per backend, the reference first, ratios at the end.

MDEPTH_BENCH_SIZE (batch x height x width, such as 4x192x640) replaces every case's own size, MDEPTH_BENCH_ROUNDS
(default 5) sets the timed runs.
"""

import os
import platform
from collections import defaultdict

import pytest
import torch

from mdepth_fast import benchmark as core

SIZE = os.environ.get("MDEPTH_BENCH_SIZE", "")
ROUNDS = int(os.environ.get("MDEPTH_BENCH_ROUNDS", "5"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

_medians: dict[str, dict[str, float]] = defaultdict(dict)
_reasons: dict[str, dict[str, str]] = defaultdict(dict)


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", core.VARIANTS)


@pytest.fixture
def compare(benchmark, variant):
    """Times one variant of a case after its gradients were found equal to the reference's in float64."""

    def run(name):
        case = core.CASES[name]
        size = tuple(map(int, SIZE.split("x"))) if SIZE else case.size
        label = f"{name} {'x'.join(map(str, size))} {DEVICE.type}"
        benchmark.group = label
        reason = core.unavailable(case, variant, DEVICE)
        if reason:
            _reasons[label][variant] = reason
            pytest.skip(f"{variant}: {reason}")
        step, measurement = core.prepare(case, variant, core.problem(case, *size, DEVICE), device=DEVICE)
        benchmark.extra_info.update(
            kept_bytes=measurement.kept_bytes,
            peak_bytes=measurement.peak_bytes,
            error=measurement.error,
        )
        with core.precision(case.tf32):
            benchmark.pedantic(core.seconds, (step, DEVICE), rounds=ROUNDS, warmup_rounds=1)
        if benchmark.stats:  # absent under --benchmark-disable
            _medians[label][variant] = benchmark.stats.stats.median

    return run


def pytest_benchmark_update_machine_info(machine_info):
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["device"] = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or "cpu"


def pytest_terminal_summary(terminalreporter):
    for label in _medians:
        medians = _medians[label]
        terminalreporter.write_line(f"\n{label}")
        for variant in core.VARIANTS:
            if variant in medians:
                ratios = [
                    f"{medians[base] / medians[variant]:.1f}x {base}"
                    for base in core.PLAIN
                    if base in medians and base != variant
                ]
                terminalreporter.write_line(f"  {variant:<8} {medians[variant] * 1e3:9.2f} ms   {', '.join(ratios)}")
            elif variant in _reasons[label]:
                terminalreporter.write_line(f"  {variant:<8} not here: {_reasons[label][variant]}")

"""pytest-benchmark over the cases of `mdepth_fast.bench`: a row per backend, the reference first, ratios at the end.

--save writes the comparisons that are no op's to `results/<device>` (`report.py` writes the ops'); --full runs the
published sizes where the default is smaller, and what takes minutes.
MDEPTH_BENCH_SIZE (batch x height x width, such as 4x192x640) replaces every case's own size, MDEPTH_BENCH_ROUNDS
(default 5) sets the timed runs.
"""

import os
import platform
import statistics
from collections import defaultdict
from pathlib import Path

import pytest
import torch

from mdepth_fast.bench import measure as core
from mdepth_fast.bench import report
from mdepth_fast.bench.cases import CASES

SIZE = os.environ.get("MDEPTH_BENCH_SIZE", "")
ROUNDS = int(os.environ.get("MDEPTH_BENCH_ROUNDS", "5"))
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RESULTS = Path(__file__).parent / "results"
FACTS = report.device_facts(DEVICE)  # before anything is measured

_medians: dict[str, dict[str, float]] = defaultdict(dict)
_ran: dict[str, dict[str, str]] = defaultdict(dict)
_reasons: dict[str, dict[str, str]] = defaultdict(dict)


def pytest_addoption(parser):
    group = parser.getgroup("mdepth_fast")
    group.addoption("--save", action="store_true", dest="save_results", help="write result files and the tables")
    group.addoption("--full", action="store_true", dest="full_size", help="published sizes, and what takes minutes")


def pytest_generate_tests(metafunc):
    if "variant" in metafunc.fixturenames:
        metafunc.parametrize("variant", core.VARIANTS)


@pytest.fixture
def full(request):
    return request.config.getoption("full_size")


@pytest.fixture
def device():
    return DEVICE


@pytest.fixture
def compare(benchmark, variant):
    """Times one variant of a case after its gradients were found equal to the reference's in float64."""

    def run(name):
        case = CASES[name]
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
            forward=measurement.forward,
            backward=measurement.backward,
        )
        with core.precision(case.tf32):
            benchmark.pedantic(core.seconds, (step, DEVICE), rounds=ROUNDS, warmup_rounds=1)
        if benchmark.stats:  # absent under --benchmark-disable
            _medians[label][variant] = benchmark.stats.stats.median
            _ran[label][variant] = report.ran_text(measurement.forward, measurement.backward)

    return run


@pytest.fixture
def in_turn(benchmark, save):
    """Times functions by name in turn, prints their medians and ratios to the first, and keeps the result file.

    The name of what this package computes starts with "mdepth_fast". `title` is the row's head in the README; without
    one it is left out there.
    """

    def run(case, size, steps, *, title="", rounds=ROUNDS):
        found = []
        benchmark.pedantic(lambda: found.extend(core.in_turn(steps, rounds, DEVICE)), rounds=1)
        first = found[0]
        print(f"\n{title or case}, {size}, {report.device_text(FACTS)}")
        for one in found:
            ratio = statistics.median(a / b for a, b in zip(first.seconds_each, one.seconds_each, strict=True))
            ran = report.ran_text(one.forward, one.backward)
            allowed = one.variant.startswith("mdepth_fast")  # others' code runs no kernel, ours runs on one backend
            assert len({backend for _, backend in one.forward}) <= allowed, f"{one.variant} ran {one.forward}"
            print(f"  {one.variant:<14}{one.seconds * 1e3:10.3f} ms{ratio:8.2f}x {first.variant}   ran: {ran}")
            benchmark.extra_info[one.variant] = one.seconds
        save(case, size, title=title, rows=found)
        return found

    return run


@pytest.fixture
def save(request):
    """Writes a result file and the tables where --save asks for it."""

    def write(case, size, **content):
        if request.config.getoption("save_results"):
            report.write_record(RESULTS, case, size, FACTS, **content)
            report.write_tables(RESULTS, RESULTS.parents[1] / "README.md")

    return write


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
                line = f"  {variant:<8} {medians[variant] * 1e3:9.2f} ms   ran: {_ran[label][variant]}"
                terminalreporter.write_line("   ".join([line, *ratios[:1]]) + "".join(f", {r}" for r in ratios[1:]))
            elif variant in _reasons[label]:
                terminalreporter.write_line(f"  {variant:<8} not here: {_reasons[label][variant]}")

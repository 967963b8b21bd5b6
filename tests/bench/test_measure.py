"""What is measured is what was meant: the right result, on the backend whose name the row has."""

import dataclasses
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdepth_fast import _dispatch, ops
from mdepth_fast._op import OPS
from mdepth_fast.bench import measure as core
from mdepth_fast.bench.cases import CASES, GPU_CASES, MOTION_SCENES
from mdepth_fast.cli import main

CPU = torch.device("cpu")
SMALL = 1, 32, 64


def small(name):
    """Blocks of the decoder have a size of their own, which is small already."""
    return CASES[name].size if CASES[name].op == "nnconv5" else SMALL


def test_every_op_has_a_case():
    assert {case.op for case in CASES.values()} == set(OPS)
    assert all(name == case.name for name, case in (CASES | GPU_CASES).items())
    # An op is found by its name.
    assert all(op in CASES for op in OPS if op not in ("nnconv5", "conv_stack"))


@pytest.mark.parametrize("name", CASES)
def test_every_case_runs_on_the_backend_it_names(name):
    case = CASES[name]
    plain, fused = core.measure(case, *small(name), variants=["eager", "cpu"], rounds=1)
    assert plain.forward == [] and not plain.backward
    assert (case.op, "cpu") in fused.forward and {backend for _, backend in fused.forward} == {"cpu"}
    if case.differentiable:
        ran = dict(fused.backward)
        for op, _ in fused.forward:
            if hasattr(torch.ops.mdepth, f"{op}_backward"):
                assert ran[f"{op}_backward"] == "cpu"
    else:
        assert plain.backward is None and fused.backward is None
    for one in (plain, fused):
        assert one.reason is None and one.seconds > 0 and len(one.seconds_each) == 1
        assert one.error < case.tolerance and one.kept_bytes >= 0 and one.peak_bytes >= 0


def test_variants_that_cannot_run_say_why():
    rows = core.measure(CASES["silog_loss"], *SMALL, variants=["cuda", "freeze"], rounds=1)
    assert [row.reason for row in rows] == [
        "needs CUDA tensors, the tensors are on cpu",
        "only a network has weights of its own",
    ]
    assert all(math.isnan(row.seconds) for row in rows)


def exact():
    return core.problem(CASES["silog_loss"], *SMALL, CPU).exact


def silog_on(backend):
    return dataclasses.replace(
        CASES["silog_loss"], call=lambda **t: ops.silog_loss(**t, valid="measured", backend=backend)
    )


class Elsewhere(torch.autograd.Function):
    """A loss whose backward computes with another kernel than its forward."""

    @staticmethod
    def forward(ctx, prediction, depth):
        ctx.save_for_backward(prediction, depth)
        return ops.silog_loss(prediction, depth, valid="measured", backend="reference")

    @staticmethod
    def backward(ctx, grad):
        prediction, depth = (tensor.detach() for tensor in ctx.saved_tensors)
        with torch.enable_grad():
            leaf = prediction.requires_grad_()
            loss = ops.silog_loss(leaf, depth, valid="measured", backend="cpu")
            return grad * torch.autograd.grad(loss, leaf)[0], None


@pytest.mark.parametrize(
    ("case", "variant", "message"),
    [
        (silog_on("reference"), "cpu", "silog_loss, cpu: forward ran no kernel"),
        (silog_on("cpu"), "eager", "silog_loss, eager: forward ran silog_loss on cpu"),
        (
            dataclasses.replace(CASES["silog_loss"], call=lambda prediction, depth: Elsewhere.apply(prediction, depth)),
            "eager",
            "silog_loss, eager: backward ran silog_loss on cpu",
        ),
    ],
)
def test_another_backend_is_an_error(case, variant, message):
    given = core.Problem(case.inputs(*SMALL), exact())
    with pytest.raises(RuntimeError, match=message):
        core.prepare(case, variant, given, device=CPU)


def test_the_backends_of_both_directions_are_checked():
    forward = [("inverse_warp", "triton")]
    core.check_backends("warp", "triton", forward, [("inverse_warp_backward", "triton")], True)
    core.check_backends("warp", "triton", forward, [], False)
    core.check_backends("labels", "cuda", [("ordinal_decode", "cuda")], [], True)  # has no backward
    with pytest.raises(RuntimeError, match="warp, triton: backward ran inverse_warp_backward on cuda"):
        core.check_backends("warp", "triton", forward, [("inverse_warp_backward", "cuda")], True)
    with pytest.raises(RuntimeError, match="warp, triton: backward did not run inverse_warp_backward"):
        core.check_backends("warp", "triton", forward, [], True)


def test_a_timed_run_is_checked_too(monkeypatch):
    """The run that is recorded first may be the only one on the right backend."""
    calls = []

    def call(**tensors):
        calls.append(1)
        backend = "cpu" if len(calls) < 5 else "reference"
        return ops.silog_loss(**tensors, valid="measured", backend=backend)

    case = dataclasses.replace(CASES["silog_loss"], call=call)
    given = core.Problem(case.inputs(*SMALL), exact())
    monkeypatch.setattr(core, "problem", lambda *_: given)
    with pytest.raises(RuntimeError, match="silog_loss, cpu: forward ran no kernel"):
        core.measure(case, *SMALL, variants=["cpu"], rounds=5)


def test_a_wrong_result_is_not_timed():
    case = dataclasses.replace(CASES["silog_loss"], call=lambda **t: 2 * ops.silog_loss(**t, valid="measured"))
    given = core.Problem(case.inputs(*SMALL), exact())
    with pytest.raises(AssertionError, match="silog_loss, cpu: the result is off by 1"):
        core.prepare(case, "cpu", given, device=CPU)


def test_in_turn():
    order, inputs = [], CASES["silog_loss"].inputs(*SMALL)

    def fused():
        order.append("fused")
        return ops.silog_loss(**inputs, valid="measured", backend="cpu")

    first, second = core.in_turn({"plain": lambda: order.append("plain"), "fused": fused}, 3)
    assert order == ["plain", "fused"] * 4
    assert (first.forward, second.forward) == ([], [("silog_loss", "cpu")])
    assert len(second.seconds_each) == 3 and second.seconds == sorted(second.seconds_each)[1]


def test_gradient_errors():
    case = CASES["min_reprojection"]
    errors = core.gradient_errors(case, "cpu", MOTION_SCENES, range(2), (1, 24, 40))
    assert list(errors) == list(MOTION_SCENES)
    for found in errors.values():
        assert list(found) == ["eager", "cpu"] and all(len(each) == 2 for each in found.values())
        assert all(0 < error < 0.5 for each in found.values() for error in each)
    # Scenes and seeds differ in what they ask.
    assert len({error for found in errors.values() for error in found["eager"]}) == 2 * len(MOTION_SCENES)


def test_kernels_of_interpreted_triton_are_recorded():
    """In a process of its own: the interpreter is chosen when Triton is imported."""
    code = (
        "import torch, dataclasses\n"
        "from mdepth_fast.bench import measure as core\n"
        "from mdepth_fast.bench.cases import CASES\n"
        "cpu, size = torch.device('cpu'), (1, 8, 10)\n"
        "for name in ('edge_aware_smoothness', 'inverse_warp', 'ordinal_decode'):\n"
        "    case = CASES[name]\n"
        "    _, one = core.prepare(case, 'triton', core.problem(case, *size, cpu), device=cpu)\n"
        "    print(name, one.forward, one.backward)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "edge_aware_smoothness [('edge_aware_smoothness', 'triton')] [('edge_aware_smoothness_backward', 'triton')]",
        "inverse_warp [('inverse_warp', 'triton')] [('inverse_warp_backward', 'triton')]",
        "ordinal_decode [('ordinal_decode', 'triton')] None",
    ]


def test_former_names():
    """What could be imported from `mdepth_fast.benchmark` still can."""
    from mdepth_fast import benchmark

    assert benchmark.CASES is CASES and benchmark.measure is core.measure
    assert all(hasattr(benchmark, name) for name in benchmark.__all__)
    assert benchmark.VARIANTS[0] == "eager" and "reference" in _dispatch.BACKENDS


def test_the_benches_run():
    """One of each kind, small, as `make bench` runs them all."""
    root = Path(__file__).parents[2]
    chosen = "test_op and silog_loss and (eager or cpu) or against_numpy and 11"
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-k", chosen, "-p", "no:cacheprovider"]
    command += ["benches/bench_ops.py", "benches/bench_evaluation.py"]
    # In a worker of pytest-xdist pytest-benchmark would time nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment |= {"MDEPTH_BENCH_SIZE": "1x32x64", "MDEPTH_BENCH_ROUNDS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^  eager +[\d.]+ ms   ran: PyTorch / PyTorch$", done.stdout, re.MULTILINE)
    assert re.search(r"^  cpu +[\d.]+ ms   ran: cpu / cpu   \d+\.\dx eager$", done.stdout, re.MULTILINE)
    assert re.search(r"^  mdepth_fast +[\d.]+ ms +\d+\.\d+x numpy   ran: cpu$", done.stdout, re.MULTILINE)


class TestCommand:
    def test_table_and_chart(self, capsys, tmp_path):
        chart = tmp_path / "chart.png"
        words = ["bench", "silog_loss", "ordinal_decode", "--size=1x32x64", "--rounds=1", f"--chart={chart}"]
        assert main([*words, "--variants=eager,cpu,cuda"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("silog_loss  1x32x64 on ") and lines[0].endswith("forward + backward")
        assert lines[1].split()[-1] == "ran"
        assert lines[2].endswith("PyTorch / PyTorch") and lines[3].endswith("cpu / cpu")
        assert lines[4] == "  cuda       not here: needs CUDA tensors, the tensors are on cpu"
        assert lines[6].endswith(", forward") and lines[9].endswith("  cpu")
        assert chart.read_bytes().startswith(b"\x89PNG") and [p.name for p in tmp_path.iterdir()] == ["chart.png"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["sum"], "cases: expected some of inverse_warp, .*, got 'sum'"),
            (["--variants=eager,fast"], "--variants: expected some of eager, .*, got 'fast'"),
            (["--size=4x192"], "--size: expected batch x height x width like 4x192x640, got '4x192'"),
            (["--rounds=0"], "--rounds: expected at least 1, got 0"),
        ],
    )
    def test_bad_input_is_one_line(self, words, message, capsys):
        assert main(["bench", *words]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(message, line)

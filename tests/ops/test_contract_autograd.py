"""What holds for every op alike of derivatives, and of the ways by which a call reaches its kernels."""

import threading
import warnings

import pytest
import torch
from cases import CASES, gradients
from scenes import relative_error

import mdepth_fast
from mdepth_fast import _dispatch, _native, _op

per_op = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
DIFFERENTIABLE = [case for case in CASES if case.differentiable]
per_differentiable_op = pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)


class _Mode(torch.utils._python_dispatch.TorchDispatchMode):
    """Does nothing, but something looks: calls go through the registered functions."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def _leaves(case, inputs):
    return {name: value.clone().requires_grad_(name in case.differentiable) for name, value in inputs.items()}


@per_op
def test_the_direct_way_gives_the_same_bits(case):
    for sizes in ({}, {"batch": 1, "height": 33, "width": 65}):
        inputs = case.inputs(**sizes)
        outputs, grads = gradients(case, "cpu", inputs)
        with _Mode():
            want, want_grads = gradients(case, "cpu", inputs)
        assert all(torch.equal(a, b) for a, b in zip(outputs, want))
        assert all(torch.equal(a, b) for a, b in zip(grads, want_grads))


@per_op
def test_what_traces_sees_the_registered_function(case):
    """A profiler names the op; a mode sees it; without either nothing stands between a call and its kernels."""
    inputs = case.inputs()
    with torch.autograd.profiler.profile() as profile:
        case.call("cpu", **inputs)
    assert f"mdepth::{case.name}" in {event.key for event in profile.key_averages()}
    leaves = _leaves(case, inputs)
    outputs = case.call("cpu", **leaves)
    names = {type(node).__name__ for node in _nodes(outputs)}
    assert not case.differentiable or f"{case.name}Backward" in names, names


def _nodes(outputs):
    found, waiting = set(), [output.grad_fn for output in outputs if output.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += [one for one, _ in node.next_functions if one is not None]
    return found


@per_differentiable_op
@pytest.mark.parametrize("way", ["direct", "registered"])
def test_a_second_derivative_is_refused_by_name(case, way):
    """Even where a part of what is differentiated twice does not come from the op: a finite number would be wrong."""
    inputs = case.inputs(batch=1, height=4, width=5, dtype=torch.float64)
    for squared in (False, True):
        leaves = _leaves(case, inputs)
        with _Mode() if way == "registered" else warnings.catch_warnings():
            total = sum(output.sum() for output in case.call("cpu", **leaves))
        wanted = [leaves[name] for name in case.differentiable]
        grads = torch.autograd.grad(total**2 if squared else total, wanted, create_graph=True)
        twice = sum(grad.square().sum() for grad in grads) + sum(leaf.pow(3).sum() for leaf in wanted)
        for name in case.differentiable:
            if name == "skip" and not squared:
                continue  # its gradient is the output's, whatever the tensors are
            with pytest.raises(RuntimeError, match=rf'^{case.name}: .*no second derivative.*backend="reference"'):
                torch.autograd.grad(twice, leaves[name], retain_graph=True)
        # The first derivative of such a graph is what it always is.
        plain = torch.autograd.grad(
            sum(output.sum() for output in case.call("cpu", **leaves)) ** (2 if squared else 1), wanted
        )
        assert all(torch.equal(a.detach(), b) for a, b in zip(grads, plain))


@per_differentiable_op
def test_the_reference_has_the_second_derivative(case):
    inputs = case.inputs(batch=1, dtype=torch.float64, seed=3, **case.small)
    leaves = list(_leaves(case, inputs).values())

    def function(*tensors):
        return tuple(case.call("reference", **dict(zip(inputs, tensors))))

    directions = [torch.randn_like(leaf) for leaf in leaves]
    wanted = [index for index, name in enumerate(inputs) if name in case.differentiable]

    def slope(step):
        """The derivative along the directions, at a place `step` further along them."""
        moved = [leaf.detach() + step * d for leaf, d in zip(leaves, directions)]
        moved = [leaf.requires_grad_(index in wanted) for index, leaf in enumerate(moved)]
        grads = torch.autograd.grad(sum(o.sum() for o in function(*moved)), [moved[i] for i in wanted])
        return sum((grad * directions[i]).sum() for grad, i in zip(grads, wanted))

    fixed = [d if index in wanted else torch.zeros_like(d) for index, d in enumerate(directions)]
    directions = fixed
    step = 1e-6
    numeric = (slope(step) - slope(-step)) / (2 * step)
    grads = torch.autograd.grad(sum(o.sum() for o in function(*leaves)), [leaves[i] for i in wanted], create_graph=True)
    along = sum((grad * directions[i]).sum() for grad, i in zip(grads, wanted))
    second = torch.autograd.grad(along, [leaves[i] for i in wanted], allow_unused=True)
    got = sum((grad * directions[i]).sum() for grad, i in zip(second, wanted) if grad is not None)
    assert torch.isfinite(numeric)
    torch.testing.assert_close(torch.as_tensor(got, dtype=torch.float64), numeric, rtol=1e-4, atol=1e-4)


@per_differentiable_op
def test_torch_func_is_right_or_refused(case):
    inputs = case.inputs(batch=1, height=4, width=5, dtype=torch.float64)
    names = case.differentiable
    wanted = tuple(inputs[name] for name in names)

    def total(backend):
        def function(*tensors):
            return sum(o.sum() for o in case.call(backend, **{**inputs, **dict(zip(names, tensors))}))

        return function

    def differentiated(function):
        return torch.func.grad(function, tuple(range(len(names))))(*wanted)

    leaves = _leaves(case, inputs)
    want = torch.autograd.grad(sum(o.sum() for o in case.call("reference", **leaves)), [leaves[name] for name in names])
    _dispatch._warned.clear()
    with pytest.warns(RuntimeWarning, match=f"{case.name} runs as plain PyTorch under torch.func"):
        got = differentiated(total(None))
    assert relative_error(got, want) < 1e-12
    ones = tuple(torch.ones_like(value) for value in wanted)
    slope = sum(grad.sum() for grad in want)
    stacked = {name: torch.stack([value, value]) for name, value in inputs.items()}
    ways = {
        "grad": lambda backend: differentiated(total(backend)),
        "jvp": lambda backend: torch.func.jvp(total(backend), wanted, ones)[1],
        "dual": lambda backend: _dual(total(backend), wanted, ones),
        "vmap": lambda backend: torch.func.vmap(
            lambda *tensors: case.call(backend, **dict(zip(inputs, tensors)))[0].sum()
        )(*stacked.values()),
    }
    one = case.call("reference", **inputs)[0].sum()
    for name, way in ways.items():
        with pytest.raises(RuntimeError, match=rf'^{case.name}: backend .cpu. knows neither.*backend="reference"'):
            way("cpu")
        try:
            found = way(None)
        except NotImplementedError as error:  # in PyTorch's own sampler, with its own words
            assert name in ("jvp", "dual") and "grid_sampler" in str(error)
            continue
        if name in ("jvp", "dual"):
            torch.testing.assert_close(found, slope, rtol=1e-9, atol=1e-9)
        if name == "vmap":
            torch.testing.assert_close(found, torch.stack([one, one]), rtol=1e-12, atol=0)


def _dual(function, tensors, tangents):
    with torch.autograd.forward_ad.dual_level():
        made = [torch.autograd.forward_ad.make_dual(one, tangent) for one, tangent in zip(tensors, tangents)]
        return torch.autograd.forward_ad.unpack_dual(function(*made)).tangent


@per_differentiable_op
@pytest.mark.parametrize("way", ["direct", "registered", "compiled"])
def test_what_the_forward_resolved_is_what_the_backward_runs(case, way, monkeypatch):
    """In whatever thread, and whatever is asked for by then. "other" stands for a second backend that works here."""
    for (function, backend), run in list(_dispatch._implementations.items()):
        if backend == "cpu":
            monkeypatch.setitem(_dispatch._implementations, (function, "other"), run)
    monkeypatch.setattr(_dispatch, "BACKENDS", (*_dispatch.BACKENDS, "other"))
    call = case.call
    if way == "compiled":
        torch._dynamo.reset()
        call = torch.compile(lambda backend, **t: case.call(backend, **t), fullgraph=True, backend="aot_eager")
    for asked in ("other", "cpu", None):
        leaves = _leaves(case, case.inputs())
        with _Mode() if way == "registered" else warnings.catch_warnings(), mdepth_fast.use_backend(asked):
            total = sum(output.sum() for output in call(None, **leaves))
        # A thread of its own, in which something else is asked for, as autograd's are of a GPU.
        failures = []

        def backward(asked=asked, total=total, leaves=leaves, failures=failures):
            try:
                with mdepth_fast.use_backend("reference" if way == "compiled" else "cuda"), _dispatch.record() as calls:
                    torch.autograd.grad(total, [leaves[name] for name in case.differentiable])
                failures += [one for one in calls if one[1] != (asked or "cpu")] or ([] if calls else ["no kernel"])
            except Exception as error:
                failures.append(error)

        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
        assert not failures, (asked, failures)
    _dispatch.forget()


def test_a_new_thread_agrees_with_the_process(monkeypatch):
    """On the default that was read, and checked, when the package was imported."""
    monkeypatch.setenv("MDEPTH_BACKEND", "no such backend")
    found = []
    thread = threading.Thread(target=lambda: found.append(_dispatch.asked(None)))
    thread.start()
    thread.join()
    assert found == [_dispatch._DEFAULT]


@per_op
def test_exports_with_sizes_that_vary(case):
    """`torch.export(strict=False)`, every size of every input but channels symbolic."""
    inputs = case.inputs(batch=3, height=16, width=24)

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return case.call("cpu", **dict(zip(inputs, tensors)))

    dynamic = []
    for name, value in inputs.items():
        sizes = {0: torch.export.Dim.AUTO} if name not in case.shared else {}
        if value.dim() > 3:
            sizes |= {value.dim() - 2: torch.export.Dim.AUTO, value.dim() - 1: torch.export.Dim.AUTO}
        dynamic.append({} if name in case.shared else sizes)
    module = Module()
    exported = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=(tuple(dynamic),), strict=False)
    assert relative_error(exported.module()(*inputs.values()), module(*inputs.values())) < 1e-6


@per_op
def test_running_out_of_memory_is_said_so(case, monkeypatch):
    """torch.OutOfMemoryError comes through as what it is, from outputs and from workspace."""
    inputs = case.inputs()
    leaves = _leaves(case, inputs)
    outputs = case.call("cpu", **leaves)

    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(torch.OutOfMemoryError):
        case.call("cpu", **inputs)
    if case.differentiable and _op.OPS[case.name].gradient.function is None:
        with pytest.raises(torch.OutOfMemoryError):
            torch.autograd.grad(sum(o.sum() for o in outputs), [leaves[name] for name in case.differentiable])


def test_workspace_that_cannot_be_had(monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", full)
    members = {"batch": 1, "height": 8, "width": 8, "dtype": _native.code(torch.float32)}
    with pytest.raises(torch.OutOfMemoryError):
        _native.run("berhu_loss", "nvrtc", members, torch.device("cuda", 0))


def test_what_can_run_is_looked_up_once(monkeypatch):
    device = torch.device("cpu")
    _dispatch.forget()
    _dispatch.resolve("photometric_loss", "", device)
    monkeypatch.setattr(_native, "unavailable", lambda: pytest.fail("asked again"))
    assert _dispatch.resolve("photometric_loss", "", device) == "cpu"


@pytest.mark.parametrize("name", sorted(_op.OPS))
def test_every_backend_of_an_op_has_its_backward(name):
    op = _op.OPS[name]
    _dispatch.reasons(name, torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
    for backend in ("cpu", "cuda", "nvrtc", "triton"):
        if op.backward and (name, backend) in _dispatch._implementations:
            assert (op.backward.name, backend) in _dispatch._implementations, backend


def test_every_op_has_a_case():
    assert {case.name for case in CASES} == set(_op.OPS)

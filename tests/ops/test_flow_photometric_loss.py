import numpy as np
import oracles
import pytest
import torch
from cases import flow_inputs

from mdepth_fast.ops import flow_photometric_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (17, 33), (18, 271)], ids=str)
def test_against_loops(backend, size):
    inputs = flow_inputs(2, *size, torch.float64)
    for options in ({}, {"alpha": 0.53, "scale": 360.0}, {"alpha": 1.0, "epsilon": 0.1}):
        got = flow_photometric_loss(**inputs, **options, backend=backend)
        want = oracles.flow_photometric_loss(
            *(t.numpy() for t in {**inputs, "mask": inputs["mask"][:, 0]}.values()), **options
        )
        np.testing.assert_allclose(got.item(), want, rtol=1e-12)


@BACKENDS
def test_equal_images_cost_the_penalty_of_nothing(backend):
    """And only the share that stays inside: here all but two columns of ten."""
    image, flow = torch.rand(2, 3, 6, 10), torch.zeros(2, 2, 6, 10)
    loss = flow_photometric_loss(image, image, flow, alpha=0.5, epsilon=0.01, backend=backend)
    np.testing.assert_allclose(loss.item(), 0.01, rtol=1e-5 if backend == "cpu" else 1e-2)
    flow[:, 0] = 2.0
    shifted = torch.roll(image, 2, -1)
    loss = flow_photometric_loss(image, shifted, flow, alpha=0.5, epsilon=0.01, backend=backend)
    np.testing.assert_allclose(loss.item(), 0.8 * 0.01, rtol=1e-2)


@BACKENDS
def test_a_step_down_the_gradient_helps(backend):
    inputs = flow_inputs(1, 20, 40, torch.float64)
    inputs["flow"] = (0.5 * inputs["flow"]).requires_grad_()
    loss = flow_photometric_loss(**inputs, backend=backend)
    (grad,) = torch.autograd.grad(loss, inputs["flow"])
    moved = {**inputs, "flow": inputs["flow"] - 1e-4 * grad / grad.abs().max()}
    assert flow_photometric_loss(**moved, backend=backend) < loss


@BACKENDS
def test_bool_mask_and_what_it_hides(backend):
    """Where the mask is off, anything may stand; where it is on, what is not finite shows."""
    inputs = flow_inputs(2, 9, 40)
    on = inputs["mask"] != 0
    hidden = {name: inputs[name].masked_fill(~on, torch.nan) for name in ("target", "flow")}
    results = []
    for change in ({"mask": on.float()}, {"mask": on}, {"mask": on, **hidden}):
        arguments = {**inputs, **change}
        flow = arguments["flow"].clone().requires_grad_()
        loss = flow_photometric_loss(**{**arguments, "flow": flow}, backend=backend)
        results.append((loss, torch.autograd.grad(loss, flow)[0]))
    for loss, grad in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(grad, results[0][1], rtol=1e-6, atol=0)
    assert not results[2][1][(~on).expand(-1, 2, -1, -1)].any()
    for name, value in (("flow", torch.nan), ("flow", torch.inf), ("target", torch.nan), ("source", torch.nan)):
        bad = {**inputs, "flow": torch.zeros_like(inputs["flow"]), "mask": None}
        bad[name] = bad[name].clone()
        bad[name][1, 0, 4, 30] = value
        assert flow_photometric_loss(**bad, backend=backend).isnan(), (name, value)


def test_only_the_flow_gets_a_gradient():
    inputs = {name: value.requires_grad_() for name, value in flow_inputs(1, 6, 7).items()}
    for backend in ("cpu", "reference"):
        loss = flow_photometric_loss(**inputs, backend=backend)
        grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
        assert [grad is not None for grad in grads] == [False, False, True, False]


def test_errors():
    inputs = flow_inputs(2, 6, 7)
    for change, error, message in [
        ({"target": inputs["target"][0]}, ValueError, r"^target: expected shape \(B, C, H, W\)"),
        (
            {"source": inputs["source"][..., :5]},
            ValueError,
            r"^source: expected shape .* = \(2, 3, 6, 7\), got \(2, 3, 6, 5\)",
        ),
        ({"flow": inputs["flow"][:, :1]}, ValueError, r"^flow: expected shape \(B, 2, H, W\) = \(2, 2, 6, 7\), got"),
        ({"mask": inputs["mask"][:, 0]}, ValueError, r"^mask: expected shape \(B, 1, H, W\) = \(2, 1, 6, 7\), got"),
        (
            {"mask": inputs["mask"].bool()[:, 0]},
            ValueError,
            r"^mask: expected shape \(B, 1, H, W\) = \(2, 1, 6, 7\), got",
        ),
        ({"mask": inputs["mask"].long()}, TypeError, r"^mask: expected a floating-point tensor, got torch.int64"),
        ({"alpha": 0.0}, ValueError, r"^alpha: expected a number above 0, at most 1, got 0.0"),
        ({"alpha": 1.5}, ValueError, r"^alpha: expected"),
        ({"scale": -1.0}, ValueError, r"^scale: expected a finite number above 0, got -1.0"),
        ({"epsilon": 0.0}, ValueError, r"^epsilon: expected a finite number of at least 1e-12, got 0.0"),
        ({name: inputs[name][..., :0] for name in inputs}, ValueError, r"^target: expected C, H and W of at least 1"),
    ]:
        with pytest.raises(error, match=message):
            flow_photometric_loss(**{**inputs, **change})

import itertools

import numpy as np
import oracles
import pytest
import torch
from cases import sparse_inputs
from scenes import awkward_layouts, relative_error

from mdepth_fast.ops import berhu_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


def _of_errors(errors, backend, **keywords):
    """Loss and gradient of a map of given errors; depths are 0, so that no rounding changes them."""
    leaf = torch.as_tensor(errors, dtype=torch.float64).view(1, 1, 1, -1).requires_grad_()
    loss = berhu_loss(leaf, torch.zeros_like(leaf), backend=backend, **keywords)
    return loss, torch.autograd.grad(loss, leaf)[0].flatten()


@BACKENDS
@pytest.mark.parametrize("threshold", [0.2, 0.9, 1.5])
def test_against_loops(backend, threshold):
    prediction, depth = sparse_inputs(3, 7, 13, torch.float64).values()
    depth[1] = 0
    valid = torch.rand(depth.shape) < 0.3
    for mask, counted in (("measured", depth > 0), (valid, valid), (None, torch.ones_like(valid))):
        got = berhu_loss(prediction, depth, valid=mask, threshold=threshold, backend=backend)
        want = oracles.berhu_loss(*(one[:, 0].numpy() for one in (prediction, depth, counted)), threshold)
        np.testing.assert_allclose(got.item(), want, rtol=1e-13)


@BACKENDS
def test_the_gradient_by_hand(backend):
    """c = 0.2 * 10: signs up to it, x / c beyond; c itself is a constant."""
    errors = [-10.0, 4.0, 2.0, -2.0, 0.5, 0.0, -1e-3]
    loss, grad = _of_errors(errors, backend)
    np.testing.assert_allclose(loss.item() * 7, 104 / 4 + 20 / 4 + 2 + 2 + 0.5 + 0 + 1e-3, rtol=1e-14)
    np.testing.assert_allclose(grad * 7, [-5, 2, 1, -1, 1, 0, -1], rtol=1e-14)


@BACKENDS
@pytest.mark.parametrize("sign", [1, -1])
def test_loss_and_gradient_are_continuous_at_the_threshold(backend, sign):
    """Of a pixel that passes c while another holds the largest error: steps as small as those of the error."""
    at, each = 2.0, 1e-6
    steps = [_of_errors([10.0, sign * (at + k * each)], backend) for k in range(-3, 4)]
    for (one, one_grad), (two, two_grad) in itertools.pairwise(steps):
        np.testing.assert_allclose(2 * (two - one).item(), each, rtol=1e-5)
        assert abs(two_grad[1] - one_grad[1]) <= 0.51 * each / at + 1e-15


@BACKENDS
def test_the_threshold_is_of_the_whole_batch_and_of_valid_pixels(backend):
    prediction, depth = torch.full((2, 1, 4, 5), 1.0), torch.zeros(2, 1, 4, 5)
    prediction[1, 0, 0, 0] = 10.0  # c = 2
    assert berhu_loss(prediction[:1], depth[:1], backend=backend) == pytest.approx((1 + 0.04) / 0.4)
    assert berhu_loss(prediction, depth, backend=backend).item() == pytest.approx((39 + 104 / 4) / 40)
    valid = prediction < 5
    assert berhu_loss(prediction, depth, valid=valid, backend=backend).item() == pytest.approx((1 + 0.04) / 0.4)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_error_at_all_and_errors_of_any_size(backend, dtype):
    depth = torch.rand(2, 1, 5, 6, dtype=dtype)
    leaf = depth.clone().requires_grad_()
    loss = berhu_loss(leaf, depth, backend=backend)
    assert loss == 0 and not torch.autograd.grad(loss, leaf)[0].any()
    limits = torch.finfo(dtype)
    for largest in (limits.tiny * limits.eps, limits.tiny, 1e-20, 1.0, limits.max / 8):
        leaf = (largest * torch.tensor([1.0, 0.5, 0.125, 0.0], dtype=torch.float64)).to(dtype).view(1, 1, 2, 2)
        leaf.requires_grad_()
        loss = berhu_loss(leaf, torch.zeros_like(leaf), backend=backend)
        (grad,) = torch.autograd.grad(loss, leaf)
        if backend == "cpu" or largest < limits.max**0.5:  # plain PyTorch squares
            assert loss.isfinite() and loss >= largest / 4
        assert grad.isfinite().all() and (grad >= 0).all() and grad[0, 0, 1, 1] == 0


@BACKENDS
def test_what_lies_outside_the_mask_does_not_matter(backend):
    prediction, depth = sparse_inputs(3, 50, 60).values()
    valid = (depth > 0) & (torch.rand(depth.shape) < 0.1)
    valid[0, :, :40] = False
    valid[1] = False
    results = []
    for rubbish in (1.0, torch.nan, torch.inf, -torch.inf, 1e30):
        leaf = prediction.masked_fill(~valid, rubbish).requires_grad_()
        loss = berhu_loss(leaf, depth.masked_fill(~valid, 0.0 if rubbish == 1e30 else rubbish), valid=valid,
                          backend=backend)  # fmt: skip
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    assert torch.equal(results[0][1] != 0, valid)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


@BACKENDS
def test_no_valid_pixel_costs_nothing(backend):
    prediction = torch.rand(2, 1, 5, 6, requires_grad=True)
    depth = torch.zeros(2, 1, 5, 6)
    depth[0, 0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -1.0])
    for valid in ("measured", torch.zeros_like(depth, dtype=torch.bool)):
        loss = berhu_loss(prediction, depth, valid=valid, backend=backend)
        assert loss == 0 and not torch.autograd.grad(loss, prediction)[0].any()


@BACKENDS
@pytest.mark.parametrize("position", [0, 17, 2999])
def test_non_finite_values_are_not_lost(backend, position):
    prediction, depth = sparse_inputs(1, 50, 60).values()
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid.view(-1)[5::7] = False
    for index in (0, 1):
        for value in (torch.nan, torch.inf, -torch.inf):
            maps = [prediction.clone(), depth.clone()]
            maps[index].view(-1)[position] = value
            maps[0].requires_grad_()
            loss = berhu_loss(*maps, valid=valid, backend=backend)
            (grad,) = torch.autograd.grad(loss, maps[0])
            assert loss.isnan() and grad[valid].isnan().all() and not grad[~valid].any()


def test_layouts_of_the_mask():
    prediction, depth = sparse_inputs().values()
    valid = depth > 0
    want = berhu_loss(prediction, depth, valid=valid, backend="reference")
    for name, view in awkward_layouts(valid).items():
        torch.testing.assert_close(berhu_loss(prediction, depth, valid=view, backend="cpu"), want, msg=name)


def test_float32_agrees_with_double():
    prediction, depth = sparse_inputs(2, 60, 70, torch.float64).values()
    results = []
    for dtype in (torch.float64, torch.float32):
        leaf = prediction.float().to(dtype).requires_grad_()
        loss = berhu_loss(leaf, depth.float().to(dtype), valid="measured", backend="cpu")
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    for got, want in zip(results[1], results[0]):
        assert relative_error([got], [want]) < 2e-7


def test_errors():
    prediction, depth = torch.rand(2, 2, 1, 3, 4).unbind()
    for arguments, keywords, error, message in [
        ((prediction[:, 0], depth), {}, ValueError, r"^prediction: expected shape \(B, 1, H, W\)"),
        ((prediction, depth[:1]), {}, ValueError, r"^depth: expected shape .*\(2, 1, 3, 4\), got \(1, 1,"),
        ((prediction, depth), {"valid": depth}, TypeError, r"^valid: expected a bool tensor .*got torch.float32"),
        ((prediction, depth), {"valid": "all"}, ValueError, r"^valid: expected a bool tensor, \"measured\" or None"),
        ((prediction, depth), {"threshold": 0.0}, ValueError, r"^threshold: expected a finite number above 0, got 0"),
        ((prediction, depth.to("meta")), {}, ValueError, r"^depth: expected device cpu"),
    ]:
        with pytest.raises(error, match=message):
            berhu_loss(*arguments, **keywords)

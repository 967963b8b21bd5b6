"""The Triton kernels of silog_loss and berhu_loss, interpreted: forms, masks, and what is not finite."""

import pytest
import torch
from cases import sparse_inputs
from scenes import relative_error

from mdepth_fast.ops import berhu_loss, silog_loss

LOSSES = {
    "eigen": lambda *maps, **k: silog_loss(*maps, **k),
    "image_mean": lambda *maps, **k: silog_loss(*maps, form="image_mean", variance_focus=1.0, scale=3.0, **k),
    "sqrt": lambda *maps, **k: silog_loss(*maps, form="sqrt", variance_focus=0.85, scale=10.0, **k),
    "sqrt_unbiased": lambda *maps, **k: silog_loss(*maps, form="sqrt_unbiased", variance_focus=0.85, **k),
    "log_prediction": lambda *maps, **k: silog_loss(*maps, log_prediction=True, **k),
    "berhu": lambda *maps, **k: berhu_loss(*maps, **k),
}
per_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def _with_gradient(loss, prediction, depth, valid, backend):
    leaf = prediction.clone().requires_grad_()
    value = loss(leaf, depth, valid=valid, backend=backend)
    return value, *torch.autograd.grad(3 * value, leaf)


@per_loss
def test_forms_and_masks(loss):
    prediction, depth = sparse_inputs(2, 5, 17, torch.float64).values()
    mask = (depth > 0) & (torch.rand(depth.shape) < 0.5)
    mask[1] = False
    for valid, y in (("measured", depth), (mask, depth), (None, depth + 1), (mask & False, depth)):
        got, want = (_with_gradient(loss, prediction, y, valid, backend) for backend in ("triton", "reference"))
        for a, b in zip(got, want):
            assert relative_error([a], [b]) < 1e-12
    hidden = [one.masked_fill(~mask, torch.nan) for one in (prediction, depth)]
    want = _with_gradient(loss, prediction, depth, mask, "triton")
    assert all(torch.equal(a, b) for a, b in zip(_with_gradient(loss, *hidden, mask, "triton"), want))


@per_loss
def test_non_finite_values_are_not_lost(loss):
    prediction, depth = sparse_inputs(2, 5, 17, torch.float64).values()
    valid = depth > 0
    valid[1, 0, 3, 11] = True
    depth[1, 0, 3, 11] = 2.0
    for index, value in ((0, torch.nan), (0, torch.inf), (1, torch.inf), (1, -torch.inf)):
        maps = [prediction.clone(), depth.clone()]
        maps[index][1, 0, 3, 11] = value
        value, grad = _with_gradient(loss, *maps, valid, "triton")
        assert value.isnan() and not grad[1, 0, 3, 11].isfinite() and not grad[~valid].any()


def test_a_logarithm_near_1_does_not_cancel():
    depth = 1 + torch.rand(1, 1, 4, 32)
    prediction = depth * (1 + torch.exp2(-20 * torch.rand(depth.shape)))
    leaf = prediction.requires_grad_()
    (grad,) = torch.autograd.grad(silog_loss(leaf, depth, variance_focus=0.0, backend="triton"), leaf)
    want = (prediction.double() / depth.double()).log() * 2 / depth.numel() / prediction.double()
    assert ((grad.double() - want).abs() <= 6 * 2**-24 * want.abs()).all()

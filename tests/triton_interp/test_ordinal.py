"""The Triton kernels of the ordinal ops, interpreted: masks, numbers of bins, and what is not finite."""

import pytest
import torch
from scenes import relative_error

from mdepth_fast.ops import ordinal_decode, ordinal_loss


def _inputs(bins, height=5, width=23):
    logits = 3 * torch.randn(2, 2 * bins, height, width, dtype=torch.float64)
    thresholds = 1 + torch.rand(bins + 1, dtype=torch.float64).add(0.01).cumsum(0)
    depth = 0.5 + torch.rand(2, 1, height, width, dtype=torch.float64) * 1.2 * thresholds[-1]
    return logits, depth, thresholds


@pytest.mark.parametrize("bins", [1, 2, 8, 9, 16, 80])
@pytest.mark.parametrize("masked", [False, True])
def test_numbers_of_bins_and_masks(bins, masked):
    logits, depth, thresholds = _inputs(bins)
    depth[..., ::3] = 0
    valid = torch.rand(depth.shape) < 0.5 if masked else None
    results = []
    for backend in ("reference", "triton"):
        leaf = logits.clone().requires_grad_()
        loss = ordinal_loss(leaf, depth, thresholds, valid=valid, backend=backend)
        results.append(
            (loss, *torch.autograd.grad(3 * loss, leaf), *ordinal_decode(logits, thresholds, backend=backend))
        )
    for got, want in zip(results[1], results[0]):
        assert relative_error([got], [want]) < 1e-13


@pytest.mark.parametrize("margin", [1e-3, 1.0, 17.0, 80.0])
def test_sums_of_logarithms_are_accurate_over_the_range_of_confidence(margin):
    logits = torch.tensor([margin, 0.0]).repeat(9).view(1, -1, 1, 1)
    for sign in (1, -1):
        got = ordinal_loss(sign * logits, torch.ones(1, 1, 1, 1), torch.linspace(1, 2, 10), backend="triton").double()
        want = 9 * torch.nn.functional.softplus(torch.tensor(-sign * margin).double(), threshold=1e9)
        assert abs(got - want) <= 4e-7 * want, (got, want)


def test_what_lies_outside_the_mask_does_not_matter():
    logits, depth, thresholds = _inputs(9)
    valid = torch.rand(depth.shape) < 0.2
    want = ordinal_loss(logits, depth, thresholds, valid=valid, backend="triton")
    leaf = logits.masked_fill(~valid, torch.nan).requires_grad_()
    got = ordinal_loss(leaf, depth.masked_fill(~valid, torch.nan), thresholds, valid=valid, backend="triton")
    (grad,) = torch.autograd.grad(got, leaf)
    assert torch.equal(got, want) and torch.equal(grad != 0, valid.expand_as(grad))


def test_no_valid_pixel_costs_nothing():
    logits, depth, thresholds = _inputs(9)
    leaf = logits.requires_grad_()
    loss = ordinal_loss(leaf, torch.zeros_like(depth), thresholds, backend="triton")
    assert loss == 0 and not torch.autograd.grad(loss, leaf)[0].any()


@pytest.mark.parametrize("channel", [0, 17])
def test_non_finite_values_are_not_lost(channel):
    logits, depth, thresholds = _inputs(9)
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = depth.clone()
        bad[1, 0, 3, 11] = value
        valid = torch.ones_like(bad, dtype=torch.bool)
        assert ordinal_loss(logits, bad, thresholds, valid=valid, backend="triton").isnan()
    logits[1, channel, 3, 11] = torch.nan
    assert ordinal_loss(logits, depth, thresholds, backend="triton").isnan()
    lost, label = ordinal_decode(logits, thresholds, backend="triton")
    assert lost[1, 0, 3, 11].isnan() and lost.isnan().sum() == 1 and label.min() >= 0 and label.max() <= 9

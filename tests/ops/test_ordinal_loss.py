import numpy as np
import oracles
import pytest
import torch
from scenes import awkward_layouts

from mdepth_fast.ops import ordinal_decode, ordinal_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])


@BACKENDS
@pytest.mark.parametrize("size", [(1, 1, 1, 2), (2, 5, 3, 7), (1, 80, 9, 11), (2, 17, 20, 53)])
@pytest.mark.parametrize("masked", [False, True])
def test_against_loops(backend, size, masked):
    batch, bins, height, width = size
    logits = 2 * torch.randn(batch, 2 * bins, height, width, dtype=torch.float64)
    thresholds = 1 + torch.rand(bins + 1, dtype=torch.float64).add(0.01).cumsum(0)
    depth = 0.5 + torch.rand(batch, 1, height, width, dtype=torch.float64) * 1.2 * thresholds[-1]
    depth.view(-1)[:2] = thresholds[[0, -1]]
    depth.view(-1)[2::5] = 0
    valid = torch.rand(depth.shape) < 0.5
    valid.view(-1)[0] = True
    got = ordinal_loss(logits, depth, thresholds, valid=valid if masked else None, backend=backend)
    counted = (valid if masked else depth > 0)[:, 0].numpy()
    want = oracles.ordinal_loss(logits.numpy(), depth[:, 0].numpy(), thresholds.numpy(), counted)
    np.testing.assert_allclose(got.item(), want, rtol=1e-12)


@BACKENDS
def test_a_depth_on_a_threshold_belongs_to_the_bin_above(backend):
    """The loss is least for logits that decode to the true bin, and that bin is t_l <= depth < t_{l+1}."""
    thresholds = torch.tensor([1.0, 2.0, 4.0, 8.0])
    depth = torch.tensor([0.5, 1.0, 1.999, 2.0, 3.999, 4.0, 7.999, 8.0, 50.0]).view(1, 1, 1, -1)
    logits = torch.zeros(1, 6, 1, 9, requires_grad=True)
    for _ in range(3):
        loss = ordinal_loss(logits, depth, thresholds, backend=backend)
        logits = (logits - 9 * torch.autograd.grad(loss, logits)[0]).detach().requires_grad_()
    assert ordinal_decode(logits, thresholds)[1].flatten().tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("margin", [1e-3, 1.0, 8.0, 17.0, 40.0, 80.0])
@pytest.mark.parametrize("bins", [1, 16, 80])
def test_sums_of_logarithms_are_accurate_over_the_range_of_confidence(margin, bins):
    """Right and wrong answers of one margin: where log(1 + exp(-margin)) is tiny it must not be rounded away."""
    thresholds = torch.linspace(1, 2, bins + 1)
    logits = torch.tensor([margin, 0.0]).repeat(bins).view(1, -1, 1, 1).repeat(1, 1, 1, 33)
    for sign in (1, -1):
        got = ordinal_loss(sign * logits, torch.ones(1, 1, 1, 33), thresholds, backend="cpu").double()
        want = bins * torch.nn.functional.softplus(torch.tensor(-sign * margin).double(), threshold=1e9)
        assert abs(got - want) <= 4e-7 * want, (got, want)


@pytest.mark.parametrize("margin", [1e-3, 1.0, 8.0, 40.0, 80.0])
def test_gradient_does_not_cancel(margin):
    logits = torch.tensor([0.0, margin, margin, 0.0]).view(1, 4, 1, 1).requires_grad_()
    thresholds, depth = torch.tensor([1.0, 2.0, 3.0]), torch.full((1, 1, 1, 1), 2.5)
    (got,) = torch.autograd.grad(ordinal_loss(logits, depth, thresholds, backend="cpu"), logits)
    want = torch.sigmoid(-torch.tensor(margin).double()) * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(got.flatten().double(), want, rtol=4e-7, atol=0)


@BACKENDS
def test_no_valid_pixel_costs_nothing(backend):
    logits, thresholds = torch.randn(2, 8, 5, 6, requires_grad=True), torch.arange(1.0, 6.0)
    depth = torch.zeros(2, 1, 5, 6)
    depth[0, 0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -1.0])
    for arguments in ({"depth": depth}, {"depth": depth + 1, "valid": torch.zeros(2, 1, 5, 6, dtype=torch.bool)}):
        loss = ordinal_loss(logits, thresholds=thresholds, backend=backend, **arguments)
        assert loss == 0 and not torch.autograd.grad(loss, logits)[0].any()


@BACKENDS
def test_what_lies_outside_the_mask_does_not_matter(backend):
    logits, thresholds = torch.randn(1, 8, 50, 60), torch.arange(1.0, 6.0)
    depth = 1 + 4 * torch.rand(1, 1, 50, 60)
    valid = torch.rand(depth.shape) < 0.1
    valid[:, :, :25] = False  # whole runs without a measurement
    want = ordinal_loss(logits, depth, thresholds, valid=valid, backend=backend)
    logits = logits.masked_fill(~valid, torch.nan)
    got = ordinal_loss(logits, depth.masked_fill(~valid, torch.nan), thresholds, valid=valid, backend=backend)
    assert torch.equal(got, want)
    if backend == "cpu":
        leaf = logits.requires_grad_()
        (grad,) = torch.autograd.grad(ordinal_loss(leaf, depth, thresholds, valid=valid), leaf)
        assert torch.equal(grad != 0, valid.expand_as(grad))


@BACKENDS
def test_non_finite_values_are_not_lost(backend):
    thresholds, logits, depth = torch.arange(1.0, 6.0), torch.randn(1, 8, 5, 37), 1 + 4 * torch.rand(1, 1, 5, 37)
    for channel in (0, 7):
        bad = logits.clone()
        bad[0, channel, 3, 11] = torch.nan
        assert ordinal_loss(bad, depth, thresholds, backend=backend).isnan()
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = depth.clone()
        bad[0, 0, 3, 11] = value
        valid = torch.ones_like(bad, dtype=torch.bool)
        assert ordinal_loss(logits, bad, thresholds, valid=valid, backend=backend).isnan()
    sure = logits.clone()
    sure[0, 7] = torch.inf  # beyond the last threshold but one: wrong almost everywhere, without limit
    assert ordinal_loss(sure, depth, thresholds, backend=backend) == torch.inf


def test_layouts_of_the_mask():
    logits, thresholds, depth = torch.randn(2, 8, 5, 6), torch.arange(1.0, 6.0), 1 + 4 * torch.rand(2, 1, 5, 6)
    valid = torch.rand(depth.shape) < 0.5
    want = ordinal_loss(logits, depth, thresholds, valid=valid, backend="reference")
    for name, view in awkward_layouts(valid).items():
        torch.testing.assert_close(ordinal_loss(logits, depth, thresholds, valid=view, backend="cpu"), want, msg=name)


def test_errors():
    logits, depth, thresholds = torch.rand(2, 8, 3, 4), torch.rand(2, 1, 3, 4), torch.arange(1.0, 6.0)
    valid = depth > 0.5
    for arguments, error, message in [
        ((logits[:, :7], depth, thresholds, valid), ValueError, r"^logits: expected an even number of chan.* got 7"),
        ((logits, depth[:, 0], thresholds, valid), ValueError, r"^depth: expected shape \(B, 1, H, W\)"),
        ((logits, depth[:1], thresholds, valid), ValueError, r"^depth: expected shape .*\(2, 1, 3, 4\), got \(1, 1,"),
        ((logits, depth, thresholds[1:], valid), ValueError, r"^thresholds: expected shape .*\(5\), got \(4,\)"),
        ((logits, depth, -thresholds, valid), ValueError, r"^thresholds: expected increasing numbers"),
        ((logits, depth, thresholds, depth), TypeError, r"^valid: expected a bool tensor .*got torch.float32"),
        ((logits, depth, thresholds, "all"), TypeError, r"^valid: expected a bool tensor .*got str"),
        ((logits, depth, thresholds, valid[:, 0]), ValueError, r"^valid: expected shape .*\(2, 1, 3, 4\), got \(2, 3"),
        ((logits, depth.to("meta"), thresholds, valid), ValueError, r"^depth: expected device cpu"),
    ]:
        with pytest.raises(error, match=message):
            ordinal_loss(*arguments[:3], valid=arguments[3])

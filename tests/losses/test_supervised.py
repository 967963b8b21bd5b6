"""Supervised losses against independent float64 loops, their masks, and the properties that their papers promise."""

import numpy as np
import oracles
import pytest
import torch
from cases import sparse_inputs
from scenes import relative_error

from mdepth_fast import ops
from mdepth_fast.losses import (
    BerHuLoss,
    DepthL1Loss,
    DepthL2Loss,
    LogDepthL1Loss,
    OrdinalLoss,
    ScaleShiftInvariantLoss,
    SILogLoss,
)

THRESHOLDS = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
LOSSES = {
    "silog": SILogLoss(),
    "silog log": SILogLoss(log_prediction=True),
    "bts": SILogLoss.bts(),
    "adabins": SILogLoss.adabins(),
    "berhu": BerHuLoss(),
    "l1": DepthL1Loss(),
    "l2": DepthL2Loss(),
    "log l1": LogDepthL1Loss(),
    "ssi": ScaleShiftInvariantLoss(),
    "ssi inverse": ScaleShiftInvariantLoss("inverse_depth", trim=0.0),
    "ssi least squares": ScaleShiftInvariantLoss(alignment="least_squares"),
    "ordinal": OrdinalLoss(THRESHOLDS),
}
per_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
per_alignment = pytest.mark.parametrize("alignment", ["median", "least_squares"])


def inputs(loss, batch=3, height=19, width=26, dtype=torch.float64):
    """Output and depth; image 1 has no measurement."""
    output, depth = sparse_inputs(batch, height, width, dtype).values()
    depth[1] = 0
    if isinstance(loss, OrdinalLoss):
        output = torch.randn(batch, 2 * len(THRESHOLDS) - 2, height, width, dtype=dtype)
    return output, depth


def with_gradient(loss, output, depth, valid=None):
    leaf = output.clone().requires_grad_()
    value = loss(leaf, depth, valid)
    return value, *torch.autograd.grad(value, leaf)


# Independent loops.


def ssi_oracle(output, truth, valid, alignment, trim, weight, scales):
    """A batch (B,H,W) of inverse depths."""
    of_images = []
    for d, y, on in zip(output, truth, valid):
        count = on.sum()
        if not count:
            continue
        if alignment == "median":
            d, y = ((m - np.median(m[on])) / np.abs(m[on] - np.median(m[on])).mean() for m in (d, y))
            residual = d - y
            cost = np.sort(np.abs(residual[on]))
        else:
            y = (y - y[on].min()) / (y[on].max() - y[on].min())
            (scale, shift), *_ = np.linalg.lstsq(np.stack([d[on], np.ones(count)], 1), y[on], rcond=None)
            residual = scale * d + shift - y
            cost = np.sort(residual[on] ** 2)
        data = cost[: int((1 - trim) * count)].sum() / (2 * count)
        roughness = 0.0
        for k in range(scales):
            r, mask = residual[:: 2**k, :: 2**k], on[:: 2**k, :: 2**k]
            for i, j in np.argwhere(mask):
                if i + 1 < len(r) and mask[i + 1, j]:
                    roughness += abs(r[i + 1, j] - r[i, j])
                if j + 1 < r.shape[1] and mask[i, j + 1]:
                    roughness += abs(r[i, j + 1] - r[i, j])
        of_images.append(data + weight * roughness / count)
    return np.mean(of_images)


ORACLES = {
    "silog": lambda p, y, on: oracles.silog_loss(p, y, on, "eigen", 0.5, 1.0),
    "silog log": lambda p, y, on: oracles.silog_loss(np.exp(p), y, on, "eigen", 0.5, 1.0),
    "bts": lambda p, y, on: oracles.silog_loss(p, y, on, "sqrt", 0.85, 10.0),
    "adabins": lambda p, y, on: oracles.silog_loss(p, y, on, "sqrt_unbiased", 0.85, 1.0),
    "berhu": lambda p, y, on: oracles.berhu_loss(p, y, on, 0.2),
    "l1": lambda p, y, on: np.mean([abs(p[at] - y[at]) for at in zip(*on.nonzero())]),
    "l2": lambda p, y, on: np.mean([(p[at] - y[at]) ** 2 for at in zip(*on.nonzero())]),
    "log l1": lambda p, y, on: np.mean([abs(np.log(p[at]) - np.log(y[at])) for at in zip(*on.nonzero())]),
    "ssi": lambda p, y, on: ssi_oracle(p, 1 / np.where(on, y, 1), on, "median", 0.2, 0.5, 4),
    "ssi inverse": lambda p, y, on: ssi_oracle(p, y, on, "median", 0.0, 0.5, 4),
    "ssi least squares": lambda p, y, on: ssi_oracle(p, 1 / np.where(on, y, 1), on, "least_squares", 0.0, 0.5, 4),
}


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("masked", [False, True])
def test_against_loops(name, masked):
    output, depth = inputs(LOSSES[name])
    valid = (depth > 0) & (torch.rand(depth.shape) < 0.7)
    got = LOSSES[name](output, depth, valid if masked else None)
    want = ORACLES[name](output[:, 0].numpy(), depth[:, 0].numpy(), (valid if masked else depth > 0)[:, 0].numpy())
    np.testing.assert_allclose(got.item(), want, rtol=1e-11)


def test_ordinal_is_the_op():
    output, depth = inputs(LOSSES["ordinal"])
    want = ops.ordinal_loss(output, depth, torch.tensor(THRESHOLDS, dtype=torch.float64))
    assert LOSSES["ordinal"](output, depth) == want and not LOSSES["ordinal"].state_dict()


# What holds for all of them.


@per_loss
def test_what_does_not_count_contributes_nothing(loss):
    output, depth = inputs(loss)
    mask = (depth > 0) & (torch.rand(depth.shape) < 0.5)
    for valid in (None, mask):
        on = depth > 0 if valid is None else valid
        value, grad = with_gradient(loss, output, depth, valid)
        assert value > 0 and grad.isfinite().all()
        assert not grad[~on.expand_as(grad)].any() and grad[on.expand_as(grad)].any()
        for rubbish in (torch.nan, torch.inf, -torch.inf, -1.0):
            hidden = [output.masked_fill(~on, rubbish), depth.masked_fill(~on, rubbish)]
            again, again_grad = with_gradient(loss, *hidden, valid)
            assert torch.equal(again, value) and torch.equal(again_grad, grad)


@per_loss
def test_an_image_or_a_batch_without_a_valid_pixel(loss):
    output, depth = inputs(loss)
    value, grad = with_gradient(loss, output, depth)
    rest = torch.tensor([0, 2])
    alone, alone_grad = with_gradient(loss, output[rest], depth[rest])
    assert relative_error([value], [alone]) < 1e-12 and relative_error([grad[rest]], [alone_grad]) < 1e-12
    assert not grad[1].any()
    for maps in ((output[1:2], depth[1:2]), (output[:0], depth[:0])):
        value, grad = with_gradient(loss, *maps)
        assert value == 0 and not grad.any()


@per_loss
def test_non_finite_values_are_not_lost(loss):
    output, depth = inputs(loss)
    valid = depth > 0
    at = tuple(valid.nonzero()[-1].tolist())
    for index, value in ((0, torch.nan), (0, torch.inf), (1, torch.nan), (1, torch.inf)):
        maps = [output.clone(), depth.clone()]
        maps[index][at] = value
        # 1 / inf is 0: infinitely far is a measurement to a loss on inverse depth.
        far = index == 1 and value == torch.inf and getattr(loss, "ground_truth", None) == "depth"
        assert loss(*maps, valid).isfinite() == far


@per_loss
def test_gradcheck(loss):
    output, depth = inputs(loss, 3, 5, 6)
    fixed = torch.zeros(output.shape, dtype=torch.bool)
    if isinstance(loss, BerHuLoss):  # the threshold is a constant to the gradient: let no input decide it
        fixed.view(-1)[depth.flatten().argmax()] = True
    leaf = output.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: loss(torch.where(fixed, 200.0, x), depth), (leaf,), eps=1e-7, atol=1e-5, rtol=1e-5
    )


@per_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss, dtype):
    output, depth = (one.to(dtype) for one in inputs(loss, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        value, grad = with_gradient(loss, output, depth)
    want = loss(output.float(), depth.float())
    assert value.dtype == torch.float32 and torch.equal(value, want)
    assert grad.dtype == dtype and grad.isfinite().all()


@per_loss
def test_compiles_to_one_graph(loss):
    output, depth = inputs(loss)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for got, want in zip(with_gradient(compiled, output, depth), with_gradient(loss, output, depth)):
        assert relative_error([got], [want]) < 1e-12


@per_loss
def test_errors(loss):
    output, depth = inputs(loss)
    name = "logits" if isinstance(loss, OrdinalLoss) else "output|prediction"
    for arguments, error, message in [
        ((output[:, 0], depth), ValueError, rf"^({name}): expected shape"),
        ((output, depth[:, 0]), ValueError, r"^depth: expected shape \(B, 1, H, W\)"),
        ((output, depth[..., 1:]), ValueError, r"^depth: expected shape .*\(3, 1, 19, 26\), got \(3, 1, 19, 25\)"),
        ((output, depth, depth), TypeError, r"^valid: expected a bool tensor"),
        ((output, depth, depth[:1] > 0), ValueError, r"^valid: expected shape"),
    ]:
        with pytest.raises(error, match=message):
            loss(*arguments)


# Properties of single ones.


def test_scale_invariance_of_silog():
    output, depth = inputs(None)
    for focus, invariant in ((1.0, True), (0.5, False)):
        one, two = (SILogLoss(focus)(c * output, depth) for c in (1.0, 2.5))
        assert torch.isclose(one, two, rtol=1e-11) == invariant


@per_alignment
def test_blind_to_scale_and_shift_of_every_image(alignment):
    """Of the output always; of the ground truth too, which either alignment brings to a range of its own."""
    output, inverse = inputs(None)
    loss = ScaleShiftInvariantLoss("inverse_depth", alignment=alignment)
    valid = inverse > 0
    want = loss(output, inverse, valid)
    scale, shift = torch.tensor([0.01, 1.0, 30.0]).view(3, 1, 1, 1), torch.tensor([5.0, 0.0, -70.0]).view(3, 1, 1, 1)
    assert relative_error([loss(scale * output + shift, inverse, valid)], [want]) < 1e-11
    assert relative_error([loss(output, scale * inverse + shift, valid)], [want]) < 1e-11
    perfect = loss(scale * inverse + shift, inverse, valid)
    assert 0 <= perfect < 1e-10


def test_depth_ground_truth_is_inverted():
    output, depth = inputs(None)
    one = ScaleShiftInvariantLoss()(output, depth)
    two = ScaleShiftInvariantLoss("inverse_depth")(output, torch.where(depth > 0, 1 / depth, 0))
    assert relative_error([one], [two]) < 1e-12
    # The nearest pixel must have the largest output.
    valid = depth > 0
    inverse = torch.where(valid, 1 / depth, 0)
    assert ScaleShiftInvariantLoss()(inverse, depth) < 1e-10 < ScaleShiftInvariantLoss()(depth, depth)


def test_a_fifth_of_the_residuals_is_really_dropped():
    """20 of 100 pixels are wrong. Exchanging what is predicted at them changes neither median nor mean deviation, and
    they stay the worst: the trimmed loss must not notice, the untrimmed one must."""
    truth = torch.linspace(1, 2, 100, dtype=torch.float64).view(1, 1, 10, 10)
    noise = 1e-3 * torch.randn(100, dtype=torch.float64)
    output = (truth + noise.view_as(truth)).flatten()
    wrong = torch.randperm(100)[:20]
    # Symmetric, so that the median stays where it is.
    output[wrong] += torch.tensor([40.0, -40.0], dtype=torch.float64).repeat(10) + torch.randn(20, dtype=torch.float64)
    exchanged = output.clone()
    exchanged[wrong[::2]] = output[wrong[::2].flip(0)]

    def loss(values, trim):
        module = ScaleShiftInvariantLoss("inverse_depth", trim=trim, gradient_weight=0)
        return module(values.view_as(truth), truth).item()

    assert loss(exchanged, 0.2) == pytest.approx(loss(output, 0.2), rel=1e-12)
    assert abs(loss(exchanged, 0.1) - loss(output, 0.1)) > 1e-3 * loss(output, 0.1)
    # The 80 others are the loss, over twice the number of all.
    d, y = output.numpy(), truth.flatten().numpy()
    d, y = ((m - np.median(m)) / np.abs(m - np.median(m)).mean() for m in (d, y))
    right = np.setdiff1d(np.arange(100), wrong.numpy())
    np.testing.assert_allclose(loss(output, 0.2), np.abs(d - y)[right].sum() / 200, rtol=1e-12)


@per_alignment
def test_a_constant_map_gives_no_nan(alignment):
    _, depth = inputs(None)
    loss = ScaleShiftInvariantLoss(alignment=alignment)
    value, grad = with_gradient(loss, torch.ones_like(depth), depth)
    assert value > 0 and grad.isfinite().all()
    value, grad = with_gradient(loss, torch.rand_like(depth), (depth > 0) * 3.0)
    # Least squares fits a constant with a scale of 0.
    assert (value > 0.1) == (alignment == "median") and value >= 0 and grad.isfinite().all()
    single = torch.zeros_like(depth)
    single[:, :, 3, 4] = 2.0
    value, grad = with_gradient(loss, torch.rand_like(depth), single)
    assert value == 0 and grad.isfinite().all()


def test_arguments_of_the_constructors():
    for make, message in [
        (lambda: ScaleShiftInvariantLoss("disparity"), r'^ground_truth: expected "depth" or'),
        (lambda: ScaleShiftInvariantLoss(alignment="mean"), r'^alignment: expected "median" or'),
        (lambda: ScaleShiftInvariantLoss(trim=1.0), r"^trim: expected a number from 0 to below 1"),
        (lambda: OrdinalLoss([1.0]), r"^thresholds: expected at least 2 numbers"),
        (lambda: OrdinalLoss([1.0, 3.0, 2.0]), r"^thresholds: expected increasing numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    for loss in LOSSES.values():
        assert type(loss).__name__ in repr(loss)
    with pytest.raises(ValueError, match=r"^variance_focus"):
        SILogLoss(2.0)(torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2))

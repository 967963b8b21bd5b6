import math

import numpy as np
import oracles
import pytest
import torch
from cases import sparse_inputs
from scenes import awkward_layouts, relative_error

from mdepth_fast import _native
from mdepth_fast.ops import silog_loss

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
FORMS = ["eigen", "image_mean", "sqrt", "sqrt_unbiased"]


@BACKENDS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("log_prediction", [False, True])
def test_against_loops(backend, form, log_prediction):
    """Images of unlike numbers of valid pixels, one of them with none; a mask that is not the measured pixels."""
    prediction, depth = sparse_inputs(4, 7, 13, torch.float64).values()
    depth[1] = 0
    depth[2, :, 2:] = 0
    valid = (depth > 0) & (torch.rand(depth.shape) < 0.8)
    for mask, counted in (("measured", depth > 0), (valid, valid)):
        for focus, scale in ((0.5, 1.0), (1.0, 2.0), (0.0, 0.3), (0.85, 10.0)):
            given = prediction.log() if log_prediction else prediction
            got = silog_loss(
                given, depth, valid=mask, form=form, variance_focus=focus, scale=scale,
                log_prediction=log_prediction, backend=backend,
            )  # fmt: skip
            maps = (one[:, 0].numpy() for one in (prediction, depth, counted))
            np.testing.assert_allclose(got.item(), oracles.silog_loss(*maps, form, focus, scale), rtol=1e-11)


@BACKENDS
def test_the_forms_of_published_code(backend):
    """BTS: 10 sqrt(mean e^2 - 0.85 (mean e)^2); AdaBins: sqrt(var e + 0.15 (mean e)^2); values and gradients."""
    prediction, depth = sparse_inputs(3, 9, 40, torch.float64).values()
    prediction.requires_grad_()
    mask = depth > 1e-3
    e = prediction[mask].log() - depth[mask].log()
    bts = torch.sqrt((e**2).mean() - 0.85 * e.mean() ** 2) * 10.0
    adabins = torch.sqrt(torch.var(e) + 0.15 * e.mean() ** 2)
    for want, arguments in ((bts, {"form": "sqrt", "scale": 10.0}), (adabins, {"form": "sqrt_unbiased"})):
        got = silog_loss(prediction, depth, valid=mask, variance_focus=0.85, backend=backend, **arguments)
        assert relative_error([got], [want]) < 1e-13
        (got_grad,), (want_grad,) = (torch.autograd.grad(one, prediction, retain_graph=True) for one in (got, want))
        assert relative_error([got_grad], [want_grad]) < 1e-12


@BACKENDS
def test_the_batch_form_of_the_release_weights_images_by_their_pixels(backend):
    prediction, depth = sparse_inputs(3, 9, 11, torch.float64).values()
    depth[0, :, 3:] = 0
    each = [silog_loss(p[None], y[None], valid="measured", backend=backend) for p, y in zip(prediction, depth)]
    weight = (depth > 0).sum((1, 2, 3)).double() ** 2
    for form, want in (
        ("eigen", (torch.stack(each) * weight).sum() / weight.sum()),
        ("image_mean", torch.stack(each).mean()),
    ):
        got = silog_loss(prediction, depth, valid="measured", form=form, backend=backend)
        assert relative_error([got], [want]) < 1e-13


@BACKENDS
@pytest.mark.parametrize("form", FORMS)
def test_a_variance_focus_of_one_does_not_see_the_scale(backend, form):
    prediction, depth = sparse_inputs(2, 9, 11, torch.float64).values()

    def loss(factor, focus):
        return silog_loss(
            factor * prediction, depth, valid="measured", form=form, variance_focus=focus, backend=backend
        ).item()

    for factor in (0.01, 3.0):
        assert math.isclose(loss(factor, 1.0), loss(1.0, 1.0), rel_tol=1e-11)
        assert loss(factor, 0.5) > 1.01 * loss(1.0, 0.5)


def _logarithms(prediction, depth):
    """log(prediction / depth) as the CPU kernel has it: every pixel an image, whose mean the backward needs."""
    maps = (one.view(-1, 1, 1, 1) for one in (prediction, depth))
    _, coefficients = torch.ops.mdepth.silog_loss(*maps, None, False, "image_mean", 1.0, 1.0, False, "cpu")
    return -coefficients[:, 1] * len(prediction) / 2


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_logarithms_are_accurate_to_two_ulp(scale):
    """Of every size of ratio, above all near 1, where the difference of two logarithms cancels."""
    exponent = 60 if scale == 1.0 else 6
    depth = scale * torch.exp2(exponent * (2 * torch.rand(20_000, dtype=torch.float64) - 1)).float()
    ratio = torch.exp2(30 * torch.rand(20_000, dtype=torch.float64) - 27).add(1)
    ratio = torch.where(torch.rand(20_000) < 0.5, ratio, 1 / ratio)
    prediction = (depth * ratio).float()
    want = torch.log1p((prediction.double() - depth.double()) / depth.double())
    error = (_logarithms(prediction, depth) - want).abs()
    assert (prediction != depth).sum() > 15_000 and (error <= 3 * 2**-24 * want.abs()).all()


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_denormal_and_huge_depths(isa):
    native, before = _native.module(), _native.instruction_set()
    if ["baseline", "avx2", "avx512"].index(isa) > ["baseline", "avx2", "avx512"].index(before):
        with pytest.raises(ValueError, match="not available"):
            native.set_isa(isa)
        return
    values = torch.tensor([1e-45, 3e-42, 1.1754942e-38, 1.17549435e-38, 1e-20, 0.7, 1.0, 1e20, 3.4028235e38])
    prediction, depth = (one.flatten() for one in torch.meshgrid(values, values, indexing="ij"))
    native.set_isa(isa)
    try:
        got = _logarithms(prediction, depth)
    finally:
        native.set_isa(before)
    want = prediction.double().log() - depth.double().log()
    assert ((got - want).abs() <= 3 * 2**-24 * want.abs()).all()


@BACKENDS
@pytest.mark.parametrize("form", FORMS)
def test_what_lies_outside_the_mask_does_not_matter(backend, form):
    prediction, depth = sparse_inputs(3, 50, 60).values()
    valid = (depth > 0) & (torch.rand(depth.shape) < 0.1)
    valid[0, :, :40] = False  # whole runs without a measurement
    valid[1] = False
    results = []
    for rubbish in (1.0, torch.nan, torch.inf, -torch.inf, 0.0, -3.0):
        leaf = prediction.masked_fill(~valid, rubbish).requires_grad_()
        loss = silog_loss(leaf, depth.masked_fill(~valid, rubbish), valid=valid, form=form, backend=backend)
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    assert results[0][0] > 0 and torch.equal(results[0][1] != 0, valid)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0]) and torch.equal(grad, results[0][1])


@BACKENDS
@pytest.mark.parametrize("form", FORMS)
def test_no_valid_pixel_costs_nothing(backend, form):
    prediction = torch.rand(2, 1, 5, 6, requires_grad=True)
    depth = torch.zeros(2, 1, 5, 6)
    depth[0, 0, 0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -1.0])
    for valid in ("measured", torch.zeros_like(depth, dtype=torch.bool)):
        loss = silog_loss(prediction, depth, valid=valid, form=form, backend=backend)
        assert loss == 0 and not torch.autograd.grad(loss, prediction)[0].any()
    # One image of two: the other alone decides, and all but its own gradient is 0.
    depth[1] = 0.5 + torch.rand(1, 5, 6)
    both = silog_loss(prediction, depth, valid="measured", form=form, backend=backend)
    alone = silog_loss(prediction[1:], depth[1:], valid="measured", form=form, backend=backend)
    assert relative_error([both], [alone]) < 1e-6
    (grad,) = torch.autograd.grad(both, prediction)
    assert not grad[0].any() and grad[1].all()


@BACKENDS
@pytest.mark.parametrize("form", ["sqrt", "sqrt_unbiased"])
def test_the_root_of_nothing_has_no_gradient(backend, form):
    """A perfect prediction, one that is wrong by its scale alone, and a single pixel."""
    depth = 1 + torch.rand(2, 1, 5, 6, dtype=torch.float64)
    for prediction, y, focus in ((depth, depth, 0.85), (3 * depth, depth, 1.0), (3 * depth, depth[:1, :, :1, :1], 1.0)):
        leaf = prediction[: len(y), :, : y.shape[2], : y.shape[3]].clone().requires_grad_()
        loss = silog_loss(leaf, y, form=form, variance_focus=focus, backend=backend)
        (grad,) = torch.autograd.grad(loss, leaf)
        # Rounding may leave a deviation, but never a NaN.
        assert 0 <= loss < 1e-7 and grad.isfinite().all()
    leaf = (3 * depth[:1, :, :1, :1]).requires_grad_()
    loss = silog_loss(leaf, depth[:1, :, :1, :1], form=form, variance_focus=0.75, backend=backend)
    assert math.isclose(loss.item(), 0.5 * math.log(3), rel_tol=1e-12)


@BACKENDS
@pytest.mark.parametrize("form", FORMS)
def test_non_finite_values_are_not_lost(backend, form):
    prediction, depth = sparse_inputs(2, 9, 37).values()
    valid = depth > 0
    valid[1, 0, 3, 11] = True
    depth[1, 0, 3, 11] = 2.0
    for focus in (0.0, 0.5, 1.0):
        for index in (0, 1):
            for value in (torch.nan, torch.inf, -torch.inf, 0.0, -1.0):
                maps = [prediction.clone(), depth.clone()]
                maps[index][1, 0, 3, 11] = value
                maps[0].requires_grad_()
                loss = silog_loss(*maps, valid=valid, form=form, variance_focus=focus, backend=backend)
                assert loss.isnan()
                (grad,) = torch.autograd.grad(loss, maps[0])
                assert not grad[~valid].any() and not grad[1, 0, 3, 11].isfinite()
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = prediction.clone()
        bad[1, 0, 3, 11] = value
        assert silog_loss(bad, depth, valid=valid, form=form, log_prediction=True, backend=backend).isnan()


@BACKENDS
def test_a_logarithm_of_nothing_without_a_mask_is_an_error(backend):
    prediction, depth = torch.rand(2, 2, 1, 5, 6).add(1).unbind()
    assert silog_loss(prediction, depth, backend=backend).isfinite()
    for index, name in enumerate(("prediction", "depth")):
        for value in (0.0, -2.0):
            maps = [prediction.clone(), depth.clone()]
            maps[index][1, 0, 4, 5] = value
            hint = "valid=depth > 0" if name == "depth" else "log_prediction=True"
            with pytest.raises(ValueError, match=rf"^{name}: expected numbers above 0,.* got {value:g}.*{hint}"):
                silog_loss(*maps, backend=backend)
            assert silog_loss(*maps, valid=torch.minimum(*maps) > 0, backend=backend).isfinite()
    negative = -prediction
    assert silog_loss(negative, depth, log_prediction=True, backend=backend).isfinite()
    depth[0, 0, 0, 0] = 0
    with pytest.raises(ValueError, match=r"^depth: "):
        silog_loss(negative, depth, log_prediction=True, backend=backend)
    depth[0, 0, 0, 0] = torch.nan  # not a wrong argument but a wrong number, and it shows
    assert silog_loss(prediction, depth, backend=backend).isnan()


def test_layouts_of_the_mask():
    prediction, depth = sparse_inputs().values()
    valid = depth > 0
    want = silog_loss(prediction, depth, valid=valid, backend="reference")
    for name, view in awkward_layouts(valid).items():
        torch.testing.assert_close(silog_loss(prediction, depth, valid=view, backend="cpu"), want, msg=name)


def test_errors():
    prediction, depth = torch.rand(2, 2, 1, 3, 4).add(1).unbind()
    for arguments, keywords, error, message in [
        ((prediction[:, 0], depth), {}, ValueError, r"^prediction: expected shape \(B, 1, H, W\)"),
        ((prediction, depth[:1]), {}, ValueError, r"^depth: expected shape .*\(2, 1, 3, 4\), got \(1, 1,"),
        ((prediction, None), {}, TypeError, r"^depth: expected a tensor \(B, 1, H, W\), got NoneType"),
        ((prediction, depth.int()), {}, TypeError, r"^depth: expected a floating-point tensor"),
        ((prediction, depth), {"valid": depth}, TypeError, r"^valid: expected a bool tensor .*got torch.float32"),
        ((prediction, depth), {"valid": "all"}, ValueError, r"^valid: expected a bool tensor, \"measured\" or None"),
        ((prediction, depth), {"valid": depth[:1] > 0}, ValueError, r"^valid: expected shape"),
        ((prediction, depth), {"form": "bts"}, ValueError, r"^form: expected one of eigen, image_mean.* got 'bts'"),
        ((prediction, depth), {"variance_focus": 1.5}, ValueError, r"^variance_focus: expected a number from 0 to 1"),
        ((prediction, depth), {"scale": 0.0}, ValueError, r"^scale: expected a finite number above 0, got 0.0"),
        ((prediction, depth.to("meta")), {}, ValueError, r"^depth: expected device cpu"),
    ]:
        with pytest.raises(error, match=message):
            silog_loss(*arguments, **keywords)

"""The CUDA kernels, run on the host thread by thread, against the reference; through the ops and their launch plans."""

import inspect
import os
from functools import partial

import pytest
import torch
from cases import KERNEL_CASES as CASES
from cases import (
    assert_empty,
    awkward_metrics,
    degenerate_clouds,
    flow_inputs,
    gradients,
    hard_clouds,
    icp_inputs,
    sparse_inputs,
    spoiled,
)
from fuzz import many
from scenes import relative_error, scene

from mdepth_fast import _native
from mdepth_fast.kernels import nvrtc
from mdepth_fast.ops import (
    berhu_loss,
    depth_metrics,
    disparity_to_depth,
    edge_aware_smoothness,
    flow_photometric_loss,
    flow_smoothness_loss,
    flow_warp,
    icp_align,
    inverse_warp,
    min_reprojection,
    nnconv5,
    ordinal_decode,
    ordinal_loss,
    photometric_loss,
    silog_loss,
)

NNCONV5 = next(case for case in CASES if case.name == "nnconv5")
STORED = ("x", "pw_weight", "skip")  # half where the op is asked for half
per_op = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

# Odd, prime, smaller than a warp, and one more or less than a block's tile.
SIZES = [(2, 2), (3, 5), (7, 13), (17, 33), (15, 61), (13, 31)]


@per_op
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_equals_reference_in_double(case, size, host):
    inputs = case.inputs(height=size[0], width=size[1], dtype=torch.float64)
    want, want_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "host", inputs)
    assert relative_error(got, want) < 1e-12
    for name, a, b in zip(case.differentiable, got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-9, name
    assert host and all("_f32" not in kernel for kernel in host)


@per_op
@pytest.mark.parametrize("seed", range(3))
def test_float32_error_is_no_larger_than_eagers(case, seed, host):
    inputs = case.inputs(height=37, width=70, seed=seed)
    exact, exact_grads = gradients(case, "reference", {name: value.double() for name, value in inputs.items()})
    eager, eager_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "host", inputs)
    # One ulp of slack: a scalar loss may be hit by chance.
    assert relative_error(got, exact) <= relative_error(eager, exact) + 1.2e-7
    assert relative_error(got_grads, exact_grads) <= relative_error(eager_grads, exact_grads) + 1.2e-7
    assert any("_f32" in kernel for kernel in host)


@pytest.mark.parametrize(
    "options",
    [{"padding": "zeros"}, {"auto_mask": False}, {"ssim_weight": 0.0}, {"ssim_weight": 1.0, "padding": "zeros"}],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3])
def test_min_reprojection_options(options, count, host):
    inputs = scene(2, 16, 37, count, 2, torch.float64, motion=0.2)
    results = []
    for backend in ("host", "reference"):
        target, sources, depths, *cameras = inputs
        leaves = [t.clone().requires_grad_() for t in (*depths, *cameras)]
        loss, selection = min_reprojection(
            target, sources, leaves[:2], leaves[2], leaves[3], source_K=leaves[4], backend=backend, **options
        )
        results.append((loss, selection, torch.autograd.grad((loss * torch.tensor([0.3, 2.0])).sum(), leaves)))
    (loss, selection, grads), (want_loss, want_selection, want_grads) = results
    assert relative_error([loss], [want_loss]) < 1e-12
    assert all(torch.equal(a, b) for a, b in zip(selection, want_selection))
    for got, want in zip(grads, want_grads):
        assert relative_error([got], [want]) < 1e-9


def test_min_reprojection_noise_and_no_gradient(host):
    target, sources, depths, K, T, _ = scene(2, 16, 31, 2, 1, torch.float64)
    noise = 0.05 * torch.randn(2, 2, 16, 31, dtype=torch.float64)
    results = [
        min_reprojection(target, sources, depths[0], K, T, identity_noise=noise, backend=backend)
        for backend in ("host", "reference")
    ]
    assert relative_error([results[0].loss], [results[1].loss]) < 1e-12
    assert torch.equal(results[0].selection, results[1].selection)
    assert len(results[0].selection.unique()) == 3


def test_ties_points_behind_the_camera_and_non_finite_depth(host):
    target, sources, depths, K, T, _ = scene(1, 9, 40, 2)
    still = torch.eye(4).repeat(1, 2, 1, 1)
    same = sources[:, :1].repeat(1, 2, 1, 1, 1)
    assert (min_reprojection(target, same, depths[0], K, still, backend="host").selection == -1).all()
    unmasked = min_reprojection(target, same, depths[0], K, still, auto_mask=False, backend="host")
    assert (unmasked.selection == 0).all()

    depth = depths[0].clone()
    depth[..., 10:20] = -3.0
    depth.requires_grad_()
    for mask in (True, False):
        got, want = (
            min_reprojection(target, sources, depth, K, T, auto_mask=mask, backend=name) for name in ("host", "cpu")
        )
        assert torch.equal(got.selection, want.selection) and (got.selection[..., 10:20] == -1).all()
        assert relative_error([got.loss], [want.loss]) < 1e-5
        (grad,) = torch.autograd.grad(got.loss, depth)
        assert (grad[..., 10:20] == 0).all() and torch.isfinite(grad).all() and (grad != 0).any()

    for value in (torch.nan, torch.inf):
        bad = depths[0].clone()
        bad[0, 0, 4, 17] = value
        assert not min_reprojection(target, sources, bad, K, T, backend="host").loss.isfinite()
        warped, valid = inverse_warp(sources[:, 0], bad, K, T[:, 0], backend="host")
        want, want_valid = inverse_warp(sources[:, 0], bad, K, T[:, 0], backend="cpu")
        assert torch.equal(warped.isfinite(), want.isfinite()) and torch.equal(valid, want_valid)


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_warp_gradient_by_the_source(padding, ordered, dtype, host):
    _, sources, depths, K, T, _ = scene(2, 11, 35, 1, 1, dtype, motion=0.3)
    source = sources[:, 0, :, :9, :31].clone()
    weight = torch.rand(2, 3, 11, 35, dtype=dtype)
    leaves = [t.clone().requires_grad_() for t in (source, depths[0], K, T[:, 0])]
    exact = [t.double().detach().requires_grad_() for t in leaves]
    results = []
    torch.use_deterministic_algorithms(ordered)
    try:
        for inputs, backend in ((leaves, "host"), (leaves, "host"), (exact, "reference")):
            warped, valid = inverse_warp(*inputs, padding=padding, backend=backend)
            results.append((torch.autograd.grad((warped * weight).sum(), inputs), valid))
    finally:
        torch.use_deterministic_algorithms(False)
    (got, valid), (again, _), (want, want_valid) = results
    assert torch.equal(valid, want_valid)
    assert relative_error(got, want) < (1e-4 if dtype == torch.float32 else 1e-9)
    assert any("ordered" in kernel for kernel in host) == ordered
    if ordered:
        assert torch.equal(got[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1:], again[1:]))


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flow_warp_by_flows_that_leave_the_source_and_are_not_finite(padding, ordered, dtype, host):
    """And its gradient by the source: by atomics, or in a fixed order."""
    source, flow = torch.rand(2, 3, 9, 31, dtype=dtype), 8 * torch.randn(2, 2, 11, 35, dtype=dtype)
    flow[0, 1, 4, 17], flow[1, 0, 5, 0] = torch.nan, torch.inf
    weight = torch.rand(2, 3, 10, 35, dtype=dtype)
    results = []
    torch.use_deterministic_algorithms(ordered)
    try:
        for backend in ("host", "host", "cpu"):
            leaves = [source.clone().requires_grad_(), flow.clone().requires_grad_()]
            warped, valid = flow_warp(*leaves, padding=padding, backend=backend)
            rows = torch.cat([warped[..., :4, :], warped[..., 5:, :]], -2)
            results.append((warped, valid, *torch.autograd.grad((rows * weight).sum(), leaves)))
    finally:
        torch.use_deterministic_algorithms(False)
    got, again, want = results
    assert torch.equal(got[1], want[1]) and got[0].isnan().sum() == 6
    torch.testing.assert_close(got[:1] + got[2:], want[:1] + want[2:], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert any("ordered" in kernel for kernel in host) == ordered
    torch.testing.assert_close(got[3], again[3], rtol=0, atol=0, equal_nan=True)
    assert not ordered or torch.equal(got[2], again[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flow_losses_where_the_mask_is_off_and_what_is_not_finite(dtype, host):
    inputs = flow_inputs(2, 19, 37, dtype)
    on = inputs["mask"] != 0
    hidden = inputs["flow"].masked_fill(~on, torch.nan)
    for value in (None, torch.nan, torch.inf):
        flow, mask = hidden, on
        if value is not None:
            flow, mask = inputs["flow"].clone(), None
            flow[1, 0, 7, 30] = value
        for loss in (
            partial(flow_photometric_loss, inputs["target"], inputs["source"]),
            flow_smoothness_loss,
            partial(flow_smoothness_loss, form="joint"),
        ):
            results = []
            for backend in ("host", "cpu"):
                leaf = flow.clone().requires_grad_()
                found = loss(leaf, mask=mask, backend=backend)
                results.append((found, *torch.autograd.grad(3 * found, leaf)))
            torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-9, equal_nan=True)
            assert results[0][0].isfinite() == (value is None)


@per_op
def test_same_bits_from_run_to_run(case, host):
    inputs = case.inputs(batch=2, height=18, width=45)
    results = [[*outputs, *grads] for outputs, grads in (gradients(case, "host", inputs) for _ in range(2))]
    first = 1 if case.name not in ("inverse_warp", "flow_warp") else 2  # the source's gradient is summed by atomics
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][first:], results[1][first:]))


@per_op
def test_outputs_are_written_everywhere(case, monkeypatch, host):
    """Memory that the op allocates starts as NaN; what is left unwritten shows."""
    inputs = case.inputs(height=17, width=33)
    want, want_grads = gradients(case, "cpu", inputs)
    empty = torch.empty

    def poisoned(*args, **kwargs):
        result = empty(*args, **kwargs)
        return result.fill_(torch.nan if result.is_floating_point() else 99 if result.dtype == torch.int8 else 1)

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, *a, **k: poisoned(*a, **{"dtype": self.dtype, **k}))
    got, got_grads = gradients(case, "host", inputs)
    assert relative_error(got, want) < 1e-5 and relative_error(got_grads, want_grads) < 1e-4


@per_op
def test_empty_batch(case, host):
    inputs = case.inputs(batch=0)
    assert_empty(case, inputs, *gradients(case, "host", inputs))


@per_op
def test_many_tiny_images(case, host):
    inputs = case.inputs(batch=40, height=2, width=3, dtype=torch.float64)
    want, want_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "host", inputs)
    assert relative_error(got, want) < 1e-11 and relative_error(got_grads, want_grads) < 1e-8


def test_channels_and_single_gradients(host):
    a, b = torch.rand(2, 1, 5, 16, 33, dtype=torch.float64)
    for wanted in (0, 1):
        grads = []
        for backend in ("host", "reference"):
            leaves = [a.clone(), b.clone()]
            leaves[wanted].requires_grad_()
            loss = photometric_loss(*leaves, backend=backend)
            grads.append(torch.autograd.grad((loss * a[:, :1]).sum(), leaves[wanted]))
        assert relative_error(*grads) < 1e-10
    loss = [edge_aware_smoothness(a[:, :1], b, backend=backend) for backend in ("host", "reference")]
    assert relative_error(loss[:1], loss[1:]) < 1e-12


def test_ordinal_masks_and_what_is_not_finite(host):
    """Runs of pixels without a measurement, NaN where the mask is off and where it is on, thresholds hit exactly."""
    logits, thresholds = torch.randn(2, 34, 15, 31), torch.arange(1.0, 19.0)
    depth = torch.randint(0, 20, (2, 1, 15, 31)).float()
    valid = torch.rand(depth.shape) < 0.3
    valid[0, :, :9] = False
    hidden = logits.masked_fill(~valid, torch.nan), depth.masked_fill(~valid, torch.nan)
    for arguments in ((logits, depth, None), (logits, depth, valid), (*hidden, valid), (logits, depth, valid & False)):
        results = []
        for backend in ("host", "cpu"):
            leaf = arguments[0].clone().requires_grad_()
            loss = ordinal_loss(leaf, arguments[1], thresholds, valid=arguments[2], backend=backend)
            results.append((loss, *torch.autograd.grad(loss, leaf)))
        torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-7)
    for channel in (0, 33):
        bad = logits.clone()
        bad[1, channel, 7, 5] = torch.nan
        got, want = (ordinal_decode(bad, thresholds, backend=backend) for backend in ("host", "cpu"))
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
        assert got[0].isnan().sum() == 1 and got[1].max() > 9
        assert ordinal_loss(bad, depth + 1, thresholds, backend="host").isnan()
    for value in (torch.nan, torch.inf):
        bad = depth.clone()
        bad[1, 0, 7, 5] = value
        assert ordinal_loss(logits, bad, thresholds, valid=bad == bad, backend="host").isfinite() == (value != value)
        assert ordinal_loss(logits, bad, thresholds, valid=bad != 0.5, backend="host").isnan()


@pytest.mark.parametrize(
    "sizes", [((3, 10), (24, 80)), ((31, 29), (32, 28)), ((1, 1), (5, 6)), ((5, 6), (1, 1)), ((6, 7), (18, 7))], ids=str
)
def test_disparity_to_depth_of_other_sizes(sizes, host):
    """By 8, by a little, of one pixel, along one axis; NaN in the map and in the gradient."""
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        disparity, weight = torch.rand(2, 1, *sizes[0], dtype=dtype), torch.rand(2, 1, *sizes[1], dtype=dtype)
        lost, lost_weight = (one.clone() for one in (disparity, weight))
        lost[0, 0, -1, 0] = lost_weight[1, 0, 0, -1] = torch.nan
        for maps in ((disparity, weight), (lost, weight), (disparity, lost_weight)):
            results = []
            for backend in ("host", "cpu"):
                leaf = maps[0].clone().requires_grad_()
                depth = disparity_to_depth(leaf, sizes[1], backend=backend)
                results.append((depth, *torch.autograd.grad((depth * maps[1]).sum(), leaf)))
            torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_depth_metrics_of_awkward_numbers_and_windows(dtype, host):
    for name, arguments in awkward_metrics(dtype).items():
        got, want = (depth_metrics(**arguments, backend=backend) for backend in ("host", "reference"))
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13, equal_nan=True, msg=name)


@pytest.mark.parametrize("organised", [True, False], ids=["organised", "unorganised"])
def test_icp_align_of_points_that_do_not_count(organised, host):
    """Not finite, behind the camera, too few, on a line, none."""
    inputs = icp_inputs(1, 12, 19, torch.float64)
    if not organised:
        inputs = {name: one if name == "init" else one.flatten(1, 2) for name, one in inputs.items()}
    bad = {name: one if name == "init" else spoiled(one) for name, one in inputs.items()}
    for source, target, init in (tuple(bad.values()), *degenerate_clouds(organised).values()):
        for dtype in (torch.float32, torch.float64):
            got, want = (
                icp_align(source.to(dtype), target.to(dtype), init, iterations=3, backend=backend)
                for backend in ("host", "reference")
            )
            assert torch.equal(got.valid, want.valid)
            atol = 1e-6 if dtype == torch.float32 else 1e-11
            torch.testing.assert_close(got, want, rtol=0, atol=atol, equal_nan=True)
    source, target, init = bad["source_points"].flatten(1, -2), bad["target_points"], bad["init"]
    target = target if organised else target.unsqueeze(1)
    for empty in ((source, target[:, :, :0]), (source[:, :0], target)):  # which only the registered function takes
        residual, transform, valid = torch.ops.mdepth.icp_align(*empty, init, 2, organised, "host")
        assert residual.shape == empty[0].shape and not residual.any() and not valid.any()
        assert torch.equal(transform, init)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_icp_align_looks_at_the_whole_window(dtype, host):
    """Points are moved by pixels, so that the nearest is anywhere in its window, or just beyond."""
    inputs = icp_inputs(2, 21, 37, dtype)
    target = inputs["target_points"]
    target[..., :2] += 0.5 * torch.randn(target[..., :2].shape, dtype=dtype, generator=torch.manual_seed(0))
    got, want = (icp_align(**inputs, iterations=0, backend=backend) for backend in ("host", "reference"))
    assert torch.equal(got.valid, want.valid)
    torch.testing.assert_close(got.residual, want.residual, rtol=1e-6 if dtype == torch.float32 else 1e-9, atol=1e-9)


@pytest.mark.parametrize("name", hard_clouds()[1])
def test_icp_align_finds_the_nearest_of_all(name, host):
    """Ties, several groups of points, and what rounding hides: coordinates whose squares float32 does not hold, and
    such as differ in their last bits alone."""
    queries, targets = hard_clouds()
    init = torch.eye(4, dtype=torch.float64)[None]
    for scale, offset in ((1, 0), (1, 3e5), (1e-22, 0), (1e22, 0)):
        for dtype in (torch.float32, torch.float64):
            clouds = [(one * scale + offset).to(dtype) for one in (queries, targets[name])]
            moved = init.clone()
            moved[:, 0, 3] = 0.3 * scale  # between the numbers of float32
            for iterations in (0, 2):  # later ones start from the last match
                got, want = (icp_align(*clouds, moved, iterations=iterations, backend=b) for b in ("host", "reference"))
                assert torch.equal(got.valid, want.valid)
                # In double whatever the clouds' type; iterations add roundings of large coordinates to T.
                exact = 1e-12 if iterations == 0 or not offset else 1e-8
                tolerance = max(exact, 1e-6 if dtype == torch.float32 else 0)
                assert relative_error([got.residual], [want.residual]) < tolerance, (scale, offset, dtype, iterations)
                assert relative_error([got.T], [want.T]) < tolerance, (scale, offset, dtype, iterations)


def test_icp_align_of_clouds_in_order(host):
    """The boxes of neighbours are apart, and the first guess is 16 points from the nearest."""
    target = torch.randn(1, 1500, 3, generator=torch.manual_seed(0)).sort(1).values
    source, init = target[:, 16:] + 1e-4, torch.eye(4)[None]
    got, want = (icp_align(source, target, init, iterations=0, backend=backend) for backend in ("host", "reference"))
    torch.testing.assert_close(got.residual, want.residual, rtol=1e-6, atol=0)
    assert got.residual.abs().median() < 2e-4


def test_icp_align_launches_nothing_but_kernels_and_tells_what_is_too_much(host):
    inputs = icp_inputs(1, 5, 7)
    icp_align(**inputs, iterations=2, backend="host")
    pair = ["icp_align_pairs_window_f32", "icp_align_compose"]
    start = ["icp_align_means_f32", "icp_align_begin", "icp_align_spreads_f32", "icp_align_camera"]
    assert host == [*start, *pair, *pair, "icp_align_residual_window_f32"]
    with pytest.raises(ValueError, match="more than 100000 iterations"):
        icp_align(**inputs, iterations=100001, backend="host")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_depth_losses_forms_masks_and_what_is_not_finite(dtype, host):
    """More pixels than a block has, an image without a measurement, NaN where the mask is off and where it is on."""
    prediction, depth = sparse_inputs(3, 23, 61, dtype).values()
    depth[1] = 0
    mask = (depth > 0) & (torch.rand(depth.shape) < 0.5)
    hidden = [one.masked_fill(~mask, torch.nan) for one in (prediction, depth)]
    mixed = mask | (torch.arange(61) == 60)  # NaN of `hidden` among them
    losses = [berhu_loss] + [
        partial(silog_loss, form=form, variance_focus=focus, scale=scale, log_prediction=log_prediction)
        for form, focus, scale, log_prediction in (
            ("eigen", 0.5, 1.0, True), ("image_mean", 1.0, 3.0, False), ("sqrt", 0.85, 10.0, False),
            ("sqrt_unbiased", 0.85, 1.0, False),
        )
    ]  # fmt: skip
    for loss in losses:
        for maps, valid in (
            ((prediction, depth), "measured"), ((prediction, depth + 1), None), (hidden, mask), (hidden, mixed),
            ((prediction, depth), mask & False),
        ):  # fmt: skip
            results = []
            for backend in ("host", "cpu"):
                leaf = maps[0].clone().requires_grad_()
                value = loss(leaf, maps[1], valid=valid, backend=backend)
                results.append((value, *torch.autograd.grad(3 * value, leaf)))
            torch.testing.assert_close(results[0], results[1], rtol=2e-6, atol=1e-9, equal_nan=True)
            assert results[0][0].isnan() == (valid is mixed)


# Batch, input and output channels, height, width: one pixel; several chunks, groups and squares with something left
# over; small images whose input channels are shared out among blocks, with and without a shorter last part.
NNCONV5_SIZES = [(1, 1, 1, 1, 1), (2, 33, 3, 9, 7), (1, 18, 130, 8, 17), (1, 70, 130, 5, 7), (1, 96, 40, 6, 18)]


@pytest.mark.parametrize("size", NNCONV5_SIZES)
@pytest.mark.parametrize("with_skip", [True, False])
def test_nnconv5_chunks_groups_and_parts_of_channels(size, with_skip, host):
    """With frozen weights."""
    batch, channels, out_channels, height, width = size
    inputs = NNCONV5.inputs(batch, height, width, torch.float64, channels=channels, out_channels=out_channels)
    if not with_skip:
        del inputs["skip"]
    for name in ("x", "dw_weight", "pw_weight"):
        results = []
        for backend in ("host", "reference"):
            leaf = inputs[name].clone().requires_grad_()
            out = nnconv5(**{**inputs, name: leaf}, backend=backend)
            results.append(([out], torch.autograd.grad(out.sum(), [leaf])))
        (got, got_grads), (want, want_grads) = results
        assert relative_error(got, want) < 1e-13 and relative_error(got_grads, want_grads) < 1e-11


def _rounded(x, kind):
    """float32 rounded as a factor of a product on tensor cores; TF32 keeps 10 bits, ties away from zero."""
    if kind != "tf32":
        return x.to(kind).float()
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, "tf32"], ids=str)
@pytest.mark.parametrize("size", [*NNCONV5_SIZES, (1, 20, 40, 5, 8)])
@pytest.mark.parametrize("with_skip", [True, False])
def test_nnconv5_on_tensor_cores(kind, size, with_skip, host, monkeypatch):
    """Equal to the reference whose factors of the pointwise product are rounded, and nothing else is."""
    monkeypatch.setattr(inspect.getmodule(nnconv5), "_has_tensor_cores", lambda device: True)
    batch, channels, out_channels, height, width = size
    inputs = NNCONV5.inputs(batch, height, width, channels=channels, out_channels=out_channels)
    stored = torch.float32 if kind == "tf32" else kind
    for name in STORED:
        inputs[name] = inputs[name].to(stored)
    if not with_skip:
        inputs["skip"] = None
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        got = torch.ops.mdepth.nnconv5(*inputs.values(), backend="host")
    finally:
        torch.set_float32_matmul_precision(precision)
    suffix = {"tf32": "tf32", torch.float16: "f16"}.get(kind, "bf16")
    assert got.dtype == stored and host[0] == f"nnconv5_{suffix}"
    assert host[1:] == ([f"nnconv5_sum_{suffix.replace('tf32', 'f32')}"] if channels > 33 else [])

    x, dw, dw_scale, dw_shift, pw, pw_scale, pw_shift, skip = (
        None if value is None else value.float() for value in inputs.values()
    )
    depthwise = torch.nn.functional.conv2d(x, dw, padding=2, groups=channels)
    active = torch.relu(depthwise * dw_scale[:, None, None] + dw_shift[:, None, None])
    product = torch.einsum("oc,bchw->bohw", _rounded(pw, kind)[..., 0, 0].double(), _rounded(active, kind).double())
    want = torch.relu(product * pw_scale[:, None, None] + pw_shift[:, None, None])
    want = want.repeat_interleave(2, 2).repeat_interleave(2, 3)
    want = want if skip is None else want + skip
    # A factor that another order of the depthwise sum moves across a rounding step moves by one such step.
    step = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7, "tf32": 2.0**-10}[kind]
    assert relative_error([got], [want]) < (step if stored != torch.float32 else 1e-4)
    assert (got.double() - want).abs().max() < 4 * step * want.abs().max()


@pytest.mark.parametrize("out_channels", [32, 64, 65])
@pytest.mark.parametrize("size", [(2, 33, 9, 18), (1, 70, 7, 7)], ids=str)
def test_nnconv5_shapes_of_blocks_in_float32(size, out_channels, host):
    """Fewer output channels are taken with more pixels."""
    batch, channels, height, width = size
    inputs = NNCONV5.inputs(batch, height, width, channels=channels, out_channels=out_channels)
    exact = nnconv5(**{name: value.double() for name, value in inputs.items()}, backend="reference")
    eager = nnconv5(**inputs, backend="reference")
    got = nnconv5(**inputs, backend="host")
    assert relative_error([got], [exact]) <= 1.5 * relative_error([eager], [exact])
    assert host[0] == f"nnconv5_f32_{out_channels if out_channels <= 64 else 128}"
    assert host[1:] == (["nnconv5_sum_f32"] if channels > 33 else [])


def test_nnconv5_of_views_that_begin_anywhere(host, monkeypatch):
    """What a kernel reads several numbers of at once begins at a multiple of them."""
    run, addresses = _native.run, []

    def listening(op, backend, members, device):
        addresses.append((members["pw_weight"], members["skip"]))
        run(op, backend, members, device)

    monkeypatch.setattr(_native, "run", listening)
    inputs = NNCONV5.inputs(1, 3, 6)
    want = nnconv5(**inputs, backend="host")
    for name in STORED:
        inputs[name] = torch.cat([torch.zeros(1), inputs[name].flatten()])[1:].view(inputs[name].shape)
    assert torch.equal(nnconv5(**inputs, backend="host"), want)
    assert len(addresses) == 2 and not any(address % 16 for pair in addresses for address in pair)


def test_nnconv5_blocks_of_fastdepth(host, monkeypatch):
    """An H100 has 132 multiprocessors: even one small image gives most of them something to do."""
    counts = []
    monkeypatch.setattr(nvrtc, "launch", lambda op, launches, params, device: counts.append(launches[0][1]))
    for channels, side in ((1024, 7), (512, 14), (256, 28), (128, 56), (64, 112)):
        for kind in (torch.float32, torch.float16):
            cores = kind == torch.float16
            monkeypatch.setattr(inspect.getmodule(nnconv5), "_has_tensor_cores", lambda device, cores=cores: cores)
            inputs = NNCONV5.inputs(1, side, side, channels=channels, out_channels=channels // 2)
            halved = {name: value.to(kind) if name in STORED else value for name, value in inputs.items()}
            torch.ops.mdepth.nnconv5(*halved.values(), backend="host")
    assert min(counts) >= 112, counts


def test_nnconv5_rounds_to_tf32_where_torch_does(host, monkeypatch):
    """By the old switch and by the new one, which turn each other's reading into an error."""
    monkeypatch.setattr(inspect.getmodule(nnconv5), "_has_tensor_cores", lambda device: True)
    inputs, matmul = NNCONV5.inputs(1, 5, 7), torch.backends.cuda.matmul
    precision = matmul.fp32_precision
    try:
        for value in ("tf32", "ieee"):
            matmul.fp32_precision = value
            torch.ops.mdepth.nnconv5(*inputs.values(), backend="host")
    finally:
        matmul.fp32_precision = precision
    assert host == ["nnconv5_tf32", "nnconv5_f32_32"]


def test_nnconv5_of_half_without_tensor_cores(host):
    """Computed in float32, as on a CPU."""
    inputs = NNCONV5.inputs(1, 9, 7)
    halved = {name: inputs[name].half() if name in STORED else inputs[name] for name in inputs}
    got = torch.ops.mdepth.nnconv5(*halved.values(), backend="host")
    want = nnconv5(**{name: value.float() for name, value in halved.items()}, backend="reference")
    assert host == ["nnconv5_f32_32"] and got.dtype == torch.float16
    torch.testing.assert_close(got.float(), want, rtol=2**-10, atol=1e-6)


def test_nnconv5_gradients_of_half(host):
    halved = {name: value.half() if name in STORED else value for name, value in NNCONV5.inputs(1, 5, 7).items()}
    results = []
    for leaves in (list(halved.values()), [value.double() for value in halved.values()]):
        leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        out = torch.ops.mdepth.nnconv5(*leaves, backend="host")
        results.append(torch.autograd.grad(out.double().sum(), leaves))
        assert [grad.dtype for grad in results[-1]] == [leaf.dtype for leaf in leaves]
    for got, want in zip(*results):
        assert relative_error([got], [want]) < 2e-3


def test_nnconv5_nan_stays_where_its_window_is(host):
    inputs = NNCONV5.inputs(1, 12, 40)
    inputs["x"][0, 1, 6, 20] = torch.nan
    window = torch.zeros_like(inputs["skip"], dtype=torch.bool)
    window[..., 8:18, 36:46] = True
    assert torch.equal(nnconv5(**inputs, backend="host").isnan(), window)


def test_every_kernel_is_reached(host, host_library, monkeypatch):
    """No kernel that no plan launches, and no plan that names a kernel that is not there."""
    _, sources, depths, K, T, _ = scene(1, 4, 5, 1, 1)
    for dtype in (torch.float32, torch.float64):
        for case in CASES:
            gradients(case, "host", case.inputs(batch=1, height=4, width=5, dtype=dtype))
        inputs = [t.to(dtype) for t in (sources[:, 0], depths[0], K, T[:, 0])]
        for padding in ("border", "zeros"):
            target, depth, *cameras = (t.clone() for t in inputs)
            min_reprojection(
                target, target[:, None], depth, cameras[0], cameras[1][:, None], padding=padding, backend="host"
            )
            for ordered in (False, True):
                torch.use_deterministic_algorithms(ordered)
                leaves = [t.clone().requires_grad_() for t in inputs]
                inverse_warp(*leaves, padding=padding, backend="host")[0].sum().backward()
                flow = torch.zeros(1, 2, 4, 5, dtype=dtype, requires_grad=True)
                flow_warp(leaves[0], flow, padding=padding, backend="host")[0].sum().backward()
                torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(inspect.getmodule(nnconv5), "_has_tensor_cores", lambda device: True)
    inputs = NNCONV5.inputs(1, 4, 5)
    torch.set_float32_matmul_precision("high")
    torch.ops.mdepth.nnconv5(*inputs.values(), backend="host")
    torch.set_float32_matmul_precision("highest")
    for dtype in (torch.float16, torch.bfloat16):
        halved = [v.to(dtype) if n in STORED else v for n, v in inputs.items()]
        torch.ops.mdepth.nnconv5(*halved, backend="host")
    for out_channels in (64, 128):
        nnconv5(**NNCONV5.inputs(1, 2, 3, out_channels=out_channels), backend="host")
    inputs = NNCONV5.inputs(1, 2, 3, channels=64)  # the input channels in parts
    for dtype in (torch.float16, torch.bfloat16):
        halved = [v.to(dtype) if n in STORED else v for n, v in inputs.items()]
        torch.ops.mdepth.nnconv5(*halved, backend="host")
    monkeypatch.setattr(inspect.getmodule(nnconv5), "_has_tensor_cores", lambda device: False)
    for dtype in (torch.float32, torch.float64):
        nnconv5(**{name: value.to(dtype) for name, value in inputs.items()}, backend="host")
    names = set()
    while name := host_library.kernel_name(len(names)):
        names.add(name.decode())
    assert names == set(host)


def test_random_cases(host):
    names = tuple(case.name for case in CASES)
    count = int(os.environ.get("MDEPTH_FUZZ_CASES", len(names)))
    done, failed = many("host", seconds=3600, names=names, count=count, pixels=600, largest=100)
    assert not failed, "\n\n".join(failed)
    assert set(done) == set(names)

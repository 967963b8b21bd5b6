"""Every Triton kernel, interpreted, against the reference: numbers, borders, and the rules for what is not finite."""

import threading
from functools import partial

import pytest
import torch
import triton
import triton.language as tl
import triton_blocks
from cases import awkward_metrics, flow_inputs, gradients
from scenes import relative_error, scene
from triton_blocks import CASES
from triton_launches import Launch, launches

import mdepth_fast
from mdepth_fast import _dispatch
from mdepth_fast.kernels import _launch
from mdepth_fast.ops import (
    depth_metrics,
    disparity_to_depth,
    edge_aware_smoothness,
    flow_photometric_loss,
    flow_smoothness_loss,
    flow_warp,
    inverse_warp,
    min_reprojection,
    photometric_loss,
)

per_op = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def assert_equal_in_double(case, inputs):
    want, want_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "triton", inputs)
    assert relative_error(got, want) < 1e-12
    for name, a, b in zip(case.differentiable, got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-9, name


@per_op
@pytest.mark.parametrize("size", [(2, 2), (33, 65)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_equals_reference_in_double(case, size):
    batch = 1 if size[0] > 30 else 2
    assert_equal_in_double(case, case.inputs(batch=batch, height=size[0], width=size[1], dtype=torch.float64))


@per_op
def test_the_tiles_that_ship(case, monkeypatch):
    """Each that a launch can have, in single and double precision, on sizes that leave a remainder."""
    triton_blocks.set_blocks(monkeypatch, None)
    precisions = (torch.float32, torch.float64)
    shipped = {launch.tile for dtype in precisions for launch in launches(dtype, True, [case.name]).values()}
    ran = set()

    def recorded(launch, kernel, programs, warps, **arguments):
        ran.add(Launch(kernel, warps, arguments).tile)
        launch(kernel, programs, warps, **arguments)

    for module in triton_blocks.MODULES:
        monkeypatch.setattr(module, "launch", partial(recorded, module.launch))
    sizes = [dict(batch=1, height=5, width=67)]
    if case.name == "nnconv5":
        sizes = [dict(batch=1, height=3, width=9, channels=5, out_channels=count) for count in (3, 40)]
        sizes.append(dict(batch=1, height=3, width=9, channels=64, out_channels=3))  # in parts
    for size in sizes:
        inputs = case.inputs(**size, dtype=torch.float64)
        assert_equal_in_double(case, inputs)
        want, want_grads = gradients(case, "reference", inputs)
        got, got_grads = gradients(case, "triton", {name: value.float() for name, value in inputs.items()})
        assert relative_error(got, want) < 1e-4 and relative_error(got_grads, want_grads) < 1e-2
    if case.name in ("inverse_warp", "flow_warp"):
        torch.use_deterministic_algorithms(True)
        try:
            assert_equal_in_double(case, inputs)
        finally:
            torch.use_deterministic_algorithms(False)
    if case.name == "min_reprojection":  # more sources have other strips
        for dtype, tolerance in zip(precisions, (1e-4, 1e-12)):
            target, sources, depths, K, T, _ = scene(1, 5, 67, 3, dtype=dtype)
            arguments = target, sources, depths[0], K, T
            got, want = (min_reprojection(*arguments, backend=name).loss for name in ("triton", "reference"))
            assert relative_error([got], [want]) < tolerance
    assert ran == shipped


@per_op
def test_float32_error_is_no_larger_than_eagers(case):
    inputs = case.inputs(batch=1, height=31, width=61)
    exact, exact_grads = gradients(case, "reference", {name: value.double() for name, value in inputs.items()})
    eager, eager_grads = gradients(case, "reference", inputs)
    got, got_grads = gradients(case, "triton", inputs)
    assert relative_error(got, exact) <= relative_error(eager, exact) + 1.2e-7
    assert relative_error(got_grads, exact_grads) <= relative_error(eager_grads, exact_grads) + 1.2e-7


@pytest.mark.parametrize("padding", ["border", "zeros"])
@pytest.mark.parametrize("ordered", [False, True])
def test_flow_warp_by_flows_that_leave_the_source_and_are_not_finite(padding, ordered):
    source, flow = torch.rand(1, 2, 5, 11), 6 * torch.randn(1, 2, 6, 9)
    flow[0, 1, 4, 7] = torch.nan
    results = []
    torch.use_deterministic_algorithms(ordered)
    try:
        for backend in ("triton", "cpu"):
            leaves = [source.clone().requires_grad_(), flow.clone().requires_grad_()]
            warped, valid = flow_warp(*leaves, padding=padding, backend=backend)
            results.append((warped, valid, *torch.autograd.grad(warped[..., :4, :].square().sum(), leaves)))
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert results[0][0].isnan().sum() == 2


def test_flow_losses_where_the_mask_is_off_and_what_is_not_finite():
    inputs = flow_inputs(1, 9, 11, torch.float64)
    on = inputs["mask"] != 0
    broken = inputs["flow"].clone()
    broken[0, 0, 4, 8] = torch.nan
    for flow, mask in ((inputs["flow"].masked_fill(~on, torch.nan), on), (broken, None), (broken * torch.inf, None)):
        for loss in (
            partial(flow_photometric_loss, inputs["target"], inputs["source"]),
            flow_smoothness_loss,
            partial(flow_smoothness_loss, form="joint"),
        ):
            results = []
            for backend in ("triton", "cpu"):
                leaf = flow.clone().requires_grad_()
                found = loss(leaf, mask=mask, backend=backend)
                results.append((found, *torch.autograd.grad(3 * found, leaf)))
            torch.testing.assert_close(*results, rtol=1e-9, atol=1e-14, equal_nan=True)
            assert results[0][0].isfinite() == (mask is not None)


def test_portions_cover_the_batch(monkeypatch):
    monkeypatch.setattr(_launch, "WORKSPACE_BYTES", 40)
    assert list(_launch.portions(5, 10)) == [slice(0, 2), slice(2, 5)]
    assert list(_launch.portions(3, 100)) == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert list(_launch.portions(0, 10)) == []


@per_op
def test_reads_and_writes_stay_inside_and_portions_of_the_batch_give_the_same_bits(case, monkeypatch):
    """Inputs lie between NaNs, outputs start as NaN between canaries: a read or a write beside them shows.

    The workspace then holds a single image, and all bits are those of the first run, which had room for the batch.
    """
    inputs = case.inputs(batch=2, height=7, width=13)
    want, want_grads = gradients(case, "triton", inputs)
    guarded = []

    def guard(shape, dtype, value=None):
        """A tensor inside a larger one that is filled with canaries."""
        canary = torch.nan if dtype.is_floating_point else True if dtype == torch.bool else 99
        count = torch.Size(shape).numel()
        memory = torch.full((count + 256,), canary, dtype=dtype)
        guarded.append((memory, count, canary))
        inner = memory[128 : 128 + count].view(shape)
        return inner if value is None else inner.copy_(value)

    select, new_empty = _dispatch.select, torch.Tensor.new_empty

    def guarded_tensors(value):
        if isinstance(value, list):
            return [guarded_tensors(one) for one in value]
        return guard(value.shape, value.dtype, value) if isinstance(value, torch.Tensor) else value

    def guarded_select(function, backend):
        def run(**arguments):
            arguments = {name: guarded_tensors(value) for name, value in arguments.items()}
            with monkeypatch.context() as patch:
                patch.setattr(torch, "empty", lambda shape, dtype, device: guard(shape, dtype))
                patch.setattr(torch, "zeros", lambda shape, dtype, device: guard(shape, dtype, torch.tensor(0)))
                # With a device given it is the interpreter that calls.
                patch.setattr(
                    torch.Tensor,
                    "new_empty",
                    lambda t, shape, dtype=None, **k: new_empty(t, shape, **k) if k else guard(shape, dtype or t.dtype),
                )
                return implementation(**arguments)

        implementation = select(function, backend)
        return run

    monkeypatch.setattr(_dispatch, "select", guarded_select)
    monkeypatch.setattr(_launch, "WORKSPACE_BYTES", 1)
    got, got_grads = gradients(case, "triton", inputs)
    assert guarded
    for memory, count, canary in guarded:
        for edge in (memory[:128], memory[128 + count :]):
            assert edge.isnan().all() if canary != canary else (edge == canary).all()
    assert all(torch.equal(a, b) for a, b in zip([*got, *got_grads], [*want, *want_grads]))


@per_op
def test_empty_batch(case):
    outputs, grads = gradients(case, "triton", case.inputs(batch=0))
    if outputs[0].dim() > 1:
        assert outputs[0].shape[0] == 0
    else:
        want = torch.full_like(outputs[0], case.of_nothing)
        torch.testing.assert_close(outputs[0], want, rtol=0, atol=0, equal_nan=True)
    for name, grad in zip(case.differentiable, grads):
        assert not grad.any() if name in case.shared else grad.shape[0] == 0, name


@pytest.mark.parametrize(
    "sizes", [((3, 5), (24, 40)), ((31, 29), (32, 28)), ((1, 1), (5, 6)), ((5, 6), (1, 1)), ((6, 7), (18, 7))], ids=str
)
def test_disparity_to_depth_of_other_sizes(sizes):
    """By 8, by a little, of one pixel, along one axis; NaN in the map and in the gradient."""
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.float64, 1e-12)):
        disparity, weight = torch.rand(2, 1, *sizes[0], dtype=dtype), torch.rand(2, 1, *sizes[1], dtype=dtype)
        lost, lost_weight = (one.clone() for one in (disparity, weight))
        lost[0, 0, -1, 0] = lost_weight[1, 0, 0, -1] = torch.nan
        for maps in ((lost, weight), (disparity, lost_weight)):
            results = []
            for backend in ("triton", "cpu"):
                leaf = maps[0].clone().requires_grad_()
                depth = disparity_to_depth(leaf, sizes[1], backend=backend)
                results.append((depth, *torch.autograd.grad((depth * maps[1]).sum(), leaf)))
            torch.testing.assert_close(results[0], results[1], rtol=tolerance, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_depth_metrics_of_awkward_numbers_and_windows(dtype):
    for name, arguments in awkward_metrics(dtype).items():
        got, want = (depth_metrics(**arguments, backend=backend) for backend in ("triton", "reference"))
        torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13, equal_nan=True, msg=name)


@pytest.mark.parametrize(
    "flags", [(True, False, False), (False, True, False), (False, False, True), (True, True, True)], ids=str
)
@pytest.mark.parametrize(("padding", "ordered"), [("border", False), ("zeros", True)])
def test_inverse_warp_of_another_size_and_channel_count(padding, ordered, flags):
    _, sources, depths, K, T, source_K = scene(2, 9, 14, 1, 1, torch.float64, motion=0.3)
    source = sources[:, 0, :2, :7, :9].repeat(1, 2, 1, 1).clone()
    results = []
    for backend in ("reference", "triton"):
        leaves = [t.clone().requires_grad_(on) for t, on in zip((source, depths[0], T[:, 0]), flags)]
        torch.use_deterministic_algorithms(ordered)
        try:
            warped, valid = inverse_warp(
                *leaves[:2], K, leaves[2], source_K=source_K[:, 0], padding=padding, backend=backend
            )
            weight = torch.arange(warped.numel(), dtype=torch.float64).view_as(warped).sin()
            grads = torch.autograd.grad((weight * warped).sum(), [t for t in leaves if t.requires_grad])
        finally:
            torch.use_deterministic_algorithms(False)
        results.append((warped, valid, grads))
    (want, want_valid, want_grads), (got, got_valid, got_grads) = results
    assert torch.equal(got_valid, want_valid) and want_valid.any() and not want_valid.all()
    assert relative_error([got], [want]) < 1e-12
    for a, b in zip(got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-9


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (6, 1)], ids=str)
def test_inverse_warp_of_a_source_of_one_row_or_column(size):
    _, sources, depths, K, T, source_K = scene(1, 5, 6, dtype=torch.float64)
    source = sources[:, 0, :, : size[0], : size[1]]
    arguments = source, depths[0], K, T[:, 0]
    want, got = (inverse_warp(*arguments, source_K=source_K[:, 0], backend=name) for name in ("cpu", "triton"))
    assert relative_error([got[0]], [want[0]]) < 1e-12 and torch.equal(got[1], want[1])


def test_identity_pose_returns_the_image():
    _, sources, depths, K, *_ = scene(1, 31, 64)
    warped, valid = inverse_warp(sources[:, 0], depths[0], K, torch.eye(4)[None], backend="triton")
    assert (warped - sources[:, 0]).abs().max() < 1e-5 and valid.all()


def test_a_coordinate_exactly_on_the_border_counts_as_clamped():
    """A camera that stands still sees column 0 at u = 0, exactly: no gradient by u there, as on the CPU."""
    source, depth = torch.rand(1, 2, 5, 9, dtype=torch.float64), torch.full((1, 1, 5, 9), 2.0, dtype=torch.float64)
    K = torch.tensor([[[8.0, 0, 4], [0, 8, 2], [0, 0, 1]]], dtype=torch.float64)
    grads = []
    for backend in ("cpu", "triton"):
        T = torch.eye(4, dtype=torch.float64)[None].requires_grad_()
        warped, _ = inverse_warp(source, depth, K, T, backend=backend)
        grads += torch.autograd.grad(warped[..., 0].sum() + 0.1 * warped.sum(), T)
    assert relative_error(grads[1:], grads[:1]) < 1e-12


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_non_finite_depth_shows_at_its_pixel_only(value):
    _, sources, depths, K, T, _ = scene(1, 8, 40)
    depth = depths[0].clone()
    depth[0, 0, 3, 17] = value
    for pose in (T[:, 0], torch.eye(4)[None]):
        bad = ~torch.isfinite(inverse_warp(sources[:, 0], depth, K, pose, backend="triton")[0]).all(1)
        assert bad.sum() == 1 and bad[0, 3, 17]


@pytest.mark.parametrize("name", ["K", "T", "source_K"])
def test_non_finite_camera_shows_everywhere(name):
    _, sources, depths, K, T, source_K = scene(1, 8, 9)
    cameras = {"K": K.clone(), "T": T[:, 0].clone(), "source_K": source_K[:, 0].clone()}
    cameras[name][0, 0, 0] = torch.nan
    assert inverse_warp(sources[:, 0], depths[0], **cameras, backend="triton")[0].isnan().all()


def test_points_behind_the_camera_are_invalid_and_send_no_gradient():
    _, sources, depths, K, T, _ = scene(1, 8, 9)
    depth = depths[0].clone()
    depth[..., :4, :] = -1.0
    depth[..., 4, :] = 0.0
    depth.requires_grad_()
    warped, valid = inverse_warp(sources[:, 0], depth, K, torch.eye(4)[None], backend="triton")
    assert not valid[..., :5, :].any() and (warped[..., :5, :] == 0).all() and valid[..., 5:, 1:-1].any()
    warped, _ = inverse_warp(sources[:, 0], depth, K, T[:, 0], backend="triton")
    warped.sum().backward()
    behind = (warped == 0).all(1, keepdim=True)
    assert behind.any() and (depth.grad[behind] == 0).all() and torch.isfinite(depth.grad).all()


def test_huge_coordinates_do_not_crash():
    _, sources, depths, K, T, _ = scene(1, 8, 10)
    for depth in (torch.full_like(depths[0], 1e30), torch.full_like(depths[0], 1.1e-6)):
        warped, _ = inverse_warp(
            sources[:, 0], depth, K, T[:, 0] * torch.tensor([1, 1, 1, 1e6]), padding="zeros", backend="triton"
        )
        assert warped.shape == (1, 3, 8, 10)


@pytest.mark.parametrize(("channels", "ssim_weight"), [(1, 0.0), (4, 0.85), (1, 1.0)])
def test_photometric_loss_of_other_channels_and_weights(channels, ssim_weight):
    images = [torch.rand(2, channels, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    results = []
    for backend in ("reference", "triton"):
        loss = photometric_loss(*images, ssim_weight=ssim_weight, backend=backend)
        one_sided = photometric_loss(images[0].detach(), images[1], ssim_weight=ssim_weight, backend=backend)
        weight = torch.arange(loss.numel(), dtype=torch.float64).view_as(loss)
        grads = torch.autograd.grad((loss * weight).sum(), images)
        results.append((loss, *grads, *torch.autograd.grad((one_sided * weight).sum(), images[1])))
    for got, want in zip(results[1], results[0]):
        assert relative_error([got], [want]) < 1e-10


def test_smoothness_adds_up_more_tiles_than_one_block_of_sums_holds(monkeypatch):
    monkeypatch.setattr(triton_blocks.importlib.import_module("mdepth_fast.kernels.edge_aware_smoothness"), "SUMS", 2)
    triton_blocks.set_blocks(monkeypatch, _launch.Block(2, 4, 4))
    disparity, image = torch.rand(1, 1, 5, 7, dtype=torch.float64), torch.rand(1, 2, 5, 7, dtype=torch.float64)
    want, got = (edge_aware_smoothness(disparity, image, backend=name) for name in ("reference", "triton"))
    assert relative_error([got], [want]) < 1e-12


@pytest.mark.parametrize(
    ("count", "noisy", "options"),
    [
        (1, False, {}),
        (2, False, {"padding": "zeros", "auto_mask": False}),
        (3, True, {"ssim_weight": 0.0}),
        (2, True, {"ssim_weight": 1.0, "padding": "zeros"}),
    ],
    ids=str,
)
def test_min_reprojection_options(count, noisy, options):
    inputs = scene(1, 8, 23, count, 2, torch.float64, motion=0.1)
    noise = 0.05 * torch.randn(1, count, 8, 23, dtype=torch.float64) if noisy else None
    results = []
    for backend in ("reference", "triton"):
        target, sources, depths, *cameras = inputs
        leaves = [t.clone().requires_grad_() for t in (*depths, *cameras)]
        loss, selection = min_reprojection(
            target,
            sources,
            leaves[:2],
            leaves[2],
            leaves[3],
            source_K=leaves[4],
            identity_noise=noise,
            backend=backend,
            **options,
        )
        weights = torch.tensor([0.3, 2.0], dtype=torch.float64)
        results.append((loss, selection, torch.autograd.grad((loss * weights).sum(), leaves)))
    (want, want_selection, want_grads), (got, got_selection, got_grads) = results
    assert relative_error([got], [want]) < 1e-12
    for a, b in zip(got_selection, want_selection):
        assert torch.equal(a, b)
    assert len(torch.cat(want_selection).unique()) == count + options.get("auto_mask", True)
    for a, b in zip(got_grads, want_grads):
        assert relative_error([a], [b]) < 1e-9


def test_min_reprojection_without_gradient_gives_the_same_loss():
    target, sources, depths, K, T, _ = scene(1, 9, 12, 2)
    arguments = target, sources, depths[0], K
    without = min_reprojection(*arguments, T, backend="triton")
    learned = min_reprojection(*arguments, T.clone().requires_grad_(), backend="triton")
    assert torch.equal(without.loss, learned.loss) and torch.equal(without.selection, learned.selection)
    assert not without.loss.requires_grad and learned.loss.requires_grad


def test_ties_go_to_identity_then_to_the_lower_source():
    target, sources, depths, K, _, _ = scene(1, 6, 8, 2)
    still = torch.eye(4).repeat(1, 2, 1, 1)
    sources = sources[:, :1].repeat(1, 2, 1, 1, 1)
    assert (min_reprojection(target, sources, depths[0], K, still, backend="triton").selection == -1).all()
    free = min_reprojection(target, sources, depths[0], K, still, auto_mask=False, backend="triton")
    assert (free.selection == 0).all()


def test_points_behind_the_camera_never_win():
    target, sources, depths, K, T, _ = scene(1, 8, 40, 2)
    depth = depths[0].clone()
    depth[..., 10:20] = -3.0
    depth.requires_grad_()
    masked = min_reprojection(target, sources, depth, K, T, backend="triton")
    assert (masked.selection[..., 10:20] == -1).all()
    free = min_reprojection(target, sources, depth, K, T, auto_mask=False, backend="triton")
    assert (free.selection[..., 10:20] == -1).all() and (free.selection[..., :10] >= 0).all()
    want = min_reprojection(target, sources, depth, K, T, auto_mask=False, backend="cpu")
    torch.testing.assert_close(free.loss, want.loss)
    (grad,) = torch.autograd.grad(free.loss, depth)
    assert (grad[..., 10:20] == 0).all() and torch.isfinite(grad).all() and (grad != 0).any()


@pytest.mark.parametrize("auto_mask", [True, False])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["target", "sources", "depth", "K", "T", "source_K"])
def test_non_finite_input_gives_a_non_finite_loss(auto_mask, value, where):
    target, sources, depths, K, T, source_K = scene(1, 5, 9, 2)
    tensors = dict(target=target, sources=sources, depth=depths[0], K=K, T=T, source_K=source_K)
    broken = tensors[where].clone()
    pixel = (1, 2) if where in ("target", "sources", "depth") else (0, 0)
    broken[(0,) * (broken.dim() - 2) + pixel] = value
    tensors[where] = broken
    if where == "sources" and not auto_mask:  # a pixel that no warp reads is no part of the loss: read it
        tensors["T"] = torch.eye(4).repeat(1, 2, 1, 1)
        tensors["sources"] = tensors["sources"][:, :1].repeat(1, 2, 1, 1, 1)
        tensors["source_K"] = K[:, None].repeat(1, 2, 1, 1)
    assert not torch.isfinite(min_reprojection(**tensors, auto_mask=auto_mask, backend="triton").loss)


def test_addresses_are_64_bit():
    @triton.jit
    def addresses(out, height, width):
        tl.store(out, _launch.offset(height - 1, tl.full((), 7, tl.int32), width))
        tl.store(out + 1, _launch.plane_size(height, width))

    out = torch.zeros(2, dtype=torch.int64)
    addresses[(1,)](out, 70_000, 70_001)
    assert out.tolist() == [69_999 * 70_001 + 7, 70_000 * 70_001]


def test_without_the_interpreter_a_cpu_tensor_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    _dispatch.forget()
    try:
        with pytest.raises(RuntimeError, match=r"triton: needs CUDA tensors \(or TRITON_INTERPRET=1\)"):
            CASES[0].call("triton", **CASES[0].inputs())
    finally:
        _dispatch.forget()


@pytest.mark.parametrize("case", [case for case in CASES if case.differentiable], ids=lambda case: case.name)
def test_the_backward_runs_where_the_forward_did(case):
    """Both in Triton, though another thread, in which another backend is asked for, calls the backward."""
    inputs = case.inputs(batch=1, **case.small)
    leaves = {name: value.requires_grad_(name in case.differentiable) for name, value in inputs.items()}
    with mdepth_fast.use_backend("triton"), _dispatch.record() as forward:
        total = sum(output.sum() for output in case.call(None, **leaves))

    def backward():
        with mdepth_fast.use_backend("cpu"):
            total.backward()

    with _dispatch.record() as calls:
        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
    assert {backend for _, backend in forward} == {backend for _, backend in calls} == {"triton"}
    assert {function for function, _ in calls} == {f"{case.name}_backward"}

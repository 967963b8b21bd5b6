import numpy as np
import oracles
import pytest
import torch
from cases import degenerate_clouds, hard_clouds, icp_inputs, spoiled
from scenes import relative_error
from scipy.spatial import cKDTree

from mdepth_fast import _dispatch, _native, info_text
from mdepth_fast.geometry import backproject, invert_pose, pose_matrix
from mdepth_fast.ops import icp_align

BACKENDS = pytest.mark.parametrize("backend", ["cpu", "reference"])
KINDS = pytest.mark.parametrize("organised", [True, False], ids=["organised", "unorganised"])


def clouds(organised, **sizes):
    """Of the contract, as images or without order and of different sizes."""
    inputs = icp_inputs(dtype=torch.float64, **sizes)
    if not organised:
        inputs["source_points"] = inputs["source_points"].flatten(1, 2)[:, 3:]
        inputs["target_points"] = inputs["target_points"].flatten(1, 2).flip(1)[:, 1:]
    return inputs


@BACKENDS
@KINDS
@pytest.mark.parametrize("iterations", [0, 1, 7])
@pytest.mark.parametrize("spoil", [False, True])
def test_against_loops(backend, organised, iterations, spoil):
    inputs = clouds(organised)
    if spoil:
        inputs = {name: value if name == "init" else spoiled(value) for name, value in inputs.items()}
    got = icp_align(**inputs, iterations=iterations, backend=backend)
    source, target, init = (value.numpy() for value in inputs.values())
    for b in range(len(init)):
        T, residual, valid = oracles.icp_align(
            source[b].reshape(-1, 3), target[b], init[b], iterations, 3 if organised else None
        )
        np.testing.assert_allclose(got.T[b], T, atol=1e-11)
        np.testing.assert_allclose(got.residual[b].reshape(-1, 3), residual, atol=1e-11)
        np.testing.assert_array_equal(got.valid[b].flatten(), valid)
        assert 0 < valid.sum() < len(valid) or not (spoil or organised)


def smooth_clouds(batch, height, width, dtype=torch.float32):
    """Two views' clouds of a hilly surface, a centimetre and some milliradians apart, and the motion between them."""
    v, u = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    phase = torch.arange(batch)[:, None, None]
    depth = (5 + (5 * u + phase).sin() + 0.7 * (4 * v + 3 * u - phase).cos())[:, None].double()
    K = torch.tensor([[0.58 * width, 0, width / 2], [0, 1.9 * height, height / 2], [0, 0, 1]]).double()
    target = backproject(depth, K.expand(batch, 3, 3)).permute(0, 2, 3, 1)
    T = pose_matrix(torch.tensor([1e-3, -2e-3, 1e-3]), torch.tensor([4e-3, -2e-3, 1e-2])).double()
    source = (target - T[:3, 3]) @ T[:3, :3]
    return source.to(dtype).contiguous(), target.to(dtype).contiguous(), T.expand(batch, 4, 4)


def scipy_icp(source, target, iterations):
    """The same loop over SciPy's k-d tree, as one writes it without this package; points (N,3) in float64."""
    tree, T = cKDTree(target), np.eye(4)
    for _ in range(iterations):
        moved = source @ T[:3, :3].T + T[:3, 3]
        T = oracles.kabsch(moved, target[tree.query(moved)[1]]) @ T
    moved = source @ T[:3, :3].T + T[:3, 3]
    return T, target[tree.query(moved)[1]] - moved


@KINDS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scipys_tree_gives_the_same(organised, dtype):
    source, target, truth = smooth_clouds(2, 48, 104, dtype)
    clouds = (source, target) if organised else (source.flatten(1, 2), target.flatten(1, 2))
    init = torch.eye(4, dtype=dtype).repeat(2, 1, 1)
    got = icp_align(*clouds, init, iterations=10)
    assert got.valid.all() and got.T.dtype == got.residual.dtype == dtype
    assert (got.T - truth).abs().max() < 0.3 * (init - truth).abs().max()  # it has come closer
    for b in range(2):
        T, residual = scipy_icp(*(cloud[b].reshape(-1, 3).double().numpy() for cloud in clouds), 10)
        assert abs(got.T[b].numpy() - T).max() < (1e-6 if dtype == torch.float32 else 1e-10)
        error = abs(got.residual[b].reshape(-1, 3).numpy() - residual).max()
        assert error < (1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("name", hard_clouds()[1])
def test_the_tree_finds_what_all_pairs_find(name):
    queries, targets = hard_clouds()
    init = torch.eye(4, dtype=torch.float64)[None]
    for iterations in (0, 3):  # later ones start from the last match
        got, want = (
            icp_align(queries, targets[name], init, iterations=iterations, backend=b) for b in ("cpu", "reference")
        )
        assert relative_error(got[:2], want[:2]) < 1e-9
        assert got.valid.all() and want.valid.all()


@BACKENDS
@KINDS
def test_the_gradient_is_the_rule_that_is_documented(backend, organised):
    inputs = clouds(organised)
    inputs["source_points"] = spoiled(inputs["source_points"])
    leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    got = icp_align(**leaves, iterations=4, backend=backend)
    assert not got.T.requires_grad and not got.valid.all()
    weight = torch.randn_like(got.residual)
    (weight * got.residual).sum().backward()
    counted = torch.where(got.valid[..., None], weight, 0.0).flatten(1, -2)
    want = -(got.T[:, :3, :3].mT @ counted.mT).mT.view_as(weight)
    torch.testing.assert_close(leaves["source_points"].grad, want, rtol=1e-12, atol=1e-14)
    assert leaves["target_points"].grad is None and leaves["init"].grad is None


def test_the_correction_moves_the_initial_motion_towards_the_result():
    """The paper's dL/dinit = -dL/dcorrection, for a motion to the left of `init`."""
    inputs = clouds(True)
    axis_angle, shift = torch.zeros(2, 2, 3, dtype=torch.float64).requires_grad_()
    moved = pose_matrix(axis_angle, shift) @ inputs["init"]
    correction = icp_align(inputs["source_points"], inputs["target_points"], moved).T @ invert_pose(moved)
    weight = torch.randn(2, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad((weight * correction[:, :3, 3]).sum(), shift)
    torch.testing.assert_close(grad, -(correction[:, :3, :3].mT @ weight[..., None])[..., 0], rtol=1e-10, atol=0)
    assert (correction[:, :3, :3] - torch.eye(3)).abs().max() < 0.02


@BACKENDS
@KINDS
def test_the_result_does_not_depend_on_where_the_iterations_began(backend, organised):
    """Why T carries no gradient."""
    source, target, _ = smooth_clouds(1, 12, 20, torch.float64)
    if not organised:
        source, target = source.flatten(1, 2), target.flatten(1, 2)
    results = []
    for step in (0.0, 1e-5):
        init = pose_matrix(torch.full((1, 3), step), torch.full((1, 3), step)).double()
        results.append(icp_align(source, target, init, iterations=3, backend=backend).T)
    assert (results[0] - results[1]).abs().max() < 1e-3 * 1e-5


@KINDS
def test_hidden_motion_and_cone_are_recovered(organised):
    """The acceptance test of vid2depth's authors: SGD on mean square correction and residual finds a hidden t_z = 0.1
    and a hidden cone of height 0.1 and radius 10."""
    height, width, radius = 48, 64, 10.0
    v, u = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    K = torch.tensor([[[60.0, 0, 31.5], [0, 60.0, 23.5], [0, 0, 1]]])
    points = backproject(torch.full((1, 1, height, width), 4.0), K).permute(0, 2, 3, 1)
    cone = 0.1 * (1 - torch.hypot(u - 32, v - 24) / radius).clamp_min(0)
    hidden = torch.stack([torch.zeros_like(cone), torch.zeros_like(cone), cone], -1)
    target = points + hidden
    target[..., 2] += 0.1
    if not organised:
        points, hidden, target = points.flatten(1, 2), hidden.flatten(0, 1), target.flatten(1, 2)
    pose = torch.zeros(6, requires_grad=True)
    offsets = torch.zeros_like(points, requires_grad=True)
    # Of sums, not means: the rate does not depend on the number of points, and 100 steps do.
    optimizer = torch.optim.SGD([pose, offsets], lr=0.1)
    first = None
    for _ in range(100):
        init = pose_matrix(pose[None, :3], pose[None, 3:])
        got = icp_align(points + offsets, target, init, iterations=4)
        correction = got.T @ invert_pose(init)
        loss = correction[:, :3].sub(torch.eye(4)[:3]).square().sum() + got.residual.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first = loss.item() if first is None else first
    assert loss.item() < 1e-4 * first
    assert abs(pose[5].item() - 0.1) < 0.01 and pose[:5].abs().max() < 0.01
    found = offsets.detach().view(height, width, 3)[..., 2] + pose[5].item() - 0.1
    assert (found - cone).abs().mean() < 0.002 and (found - cone).abs().max() < 0.02


@BACKENDS
@KINDS
def test_too_few_pairs_pairs_on_a_line_and_none(backend, organised):
    for name, (source, target, init) in degenerate_clouds(organised).items():
        source = source.clone().requires_grad_()
        got = icp_align(source, target, init, iterations=2, backend=backend)
        (grad,) = torch.autograd.grad(got.residual.sum(), source)
        if "line" in name:
            assert got.valid.all(), name
            want = torch.eye(4, dtype=torch.float64)[None] if name.startswith("4") else init
            torch.testing.assert_close(got.T, want, rtol=0, atol=1e-12)
        elif organised or name != "elsewhere":
            assert not got.valid.any() and not got.residual.any() and not grad.any(), name
            assert torch.equal(got.T.nan_to_num(-1), init.nan_to_num(-1))


def test_a_gpu_backend_needs_a_launch_plan():
    """Without one a function runs on the CPU alone."""
    assert _native.backends("nnconv5_weight_gradients") == ("cpu",)
    assert _native.backends("icp_align") == ("cpu", "cuda", "nvrtc")
    assert {("icp_align", "cuda"), ("icp_align", "nvrtc")} <= _dispatch._implementations.keys()


def test_no_triton_kernel_and_everything_says_why():
    for device in ("cpu", "cuda"):
        assert "each point skips" in _dispatch.reasons("icp_align", torch.device(device))["triton"]
    assert "icp_align has no triton kernel: each point skips" in info_text()
    with pytest.raises(RuntimeError, match=r"'triton' was asked for and cannot run: .*triton: icp_align has"):
        icp_align(**icp_inputs(batch=1), backend="triton")


def test_errors():
    inputs = icp_inputs(batch=1)
    for change, message in (
        ({"source_points": [1.0]}, r"^source_points: expected a tensor \(B, H, W, 3\) or \(B, N, 3\), got list"),
        ({"source_points": torch.ones(1, 7, 2)}, r"^source_points: expected shape .* got \(1, 7, 2\)"),
        (
            {"source_points": torch.ones(1, 7, 3)},
            r"^target_points: expected shape \(B, N, 3\), as source",
        ),
        ({"target_points": torch.ones(2, 7, 8, 3)}, r"^target_points: expected shape .* got \(2, 7, 8, 3\)"),
        ({"target_points": torch.ones(1, 0, 8, 3)}, r"^target_points: expected at least one point"),
        ({"init": torch.eye(4)}, r"^init: expected shape \(B, 4, 4\)"),
        ({"iterations": -1}, r"^iterations: expected an integer of at least 0, got -1"),
        ({"iterations": 2.0}, r"^iterations: expected an integer of at least 0, got 2.0"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            icp_align(**{**inputs, **change})

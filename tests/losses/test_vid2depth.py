"""vid2depth's objective against plain float64 formulas, its closed forms, and its 3D loss on the toy of the release."""

from typing import Any

import numpy as np
import pytest
import torch
from plain_view_synthesis import area, box, dissimilarity, intrinsics, matrix, tensor, warp

from mdepth_fast.geometry import pose_matrix_from_vector, pose_vector
from mdepth_fast.losses import Icp3DLoss, Vid2DepthLoss
from mdepth_fast.losses.vid2depth import adjacent_pairs, pair_transforms

Array = np.ndarray


def smoothness(disparity: Array, image: Array) -> float:
    total = 0.0
    for axis in (-1, -2):
        weight = np.exp(-np.abs(np.diff(image, axis=axis)).mean(0))
        total += np.abs(np.diff(disparity, axis=axis) * weight).mean()
    return total


def plain_terms(maps: list[Array], images: Array, K: Array, vectors: Array) -> dict[str, float]:
    """One sample: sigmoid maps (N,h,w), images (N,3,H,W), K (N,3,3), vectors (N-1,6)."""
    terms = {"reconstruction": 0.0, "ssim": 0.0, "smoothness": 0.0}
    frames = len(images)
    for s, sigmoid in enumerate(maps):
        disparity = 10 * sigmoid + 0.01
        level, K_s = area(images, 2**s), [intrinsics(one, 0.5**s) for one in K]
        for k in range(frames):
            terms["smoothness"] += smoothness(disparity[k], level[k]) / 2**s
        for i in range(frames):
            for j in range(frames):
                if abs(i - j) == 1:  # source i, target j
                    T = matrix(vectors[min(i, j)] * (1 if i < j else -1))
                    warped, mask = warp(level[i], 1 / disparity[j], K_s[j], T, K_s[i])
                    terms["reconstruction"] += (np.abs(warped - level[j]) * mask).mean()
                    terms["ssim"] += (dissimilarity(warped, level[j]) * box(mask)).mean()
    return terms


def sample(frames: int = 3, size: tuple[int, int] = (16, 24), scales: int = 2, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    images = rng.random((frames, 3, *size))
    maps = [rng.uniform(0.2, 0.4, (frames, size[0] >> s, size[1] >> s)) for s in range(scales)]
    K = np.array([[20.0, 0.1, 11.3], [0, 18, 7.2], [0, 0, 1]]) + 0.3 * rng.random((frames, 1, 1)) * np.eye(3)
    K[:, 2, 2] = 1
    vectors = 0.03 * rng.normal(size=(frames - 1, 6))
    return maps, images, K, vectors


@pytest.mark.parametrize("frames", [2, 3])
def test_terms_equal_plain_formulas(frames: int) -> None:
    maps, images, K, vectors = sample(frames)
    expected = plain_terms(maps, images, K, vectors)
    loss, parts = Vid2DepthLoss(icp=0.0)(
        [tensor(one)[:, :, None] for one in maps],
        tensor(images),
        tensor(K),
        pair_transforms(tensor(vectors)),
        return_parts=True,
    )
    for name, value in expected.items():
        assert getattr(parts, name).item() == pytest.approx(value, rel=1e-6), name
    weights = {"reconstruction": 0.85, "ssim": 0.15, "smoothness": 0.05}
    assert loss.item() == pytest.approx(sum(weights[name] * value for name, value in expected.items()), rel=1e-6)


def test_a_batch_is_the_mean_of_its_samples() -> None:
    """Sums over pairs and frames are per sample, means over the batch; one K for all frames will do."""
    samples = [sample(seed=seed) for seed in range(2)]
    losses = Vid2DepthLoss()
    arguments = [
        ([tensor(one)[:, :, None] for one in maps], tensor(images), tensor(K)[:, 0], pair_transforms(tensor(vectors)))
        for maps, images, K, vectors in samples
    ]
    alone = [losses(*one) for one in arguments]
    maps = [torch.cat(pair) for pair in zip(*(one[0] for one in arguments))]
    together = losses(maps, *(torch.cat([one[k] for one in arguments]) for k in (1, 2, 3)))
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2)


def test_a_still_camera_and_equal_frames_cost_only_smoothness() -> None:
    image = torch.rand(1, 1, 3, 32, 32).expand(1, 3, 3, 32, 32)
    maps = [torch.full((1, 3, 1, 32 >> s, 32 >> s), 0.1) for s in range(3)]
    K = torch.tensor([[[30.0, 0, 15.5], [0, 30, 15.5], [0, 0, 1]]])
    loss, parts = Vid2DepthLoss()(maps, image, K, pair_transforms(torch.zeros(1, 2, 6)), return_parts=True)
    assert loss < 1e-4 and all(part < 1e-4 for part in parts)


def test_pairs_and_their_transforms() -> None:
    assert adjacent_pairs(3) == [(1, 0), (0, 1), (2, 1), (1, 2)]
    vectors = torch.randn(2, 2, 6)
    T = pair_transforms(vectors)
    for p, (k, sign) in enumerate(((0, 1), (0, -1), (1, 1), (1, -1))):
        torch.testing.assert_close(T[:, p], pose_matrix_from_vector(sign * vectors[:, k]))


def test_the_3d_loss_is_the_correction_and_what_is_left() -> None:
    """A motion that ICP finds exactly: t is that motion, r is zero, and the gradient reduces it."""
    cloud = torch.rand(1, 300, 3, dtype=torch.float64)
    hidden = torch.tensor([[0.01, -0.02, 0.015, 0.01, 0.005, -0.01]], dtype=torch.float64)
    moved = cloud @ pose_matrix_from_vector(hidden)[:, :3, :3].mT + hidden[:, None, :3]
    vector = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    loss = Icp3DLoss(50)(cloud, moved, pose_matrix_from_vector(vector))
    assert loss.item() == pytest.approx(hidden.abs().mean().item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss, vector)
    # Of mean |t|, t being hidden - vector to first order: the rotation also moves t.
    assert torch.equal(gradient.sign(), -hidden.sign())
    torch.testing.assert_close(gradient, -hidden.sign() / 6, rtol=0, atol=0.01)
    exact = Icp3DLoss(0)(cloud, moved, pose_matrix_from_vector(hidden))
    assert exact < 1e-12


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_points_that_are_not_finite_show_in_the_3d_loss(which: int, value: float) -> None:
    """One of them is left out by ICP, and where all are, nothing is left to cost anything."""
    for points in (slice(0, 1), slice(None)):
        clouds = [torch.rand(1, 50, 3).requires_grad_(), torch.rand(1, 50, 3)]
        with torch.no_grad():
            clouds[which][:, points] = value
        T = torch.eye(4)[None].requires_grad_()
        loss = Icp3DLoss(3)(clouds[0], clouds[1], T)
        assert not loss.isfinite()
        assert not torch.autograd.grad(loss, T)[0].isfinite().all()


def test_the_toy_problem_of_the_release() -> None:
    """A hidden motion along z and a hidden cone, found along the approximate gradients (`icp_train_demo`)."""
    flat = torch.rand(1, 400, 3, dtype=torch.float64) * torch.tensor([20.0, 20.0, 0.0]) - torch.tensor(
        [10.0, 10.0, 0.0]
    )
    bump = 0.1 * (1 - flat[..., :2].norm(dim=-1) / 10).clamp(min=0)
    hidden = torch.zeros(1, 6, dtype=torch.float64)
    hidden[0, 2] = 0.1
    truth = flat.clone()
    truth[..., 2] += bump
    seen = truth @ pose_matrix_from_vector(hidden)[:, :3, :3].mT + hidden[:, None, :3]
    vector = torch.zeros(1, 6, dtype=torch.float64, requires_grad=True)
    height = torch.zeros(1, 400, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([vector, height], lr=0.1)
    loss_function, losses = Icp3DLoss(5), []
    for step in range(200):
        points = torch.cat([flat[..., :2], (flat[..., 2] + height)[..., None]], -1)
        loss = loss_function(points, seen, pose_matrix_from_vector(vector))
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * 0.98**step
        optimizer.zero_grad()
        loss.backward()
        # The loss is a mean of absolute values: per point its gradient is 1 / the number of values.
        height.grad *= height.numel()  # type: ignore[operator]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]
    # A tilt may take a part of the cone: together, motion and cloud are what was hidden.
    T = pose_matrix_from_vector(vector.detach())
    found = points.detach() @ T[:, :3, :3].mT + T[:, None, :3, 3]
    assert (found - seen).abs().max() < 0.01 < (flat - seen).abs().max() / 10


def test_gradients_reach_maps_motion_and_intrinsics() -> None:
    maps, images, K, vectors = sample()
    leaves = [tensor(one)[:, :, None].requires_grad_() for one in maps]
    K_leaf, motion = tensor(K).requires_grad_(), tensor(vectors).requires_grad_()
    Vid2DepthLoss()(leaves, tensor(images), K_leaf, pair_transforms(motion)).backward()
    for leaf in (*leaves, K_leaf, motion):
        assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.abs().sum() > 0
    assert (torch.stack([one.grad.abs().sum((0, 2, 3, 4)) for one in leaves]) > 0).all()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"disparities": torch.rand(1, 3, 1, 16, 24)}, TypeError, "disparities: expected a non-empty sequence"),
        ({"disparities": [torch.rand(1, 2, 1, 16, 24)]}, ValueError, r"disparities\[0\]: expected \(1, 3, 1, h, w\)"),
        ({"images": torch.rand(3, 3, 16, 24)}, ValueError, r"images: expected \(B, N, 3, H, W\)"),
        ({"K": torch.eye(3)}, ValueError, r"K: expected shape \(1, 3, 3\) or \(1, 3, 3, 3\), got \(3, 3\)"),
        ({"T": torch.eye(4).expand(1, 2, 4, 4)}, ValueError, r"T: expected shape \(1, 4, 4, 4\), got \(1, 2, 4, 4\)"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {
        "disparities": [torch.rand(1, 3, 1, 16, 24)],
        "images": torch.rand(1, 3, 3, 16, 24),
        "K": torch.eye(3)[None],
        "T": torch.eye(4).expand(1, 4, 4, 4),
    }
    with pytest.raises(error, match=message):
        Vid2DepthLoss()(**given | change)


def test_pose_vector_is_what_the_correction_is_measured_in() -> None:
    vector = torch.tensor([[0.1, 0.2, 0.3, 0.01, 0.02, 0.03]])
    torch.testing.assert_close(pose_vector(pose_matrix_from_vector(vector)), vector)

"""Motion models: order of the frames, known poses, and the translation that follows the depth of each scale."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mdepth_fast.geometry import invert_pose, pose_matrix
from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.ops import disparity_to_depth
from mdepth_fast.systems import PairPoses, StackedPoses, Views, known_poses, no_motion


class FramePose(nn.Module):
    """The true motion between frames that are filled with their own time: what a perfect pose network gives."""

    velocity = (torch.tensor([0.01, -0.02, 0.005]), torch.tensor([0.1, -0.05, 0.3]))

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        elapsed = (second - first).mean((1, 2, 3))[:, None]
        assert (elapsed > 0).all(), "the earlier frame comes first"
        return elapsed * self.velocity[0], elapsed * self.velocity[1]


def to_depth(disparity: Tensor) -> Tensor:
    return disparity_to_depth(disparity, min_depth=0.5, max_depth=20.0)


def views(offsets: tuple[int | str, ...], size: tuple[int, int] = (32, 32)) -> Views:
    """A batch of 2 whose frames are filled with their time."""
    times = torch.tensor([float(s) if isinstance(s, int) else 0.0 for s in offsets])
    given = torch.eye(4).repeat(2, len(offsets), 1, 1)
    given[:, :, 0, 3] = -0.2
    target = torch.zeros(2, 3, *size)
    sources = times.view(1, -1, 1, 1, 1).expand(2, -1, 3, *size)
    K = torch.tensor([[30.0, 0, 15.5], [0, 30, 15.5], [0, 0, 1]])
    source_K = K.expand(2, len(offsets), 3, 3)
    return Views(target, sources, target, sources, K.expand(2, 3, 3), source_K, given, [target], offsets, ["a", "b"])


def test_pairs_keep_temporal_order_and_invert_towards_the_past() -> None:
    batch = views((-1, 1, "stereo", 2))
    T, extras = PairPoses(FramePose(), to_depth)(batch, [torch.rand(2, 1, 32, 32)])
    assert isinstance(T, Tensor) and extras == {}
    rotation, translation = FramePose.velocity
    step = pose_matrix(rotation, translation)
    torch.testing.assert_close(T[0, 0], invert_pose(step))
    torch.testing.assert_close(T[0, 1], step)
    torch.testing.assert_close(T[0, 2], batch.T[0, 2])
    torch.testing.assert_close(T[0, 3], pose_matrix(2 * rotation, 2 * translation))


def test_a_translation_in_units_of_depth_follows_the_map_of_each_scale() -> None:
    """As published: at scale s it is multiplied by the mean of 1 / depth of that scale's map at full resolution."""
    pose: Any = FramePose()
    pose.scale_by_inverse_depth = True
    disparities = [torch.rand(2, 1, 32 // 2**s, 32 // 2**s) for s in range(4)]
    T, _ = PairPoses(pose, to_depth)(views((-1, 1)), disparities)
    assert len(T) == 4
    rotation, translation = FramePose.velocity
    for s, disparity in enumerate(disparities):
        full = disparity_to_depth(disparity, (32, 32), min_depth=0.5, max_depth=20.0)
        inverse_depth = full.reciprocal().mean((1, 2, 3))
        for sample in range(2):
            expected = pose_matrix(rotation, translation * inverse_depth[sample])
            torch.testing.assert_close(T[s][sample, 1], expected)
            torch.testing.assert_close(T[s][sample, 0], invert_pose(expected))


def test_transforms_of_each_scale_reach_its_loss() -> None:
    """The loss of a list of transforms is the mean of those of each scale alone."""
    torch.manual_seed(0)
    target, sources = torch.rand(2, 3, 32, 32), torch.rand(2, 2, 3, 32, 32)
    batch = views((-1, 1))
    disparities = [torch.rand(2, 1, 32 // 2**s, 32 // 2**s) for s in range(3)]
    transforms = [
        pose_matrix(torch.zeros(4, 3), 0.1 * torch.randn(4, 3)).view(2, 2, 4, 4).requires_grad_() for _ in range(3)
    ]
    loss = MonodepthLoss(0.5, 20.0, smoothness=0.0)
    together, parts = loss(disparities, target, sources, batch.K, transforms, return_parts=True)
    each = [loss([d], target, sources, batch.K, T) for d, T in zip(disparities, transforms)]
    torch.testing.assert_close(together, torch.stack(each).mean())
    assert len(parts.selection) == 3 and parts.photometric.shape == (3,)
    gradients = torch.autograd.grad(together, transforms)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    same = loss(disparities, target, sources, batch.K, [transforms[0]] * 3)
    torch.testing.assert_close(same, loss(disparities, target, sources, batch.K, transforms[0]))
    with pytest.raises(ValueError, match="T: expected a tensor, or 3 of them, one for each map, got 2"):
        loss(disparities, target, sources, batch.K, transforms[:2])


def test_known_poses_and_none() -> None:
    batch = views(("stereo",))
    assert known_poses(batch, [])[0] is batch.T
    T, extras = no_motion(batch, [])
    assert torch.equal(T, torch.eye(4).expand(2, 1, 4, 4)) and extras == {}  # type: ignore[arg-type]


def test_stacked_frames_give_all_poses_at_once_and_extras() -> None:
    def net(frames: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert frames.shape == (2, 3, 3, 32, 32)
        elapsed = (frames[:, 1:] - frames[:, :1]).mean((2, 3, 4))[..., None]
        return elapsed * FramePose.velocity[0], elapsed * FramePose.velocity[1], {"mask": frames[:, 1:, :1]}

    T, extras = StackedPoses(net)(views((-1, 1)), [])
    rotation, translation = FramePose.velocity
    for index, time in enumerate((-1, 1)):
        torch.testing.assert_close(T[1][index], pose_matrix(time * rotation, time * translation))  # type: ignore[index]
    assert extras["mask"].shape == (2, 2, 1, 32, 32)

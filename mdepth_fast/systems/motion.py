"""Motion models: from views and disparity maps to the transforms between target and sources.

A motion model takes `Views` and the network's disparity maps (B,1,h,w), finest first. It returns

- the transforms (B,S,4,4) from the target camera to each source camera, or a list of them, one per disparity map, if
  the motion depends on the disparity map;
- extras: a dictionary of everything else that its network predicts (such as explainability masks), for the objective.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from mdepth_fast.geometry import pose_matrix
from mdepth_fast.systems.views import Views

__all__ = ["AllPoses", "MotionModel", "PairPoses", "StackedPoses", "Transforms", "known_poses", "no_motion"]

Transforms = Tensor | list[Tensor]


class MotionModel(Protocol):
    def __call__(self, views: Views, disparities: Sequence[Tensor]) -> tuple[Transforms, dict[str, Any]]: ...


def known_poses(views: Views, disparities: Sequence[Tensor]) -> tuple[Transforms, dict[str, Any]]:
    """The poses in the data: stereo, or external odometry."""
    return views.T, {}


def no_motion(views: Views, disparities: Sequence[Tensor]) -> tuple[Transforms, dict[str, Any]]:
    """Identities, for objectives without poses (left-right consistency of rectified pairs, optical flow)."""
    return torch.eye(4, dtype=views.T.dtype, device=views.T.device).expand_as(views.T), {}


class PairPoses:
    """A pose for each pair of target and source frame; named sources keep their known pose (Monodepth2).

    The network always sees the earlier frame first, so the motion to an earlier source is the inverse of its
    prediction. If the network has `scale_by_inverse_depth`, its translation is multiplied by the image's mean of 1 /
    depth (Wang et al., CVPR 2018, arXiv 1712.00175; Monodepth2's posecnn). Each disparity map's loss uses its own depth
    for this, so there is a list of transforms, one per disparity map.

    Args:
        pose_net: maps two images (B,3,H,W) in temporal order to axis-angle and translation (B,3) of the motion from the
            first to the second; None if every source has a known pose.
        to_depth: converts a disparity map to depth.
    """

    pairwise = True
    """a source's pose does not depend on the other sources, so a trained network takes any offsets"""

    def __init__(self, pose_net: Any, to_depth: Callable[[Tensor], Tensor]) -> None:
        self.pose_net, self.to_depth = pose_net, to_depth

    def __call__(self, views: Views, disparities: Sequence[Tensor]) -> tuple[Transforms, dict[str, Any]]:
        moved = self._moved(views)
        if not getattr(self.pose_net, "scale_by_inverse_depth", False):
            return self._transforms(views, moved, None), {}
        scales = [self.to_depth(disparity).reciprocal().mean((2, 3)) for disparity in disparities]
        return [self._transforms(views, moved, scale) for scale in scales], {}

    def _moved(self, views: Views) -> list[tuple[Tensor, Tensor] | None]:
        """Axis-angle and translation of each source, None if its pose is known."""
        moved: list[tuple[Tensor, Tensor] | None] = []
        for index, source in enumerate(views.offsets):
            if isinstance(source, str) or self.pose_net is None:
                moved.append(None)
                continue
            target, other = views.target_aug, views.sources_aug[:, index]
            moved.append(self.pose_net(other, target) if source < 0 else self.pose_net(target, other))
        return moved

    def _inverts(self, source: int) -> bool:
        """Whether the network predicts the motion from source to target, not from target to source."""
        return source < 0

    def _transforms(self, views: Views, moved: list[tuple[Tensor, Tensor] | None], scale: Tensor | None) -> Tensor:
        transforms = []
        for index, (source, motion) in enumerate(zip(views.offsets, moved)):
            if motion is None:
                transforms.append(views.T[:, index])
                continue
            axis_angle, translation = motion
            if scale is not None:
                translation = translation * scale
            invert = isinstance(source, int) and self._inverts(source)
            transforms.append(pose_matrix(axis_angle.float(), translation.float(), invert=invert))
        return torch.stack(transforms, 1)


class AllPoses(PairPoses):
    """The poses of all frame offsets at once, in one pass of the network (Monodepth2's pose input `all`).

    As `PairPoses`, but the network sees the target and all its frame offsets, in this order, and predicts every motion
    from the target to a source.

    Args:
        pose_net: its `all_poses` maps frames (B,1+N,3,H,W) to axis-angle and translation (B,N,3).
        to_depth: converts a disparity map to depth.
    """

    pairwise = False

    def _inverts(self, source: int) -> bool:
        return False

    def _moved(self, views: Views) -> list[tuple[Tensor, Tensor] | None]:
        offsets = [index for index, source in enumerate(views.offsets) if isinstance(source, int)]
        moved: list[tuple[Tensor, Tensor] | None] = [None] * len(views.offsets)
        if offsets and self.pose_net is not None:
            frames = torch.cat([views.target_aug[:, None], views.sources_aug[:, offsets]], 1)
            axis_angle, translation = self.pose_net.all_poses(frames)
            for number, index in enumerate(offsets):
                moved[index] = axis_angle[:, number], translation[:, number]
        return moved


class StackedPoses:
    """The poses of all sources at once, from target and sources stacked (SfMLearner, arXiv 1704.07813).

    Args:
        pose_net: maps frames (B,1+S,3,H,W), the target first, to axis-angle and translation (B,S,3) from target to
            source, and optionally a dictionary of extras as a third result.
    """

    def __init__(self, pose_net: Any) -> None:
        self.pose_net = pose_net

    def __call__(self, views: Views, disparities: Sequence[Tensor]) -> tuple[Transforms, dict[str, Any]]:
        frames = torch.cat([views.target_aug[:, None], views.sources_aug], 1)
        axis_angle, translation, *extras = self.pose_net(frames)
        flat = pose_matrix(axis_angle.flatten(0, 1).float(), translation.flatten(0, 1).float())
        return flat.unflatten(0, axis_angle.shape[:2]), extras[0] if extras else {}

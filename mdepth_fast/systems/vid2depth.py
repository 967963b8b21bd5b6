"""vid2depth (Mahjourian, Wicke, Angelova, CVPR 2018, arXiv 1802.05522): depth and motion from video, with a 3D loss.

The depth network sees every frame of a sequence, and each frame is the target of its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mdepth_fast.losses import Vid2DepthLoss
from mdepth_fast.losses.vid2depth import pair_transforms
from mdepth_fast.ops import disparity_to_depth, inverse_warp
from mdepth_fast.systems.motion import MotionModel, Transforms
from mdepth_fast.systems.registry import packaged_presets, register_system
from mdepth_fast.systems.self_supervised import Objective, Outputs
from mdepth_fast.systems.sfmlearner import DispNetConfig, SequenceConfig, SequencePoseConfig, SequenceSystem
from mdepth_fast.systems.views import Views

__all__ = ["Vid2Depth", "Vid2DepthConfig", "Vid2DepthLossConfig", "in_order"]


@dataclass
class Vid2DepthLossConfig:
    """Settings of `mdepth_fast.losses.Vid2DepthLoss`; the depth range comes from the model.

    Args:
        reconstruction: weight of the L1 difference of the colours.
        ssim: weight of the structural difference.
        smoothness: weight of the edge-aware smoothness at scale 0.
        icp: weight of the 3D loss at scale 0; the paper has 0.1, the published program 0.
        icp_iterations: most iterations of ICP.
    """

    reconstruction: float = 0.85
    ssim: float = 0.15
    smoothness: float = 0.05
    icp: float = 0.1
    icp_iterations: int = 10


@dataclass
class Vid2DepthConfig(SequenceConfig):
    """A vid2depth run, which learns depth and motion from video.

    Args:
        system: vid2depth.
    """

    model: DispNetConfig = field(default_factory=lambda: DispNetConfig("vid2depth"))  # type: ignore[assignment]
    pose: SequencePoseConfig = field(default_factory=lambda: SequencePoseConfig("vid2depth_pose"))  # type: ignore[assignment]
    loss: Vid2DepthLossConfig = field(default_factory=Vid2DepthLossConfig)
    system: Literal["vid2depth"] = "vid2depth"


def in_order(offsets: Sequence[int | str]) -> tuple[list[int], int]:
    """For frames stacked as (target, sources): their places in temporal order, and which of these is the target's.

    ValueError unless the target and its sources are consecutive frames.
    """
    offset = [0, *(source for source in offsets if isinstance(source, int))]
    order = sorted(range(len(offset)), key=offset.__getitem__)
    if len(offset) != len(offsets) + 1 or [offset[n] for n in order] != list(range(min(offset), max(offset) + 1)):
        raise ValueError(f"data.sources: expected the offsets of neighbouring frames such as [-1, 1], got {[*offsets]}")
    return order, order.index(0)


class Vid2DepthMotion:
    """The motions between neighbouring frames, from all frames in temporal order.

    The transforms of `losses.vid2depth.adjacent_pairs` are the extra "pairs" (B,2S,4,4); those from the target to its
    sources are products of them.

    Args:
        pose_net: maps frames (B,1+S,3,H,W) in temporal order to vectors (B,S,6), see `losses.vid2depth`.
    """

    def __init__(self, pose_net: Any) -> None:
        self.pose_net = pose_net

    def __call__(self, views: Views, disparities: Sequence[Tensor]) -> tuple[Transforms, dict[str, Any]]:
        order, target = in_order(views.offsets)
        vectors, _ = self.pose_net(torch.cat([views.target_aug[:, None], views.sources_aug], 1)[:, order])
        pairs = pair_transforms(vectors.float())
        to_frame = {target: torch.eye(4, dtype=pairs.dtype, device=pairs.device).expand(len(pairs), 4, 4)}
        for k in range(target, 0, -1):
            to_frame[k - 1] = pairs[:, 2 * (k - 1)] @ to_frame[k]
        for k in range(target, len(order) - 1):
            to_frame[k + 1] = pairs[:, 2 * k + 1] @ to_frame[k]
        # Place n in the stack (target, sources) is place order.index(n) in time.
        return torch.stack([to_frame[order.index(n)] for n in range(1, len(order))], 1), {"pairs": pairs}


class Vid2DepthObjective(Objective):
    """`Vid2DepthLoss` on all frames of views."""

    def __init__(self, loss: Vid2DepthLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        order, _ = in_order(views.offsets)
        loss, parts = self.loss(
            outputs.extras["sequence"],
            torch.cat([views.target[:, None], views.sources], 1)[:, order],
            torch.cat([views.K[:, None], views.source_K], 1)[:, order],
            outputs.extras["pairs"],
            return_parts=True,
        )
        return {"loss": loss, **{name: term for name, term in parts._asdict().items() if self.loss.weights[name]}}

    def masks(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        """The pixels that fall inside each source."""
        near, far = self.loss.min_depth, self.loss.max_depth
        depth = disparity_to_depth(
            outputs.disparities[0].float(), views.target.shape[2:], min_depth=near, max_depth=far
        )
        T: Any = outputs.transforms
        return {
            f"inside frame {offset:+d}": inverse_warp(
                views.sources[:, s], depth, views.K, T[:, s], source_K=views.source_K[:, s]
            )[1][:, 0]
            for s, offset in enumerate(views.offsets)
        }


@register_system
class Vid2Depth(SequenceSystem[Vid2DepthConfig]):
    name = "vid2depth"
    about = "self-supervised, from video, with a 3D loss of aligned clouds (vid2depth)"
    config_class = Vid2DepthConfig
    presets = packaged_presets("vid2depth_kitti", "vid2depth_synthetic")

    def __init__(
        self, config: Vid2DepthConfig, depth_net: Any, pose_net: nn.Module | None, sources: Sequence[int | str]
    ) -> None:
        in_order(sources)
        super().__init__(config, depth_net, pose_net, sources)

    def build_motion(self) -> MotionModel:
        return Vid2DepthMotion(self.pose_net)

    def build_objective(self) -> Objective:
        limits = self.config.model
        return Vid2DepthObjective(Vid2DepthLoss(limits.min_depth, limits.max_depth, **vars(self.config.loss)))

    def outputs(self, views: Views) -> Outputs:
        """Runs the depth network on all frames in one batch; batch norms see them together."""
        order, target = in_order(views.offsets)
        frames = torch.cat([views.target_aug[:, None], views.sources_aug], 1)[:, order]
        sequence = [one.unflatten(0, frames.shape[:2]) for one in self.depth_net(frames.flatten(0, 1))]
        disparities = [one[:, target] for one in sequence]
        transforms, extras = self.motion(views, disparities)
        return Outputs(disparities, transforms, extras | {"sequence": sequence})

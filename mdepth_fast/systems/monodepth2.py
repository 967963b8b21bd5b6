"""Monodepth2 (Godard, Mac Aodha, Firman, Brostow, ICCV 2019, arXiv 1806.01260), modes M, S, MS, and its ablations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.losses.monodepth import MonodepthParts
from mdepth_fast.models import PredictiveMask, create_model, load_checkpoint
from mdepth_fast.models.monodepth2 import PUBLISHED_RANGE
from mdepth_fast.systems.motion import AllPoses, MotionModel
from mdepth_fast.systems.registry import packaged_presets, register_system
from mdepth_fast.systems.self_supervised import (
    ModelConfig,
    Objective,
    Outputs,
    PoseConfig,
    SelfSupervisedSystem,
    ViewsConfig,
)
from mdepth_fast.systems.views import Views
from mdepth_fast.weights import read_content

__all__ = [
    "LossConfig",
    "Monodepth2",
    "Monodepth2Config",
    "Monodepth2ModelConfig",
    "Monodepth2Objective",
    "Monodepth2PoseConfig",
]


@dataclass
class LossConfig:
    """Settings of `mdepth_fast.losses.MonodepthLoss`; the depth range comes from the model.

    Args:
        smoothness: weight of the smoothness term at scale 0.
        ssim_weight: share of SSIM in the photometric error; 0 leaves L1 alone (published: no_ssim).
        auto_mask: mask pixels that the unwarped source explains better (false is published: disable_automasking).
        average_reprojection: mean over the sources in place of the minimum.
        native_scale: compare images at the size of each disparity map, not at full size (published: v1_multiscale).
        predictive_mask: a second decoder predicts a mask for each source, as in SfMLearner; needs auto_mask false.
        identity_noise: standard deviation of noise on the unwarped error; the published code adds 1e-5 to break ties.
    """

    smoothness: float = 1e-3
    ssim_weight: float = 0.85
    auto_mask: bool = True
    average_reprojection: bool = False
    native_scale: bool = False
    predictive_mask: bool = False
    identity_noise: float = 0.0


@dataclass
class Monodepth2ModelConfig(ModelConfig):
    """The depth network.

    Args:
        weights: run, checkpoint or folder of published weights to start from, or null. If it has a predicted mask, that
            starts from it too.
        scales: scales of the disparity maps, of which 0 is the network's size and each further one half of it.
    """

    scales: list[int] = field(default_factory=lambda: [0, 1, 2, 3])


@dataclass
class Monodepth2PoseConfig(PoseConfig):
    """The pose network; it is not built if every source has a known pose.

    Args:
        name: posenet_resnet18, posenet_resnet50, posenet_shared (on the features of the depth network) or posecnn.
        input: pairs (the target and one source in temporal order) or all (the target and all frame offsets at once).
    """

    input: Literal["pairs", "all"] = "pairs"


@dataclass
class Monodepth2Config(ViewsConfig):
    """A Monodepth2 run, which learns depth and motion from video or stereo.

    Args:
        system: monodepth2.
    """

    model: Monodepth2ModelConfig = field(default_factory=Monodepth2ModelConfig)
    pose: Monodepth2PoseConfig = field(default_factory=Monodepth2PoseConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    system: Literal["monodepth2"] = "monodepth2"


class Monodepth2Objective(Objective):
    """`MonodepthLoss` on views: per-pixel minimum reprojection, auto-masking, edge-aware smoothness."""

    def __init__(self, loss: MonodepthLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        loss, parts = self._parts(self.loss, views, outputs)
        terms = {
            "loss": loss,
            "photometric": parts.photometric.mean(),
            "smoothness": parts.smoothness.mean(),
            "auto_masked": (parts.selection[0] < 0).float().mean(),
        }
        return terms if parts.mask is None else {**terms, "mask": parts.mask.mean()}

    def masks(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        """The pixels that a warped source explains better than an unwarped one, under this objective's weights.

        The mask is also shown if training did not use it; then the title says so.
        """
        loss, title = self.loss, "auto-mask"
        trained = loss.min_reprojection
        if not trained.auto_mask:
            title = "auto-mask (not trained with)"
            loss = MonodepthLoss(
                loss.min_depth,
                loss.max_depth,
                loss.smoothness,
                trained.ssim_weight,
                auto_mask=True,
                padding=trained.padding,
                average_reprojection=loss.average_reprojection,
                native_scale=loss.native_scale,
                scales=loss.scales,
            )
        _, parts = self._parts(loss, views, outputs)
        return {title: parts.selection[0][:, 0] >= 0}

    @staticmethod
    def _parts(loss: MonodepthLoss, views: Views, outputs: Outputs) -> tuple[Tensor, MonodepthParts]:
        return loss(
            outputs.disparities,
            views.target,
            views.sources,
            views.K,
            outputs.transforms,
            views.pyramid if loss.scales is None else [views.pyramid[s] for s in loss.scales],
            source_K=views.source_K,
            masks=outputs.extras["masks"] if loss.predictive_mask else None,
            return_parts=True,
        )


@register_system
class Monodepth2(SelfSupervisedSystem[Monodepth2Config]):
    name = "monodepth2"
    about = "self-supervised, from video or stereo (Monodepth2)"
    aliases = ("self_supervised",)
    config_class = Monodepth2Config
    presets = packaged_presets(
        "folder",
        "kitti_mono",
        "kitti_mono_1024x320",
        "kitti_mono_416x128",
        "kitti_mono_scratch",
        "kitti_mono_stereo",
        "kitti_mono_stereo_1024x320",
        "kitti_mono_stereo_scratch",
        "kitti_odometry_mono",
        "kitti_odometry_mono_stereo",
        "kitti_stereo",
        "kitti_stereo_1024x320",
        "kitti_stereo_scratch",
        "lite_mono_kitti",
        "motorcycle",
        "synthetic",
        "synthetic_mono",
    )

    def __init__(
        self, config: Monodepth2Config, depth_net: Any, pose_net: nn.Module | None, sources: Sequence[int | str]
    ) -> None:
        super().__init__(config, depth_net, pose_net, sources)
        self.mask_net: PredictiveMask | None = None
        if getattr(pose_net, "reads_features", False):
            _feature_widths(depth_net, "pose.name")
        if config.loss.predictive_mask:
            widths = _feature_widths(depth_net, "loss.predictive_mask")
            self.mask_net = PredictiveMask(widths, len(self.sources), depth_net.scales)

    @classmethod
    def create(cls, config: Monodepth2Config, dataset: Any) -> "Monodepth2":
        system: Any = super().create(config, dataset)
        if system.mask_net is not None and config.model.weights and _has_mask(Path(config.model.weights)):
            load_checkpoint(system.mask_net, config.model.weights)
        return system

    @classmethod
    def model_options(cls, config: Monodepth2Config) -> dict[str, Any]:
        scales = tuple(config.model.scales)
        return {} if scales == (0, 1, 2, 3) else {"scales": scales}

    @classmethod
    def pose_options(cls, config: Monodepth2Config, sources: Sequence[int | str]) -> dict[str, Any]:
        options: dict[str, Any] = {}
        if config.pose.input == "all":
            options["frames"] = 1 + sum(isinstance(source, int) for source in sources)
        if config.pose.name == "posenet_shared":
            with torch.device("meta"):
                options["channels"] = _feature_widths(create_model(config.model.name), "pose.name")[-1]
        return options

    @classmethod
    def build_pose_net(cls, config: Monodepth2Config, sources: Sequence[int | str]) -> nn.Module | None:
        """Published translations are in the unit of a depth of 0.1 to 100: they follow the depth range if it is a
        multiple of that, as in the presets with stereo."""
        net: Any = super().build_pose_net(config, sources)
        published = config.pose.weights and (Path(config.pose.weights) / "pose.pth").is_file()
        unit = [limit / of for limit, of in zip((config.model.min_depth, config.model.max_depth), PUBLISHED_RANGE)]
        if net is not None and published and math.isclose(*unit):
            net.scale_translation(unit[0])
        return net  # type: ignore[no-any-return]

    def build_motion(self) -> MotionModel:
        motion = super().build_motion()
        return AllPoses(self.pose_net, self.to_depth) if self.config.pose.input == "all" else motion

    def build_objective(self) -> Objective:
        model = self.config.model
        options = {**vars(self.config.loss), "scales": model.scales}
        return Monodepth2Objective(MonodepthLoss(model.min_depth, model.max_depth, **options))

    def outputs(self, views: Views) -> Outputs:
        shared = getattr(self.pose_net, "reads_features", False)
        if not shared and self.mask_net is None:
            return super().outputs(views)
        frames = [views.target_aug]
        if shared:
            frames += [
                views.sources_aug[:, index] for index, source in enumerate(views.offsets) if isinstance(source, int)
            ]
        # One pass over all frames, so that batch norms see them together.
        features = self.depth_net.encode(torch.cat(frames))
        if shared:
            # The shared pose network sees feature maps in place of images, and none of sources whose pose is known.
            last = iter(features[-1].chunk(len(frames)))
            target = next(last)
            others = [next(last) if isinstance(source, int) else target for source in views.offsets]
            views = replace(views, target_aug=target, sources_aug=torch.stack(others, 1))
            features = [one[: len(target)] for one in features]
        disparities = self.depth_net.decoder(features)
        transforms, extras = self.motion(views, disparities)
        if self.mask_net is not None:
            extras = {**extras, "masks": self.mask_net(features)}
        return Outputs(disparities, transforms, extras)


def _feature_widths(depth_net: Any, setting: str) -> tuple[int, ...]:
    """Channels of the features that `encode` of a depth network gives; ValueError that names the setting if it does
    not."""
    if not hasattr(depth_net, "encode"):
        raise ValueError(
            f"{setting}: needs the features of a network such as monodepth2_resnet18, which "
            f"{type(depth_net).__name__} does not give"
        )
    widths: tuple[int, ...] = depth_net.encoder.channels
    return widths


def _has_mask(weights: Path) -> bool:
    """Whether a run, checkpoint or published folder holds a predicted mask."""
    checkpoint = weights / "last.ckpt" if weights.is_dir() else weights
    if not checkpoint.is_file():
        return (weights / "predictive_mask.pth").is_file()
    content = read_content(checkpoint)
    return any(key.startswith(PredictiveMask.checkpoint_prefix) for key in content.get("state_dict", content))

"""SfMLearner (Zhou, Brown, Snavely, Lowe, CVPR 2017, arXiv 1704.07813): depth and motion from video.

The pose network sees the target and all its sources at once, and may predict a mask of the pixels that the motion does
not explain. `SequenceSystem` is what other systems with such networks share.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mdepth_fast.data import Augment, SequenceAugment
from mdepth_fast.geometry import pose_matrix_from_vector
from mdepth_fast.losses import SfMLearnerLoss
from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.systems.depth import called, tuples
from mdepth_fast.systems.motion import MotionModel, Transforms
from mdepth_fast.systems.registry import packaged_presets, register_system
from mdepth_fast.systems.self_supervised import Objective, Outputs, SelfSupervisedSystem, ViewsConfig
from mdepth_fast.systems.views import Views

__all__ = [
    "DispNetConfig",
    "SequenceAugmentConfig",
    "SequencePoseConfig",
    "SequenceSystem",
    "SfMLearner",
    "SfMLearnerConfig",
    "SfMLearnerLossConfig",
]


@dataclass
class DispNetConfig:
    """The depth network.

    Args:
        name: sfmlearner, sfmlearner_pytorch, vid2depth, or another network of sigmoid disparity maps.
        min_depth: depth for a sigmoid output of 1; the unit is arbitrary.
        max_depth: depth for a sigmoid output of 0.
        weights: checkpoint or published weights to start from, or null.
        options: further arguments of the network, by name, such as batch_statistics; see `mdepth_fast.models.DispNet`.
    """

    name: str = "sfmlearner"
    min_depth: float = 1 / 10.01
    max_depth: float = 100.0
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SequencePoseConfig:
    """The pose network, which sees all frames at once.

    Args:
        name: sfmlearner_pose, sfmlearner_pytorch_pose or vid2depth_pose.
        weights: checkpoint or published weights to start from, or null.
        options: further arguments of the network, by name; see `mdepth_fast.models.PoseExpNet`.
    """

    name: str = "sfmlearner_pose"
    weights: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SequenceAugmentConfig:
    """The augmentation of a sequence (`mdepth_fast.data.SequenceAugment`): one draw for all frames.

    Args:
        flip: probability of a horizontal flip.
        jitter: probability of a colour change.
        scale: range of the factors that enlarge a sample along x and along y, before a crop of its old size.
        gamma: range of the gamma exponent.
        brightness: range of one factor on all channels.
        color: range of a separate factor on each channel.
        colors_in_loss: compute the loss on the changed colours, too.
    """

    flip: float = 0.0
    jitter: float = 1.0
    scale: tuple[float, float] = (1.0, 1.15)
    gamma: tuple[float, float] = (0.8, 1.2)
    brightness: tuple[float, float] = (0.5, 2.0)
    color: tuple[float, float] = (0.8, 1.2)
    colors_in_loss: bool = True


@dataclass
class SequenceConfig(ViewsConfig):
    """Settings of the systems whose pose network sees a whole sequence."""

    model: DispNetConfig = field(default_factory=DispNetConfig)  # type: ignore[assignment]
    pose: SequencePoseConfig = field(default_factory=SequencePoseConfig)  # type: ignore[assignment]
    augment: SequenceAugmentConfig = field(default_factory=SequenceAugmentConfig)  # type: ignore[assignment]


C = TypeVar("C", bound=SequenceConfig)


class SequenceSystem(SelfSupervisedSystem[C]):
    """A depth network, and a pose network that sees all frames of a sample stacked. Sources are frame offsets only."""

    pose_net: Any

    @classmethod
    def create(cls, config: C, dataset: Any) -> "SelfSupervisedSystem[C]":
        sources = tuple(dataset.sources)
        if not sources or not all(isinstance(source, int) for source in sources):
            raise ValueError(
                f"data.sources: expected frame offsets such as [-1, 1], of which {cls.name} predicts the motion, "
                f"got {list(sources)}"
            )
        return super().create(config, dataset)

    @classmethod
    def starting_net(cls, config: C, saved: dict[str, Any]) -> Any:
        model = config.model
        given = {
            "name": model.name,
            "min_depth": model.min_depth,
            "max_depth": model.max_depth,
            "input_size": (config.data.height, config.data.width),
        }
        net = _create("model.options", given, model.options)
        if model.weights:
            load_checkpoint(net, model.weights)
        return net

    @classmethod
    def build_pose_net(cls, config: C, sources: Sequence[int | str]) -> nn.Module:
        pose = config.pose
        with torch.device("meta"):
            stacks_frames = getattr(create_model(pose.name), "stacks_frames", False)
        if not stacks_frames:
            raise ValueError(
                f"pose.name: expected a network that sees all frames at once, such as {cls.name}_pose, "
                f"got {pose.name!r}"
            )
        given = {"name": pose.name, "sources": len(sources), **cls.pose_options(config, sources)}
        net = _create("pose.options", given, pose.options)
        if pose.weights:
            load_checkpoint(net, pose.weights)
        return net

    def build_augment(self) -> Augment:
        return SequenceAugment(**vars(self.config.augment), levels=1)  # the losses make their own pyramids


def _create(setting: str, given: dict[str, Any], options: dict[str, Any]) -> Any:
    """The network of a configuration; an option that it has not, or that is set elsewhere, is a ValueError."""
    if double := sorted(given.keys() & options.keys()):
        raise ValueError(f"{setting}: {double[0]} is set by the configuration, expected it not to be an option")
    return called(setting, create_model, given | tuples(options))


@dataclass
class SfMLearnerLossConfig:
    """Settings of `mdepth_fast.losses.SfMLearnerLoss`; the depth range comes from the model.

    Args:
        smoothness: weight of the smoothness term at scale 0.
        smoothness_decay: number by which that weight is divided from scale to scale.
        explainability: weight of the masks' cross-entropy; 0 trains without masks.
        padding: grey (points outside of a source count, against grey) or masked (they do not count).
        smooth: the map that is smooth, disparity or depth.
    """

    smoothness: float = 0.5
    smoothness_decay: float = 2.0
    explainability: float = 0.0
    padding: Literal["grey", "masked"] = "grey"
    smooth: Literal["disparity", "depth"] = "disparity"


@dataclass
class SfMLearnerConfig(SequenceConfig):
    """A SfMLearner run, which learns depth and motion from video.

    Args:
        system: sfmlearner.
    """

    loss: SfMLearnerLossConfig = field(default_factory=SfMLearnerLossConfig)
    system: Literal["sfmlearner"] = "sfmlearner"


class SfMLearnerMotion:
    """The poses of all sources at once, and the logits of their masks as the extra "explainability".

    Args:
        pose_net: maps frames (B,1+S,3,H,W), the target first, to vectors (B,S,6), target to source, and to logits.
    """

    def __init__(self, pose_net: Any) -> None:
        self.pose_net = pose_net

    def __call__(self, views: Views, disparities: Sequence[Tensor]) -> tuple[Transforms, dict[str, Any]]:
        vectors, logits = self.pose_net(torch.cat([views.target_aug[:, None], views.sources_aug], 1))
        return pose_matrix_from_vector(vectors.float()), {"explainability": logits}


class SfMLearnerObjective(Objective):
    """`SfMLearnerLoss` on views."""

    def __init__(self, loss: SfMLearnerLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        logits = outputs.extras["explainability"]
        loss, parts = self.loss(
            outputs.disparities,
            views.target,
            views.sources,
            views.K,
            outputs.transforms,  # type: ignore[arg-type]
            logits,
            source_K=views.source_K,
            return_parts=True,
        )
        terms = {"loss": loss, "photometric": parts.photometric, "smoothness": parts.smoothness}
        return terms | ({"explainability": parts.explainability} if logits else {})

    def masks(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        """The pixels that each source explains, where masks are predicted."""
        logits = outputs.extras["explainability"]
        if not logits:
            return {}
        return {f"explained by frame {offset:+d}": logits[0][:, s] > 0 for s, offset in enumerate(views.offsets)}


@register_system
class SfMLearner(SequenceSystem[SfMLearnerConfig]):
    name = "sfmlearner"
    about = "self-supervised, from video, all poses of a sequence at once (SfMLearner)"
    config_class = SfMLearnerConfig
    presets = packaged_presets("sfmlearner_kitti", "sfmlearner_synthetic")

    @classmethod
    def pose_options(cls, config: SfMLearnerConfig, sources: Sequence[int | str]) -> dict[str, Any]:
        return {"explainability": config.loss.explainability > 0}

    def build_motion(self) -> MotionModel:
        return SfMLearnerMotion(self.pose_net)

    def build_objective(self) -> Objective:
        limits = self.config.model
        return SfMLearnerObjective(SfMLearnerLoss(limits.min_depth, limits.max_depth, **vars(self.config.loss)))

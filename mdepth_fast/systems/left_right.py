"""Depth from rectified stereo pairs: Monodepth with left-right consistency (Godard, Mac Aodha, Brostow, CVPR 2017,
arXiv 1609.03677), and its predecessor (Garg, Vijay Kumar, Carneiro, Reid, ECCV 2016, arXiv 1603.04992).

The network sees one image. The other is needed for training alone, which knows no pose: disparities are warped along
the rows. Focal length and baseline make them metric depth; they come from the first training sample, and each sample of
the evaluation brings its own focal length.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from mdepth_fast.data import Augment, StereoAugment
from mdepth_fast.geometry import rectified_pair
from mdepth_fast.losses import GargLoss, LeftRightLoss
from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.ops import flow_warp
from mdepth_fast.systems.config import Config
from mdepth_fast.systems.depth import called
from mdepth_fast.systems.motion import MotionModel, no_motion
from mdepth_fast.systems.registry import packaged_presets, register_system
from mdepth_fast.systems.self_supervised import Objective, Outputs, SelfSupervisedSystem
from mdepth_fast.systems.views import DataConfig, Views

__all__ = [
    "Garg",
    "GargConfig",
    "GargLossConfig",
    "LeftRight",
    "LeftRightConfig",
    "LeftRightLossConfig",
    "StereoAugmentConfig",
    "StereoModelConfig",
]


@dataclass
class StereoModelConfig:
    """The disparity network.

    Args:
        name: monodepth_vgg or monodepth_resnet50.
        base: channels of its first convolution, or null for the published number.
        max_disparity: largest disparity, as a share of the image's width.
        weights: checkpoint or published weights to start from, or null.
    """

    name: str = "monodepth_vgg"
    base: int | None = None
    max_disparity: float = 0.3
    weights: str | None = None


@dataclass
class StereoAugmentConfig:
    """Published augmentation (Monodepth, 2017): one draw per pair, shared by both images.

    Args:
        flip: probability that both images are mirrored and change places.
        jitter: probability of a colour change, applied only to the network's input.
        gamma: range of the gamma exponent.
        brightness: range of one factor on all channels.
        color: range of a separate factor on each channel.
    """

    flip: float = 0.5
    jitter: float = 0.5
    gamma: tuple[float, float] = (0.8, 1.2)
    brightness: tuple[float, float] = (0.5, 2.0)
    color: tuple[float, float] = (0.8, 1.2)


@dataclass
class LeftRightLossConfig:
    """Settings of `mdepth_fast.losses.LeftRightLoss`.

    Args:
        ssim_weight: share of SSIM in the appearance term.
        smoothness: weight of the smoothness term at scale 0.
        consistency: weight of the left-right consistency term.
    """

    ssim_weight: float = 0.85
    smoothness: float = 0.1
    consistency: float = 1.0


@dataclass
class GargLossConfig:
    """Settings of `mdepth_fast.losses.GargLoss`.

    Args:
        smoothness: weight of the squared gradients of the disparity in pixels.
        linear: take the derivative of the warped image from its Taylor series, as published.
    """

    smoothness: float = 0.01
    linear: bool = True


@dataclass
class _StereoConfig(Config):
    """Settings of both systems; there are no poses."""

    data: DataConfig = field(default_factory=DataConfig)
    model: StereoModelConfig = field(default_factory=StereoModelConfig)
    augment: StereoAugmentConfig = field(default_factory=StereoAugmentConfig)


@dataclass
class LeftRightConfig(_StereoConfig):
    """A run of Monodepth (2017), which learns depth from rectified stereo pairs.

    Args:
        system: left_right.
    """

    loss: LeftRightLossConfig = field(default_factory=LeftRightLossConfig)
    system: Literal["left_right"] = "left_right"


@dataclass
class GargConfig(_StereoConfig):
    """A run of Garg et al. (2016), which learns depth from rectified stereo pairs.

    Args:
        system: garg.
    """

    loss: GargLossConfig = field(default_factory=GargLossConfig)
    system: Literal["garg"] = "garg"


class LeftRightObjective(Objective):
    """`LeftRightLoss` on views whose target is the left image."""

    def __init__(self, loss: LeftRightLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        loss, parts = self.loss(outputs.disparities, views.target, views.sources[:, 0], return_parts=True)
        return {
            "loss": loss,
            "appearance": parts.appearance.mean(),
            "smoothness": parts.smoothness.mean(),
            "consistency": parts.consistency.mean(),
        }

    def masks(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        """The pixels where the disparities of both images agree to a pixel; none if the target is the right image."""
        if views.T[0, 0, 0, 3] > 0:
            return {}
        own, other = (outputs.disparities[0] * outputs.disparities[0].shape[-1]).split(1, 1)
        seen, inside = flow_warp(other, torch.cat([-own, torch.zeros_like(own)], 1))
        return {"left-right consistent": (((own - seen).abs() < 1) & inside)[:, 0]}


class GargObjective(Objective):
    """`GargLoss` on views whose target is the left image."""

    def __init__(self, loss: GargLoss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        loss, photometric, smoothness = self.loss(outputs.disparities, views.target, views.sources[:, 0])
        return {"loss": loss, "photometric": photometric, "smoothness": smoothness}


C = TypeVar("C", bound=_StereoConfig)


class _StereoSystem(SelfSupervisedSystem[C]):  # type: ignore[type-var]  # no poses, no depth range
    """A network that predicts disparities, trained on rectified pairs.

    Args:
        camera: focal length and baseline of the network's predictions, and the offset of the principal points; as
            `models.Monodepth` takes them.
    """

    poses_are_predicted = False
    maps: ClassVar[int]  # disparity maps per scale

    @classmethod
    def create(cls, config: C, dataset: Any) -> "_StereoSystem[C]":
        sources = tuple(dataset.sources)
        if sources != ("stereo",):
            raise ValueError(
                f"data.sources: expected [stereo], as {cls.name} learns from rectified pairs alone, got {list(sources)}"
            )
        sample = dataset[0]
        pair = rectified_pair(sample["K"], sample["source_K"][0], sample["T"][0])
        width = sample["target"].shape[-1]
        camera = {"focal": pair.focal / width, "baseline": pair.baseline, "offset": pair.offset / width}
        return cls(config, cls.starting_net(config, {"camera": camera}), None, sources)

    @classmethod
    def restore_system(cls, config: C, saved: dict[str, Any], weights: dict[str, Tensor]) -> "_StereoSystem[C]":
        """The whole trained system of a checkpoint. The arguments are those of `restore`."""
        config.model.weights = None
        system = cls(config, cls.starting_net(config, saved), None, tuple(saved["sources"]))
        system.load_state_dict(weights)
        return system

    @classmethod
    def starting_net(cls, config: C, saved: dict[str, Any]) -> Any:
        """The network; `saved["camera"]` makes its depth metric."""
        model = config.model
        options: dict[str, Any] = {
            **({"base": model.base} if model.base else {}),
            **saved.get("camera", {}),
            "max_disparity": model.max_disparity,
            "maps": cls.maps,
            "input_size": (config.data.height, config.data.width),
        }
        net = called("model.name: expected monodepth_vgg or the like", partial(create_model, model.name), options)
        for side in ("height", "width"):
            if (length := getattr(config.data, side)) % net.multiple:
                raise ValueError(f"data.{side}: expected a multiple of {net.multiple} for {model.name}, got {length}")
        if model.weights:
            load_checkpoint(net, model.weights)
        return net

    def build_augment(self) -> Augment:
        return StereoAugment(**vars(self.config.augment), levels=1)  # the losses make their own pyramids

    def build_motion(self) -> MotionModel:
        return no_motion

    def to_depth(self, disparity: Tensor) -> Tensor:
        return self.depth_net.to_depth(disparity[:, :1].float())

    def extra_state(self) -> dict[str, Any]:
        net = self.depth_net
        return {
            **super().extra_state(),
            "camera": {"focal": net.focal, "baseline": net.baseline, "offset": net.offset},
        }


@register_system
class LeftRight(_StereoSystem[LeftRightConfig]):
    name = "left_right"
    about = "self-supervised, from stereo pairs with left-right consistency (Monodepth 2017)"
    config_class = LeftRightConfig
    presets = packaged_presets("left_right_kitti", "left_right_motorcycle", "left_right_synthetic")
    maps = 2

    def build_objective(self) -> Objective:
        return LeftRightObjective(LeftRightLoss(**vars(self.config.loss)))


@register_system
class Garg(_StereoSystem[GargConfig]):
    name = "garg"
    about = "self-supervised, from stereo pairs with a squared error (Garg et al. 2016)"
    config_class = GargConfig
    presets = packaged_presets("garg_kitti", "garg_motorcycle", "garg_synthetic")
    maps = 1

    def build_objective(self) -> Objective:
        return GargObjective(GargLoss(**vars(self.config.loss)))

"""The base of the systems that learn depth and motion from video or stereo: networks, motion, objective."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple, TypeVar

from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data import Augment
from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.ops import disparity_to_depth
from mdepth_fast.systems.config import Config
from mdepth_fast.systems.depth import DepthSystem, Preview, called
from mdepth_fast.systems.doctor import Doctor
from mdepth_fast.systems.motion import MotionModel, PairPoses, Transforms
from mdepth_fast.systems.system import StepInfo
from mdepth_fast.systems.views import AugmentConfig, DataConfig, Views, evaluation_views, training_views

__all__ = ["ModelConfig", "Objective", "Outputs", "PoseConfig", "SelfSupervisedSystem", "ViewsConfig"]


@dataclass
class ModelConfig:
    """The depth network.

    Args:
        name: name of a registered depth network, see `mdepth_fast.models.list_models`.
        min_depth: depth for a sigmoid output of 1, in metres if the poses are metric.
        max_depth: depth for a sigmoid output of 0.
        weights: run, checkpoint or folder of published weights to start from, or null.
        encoder_weights: ImageNet ResNet weights in torchvision's format to start the encoder from, or null.
    """

    name: str = "monodepth2_resnet18"
    min_depth: float = 0.1
    max_depth: float = 100.0
    weights: str | None = None
    encoder_weights: str | None = None


@dataclass
class PoseConfig:
    """The pose network; it is not built if every source has a known pose.

    Args:
        name: posenet_resnet18, posenet_resnet50 or posecnn.
        weights: run, checkpoint or folder of published weights to start from, or null.
        encoder_weights: ImageNet ResNet weights in torchvision's format to start the encoder from, or null.
    """

    name: str = "posenet_resnet18"
    weights: str | None = None
    encoder_weights: str | None = None


@dataclass
class ViewsConfig(Config):
    """A run that learns depth and motion from video or stereo; a system adds the settings of its objective."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pose: PoseConfig = field(default_factory=PoseConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class Outputs(NamedTuple):
    """The results of the networks for `Views`."""

    disparities: Sequence[Tensor]
    """disparity maps of the depth network, finest first"""
    transforms: Transforms
    """(B,S,4,4), target camera to source camera, or a list of them; see `MotionModel`"""
    extras: dict[str, Any]
    """everything else that the networks predict"""


class Objective(nn.Module):
    """The function that a system minimises."""

    def forward(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        """Named terms: training minimises the scalar "loss" and logs the others."""
        raise NotImplementedError

    def masks(self, views: Views, outputs: Outputs) -> dict[str, Tensor]:
        """Masks for the panel: title to bool (B,h,w), the pixels that this objective keeps."""
        return {}


C = TypeVar("C", bound=ViewsConfig)


class SelfSupervisedSystem(DepthSystem[C]):
    """Trains a depth network, and a pose network if a pose is unknown, from batches of `Sample`.

    A subclass defines its objective (`build_objective`). If they differ, it also defines its motion (`build_motion`),
    its networks (`starting_net`, `build_pose_net`) and how it runs them (`outputs`).

    Args:
        config: objective, augmentation, seed, protocol.
        depth_net: maps images (B,3,H,W) to a list of disparity maps, finest first.
        pose_net: the motion model's network; None if the data contain every pose.
        sources: the data set's `sources`: integers are frame offsets, names have a known pose.
    """

    motion: MotionModel
    objective: Objective
    poses_are_predicted: ClassVar[bool] = True

    def __init__(self, config: C, depth_net: Any, pose_net: nn.Module | None, sources: Sequence[int | str]) -> None:
        super().__init__(config, depth_net)
        if not sources:
            raise ValueError("sources: expected at least one frame offset or named source, got none")
        self.sources = tuple(sources)
        self.pose_net = pose_net
        self.augment = self.build_augment()
        self.motion = self.build_motion()
        self.objective = self.build_objective()
        self.doctor = Doctor(config)

    def build_augment(self) -> Augment:
        return Augment(**vars(self.config.augment))

    def build_motion(self) -> MotionModel:
        """Predicts poses of pairs of frames with `pose_net`; ValueError if that is needed and is None."""
        if self.pose_net is None and any(isinstance(source, int) for source in self.sources):
            raise ValueError(
                f"pose_net: expected a network for the frame offsets of sources {self.sources!r}, got None"
            )
        return PairPoses(self.pose_net, self.to_depth)

    def build_objective(self) -> Objective:
        raise NotImplementedError

    @classmethod
    def training_data(cls, config: C) -> Any:
        return training_views(config.data, config.seed)

    @classmethod
    def evaluation_data(cls, config: C) -> Any:
        return evaluation_views(config.data, config.seed)

    @classmethod
    def create(cls, config: C, dataset: Any) -> "SelfSupervisedSystem[C]":
        sources = tuple(dataset.sources)
        return cls(config, cls.starting_net(config, {"sources": sources}), cls.build_pose_net(config, sources), sources)

    @classmethod
    def restore_system(cls, config: C, saved: dict[str, Any], weights: dict[str, Tensor]) -> "SelfSupervisedSystem[C]":
        """The whole trained system of a checkpoint, with its motion model. The arguments are those of `restore`."""
        for section in filter(None, (config.model, getattr(config, "pose", None))):
            section.weights = section.encoder_weights = None
        system = cls.create(config, SimpleNamespace(sources=tuple(saved["sources"])))
        system.load_state_dict(weights)
        return system

    @classmethod
    def starting_net(cls, config: C, saved: dict[str, Any]) -> Any:
        """The depth network; its unit is the metre if any of `saved["sources"]` has a known pose."""
        model = config.model
        options: dict[str, Any] = {"encoder_weights": model.encoder_weights} if model.encoder_weights else {}
        net: Any = create_model(
            model.name,
            **options,
            **cls.model_options(config),
            min_depth=model.min_depth,
            max_depth=model.max_depth,
            unit="m" if any(isinstance(source, str) for source in saved.get("sources", ())) else None,
            input_size=(config.data.height, config.data.width),
        )
        if model.weights:
            load_checkpoint(net, model.weights)
            net.input_size = (config.data.height, config.data.width)  # not that of the weights
        return net

    @classmethod
    def build_pose_net(cls, config: C, sources: Sequence[int | str]) -> nn.Module | None:
        """The pose network, or None if every source has a known pose or the system uses no poses."""
        if not cls.poses_are_predicted or not any(isinstance(source, int) for source in sources):
            return None
        options = cls.pose_options(config, sources)
        if config.pose.encoder_weights:
            options["encoder_weights"] = config.pose.encoder_weights
        net: Any = called("pose.name, pose.encoder_weights", partial(create_model, config.pose.name), options)
        if config.pose.weights:
            load_checkpoint(net, config.pose.weights)
        return net  # type: ignore[no-any-return]

    @classmethod
    def model_options(cls, config: C) -> dict[str, Any]:
        """What else a system's configuration says about the depth network: further arguments of its constructor."""
        return {}

    @classmethod
    def pose_options(cls, config: C, sources: Sequence[int | str]) -> dict[str, Any]:
        """The same of the pose network."""
        return {}

    @classmethod
    def data_settings(cls, net: Any) -> list[str]:
        """Resizes views to the network's training size; other networks take the images at the size of their files."""
        if not net.takes_views:
            return []
        return [f"--data.{name}={value}" for name, value in zip(("height", "width"), net.input_size or ())]

    def describe(self, samples: int) -> str:
        mode = "M" * any(source != "stereo" for source in self.sources) + "S" * ("stereo" in self.sources)
        data = self.config.data
        size = f"{data.height}x{data.width}"
        line = f"{self.config.model.name} in mode {mode} on {samples} samples of {data.name} at {size}"
        return f"{line}, sources {list(self.sources)}"

    def to_depth(self, disparity: Tensor) -> Tensor:
        """Converts a sigmoid disparity map to depth in the configured range, in float32 under any precision."""
        limits = self.config.model
        return disparity_to_depth(disparity.float(), min_depth=limits.min_depth, max_depth=limits.max_depth)

    def outputs(self, views: Views) -> Outputs:
        """Runs the networks."""
        disparities = self.depth_net(views.target_aug)
        return Outputs(disparities, *self.motion(views, disparities))

    def step(self, batch: dict[str, Any], info: StepInfo) -> dict[str, Tensor]:
        views = Views.of_batch(self.augment(batch, info.generator), self.sources)
        outputs = self.outputs(views)
        terms = self.objective(views, outputs)
        if info.look:
            self.doctor.look(info.step, views, outputs, terms)
        return dict(terms)

    def extra_state(self) -> dict[str, Any]:
        return {"sources": list(self.sources)}

    def preview(self, sample: Any) -> Preview:
        batch = self.augment(default_collate([sample]))
        masks: dict[str, Tensor] = {}
        if batch["sources"].shape[1] == len(self.sources):
            views = Views.of_batch(batch, self.sources)
            outputs = self.outputs(views)
            disparity = outputs.disparities[0]
            masks = {title: kept[0] for title, kept in self.objective.masks(views, outputs).items()}
        else:
            disparity = self.depth_net(batch["target_aug"])[0]
        return Preview(sample["target"], self.to_depth(disparity)[0, 0], sample.get("depth"), masks)

"""The supervised systems, which learn from measured depth, each with the network and the loss of its paper."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data import (
    Cached,
    DepthAugment,
    DepthList,
    EvaluationView,
    FastDepthH5,
    KittiDepth,
    NyuLabelled,
    RgbdFolder,
    ShardedDepth,
)
from mdepth_fast.kinds import is_inverse
from mdepth_fast.losses import (
    BerHuLoss,
    DepthL1Loss,
    DepthL2Loss,
    LogDepthL1Loss,
    OrdinalLoss,
    ScaleShiftInvariantLoss,
    SILogLoss,
)
from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.systems.config import Config
from mdepth_fast.systems.depth import DepthSystem, Preview, called, predict_sample, tuples
from mdepth_fast.systems.registry import packaged_presets, register_system
from mdepth_fast.systems.system import StepInfo
from mdepth_fast.systems.views import root_folder

__all__ = [
    "Supervised",
    "SupervisedAugmentConfig",
    "SupervisedConfig",
    "SupervisedDataConfig",
    "SupervisedLossConfig",
    "SupervisedModelConfig",
    "build_loss",
    "cache_size",
]

_LOSSES: dict[str, Callable[..., nn.Module]] = {
    "silog": SILogLoss,
    "berhu": BerHuLoss,
    "ordinal": OrdinalLoss,
    "l1": DepthL1Loss,
    "l2": DepthL2Loss,
    "log_l1": LogDepthL1Loss,
    "ssi": ScaleShiftInvariantLoss,
}


@dataclass
class SupervisedDataConfig:
    """The training and validation data: images with measured depth.

    Args:
        name: nyu_labelled (nyu_depth_v2_labeled.mat), depth_list (BTS lists), kitti_depth (raw data and annotated
            depth), fastdepth_h5 (train/ and val/ of .h5 files), rgbd_folder (a folder of images and one of depth maps),
            webdataset (shards of `mdepth-fast data pack`).
        root: folder of the data; for kitti_depth, the folder of the raw data.
        depth_root: depth_list and kitti_depth: folder of the depth maps; null for the root.
        images: rgbd_folder: folder of the images below the root, or a file pattern such as "rgb_*.jpg".
        depth: rgbd_folder: folder or file pattern of the depth maps, whose names contain the same numbers.
        units_per_metre: depth_list and rgbd_folder: value of one metre in 16-bit depth; NYU 1000, KITTI 256.
        split: the training frames. depth_list: the list file; kitti_depth: file of lines "date/drive index side", null
            for all of train/; nyu_labelled: file of frame numbers, null for the 795 training frames of splits.mat.
        val_split: the validation frames, in the same form; null for no validation (nyu_labelled: the 654 test frames
            of splits.mat). kitti_depth: "val" for all of val/; rgbd_folder and webdataset: a folder like the root.
        filled: nyu_labelled: validate on depth with filled holes, as Eigen and FCRN do; training never uses it.
        crop: part of the training images: [top, bottom, left, right]; kb for the 352x1216 of the KITTI depth
            benchmark; null for the whole image.
        view: part of the validation images. whole: all of it; centre: the centre crop of `augment`, and the ground
            truth there; kb: the 352x1216 of the KITTI depth benchmark, and the ground truth there; stretched: the
            prediction for the centre is stretched over the whole ground truth, as in FCRN; network: `augment` resizes
            and crops image and ground truth, as in FastDepth.
        cache: folder for the decoded samples, so that later epochs decode nothing; null for no cache.
        cache_size: [height, width] of the cached samples; null for the size of the files, which must be the same.
        batch_size: samples per step over all processes.
        repeat: number of times to show every sample per epoch.
        workers: number of processes that decode images; 0 decodes in the training process.
        skip_bad: leave out and count unreadable samples; by default they stop the run with an error.
        encoding: depth_list and rgbd_folder: of whole numbers in depth images: metres (times `units_per_metre`),
            sunrgbd, or uint8 for those of 8 bits.
        invalid_value: depth_list and rgbd_folder: what depth images hold where there is none, besides 0, such as 65535.
        white_level: depth_list and rgbd_folder: value that is white in images of more than 8 bits, such as 4095; null
            for their type's.
    """

    name: Literal["nyu_labelled", "depth_list", "kitti_depth", "fastdepth_h5", "rgbd_folder", "webdataset"] = (
        "rgbd_folder"
    )
    root: str | None = None
    depth_root: str | None = None
    images: str = "images"
    depth: str = "depth"
    units_per_metre: float = 1000.0
    split: str | None = None
    val_split: str | None = None
    filled: bool = False
    crop: list[int] | Literal["kb"] | None = None
    view: Literal["whole", "centre", "kb", "stretched", "network"] = "whole"
    cache: str | None = None
    cache_size: list[int] | None = None
    batch_size: int = 8
    repeat: int = 1
    workers: int = 0
    skip_bad: bool = False
    encoding: Literal["metres", "sunrgbd", "uint8"] = "metres"
    invalid_value: float | None = None
    white_level: float | None = None


@dataclass
class SupervisedModelConfig:
    """The depth network.

    Args:
        name: name of a registered depth network, see `mdepth_fast.models.list_models`.
        options: more arguments for its constructor, by name.
        weights: checkpoint or published weights to start from, or null.
        encoder_weights: published ImageNet weights to start the encoder from, or null.
        freeze_bn: freeze the statistics, scale and shift of the batch norms.
    """

    name: str = "fcrn_resnet50_upproj"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    encoder_weights: str | None = None
    freeze_bn: bool = False


@dataclass
class SupervisedAugmentConfig:
    """The steps from an image to the network's input (`mdepth_fast.data.DepthAugment`), in this order.

    Args:
        height: height of the network input.
        width: width of the network input.
        resize: [rows, columns] of the resized image, where null keeps a side's length; or the length of the shorter
            side; or null for the size of the file.
        scale: range of the factor that enlarges the image.
        depth_from_scale: divide the depth by that factor, as if the camera had moved closer.
        rotate: largest rotation angle in degrees, in either direction.
        crop: position of the crop, random or centre.
        crop_size: [rows, columns] of the crop; null for the size of the network input.
        flip: probability of a horizontal flip.
        recolor: probability that a sample's colours change; gamma, brightness, color and jitter then all apply.
        gamma: range of the gamma exponent.
        brightness: range of one factor on all channels.
        color: range of a separate factor on each channel.
        jitter: brightness, contrast and saturation: the ranges of their factors are 1 +- these values.
        min_depth: depth above this counts as measured, in metres.
        max_depth: depth up to this counts as measured, in metres; null for no limit.
        drop_extremes: treat the smallest and largest depth of an image as missing.
    """

    height: int = 228
    width: int = 304
    resize: int | list[int | None] | None = None
    scale: tuple[float, float] = (1.0, 1.5)
    depth_from_scale: bool = True
    rotate: float = 5.0
    crop: Literal["random", "centre"] = "random"
    crop_size: list[int] | None = None
    flip: float = 0.5
    recolor: float = 1.0
    gamma: tuple[float, float] = (1.0, 1.0)
    brightness: tuple[float, float] = (1.0, 1.0)
    color: tuple[float, float] = (0.8, 1.2)
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    min_depth: float = 0.0
    max_depth: float | None = None
    drop_extremes: bool = False


@dataclass
class SupervisedLossConfig:
    """The loss, from `mdepth_fast.losses`.

    Args:
        name: silog, berhu, ordinal, l1, l2, log_l1 or ssi.
        options: arguments of the loss, by name.
    """

    name: Literal["silog", "berhu", "ordinal", "l1", "l2", "log_l1", "ssi"] = "silog"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class SupervisedConfig(Config):
    """A run that learns from measured depth.

    Args:
        system: supervised.
        stages: for a network that is trained in parts: the names of the stages in order, each with its number of
            optimiser steps. Training ends after the last stage. Empty for a network that is trained as a whole.
    """

    data: SupervisedDataConfig = field(default_factory=SupervisedDataConfig)
    model: SupervisedModelConfig = field(default_factory=SupervisedModelConfig)
    augment: SupervisedAugmentConfig = field(default_factory=SupervisedAugmentConfig)
    loss: SupervisedLossConfig = field(default_factory=SupervisedLossConfig)
    stages: dict[str, int] = field(default_factory=dict)
    system: Literal["supervised"] = "supervised"


def _measured_data(data: SupervisedDataConfig, *, training: bool) -> Any:
    """The training or validation data set; None if there is no validation data."""
    root, depth_root = root_folder(data), Path(data.depth_root or data.root or "")
    split = data.split if training else data.val_split
    crop: Any = None
    if training and data.crop is not None:
        crop = data.crop if isinstance(data.crop, str) else tuple(data.crop)
    if data.name == "nyu_labelled":
        path = root / "nyu_depth_v2_labeled.mat"
        filled = data.filled and not training
        return NyuLabelled(path, "train" if training else "test", splits=split, filled=filled, crop=crop)
    if data.name == "fastdepth_h5":
        return FastDepthH5(root, "train" if training else "val", crop=crop)
    if data.name == "kitti_depth" and training:
        split = split or "train"
    if not training and not split:
        return None
    if data.name == "kitti_depth":
        return KittiDepth(root, depth_root, str(split), crop=crop, skip_missing=data.skip_bad)
    if data.name == "webdataset":
        return ShardedDepth(root if training else str(split), crop=crop)
    reading: dict[str, Any] = {
        "units_per_metre": data.units_per_metre,
        "encoding": data.encoding,
        "invalid_value": data.invalid_value,
        "white_level": data.white_level,
    }
    if data.name == "rgbd_folder":
        root = Path(split) if split and not training else root
        return RgbdFolder(root / data.images, root / data.depth, crop=crop, **reading)
    if not split:
        raise ValueError("data.split: expected the list of frames of depth_list, got none; give --data.split=FILE")
    return DepthList(split, root, depth_root, crop=crop, skip_missing=data.skip_bad, **reading)


def cache_size(data: SupervisedDataConfig) -> tuple[int, int] | None:
    if data.cache_size is None:
        return None
    if len(data.cache_size) != 2:
        raise ValueError(f"data.cache_size: expected [height, width], got {data.cache_size}")
    return data.cache_size[0], data.cache_size[1]


def build_loss(loss: SupervisedLossConfig, net: Any) -> nn.Module:
    """The loss of a supervised run for a network; an ordinal loss takes its bins from the network."""
    options = tuples(loss.options)
    if loss.name == "ordinal":
        if not hasattr(net, "thresholds"):
            raise ValueError(f"loss.name: ordinal needs a network of ordinal logits, got {type(net).__name__}")
        options.setdefault("thresholds", net.thresholds)
    return called("loss.options", _LOSSES[loss.name], options)


@register_system
class Supervised(DepthSystem[SupervisedConfig]):
    """Trains a depth network from batches of `DepthSample`.

    A network that is trained in stages (`config.stages`) has an attribute `stage`, which selects what `forward` returns
    and which parameters learn. The stage depends on the step alone, so a resumed run knows it.

    Args:
        config: loss, augmentation, stages, seed, protocol.
        depth_net: maps images (B,3,H,W) to the input of the loss, see `mdepth_fast.losses`.
    """

    name = "supervised"
    about = "supervised, from measured depth"
    config_class = SupervisedConfig
    presets = packaged_presets(
        "depth_anything_folder",
        "depth_anything_kitti",
        "depth_anything_nyu",
        "dorn_kitti",
        "dorn_nyu",
        "dpt_kitti",
        "dpt_nyu",
        "eigen2014_kitti",
        "eigen2014_nyu",
        "fastdepth_nyu",
        "fcrn_nyu",
    )
    # Parameters that a published file has but nothing reads (DPT), or that another stage trains.
    leaves_parameters_unused = True

    def __init__(self, config: SupervisedConfig, depth_net: Any) -> None:
        super().__init__(config, depth_net)
        self.augment = DepthAugment(**vars(config.augment))
        self.loss = build_loss(config.loss, depth_net)
        if config.stages and not hasattr(depth_net, "stage"):
            raise ValueError(f"stages: {config.model.name} is not trained in stages, got {config.stages}")
        learning: list[nn.Parameter] = []
        for stage, steps in config.stages.items():
            if steps < 1:
                raise ValueError(f"stages.{stage}: expected at least one step, got {steps}")
            self._enter(stage)
            learning += [parameter for parameter in depth_net.parameters() if parameter.requires_grad]
        if config.stages:
            self._enter_stage_of(0)
        # Distributed training exchanges gradients only for parameters that require them before the first step.
        for parameter in learning:
            parameter.requires_grad_(True)
        self.train()

    @classmethod
    def training_data(cls, config: SupervisedConfig) -> Any:
        data = config.data
        dataset = _measured_data(data, training=True)
        return Cached(dataset, data.cache, cache_size(data)) if data.cache else dataset

    @classmethod
    def evaluation_data(cls, config: SupervisedConfig) -> Any:
        held_out = _measured_data(config.data, training=False)
        if held_out is None:
            return None
        return EvaluationView(held_out, config.data.view, DepthAugment(**vars(config.augment)))

    @classmethod
    def packed_data(cls, config: SupervisedConfig, part: str) -> Any:
        return _measured_data(config.data, training=part == "train")  # no cache, and no view of an evaluation

    @classmethod
    def create(cls, config: SupervisedConfig, dataset: Any) -> "Supervised":
        net, model = cls.starting_net(config, {}), config.model
        frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
        if frozen and not (config.stages or model.weights or model.encoder_weights):
            raise ValueError(
                f"model.weights: {model.name} does not train {len(frozen)} of its parameters, {frozen[0]} among them, "
                "and starts without weights for them; give --model.encoder_weights=FILE or --model.weights=FILE"
            )
        return cls(config, net)

    @classmethod
    def starting_net(cls, config: SupervisedConfig, saved: dict[str, Any]) -> Any:
        model = config.model
        options: dict[str, Any] = {"encoder_weights": model.encoder_weights} if model.encoder_weights else {}
        options |= tuples(model.options)
        net: Any = called("model.options", partial(create_model, model.name), options)
        if model.weights:
            load_checkpoint(net, model.weights)
        if stage := saved.get("stage"):
            net.stage = stage
        return net

    def _enter_stage_of(self, step: int) -> None:
        names, ends = list(self.config.stages), accumulate(self.config.stages.values())
        self._enter(next((name for name, end in zip(names, ends) if step < end), names[-1]))

    def _enter(self, stage: str) -> None:
        self.depth_net.stage = stage
        self._freeze_norms()

    def train(self, mode: bool = True) -> "Supervised":
        super().train(mode)
        self._freeze_norms()
        return self

    def _freeze_norms(self) -> None:
        if self.config.model.freeze_bn:
            for module in self.depth_net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval().requires_grad_(False)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The network's groups, if its paper multiplies the rate of some layers, without frozen parameters."""
        hook = getattr(self.depth_net, "parameter_groups", None)
        groups = []
        entered = getattr(self.depth_net, "stage", "")
        for stage in self.config.stages or [None]:
            if stage:
                self._enter(stage)
            found = hook(lr) if hook else [{"params": self.depth_net.parameters()}]
            groups += [{**group, "params": [p for p in group["params"] if p.requires_grad]} for group in found]
        if self.config.stages:
            self._enter(entered)
        return [group for group in groups if group["params"]]

    def describe(self, samples: int) -> str:
        augment = self.config.augment
        stages = ", ".join(f"{name} for {steps} steps" for name, steps in self.config.stages.items())
        line = f"{self.config.model.name} on {samples} samples of {self.config.data.name}"
        line += f" at {augment.height}x{augment.width}"
        return f"{line}, {stages}" if stages else line

    def step(self, batch: dict[str, Any], info: StepInfo) -> dict[str, Tensor]:
        if self.config.stages:
            self._enter_stage_of(info.step)
        batch = self.augment(batch, info.generator)
        output = self.depth_net(batch["target"])
        return {"loss": self.loss(output, self.depth_net.ground_truth(batch["depth"], tuple(output.shape[-2:])))}

    def preview(self, sample: Any) -> Preview:
        image, truth = sample["target"], sample["depth"]
        if image.is_floating_point():
            image = (255 * image).round().to(torch.uint8)
        prediction = predict_sample(self.depth_net, default_collate([sample]), flip=False)
        depth = prediction.depth
        if "window" in sample:
            top, bottom, left, right = sample["window"].tolist()
            depth, truth = (values[..., top:bottom, left:right] for values in (depth, truth))
        return Preview(image, depth[0, 0], None if is_inverse(prediction.kind) else truth)

    @property
    def last_step(self) -> int | None:
        return sum(self.config.stages.values()) or None

    def extra_state(self) -> dict[str, Any]:
        return {"stage": self.depth_net.stage} if self.config.stages else {}

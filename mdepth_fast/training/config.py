"""The typed configuration of a run: dataclasses, filled from a YAML preset and command-line overrides.

The dataclasses are the only schema: `load_config` lets jsonargparse read types, defaults and help texts from them.
The `task` of a preset says which of them holds: a run has the settings of its task and no others.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "AnyConfig",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "DepthAugmentConfig",
    "DepthDataConfig",
    "DepthLossConfig",
    "DepthModelConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PoseConfig",
    "SelfSupervisedConfig",
    "SupervisedConfig",
    "TrainerConfig",
    "config_parser",
    "list_presets",
    "load_config",
    "preset_notes",
]


@dataclass
class ModelConfig:
    """The depth network.

    Args:
        name: a registered depth network, see `mdepth_fast.models.list_models`.
        min_depth: depth of a sigmoid output of 1, in metres where the poses are metric.
        max_depth: depth of a sigmoid output of 0.
        weights: checkpoint or published folder to start from, or null.
        encoder_weights: torchvision-format ResNet weights (ImageNet) to start the encoder from, or null.
    """

    name: str = "monodepth2_resnet18"
    min_depth: float = 0.1
    max_depth: float = 100.0
    weights: str | None = None
    encoder_weights: str | None = None


@dataclass
class PoseConfig:
    """The pose network; not built where every source has a known pose.

    Args:
        name: posenet_resnet18, posenet_resnet50 or posecnn.
        weights: checkpoint or published folder to start from, or null.
        encoder_weights: torchvision-format ResNet weights (ImageNet) to start the encoder from, or null.
    """

    name: str = "posenet_resnet18"
    weights: str | None = None
    encoder_weights: str | None = None


@dataclass
class DataConfig:
    """What is trained and validated on.

    Args:
        name: motorcycle (embedded stereo pair), synthetic (ray-cast scenes), kitti (raw tree), folder (own frames).
        root: folder of the data; needed by kitti and folder.
        height: height of the network input, a multiple of 32.
        width: width of the network input, a multiple of 32.
        sources: frame offsets relative to the target, and "stereo"; empty takes what the data set has.
        length: synthetic: number of scenes.
        split: kitti: file of training lines "folder index side", or null for all frames under the root.
        val_split: kitti: file of validation lines, or null for no validation.
        ground_truth: kitti: lidar (camera z), lidar_x (historic Eigen ground truth) or annotated.
        annotated_root: kitti: folder of the annotated depth maps, for ground_truth annotated.
        intrinsics: folder: file of the 3x3 camera matrix in pixels of the frames, or null for K.txt in the root.
        depth: folder: folder of 16-bit PNGs in millimetres named like the frames, for validation, or null.
        batch_size: samples per step over all processes.
        repeat: times that every sample is shown per epoch.
        workers: processes that decode images; 0 decodes in the training process.
        skip_bad: leave out samples that cannot be read, and count them, where the default stops with an error.
    """

    name: Literal["motorcycle", "synthetic", "kitti", "folder"] = "motorcycle"
    root: str | None = None
    height: int = 192
    width: int = 640
    sources: list[int | Literal["stereo"]] = field(default_factory=list)
    length: int = 1000
    split: str | None = None
    val_split: str | None = None
    ground_truth: Literal["lidar", "lidar_x", "annotated"] = "lidar"
    annotated_root: str | None = None
    intrinsics: str | None = None
    depth: str | None = None
    batch_size: int = 12
    repeat: int = 1
    workers: int = 0
    skip_bad: bool = False


@dataclass
class AugmentConfig:
    """Published augmentation (Monodepth2): one draw per sample, shared by all its frames.

    Args:
        flip: probability of a horizontal flip.
        jitter: probability of colour jitter, which only the networks' inputs get.
        brightness: range of the factor, 1 +- brightness.
        contrast: range of the factor, 1 +- contrast.
        saturation: range of the factor, 1 +- saturation.
        hue: range of the shift, in turns of the colour circle.
    """

    flip: float = 0.5
    jitter: float = 0.5
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.1


@dataclass
class LossConfig:
    """Weights of `mdepth_fast.losses.MonodepthLoss`; the depth range is the model's."""

    smoothness: float = 1e-3
    ssim_weight: float = 0.85
    auto_mask: bool = True


@dataclass
class OptimizerConfig:
    """The optimiser and its schedule.

    Args:
        name: adam, adamw or sgd.
        lr: learning rate; where the paper multiplies it for some layers, so does the network's `parameter_groups`.
        momentum: of sgd.
        weight_decay: L2 penalty; decoupled from the gradient in adamw.
        eps: of adam and adamw.
        schedule: constant; step, times `gamma` at the END of every `step_size`-th epoch; poly, every step from lr down
            to `end` as (1 - step / steps) ** power; plateau, times `gamma` at the end of an epoch as soon as more than
            `patience` epochs in a row have not lowered the mean training loss.
        step_size: step: epochs between the drops.
        gamma: step and plateau: factor of a drop.
        power: poly: exponent.
        end: poly: learning rate after the last step.
        patience: plateau: epochs without improvement that are put up with.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    momentum: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-8
    schedule: Literal["constant", "step", "poly", "plateau"] = "step"
    step_size: int = 15
    gamma: float = 0.1
    power: float = 0.9
    end: float = 0.0
    patience: int = 2


@dataclass
class TrainerConfig:
    """Passed on to Lightning's Trainer.

    Args:
        max_epochs: epochs to train.
        max_steps: optimiser steps to train, if that comes first; -1 for no such limit.
        accelerator: cpu, gpu, mps or auto.
        devices: number of devices, a list of them, or auto.
        num_nodes: machines.
        strategy: auto, ddp, ...
        precision: 32-true, 16-mixed, bf16-mixed, ...
        accumulate_grad_batches: batches per optimiser step.
        gradient_clip_val: largest gradient norm, or null.
        sync_batchnorm: batch statistics over all processes (GPU).
        deterministic: only deterministic algorithms.
        log_every_n_steps: steps between the logged values.
        checkpoint_every_n_steps: steps between the checkpoints.
        check_val_every_n_epoch: epochs between the validations.
        val_every_n_steps: training batches between them instead, or null.
    """

    max_epochs: int = 20
    max_steps: int = -1
    accelerator: str = "auto"
    devices: int | list[int] | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    sync_batchnorm: bool = False
    deterministic: bool = False
    log_every_n_steps: int = 50
    checkpoint_every_n_steps: int = 250
    check_val_every_n_epoch: int = 1
    val_every_n_steps: int | None = None


@dataclass
class DepthDataConfig:
    """What is trained and validated on: images with measured depth.

    Args:
        name: nyu_labelled (nyu_depth_v2_labeled.mat), depth_list (BTS lists), kitti_depth (raw data and annotated
            depth), fastdepth_h5 (train/ and val/ of .h5 files), rgbd_folder (a folder of images, one of depth maps).
        root: folder of the data; of kitti_depth, that of the raw data.
        depth_root: depth_list and kitti_depth: folder of the depth maps, or null for the root.
        images: rgbd_folder: folder of the images below the root, or a pattern such as "rgb_*.jpg".
        depth: rgbd_folder: the same of the depth maps, whose names have the same numbers.
        units_per_metre: depth_list and rgbd_folder: value of a metre in 16-bit depth, NYU 1000, KITTI 256.
        split: what is trained on. depth_list: the list; kitti_depth: lines "date/drive index side", or null for all of
            train/; nyu_labelled: file of frame numbers, or null for the 795 of splits.mat.
        val_split: what is validated on: the same of the other part, or null for nothing, of nyu_labelled for the 654
            frames of splits.mat; kitti_depth: "val" for all of val/; rgbd_folder: a folder like the root.
        filled: nyu_labelled: validate on depth with its holes filled, as Eigen and FCRN; training never sees that.
        crop: part of the images that is trained on, [top, bottom, left, right], or kb, the 352x1216 of the KITTI depth
            benchmark; null for all.
        view: what of an image is validated on. whole: all of it; centre: the part that the centre crop of `augment`
            shows, and ground truth there; kb: the 352x1216 of the KITTI depth benchmark, and ground truth there;
            stretched: the prediction for the centre is stretched over all ground truth, as FCRN's was; network: image
            and ground truth as `augment` resizes and crops them, as FastDepth's were.
        cache: folder that keeps the decoded samples, so that later epochs decode nothing, or null.
        cache_size: [height, width] that they are kept at, or null for that of the files, which have to be of one size.
        batch_size: samples per step over all processes.
        repeat: times that every sample is shown per epoch.
        workers: processes that decode images; 0 decodes in the training process.
        skip_bad: leave out samples that cannot be read, and count them, where the default stops with an error.
    """

    name: Literal["nyu_labelled", "depth_list", "kitti_depth", "fastdepth_h5", "rgbd_folder"] = "rgbd_folder"
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


@dataclass
class DepthModelConfig:
    """The depth network.

    Args:
        name: a registered depth network, see `mdepth_fast.models.list_models`.
        options: further arguments of its constructor, by name.
        weights: checkpoint or published weights to start from, or null.
        encoder_weights: published ImageNet weights to start the encoder from, or null.
        freeze_bn: batch norms keep their statistics, scale and shift.
    """

    name: str = "fcrn_resnet50_upproj"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    encoder_weights: str | None = None
    freeze_bn: bool = False


@dataclass
class DepthAugmentConfig:
    """From an image to the network's input: `mdepth_fast.data.DepthAugment`, in this order.

    Args:
        height: height of the network input.
        width: width of the network input.
        resize: [rows, columns] of the resized image, null for a side that keeps its length; or the length of the
            shorter side; or null for the file's size.
        scale: range of a factor by which the image grows.
        depth_from_scale: depth is divided by that factor, as if the camera had come nearer.
        rotate: largest angle in degrees, either way.
        crop: where the window is cut out, random or centre.
        crop_size: [rows, columns] of the window, or null for that of the network input.
        flip: probability of a horizontal flip.
        recolor: probability that the colours of a sample change, by all of the following together.
        gamma: range of the exponent.
        brightness: range of a factor of all channels.
        color: range of a factor of each channel.
        jitter: brightness, contrast and saturation, factors 1 +- these.
        min_depth: depth counts as measured above it, in metres.
        max_depth: and up to this, or null.
        drop_extremes: the smallest and largest depth of an image count as not measured.
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
class DepthLossConfig:
    """The loss, from `mdepth_fast.losses`.

    Args:
        name: silog, berhu, ordinal, l1, l2, log_l1 or ssi.
        options: its arguments, by name.
    """

    name: Literal["silog", "berhu", "ordinal", "l1", "l2", "log_l1", "ssi"] = "silog"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    """What every run has; the sections of its task are added by `SelfSupervisedConfig` and `SupervisedConfig`.

    Args:
        run: name of the run; results go to <output>/<run>/<number>.
        output: folder of all runs.
        seed: of the initial weights, the order of the samples and the augmentation.
        protocol: evaluation protocol, see `mdepth_fast.evaluation`.
    """

    run: str = "run"
    output: str = "runs"
    seed: int = 0
    protocol: str = "motorcycle"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dict, as checkpoints and YAML files hold it."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "AnyConfig":
        """The inverse of `to_dict`; what is missing takes its default, and the task is self-supervised without one."""
        kind = _task(values)
        sections = {entry.name: type(getattr(kind(), entry.name)) for entry in fields(kind)}
        return kind(
            **{
                key: sections[key](**value) if is_dataclass(sections.get(key)) else value
                for key, value in values.items()
            }
        )


@dataclass
class SelfSupervisedConfig(Config):
    """A run that learns depth and motion from video or stereo.

    Args:
        task: self_supervised.
    """

    task: Literal["self_supervised"] = "self_supervised"
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pose: PoseConfig = field(default_factory=PoseConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass
class SupervisedConfig(Config):
    """A run that learns depth from measured depth.

    Args:
        task: supervised.
        stages: of a network that is trained in parts: their names in order, each with its number of optimiser steps;
            training ends after the last. Empty for a network that is trained as a whole.
    """

    task: Literal["supervised"] = "supervised"
    data: DepthDataConfig = field(default_factory=DepthDataConfig)
    model: DepthModelConfig = field(default_factory=DepthModelConfig)
    augment: DepthAugmentConfig = field(default_factory=DepthAugmentConfig)
    loss: DepthLossConfig = field(default_factory=DepthLossConfig)
    stages: dict[str, int] = field(default_factory=dict)


AnyConfig = SelfSupervisedConfig | SupervisedConfig
_TASKS: dict[str, type[AnyConfig]] = {"self_supervised": SelfSupervisedConfig, "supervised": SupervisedConfig}


def _task(values: dict[str, Any]) -> type[AnyConfig]:
    task = values.get("task", "self_supervised")
    if task not in _TASKS:
        raise ValueError(f"task: expected one of {', '.join(_TASKS)}, got {task!r}")
    return _TASKS[task]


_PRESETS = resources.files("mdepth_fast") / "configs"


def list_presets(task: str | None = None) -> list[str]:
    """Names of the configurations inside the package, all or those of one task."""
    names = []
    for entry in _PRESETS.iterdir():
        if entry.name.endswith(".yaml"):
            supervised = "\ntask: supervised\n" in entry.read_text()
            if task is None or (task == "supervised") == supervised:
                names.append(entry.name.removesuffix(".yaml"))
    return sorted(names)


def preset_notes(name: str) -> list[str]:
    """The lines of comment that a preset begins with: what it is, and what it needs."""
    lines = (_PRESETS / f"{name}.yaml").read_text().splitlines()
    return [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def _read_yaml(preset: str | Config) -> tuple[str, dict[str, Any]]:
    import yaml

    if isinstance(preset, Config):
        return preset.run, preset.to_dict()
    if preset in list_presets():
        path: Any = _PRESETS / f"{preset}.yaml"
    else:
        path = Path(preset)
        if path.suffix not in (".yaml", ".yml"):
            raise ValueError(f"preset: expected one of {', '.join(list_presets())}, or a .yaml file, got {preset!r}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    return str(path), values


def config_parser(preset: str | Config) -> Any:
    """The jsonargparse parser of a task's settings, its defaults those of the preset, YAML file or configuration."""
    import jsonargparse

    path, values = _read_yaml(preset)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        parser.add_class_arguments(_task(values))
        parser.set_defaults(parser.parse_object(values))
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from error
    return parser


def load_config(preset: str | Config, overrides: Sequence[str] = ()) -> AnyConfig:
    """The configuration of a preset, YAML file or other configuration, under overrides like `--optimizer.lr=3e-4`.

    Raises:
        ValueError: an unknown setting or a value of the wrong type, naming both.
        FileNotFoundError: there is no such YAML file.
    """
    parser = config_parser(preset)
    try:
        return Config.from_dict(parser.parse_args(list(overrides)).as_dict())
    except argparse.ArgumentError as error:
        raise ValueError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

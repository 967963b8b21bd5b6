"""Unsupervised optical flow (Yu, Harley, Derpanis, "Back to Basics", ECCV workshops 2016, arXiv 1608.05842)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import default_collate

from mdepth_fast.data import (
    FlowAugment,
    FlyingChairs,
    FramePairs,
    KittiFlow,
    SyntheticFlow,
    collate_flow,
    write_flo,
    write_flow_png,
)
from mdepth_fast.data.samples import read_image
from mdepth_fast.evaluation import FLOW_METRICS, FlowEvaluator
from mdepth_fast.losses import FlowLoss
from mdepth_fast.losses.flow import border_mask
from mdepth_fast.models import FlowModel, create_model, load_checkpoint
from mdepth_fast.systems.config import Config
from mdepth_fast.systems.depth import called, tuples
from mdepth_fast.systems.registry import packaged_presets, register_system
from mdepth_fast.systems.system import PredictOptions, StepInfo, System
from mdepth_fast.systems.views import root_folder
from mdepth_fast.visualize import Cell, colorize_flow, write_png

__all__ = ["Flow", "FlowAugmentConfig", "FlowConfig", "FlowDataConfig", "FlowLossConfig", "FlowModelConfig"]


@dataclass
class FlowDataConfig:
    """The training and validation data: pairs of images. Ground truth is used for validation only.

    Args:
        name: synthetic (textured layers), chairs (Flying Chairs), frames (neighbouring frames of videos).
        root: folder of the data, required for chairs and frames.
        folders: frames: pattern of the folders of frames below the root, such as "*/*/image_0[23]/data"; null for the
            root itself.
        height: height of the pairs that are trained on, a multiple of 64; larger images are cropped at random.
        width: width of these pairs, a multiple of 64.
        val_root: frames: the `training` folder of KITTI flow 2012 or 2015 for validation, or null.
        length: synthetic: number of pairs.
        val_length: synthetic: number of held-out pairs.
        motion: synthetic: largest shift along an axis, in pixels.
        objects: synthetic: largest number of objects in front of the background.
        keep: synthetic: keep the pairs in memory, so that later epochs draw nothing.
        batch_size: samples per step over all processes.
        repeat: number of times to show every sample per epoch.
        workers: number of processes that decode images; 0 decodes in the training process.
        skip_bad: leave out and count unreadable samples; by default they stop the run with an error.
    """

    name: Literal["synthetic", "chairs", "frames"] = "synthetic"
    root: str | None = None
    folders: str | None = None
    height: int = 384
    width: int = 512
    val_root: str | None = None
    length: int = 1000
    val_length: int = 50
    motion: float = 4.0
    objects: int = 2
    keep: bool = False
    batch_size: int = 4
    repeat: int = 1
    workers: int = 0
    skip_bad: bool = False


@dataclass
class FlowModelConfig:
    """The flow network.

    Args:
        name: name of a registered flow network, see `mdepth_fast.models.list_models`.
        options: more arguments for its constructor, by name.
        weights: checkpoint or published weights to start from, or null.
    """

    name: str = "flownet_s"
    options: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None


@dataclass
class FlowAugmentConfig:
    """The changes of a pair before training (`mdepth_fast.data.FlowAugment`); colours change for the network only.

    Args:
        flip: probability of a horizontal flip.
        flip_vertical: probability of a vertical flip.
        swap: probability that the second image comes first.
        contrast: range of a factor on all channels.
        brightness: standard deviation of what is added to all channels.
        color: range of a separate factor on each channel.
        gamma: range of 1 over the exponent.
        hide_border: hide the border that the loss leaves out from the network, which then learns to extrapolate.
    """

    flip: float = 0.0
    flip_vertical: float = 0.0
    swap: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    color: tuple[float, float] = (1.0, 1.0)
    gamma: tuple[float, float] = (1.0, 1.0)
    hide_border: bool = False


@dataclass
class FlowLossConfig:
    """The loss (`mdepth_fast.losses.FlowLoss`).

    Args:
        smoothness: weight of the smoothness term.
        alpha: exponent of the photometric penalty.
        scale: scale of the photometric penalty.
        smooth_alpha: exponent of the smoothness penalty.
        smooth_scale: scale of the smoothness penalty.
        form: separate penalties of the differences along x and y, or one joint penalty.
        outside_alpha: exponent of the smoothness where the flow leads out of the image, or null for no difference.
        outside_scale: scale of that penalty.
        border: share of height and width at each side that does not count.
        normalize: compare images after local response normalisation.
        backward: weight of the flow from the second image to the first, out of 1; 0 for none.
        backward_from: optimiser step after which this weight begins to grow.
        backward_to: optimiser step at which it is reached.
    """

    smoothness: float = 1.0
    alpha: float = 0.25
    scale: float = 1.0
    smooth_alpha: float = 0.37
    smooth_scale: float = 1.0
    form: Literal["separate", "joint"] = "separate"
    outside_alpha: float | None = None
    outside_scale: float = 1.0
    border: float = 0.0
    normalize: bool = False
    backward: float = 0.0
    backward_from: int = 0
    backward_to: int = 0


@dataclass
class FlowConfig(Config):
    """A run that learns optical flow from pairs of images.

    Args:
        system: flow.
    """

    protocol: str = "flow"
    data: FlowDataConfig = field(default_factory=FlowDataConfig)
    model: FlowModelConfig = field(default_factory=FlowModelConfig)
    augment: FlowAugmentConfig = field(default_factory=FlowAugmentConfig)
    loss: FlowLossConfig = field(default_factory=FlowLossConfig)
    system: Literal["flow"] = "flow"


def _starting_net(config: FlowConfig) -> Any:
    net: Any = called("model.options", partial(create_model, config.model.name), tuples(config.model.options))
    if not isinstance(net, FlowModel):
        raise ValueError(f"model.name: expected a network of optical flow such as flownet_s, got {config.model.name}")
    if config.model.weights:
        load_checkpoint(net, config.model.weights)
    return net


@register_system
class Flow(System[FlowConfig]):
    """Trains a flow network from batches of `FlowSample`.

    Args:
        config: loss, augmentation, seed, protocol.
        flow_net: maps two images (B,3,H,W) to flow (B,2,H,W) in pixels.
    """

    name = "flow"
    about = "unsupervised optical flow, from pairs of images"
    config_class = FlowConfig
    presets = packaged_presets("flow_chairs", "flow_kitti", "flow_synthetic")
    metrics = FLOW_METRICS
    shown = ("epe", "fl")
    collate = staticmethod(collate_flow)
    net_type = FlowModel
    formats = ("flo", "png")

    def __init__(self, config: FlowConfig, flow_net: Any) -> None:
        super().__init__(config)
        self.flow_net = flow_net
        options, data, loss = vars(config.augment).copy(), config.data, vars(config.loss).copy()
        multiple = flow_net.multiple
        for name, side in (("height", data.height), ("width", data.width)):
            if side < multiple or side % multiple:
                raise ValueError(f"data.{name}: expected a multiple of {multiple}, got {side}")
        self.hide_border = options.pop("hide_border")
        self.augment = FlowAugment(data.height, data.width, **options)
        self.backward_weight, *self.backward_ramp = (
            loss.pop(key) for key in ("backward", "backward_from", "backward_to")
        )
        if not 0 <= self.backward_weight <= 1:
            raise ValueError(f"loss.backward: expected a weight in [0, 1], got {self.backward_weight}")
        start, end = self.backward_ramp
        if not 0 <= start <= end:
            raise ValueError(f"loss.backward_from: expected 0 <= backward_from <= backward_to, got {start} and {end}")
        self.loss = FlowLoss(**loss, mean=flow_net.rgb_mean)
        self.train()

    # From a configuration.

    @classmethod
    def training_data(cls, config: FlowConfig) -> Any:
        data = config.data
        if data.name == "synthetic":
            return cls._synthetic(data, data.length, 2 * config.seed)
        root = root_folder(data)
        if data.name == "chairs":
            return FlyingChairs(root, "train")
        return FramePairs(root, folders=data.folders)

    @classmethod
    def evaluation_data(cls, config: FlowConfig) -> Any:
        data = config.data
        if data.name == "synthetic":
            return cls._synthetic(data, data.val_length, 2 * config.seed + 1)
        if data.name == "chairs":
            return FlyingChairs(root_folder(data), "val")
        return KittiFlow(Path(data.val_root)) if data.val_root else None

    @staticmethod
    def _synthetic(data: FlowDataConfig, length: int, seed: int) -> SyntheticFlow:
        return SyntheticFlow(
            length, data.height, data.width, seed=seed, motion=data.motion, objects=data.objects, keep=data.keep
        )

    @classmethod
    def create(cls, config: FlowConfig, dataset: Any) -> "Flow":
        return cls(config, _starting_net(config))

    @classmethod
    def restore(cls, config: FlowConfig, saved: dict[str, Any], weights: dict[str, Tensor]) -> Any:
        config.model.weights = None
        net = _starting_net(config)
        prefix = "flow_net."
        net.load_state_dict({key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)})
        return net

    # Training.

    def describe(self, samples: int) -> str:
        data = self.config.data
        return f"{self.config.model.name} on {samples} pairs of {data.name} at {data.height}x{data.width}"

    def step(self, batch: dict[str, Any], info: StepInfo) -> dict[str, Tensor]:
        pair = self.augment(batch, info.generator)
        images, inputs = (pair["first"], pair["second"]), (pair["first_aug"], pair["second_aug"])
        if self.hide_border and self.loss.border:
            kept = border_mask(images[0], self.loss.border)
            mean = images[0].new_tensor(self.flow_net.rgb_mean).view(1, 3, 1, 1)
            inputs = tuple(torch.where(kept, image, mean) for image in inputs)  # type: ignore[assignment]
        parts = self.loss(self.flow_net.infer(*inputs), *images)
        loss, weight = parts.loss, self._backward(info.step)
        if weight:
            back = self.loss(self.flow_net.infer(*inputs[::-1]), *images[::-1])
            loss = (1 - weight) * loss + weight * back.loss
        return {"loss": loss, "photometric": parts.photometric, "smoothness": parts.smoothness}

    def _backward(self, step: int) -> float:
        """The weight of the backward flow's loss at a step."""
        start, end = self.backward_ramp
        share = min(max((step - start) / (end - start), 0.0), 1.0) if end > start else float(step >= start)
        return float(self.backward_weight * share)

    # Evaluation.

    @property
    def net(self) -> Any:
        return self.flow_net

    @classmethod
    def evaluator(cls, protocol: Any) -> FlowEvaluator:
        return FlowEvaluator(protocol)

    @staticmethod
    def evaluate_sample(net: Any, batch: dict[str, Any], evaluator: FlowEvaluator) -> None:
        """Gives an evaluator the flow that `net` predicts for a batch of one pair with ground truth."""
        evaluator.update(_predict(net, batch), batch["flow"], batch["valid"], batch["visible"], batch["name"][0])

    def panel(self, sample: Any) -> list[Cell]:
        """Both images and the predicted flow; the true flow, the error and the occlusions if they are known."""
        flow = _predict(self.flow_net, default_collate([sample]))[0]
        cells = [
            Cell(title, sample[key].permute(1, 2, 0).numpy())
            for title, key in (("first", "first"), ("second", "second"))
        ]
        if "flow" not in sample or not sample["valid"].any():
            return [*cells, Cell("predicted flow", colorize_flow(flow))]
        valid = sample["valid"]
        truth = sample["flow"].where(valid, torch.nan)
        bound = max(float(truth.norm(dim=0).nan_to_num().max()), 1e-6)
        error = (flow - truth).norm(dim=0)
        cells += [
            Cell("predicted flow", colorize_flow(flow, bound)),
            Cell(f"true flow, up to {bound:.3g} px", colorize_flow(truth, bound)),
            Cell(f"error, mean {error[valid[0]].mean():.3f} px", error.numpy(), "inferno", (0.0, bound), "pixels"),
        ]
        if sample["visible"].any():
            hidden = (valid & ~sample["visible"])[0]
            cells.append(Cell(f"occluded: {hidden.double().mean():.1%}", hidden.double().numpy(), "gray", (0.0, 1.0)))
        return cells

    @classmethod
    def write_predictions(cls, net: Any, paths: Sequence[Path], options: PredictOptions) -> list[str]:
        """The flow from each image to the next, named after the first of both, as a flow file and a colour image."""
        kind = cls.chosen_format(options)
        if len(paths) < 2:
            raise ValueError(f"input: expected two images or a folder of frames, got {paths[0]} alone")
        device = next(net.parameters()).device

        def read(path: Path) -> Tensor:
            return torch.from_numpy(read_image(path)).permute(2, 0, 1).to(device) / 255

        clamped, second = 0, read(paths[0])
        with options.progress("predicting") as track:
            for path, following in track(list(itertools.pairwise(paths))):
                first, second = second, read(following)
                if first.shape != second.shape:
                    sizes = [f"{image.shape[1]}x{image.shape[2]}" for image in (first, second)]
                    raise ValueError(f"{following}: expected the size of {path.name}, {sizes[0]}, got {sizes[1]}")
                flow = net.predict(first, second, size=options.size).flow[0].cpu()
                stored = options.output / f"{path.stem}_flow.{kind}"
                if kind == "png":
                    clamped += write_flow_png(stored, flow)
                else:
                    write_flo(stored, flow)
                write_png(options.output / f"{path.stem}_color.png", colorize_flow(flow))
        what = "KITTI PNG, steps of 1/64 pixel" if kind == "png" else "Middlebury .flo"
        lines = [f"{len(paths) - 1} flow fields in {options.output}: {what}, from each image to the next, in pixels"]
        if clamped:
            lines.append(f"{clamped} pixels were clamped to -512 .. 511.98: 16 bits")
        return lines


def _predict(net: Any, batch: dict[str, Any]) -> Tensor:
    """Flow (B,2,H,W) that `net` predicts for a batch of uint8 pairs."""
    device = next(net.parameters()).device
    first, second = (batch[key].to(device).float() / 255 for key in ("first", "second"))
    flow: Tensor = net.predict(first, second).flow
    return flow

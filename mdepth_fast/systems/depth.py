"""Shared parts of the systems whose network predicts depth: evaluation, and the picture of a sample."""

import warnings
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast.data import collate_depth
from mdepth_fast.evaluation import METRICS, Evaluator
from mdepth_fast.kinds import describe, is_inverse
from mdepth_fast.models import DepthModel, DepthPrediction
from mdepth_fast.systems.config import Config
from mdepth_fast.systems.system import System
from mdepth_fast.visualize import Cell

__all__ = ["DepthSystem", "Preview", "evaluate_sample", "predict_sample"]

C = TypeVar("C", bound=Config)


class Preview(NamedTuple):
    """What a panel shows of one sample."""

    image: Tensor
    """uint8 (3,h,w)"""
    depth: Tensor
    """(h,w), predicted; what it holds says `kind` of the network"""
    truth: Tensor | None
    """(1,h',w'), metres, 0 = none; None where there is no ground truth, or none to compare inverse depth with"""
    masks: dict[str, Tensor] = {}  # noqa: RUF012  (never written to)
    """title to bool (h,w): the pixels that the objective keeps"""


def evaluate_sample(net: Any, batch: dict[str, Any], evaluator: Evaluator) -> None:
    """Gives an evaluator the depth that `net` predicts for a batch of one evaluation sample.

    The evaluator's protocol decides how the prediction is resized and whether flip post-processing is used. Raises
    ValueError for inverse depth that the protocol does not align; a warning for depth of unknown scale, or disparity,
    that it takes for metres.
    """
    protocol = evaluator.protocol
    if protocol.size and batch["target"].shape[-2:] != protocol.size:
        # The comparison is at that size: the network's own hooks resize image and ground truth.
        target, depth = _as_float(batch["target"]), batch["depth"]
        batch = {**batch, "target": net.resize(target, protocol.size), "depth": net.ground_truth(depth, protocol.size)}
        batch.pop("image", None)
    prediction = predict_sample(net, batch, flip=protocol.flip)
    if prediction.kind == "affine_inverse" and protocol.alignment != "lsq_disparity":
        raise ValueError(
            "protocol: expected one that aligns inverse depth, which is all that this network predicts, such as "
            f"kitti_affine or nyu_affine; got {protocol.name}"
        )
    if prediction.kind != "metric" and protocol.alignment == "none" and protocol.scale == 1:
        warnings.warn(
            f"protocol {protocol.name} compares {describe(prediction.kind)} with metres as it is: its figures mean "
            "something only if the network's unit happens to be the metre. Take a protocol that aligns, such as median "
            "(whole images) or kitti_eigen, or give a scale: --protocol median, --scale X",
            stacklevel=2,
        )
    evaluator.update(prediction.depth, batch["depth"], batch["name"][0], inverse=is_inverse(prediction.kind))


def predict_sample(net: Any, batch: dict[str, Any], *, flip: bool) -> DepthPrediction:
    """What `net` predicts for a batch of one evaluation sample of any data set.

    A network trained on views (`net.takes_views`) sees the target at the size that its data set resized it to. Any
    other network resizes the image from its file size, as published. If the sample shows a part of the image (see
    `EvaluationView`), the border of the prediction is replicated to the size of the image: there is no ground truth
    outside the part.
    """
    options: dict[str, Any] = {"size": None, "flip": flip}
    images = batch["target"]
    device = next(net.parameters()).device
    if net.takes_views and "sources" in batch:
        options["size"] = (images.shape[-2], images.shape[-1])
        if net.takes_intrinsics:
            options["K"] = batch["K"].to(device)
    else:
        images = batch.get("image", images)
    prediction: DepthPrediction = net.predict(_as_float(images.to(device)), **options)
    if "window" in batch:
        top, bottom, left, right = batch["window"][0].tolist()
        height, width = batch["depth"].shape[-2:]
        depth = F.pad(prediction.depth, (left, width - right, top, height - bottom), mode="replicate")
        prediction = replace(prediction, depth=depth)
    return prediction


def _as_float(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float() / 255


class DepthSystem(System[C]):
    """A system whose `depth_net` is evaluated under a protocol of `mdepth_fast.evaluation`."""

    metrics = METRICS
    shown = ("abs_rel", "rmse", "d1")
    collate = staticmethod(collate_depth)
    evaluate_sample = staticmethod(evaluate_sample)
    net_type = DepthModel
    prefix: ClassVar[str] = "depth_net."

    depth_net: Any

    def __init__(self, config: C, depth_net: Any) -> None:
        super().__init__(config)
        self.depth_net = depth_net

    @property
    def net(self) -> Any:
        return self.depth_net

    @classmethod
    def evaluator(cls, protocol: Any) -> Evaluator:
        return Evaluator(protocol)

    @classmethod
    def starting_net(cls, config: C, saved: dict[str, Any]) -> Any:
        """The depth network of a configuration; saved is what `extra_state` gave, {} before training."""
        raise NotImplementedError

    @classmethod
    def restore(cls, config: C, saved: dict[str, Any], weights: dict[str, Tensor]) -> Any:
        model: Any = config.model  # type: ignore[attr-defined]
        model.weights = model.encoder_weights = None
        net = cls.starting_net(config, saved)
        own = {key.removeprefix(cls.prefix): weights[key] for key in weights if key.startswith(cls.prefix)}
        net.load_state_dict(own)
        return net

    def preview(self, sample: Any) -> Preview:
        """A prediction for one sample, on the CPU in eval mode."""
        raise NotImplementedError

    def panel(self, sample: Any) -> list[Cell]:
        """Image and predicted depth; ground truth, error and masks if there are any.

        If the protocol scales predictions by the median, so does the panel.
        """
        image, depth, measured, masks = self.preview(sample)
        prediction, kind = depth.numpy(), self.depth_net.kind
        unit = self.depth_net.unit or "relative"
        cells = [Cell("image", image.permute(1, 2, 0).numpy())]
        if measured is not None and (measured > 0).any():
            truth = F.interpolate(measured[None], prediction.shape, mode="nearest")[0, 0].numpy()
            valid = truth > 0
            title = "prediction"
            if self.evaluator(self.config.protocol).protocol.alignment == "median":
                ratio = float(np.median(truth[valid]) / np.median(prediction[valid]))
                prediction, title, unit = prediction * ratio, f"prediction x {ratio:.3g} (median)", "m"
            bounds = (float(np.percentile(truth[valid], 1)), float(np.percentile(truth[valid], 99)))
            error = np.abs(prediction - truth) / np.where(valid, truth, 1)
            cells += [
                Cell(title, prediction, "magma_r", bounds, f"depth ({unit})"),
                Cell("ground truth", np.where(valid, truth, np.nan), "magma_r", bounds, "depth (m)"),
                Cell(
                    f"relative error, mean {error[valid].mean():.3f}",
                    np.where(valid, error, np.nan),
                    "inferno",
                    (0.0, 0.25),
                    "|error| / depth",
                ),
            ]
        else:
            # Near is bright: the colours of depth run backwards, those of inverse depth do not.
            label = describe(kind) if is_inverse(kind) else f"depth ({unit})"
            cells.append(Cell("prediction", prediction, "magma" if is_inverse(kind) else "magma_r", None, label))
        for title, kept in masks.items():
            share = 1 - kept.double().mean().item()
            cells.append(Cell(f"{title}: {share:.1%} dark", kept.double().numpy(), "gray", (0.0, 1.0), "kept"))
        return cells


def tuples(options: dict[str, Any]) -> dict[str, Any]:
    """YAML has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def called(setting: str, function: Any, options: dict[str, Any]) -> Any:
    """The function's result; an argument that it does not have is a ValueError that names the setting."""
    try:
        return function(**options)
    except TypeError as error:
        if "keyword argument" in str(error):
            raise ValueError(f"{setting}: {error}") from error
        raise

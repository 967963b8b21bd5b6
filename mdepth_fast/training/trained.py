"""Trained depth networks: reading them back, and measuring them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from mdepth_fast.evaluation import Evaluator
from mdepth_fast.models import DepthPrediction, DisparityModel, create_model
from mdepth_fast.training.checkpoint import read_checkpoint
from mdepth_fast.training.config import AnyConfig, Config
from mdepth_fast.training.setup import build_depth_net
from mdepth_fast.weights import create_converted, load_checkpoint

__all__ = ["Trained", "evaluate", "evaluate_sample", "load_trained", "predict_sample"]

# Monodepth2's stereo models were trained with a baseline of 0.1 for KITTI's 0.54 m.
_PUBLISHED_UNIT = 5.4


@dataclass
class Trained:
    """A depth network in evaluation mode, its `input_size` the one it was trained at, and its run where known."""

    net: Any
    config: AnyConfig | None


def load_trained(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """Reads a checkpoint or run folder of `mdepth-fast train`, a file of `mdepth-fast convert` or `netadapt`, or a
    folder with Monodepth2's encoder.pth and depth.pth.

    The published stereo models predict metres: their depth range is stretched by the 5.4 m that their unit stands for.
    """
    path = Path(path)
    if path.is_dir() and (path / "encoder.pth").is_file():
        return _load_published(path, device)
    if path.is_dir():
        path = path / "last.ckpt"
    if path.suffix == ".safetensors":
        return Trained(create_converted(path).to(device).eval(), None)
    checkpoint = read_checkpoint(path)
    if "mdepth_fast" not in checkpoint:
        raise ValueError(
            f"{path}: expected a checkpoint of `mdepth-fast train`, got keys {sorted(checkpoint)[:5]}; "
            "published weights are made readable by `mdepth-fast convert`"
        )
    config = Config.from_dict(checkpoint["mdepth_fast"]["config"])
    config.model.weights = config.model.encoder_weights = None
    net = build_depth_net(config, checkpoint["mdepth_fast"].get("sources", ()))
    if stage := checkpoint["mdepth_fast"].get("stage"):
        net.stage = stage
    prefix = "depth_net."
    weights = checkpoint["state_dict"]
    net.load_state_dict({key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)})
    return Trained(net.to(device).eval(), config)


def _load_published(folder: Path, device: str | torch.device) -> Trained:
    encoder = read_checkpoint(folder / "encoder.pth")
    layers = 50 if "encoder.layer1.0.conv3.weight" in encoder else 18
    stereo = bool(encoder.get("use_stereo", False))
    unit = _PUBLISHED_UNIT if stereo else 1.0
    net = create_model(
        f"monodepth2_resnet{layers}", min_depth=0.1 * unit, max_depth=100.0 * unit, unit="m" if stereo else None
    )
    load_checkpoint(net, folder)
    return Trained(net.to(device).eval(), None)


def evaluate(
    net: Any,
    dataset: Any,
    evaluator: Evaluator,
    *,
    workers: int = 0,
    track: Callable[[Any], Any] = lambda loader: loader,
) -> None:
    """Feeds an evaluator with the depth that `net` predicts for every sample of `dataset`.

    Resizing of the prediction and flip post-processing are as the evaluator's protocol says. `track` may wrap the
    loader in a progress bar. ValueError for inverse depth that the protocol does not align.
    """
    for batch in track(DataLoader(dataset, num_workers=workers)):
        evaluate_sample(net, batch, evaluator)


def evaluate_sample(net: Any, batch: dict[str, Any], evaluator: Evaluator) -> None:
    """`evaluate` for a batch of one evaluation sample."""
    protocol = evaluator.protocol
    if protocol.size and batch["target"].shape[-2:] != protocol.size:
        # Compared there: the network's own hooks bring image and ground truth to it.
        target, depth = _as_float(batch["target"]), batch["depth"]
        batch = {**batch, "target": net.resize(target, protocol.size), "depth": net.ground_truth(depth, protocol.size)}
        batch.pop("image", None)
    prediction = predict_sample(net, batch, flip=protocol.flip)
    inverse = prediction.kind == "affine_inverse"
    if inverse and protocol.alignment != "lsq_disparity":
        raise ValueError(
            "protocol: expected one that aligns inverse depth, which is all that this network predicts, such as "
            f"kitti_affine or nyu_affine; got {protocol.name}"
        )
    evaluator.update(prediction.depth, batch["depth"], batch["name"][0], inverse=inverse)


def predict_sample(net: Any, batch: dict[str, Any], *, flip: bool) -> DepthPrediction:
    """What `net` predicts for a batch of one evaluation sample of any data set.

    A net of a self-supervised system sees the target as its data set has resized it. Any other resizes the image as
    it was published to, from the size of its file. Of a view of a part of the image (see `EvaluationView`), the
    prediction for the part is drawn outwards to the size of the image: there is no ground truth outside.
    """
    size = None
    images = batch["target"]
    if isinstance(net, DisparityModel) and "sources" in batch:
        size = (images.shape[-2], images.shape[-1])
    else:
        images = batch.get("image", images)
    prediction = net.predict(_as_float(images.to(next(net.parameters()).device)), size=size, flip=flip)
    if "window" in batch:
        top, bottom, left, right = batch["window"][0].tolist()
        height, width = batch["depth"].shape[-2:]
        depth = F.pad(prediction.depth, (left, width - right, top, height - bottom), mode="replicate")
        prediction = replace(prediction, depth=depth)
    return prediction


def _as_float(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float() / 255

"""Trained depth networks: reading them back, and measuring them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from mdepth_fast.evaluation import Evaluator
from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.training.checkpoint import read_checkpoint
from mdepth_fast.training.config import Config
from mdepth_fast.training.setup import build_depth_net

__all__ = ["Trained", "evaluate", "load_trained"]

# Monodepth2's stereo models were trained with a baseline of 0.1 for KITTI's 0.54 m.
_PUBLISHED_UNIT = 5.4


@dataclass
class Trained:
    """A depth network in evaluation mode, its `input_size` the one it was trained at, and its run where known."""

    net: Any
    config: Config | None


def load_trained(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """Reads a checkpoint or run folder of `mdepth-fast train`, or a folder with Monodepth2's encoder.pth and depth.pth.

    The published stereo models predict metres: their depth range is stretched by the 5.4 m that their unit stands for.
    """
    path = Path(path)
    if path.is_dir() and (path / "encoder.pth").is_file():
        return _load_published(path, device)
    if path.is_dir():
        path = path / "last.ckpt"
    checkpoint = read_checkpoint(path)
    if "mdepth_fast" not in checkpoint:
        raise ValueError(f"{path}: expected a checkpoint of `mdepth-fast train`, got keys {sorted(checkpoint)[:5]}")
    config = Config.from_dict(checkpoint["mdepth_fast"]["config"])
    config.model.weights = config.model.encoder_weights = None
    net = build_depth_net(config, checkpoint["mdepth_fast"]["sources"])
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

    The network sees a sample at the data set's size; resizing and flip post-processing are as the evaluator's protocol
    says. A protocol with a `size` compares there: the network's own hooks bring image and ground truth to it.
    `track` may wrap the loader in a progress bar. ValueError for inverse depth that the protocol does not align.
    """
    device, protocol = next(net.parameters()).device, evaluator.protocol
    for batch in track(DataLoader(dataset, num_workers=workers)):
        images, depth = batch["target"].to(device).float() / 255, batch["depth"]
        if protocol.size:
            images, depth = net.resize(images, protocol.size), net.ground_truth(depth, protocol.size)
        prediction = net.predict(images, size=tuple(images.shape[-2:]), flip=protocol.flip)
        inverse = prediction.kind == "affine_inverse"
        if inverse and protocol.alignment != "lsq_disparity":
            raise ValueError(
                "protocol: expected one that aligns inverse depth, which is all that this network predicts, such as "
                f"kitti_affine or nyu_affine; got {protocol.name}"
            )
        evaluator.update(prediction.depth, depth, batch["name"][0], inverse=inverse)

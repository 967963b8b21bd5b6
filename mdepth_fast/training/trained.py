"""Trained depth networks: reading them back, and measuring them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from mdepth_fast.evaluation import Evaluator
from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.models.checkpoints import converted_model
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
    """Reads a checkpoint or run folder of `mdepth-fast train`, a file of `mdepth-fast convert`, or a folder with
    Monodepth2's encoder.pth and depth.pth.

    The published stereo models predict metres: their depth range is stretched by the 5.4 m that their unit stands for.
    """
    path = Path(path)
    if path.is_dir() and (path / "encoder.pth").is_file():
        return _load_published(path, device)
    if path.is_dir():
        path = path / "last.ckpt"
    if path.suffix == ".safetensors":
        return _load_converted(path, device)
    checkpoint = read_checkpoint(path)
    if "mdepth_fast" not in checkpoint:
        raise ValueError(
            f"{path}: expected a checkpoint of `mdepth-fast train`, got keys {sorted(checkpoint)[:5]}; "
            "published weights are made readable by `mdepth-fast convert`"
        )
    config = Config.from_dict(checkpoint["mdepth_fast"]["config"])
    config.model.weights = config.model.encoder_weights = None
    net = build_depth_net(config, checkpoint["mdepth_fast"]["sources"])
    prefix = "depth_net."
    weights = checkpoint["state_dict"]
    net.load_state_dict({key.removeprefix(prefix): weights[key] for key in weights if key.startswith(prefix)})
    return Trained(net.to(device).eval(), config)


def _load_converted(path: Path, device: str | torch.device) -> Trained:
    name, options = converted_model(path)
    if name is None:
        raise ValueError(f"{path}: does not say which model it is for; `mdepth-fast convert` writes a file that does")
    net = create_model(name, **options)
    load_checkpoint(net, path)
    return Trained(net.to(device).eval(), None)


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
    says. `track` may wrap the loader in a progress bar.
    """
    device = next(net.parameters()).device
    for batch in track(DataLoader(dataset, num_workers=workers)):
        images = batch["target"].to(device).float() / 255
        prediction = net.predict(images, size=tuple(images.shape[-2:]), flip=evaluator.protocol.flip)
        evaluator.update(prediction.depth, batch["depth"], batch["name"][0])

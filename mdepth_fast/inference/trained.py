"""Trained networks: reading them back, and measuring them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from mdepth_fast.models import create_model, load_checkpoint
from mdepth_fast.systems import Config, system_for, system_of
from mdepth_fast.systems.depth import evaluate_sample, predict_sample
from mdepth_fast.systems.saved import read_checkpoint
from mdepth_fast.weights import create_converted

__all__ = ["Trained", "evaluate", "evaluate_sample", "load_trained", "predict_sample"]

# Monodepth2's stereo models were trained with a baseline of 0.1 for KITTI's 0.54 m.
_PUBLISHED_UNIT = 5.4


@dataclass
class Trained:
    """A network in evaluation mode, its `input_size` the one it was trained at, and its run where known."""

    net: Any
    config: Any

    @property
    def system(self) -> Any:
        """The class of the system that it belongs to."""
        return system_for(self.net) if self.config is None else system_of(self.config)


def load_trained(path: str | Path, device: str | torch.device = "cpu", *, checkpoint: str | None = None) -> Trained:
    """Reads a checkpoint or run folder of `mdepth-fast train`, a file of `mdepth-fast convert` or `netadapt`, or a
    folder with Monodepth2's encoder.pth and depth.pth.

    checkpoint: of a run folder, "last" (the default) or "best": see `trainer.monitor`. ValueError where `path` is no
    run folder and has no such choice.

    The published stereo models predict metres: their depth range is stretched by the 5.4 m that their unit stands for.
    """
    path = Path(path)
    published = path.is_dir() and (path / "encoder.pth").is_file()
    if checkpoint not in (None, "last", "best"):
        raise ValueError(f"checkpoint: expected last or best, got {checkpoint!r}")
    if checkpoint and (published or not path.is_dir()):
        raise ValueError(f"checkpoint: expected a run folder to choose {checkpoint} from, got {path}")
    if published:
        return _load_published(path, device)
    if path.is_dir():
        path = path / f"{checkpoint or 'last'}.ckpt"
    if path.suffix == ".safetensors":
        return Trained(create_converted(path).to(device).eval(), None)
    values = read_checkpoint(path)
    if "mdepth_fast" not in values:
        raise ValueError(
            f"{path}: expected a checkpoint of `mdepth-fast train`, got keys {sorted(values)[:5]}; "
            "published weights are made readable by `mdepth-fast convert`"
        )
    saved = values["mdepth_fast"]
    config = Config.from_dict(saved["config"])
    net = system_of(config).restore(config, saved, values["state_dict"])
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
    evaluator: Any,
    *,
    workers: int = 0,
    track: Callable[[Any], Any] = lambda loader: loader,
    sample: Callable[[Any, dict[str, Any], Any], None] = evaluate_sample,
) -> None:
    """Feeds an evaluator with what `net` predicts for every sample of `dataset`.

    Resizing of the prediction and flip post-processing are as the evaluator's protocol says. `track` may wrap the
    loader in a progress bar; `sample` is the `evaluate_sample` of the data's system. ValueError for inverse depth that
    the protocol does not align.
    """
    for batch in track(DataLoader(dataset, num_workers=workers)):
        sample(net, batch, evaluator)

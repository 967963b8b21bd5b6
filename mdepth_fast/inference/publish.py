"""Trained systems in the form in which Monodepth2's weights are published, and networks in that of the Hub."""

import json
from pathlib import Path
from typing import Any

import torch

from mdepth_fast.files import making_folder, replacing
from mdepth_fast.inference.trained import find_run, load_system, read_run
from mdepth_fast.models import Model
from mdepth_fast.models.monodepth2 import STEREO_UNIT
from mdepth_fast.systems import system_of
from mdepth_fast.weights.card import Results, model_card

__all__ = ["publish", "run_history", "write_hub_folder"]


def publish(path: str | Path, folder: str | Path, *, checkpoint: str | None = None) -> list[Path]:
    """Writes the networks of a Monodepth2 run as encoder.pth, depth.pth, pose_encoder.pth, pose.pth and, of a run with
    a predicted mask, predictive_mask.pth, which the published scripts read. Returns the files.

    Networks that predict metres are written in the published unit of 5.4 m.

    Args:
        path: see `load_system`. checkpoint: of a run folder, "last" (the default) or "best".
        folder: a new or empty folder.

    Raises:
        ValueError: the run's networks or depth range have no published form, or the folder is not empty.
    """
    folder = _new(folder)
    system = load_system(path, checkpoint=checkpoint)
    files: dict[str, dict[str, Any]] = system.depth_net.publish()
    if system.pose_net is not None:
        if system.depth_net.unit == "m":
            system.pose_net.scale_translation(1 / STEREO_UNIT)
        files |= system.pose_net.publish()
    if getattr(system, "mask_net", None) is not None:
        files |= system.mask_net.publish()
    # encoder.pth comes last: without it a folder is not taken for a published one.
    names = sorted(files, key=lambda name: (name == "encoder.pth", name))
    for name in names:
        with replacing(folder / name) as temporary:
            torch.save(files[name], temporary)
    return [folder / name for name in names]


def write_hub_folder(net: Model, folder: str | Path, **card: Any) -> None:
    """`save_pretrained` to a new or empty folder, which appears whole; `card` are the arguments of its `model_card`.

    ValueError if the folder is not empty, or if `create_model` cannot make the network again.
    """
    with making_folder(_new(folder)) as temporary:
        net.save_pretrained(temporary, card=model_card(net.recipe()[0], net, **card))


def _new(folder: str | Path) -> Path:
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder: expected a new or empty folder, got {folder}")
    return folder


def run_history(path: str | Path, checkpoint: str | None = None) -> tuple[list[str], Results | None]:
    """Lines on data and settings of a run, and its results under their protocol, as a `model_card` states them.

    `path` and `checkpoint` are those of `load_trained`. Weights that are no run have neither, and a run without ground
    truth has no results.
    """
    file = find_run(path, checkpoint)
    if file is None:
        return [], None
    config = read_run(file)[0]
    data, model, optimizer = config.data, config.model, config.optimizer
    facts = {"system": getattr(config, "system", None), "data": getattr(data, "name", None)}
    # Names alone: the folders of this machine are nobody's business.
    facts |= {key: Path(value).name for key in ("split", "list") if (value := getattr(data, key, None))}
    facts |= {"optimiser": f"{optimizer.name}, learning rate {optimizer.lr:g}, schedule {optimizer.schedule}"}
    facts |= {"batch size": data.batch_size, "epochs": config.trainer.max_epochs, "seed": config.seed}
    record = _metrics(file)
    if step := record.get("checkpoints", {}).get(file.stem, {}).get("step"):
        facts["optimiser steps"] = step
    lines = [f"- {key}: {value}" for key, value in facts.items() if value is not None]
    for key, setting in {"weights": "weights", "ImageNet weights": "encoder_weights"}.items():
        if value := getattr(model, setting, None):
            lines.append(f"- began with {key} of `{value if value.startswith('hub:') else Path(value).name}`")
    protocol = system_of(config).evaluator(config.protocol).protocol
    values = record.get("after") if file.stem == "last" else None
    best = record.get("checkpoints", {}).get("best", {})
    if file.stem == "best" and best:
        values = {best["monitor"].removeprefix("val/"): best["value"]}
    if not values:
        return lines, None
    columns = [key for key in protocol.columns if key in values] or list(values)
    return lines, Results(f"{data.name}, validation", protocol.describe(), {key: values[key] for key in columns})


def _metrics(file: Path) -> dict[str, Any]:
    """What a run has measured; nothing for a checkpoint that lies elsewhere."""
    record = file.with_name("metrics.json")
    if file.stem not in ("last", "best") or not record.is_file():
        return {}
    values: dict[str, Any] = json.loads(record.read_text())
    return values

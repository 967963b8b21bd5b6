"""Trained systems in the form in which Monodepth2's weights are published."""

from pathlib import Path
from typing import Any

import torch

from mdepth_fast.files import replacing
from mdepth_fast.inference.trained import load_system
from mdepth_fast.models.monodepth2 import STEREO_UNIT

__all__ = ["publish"]


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
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder: expected a new or empty folder, got {folder}")
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

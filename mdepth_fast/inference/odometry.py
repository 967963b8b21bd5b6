"""The trajectory of a camera from the frames that it took, by the motion model of a trained system."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from mdepth_fast.data import FrameFolder, Trajectory
from mdepth_fast.systems import SelfSupervisedSystem, Views

__all__ = ["predict_trajectory"]


@torch.no_grad()
def predict_trajectory(
    system: SelfSupervisedSystem[Any],
    frames: str | Path,
    K: Any = None,
    *,
    batch_size: int = 4,
    workers: int = 0,
    track: Callable[[Any], Any] = lambda loader: loader,
) -> Trajectory:
    """The camera-to-world poses of a folder of frames, the first of which is the identity.

    Each pose follows from the motion to the nearest frame, an earlier one if possible, that the system's sources reach.
    If all offsets are multiples of k, there is a pose for every k-th frame. Timestamps are frame numbers. The unit of
    the translations is that of the system's depth.

    Args:
        system: from `load_system`.
        frames: folder of images in natural order of their names, resized to the size that the system was trained at.
        K: as in `FrameFolder`; None where the motion model does without.
        batch_size: targets at a time.
        workers: processes that decode images.
        track: may wrap the loader in a progress bar.

    Raises:
        ValueError: the system predicts no poses, there are too few frames, or a pose is not finite.
    """
    offsets = [source for source in system.sources if isinstance(source, int)]
    if system.pose_net is None or not offsets:
        raise ValueError(f"system: expected one that predicts poses, got {system.name} with sources {system.sources}")
    if getattr(system.motion, "pairwise", False):
        offsets = [min(offsets, key=lambda offset: (abs(offset), -offset))]
    elif len(offsets) < len(system.sources):
        raise ValueError(
            f"system: expected one that needs video alone, got {system.name} with sources {system.sources}"
        )
    data = system.config.data
    height, width = system.depth_net.input_size or (data.height, data.width)
    dataset = FrameFolder(frames, K, height, width, sources=tuple(offsets))
    device = next(system.parameters()).device
    motions: dict[tuple[int, int], NDArray[np.float64]] = {}
    targets = iter(dataset.targets)
    for batch in track(DataLoader(dataset, batch_size, num_workers=workers)):
        batch = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        views = Views.of_batch(system.augment(batch), offsets)
        transforms = system.outputs(views).transforms
        transforms = transforms if isinstance(transforms, Tensor) else transforms[0]
        for name, row in zip(views.names, transforms.double().cpu().numpy()):
            if not np.isfinite(row).all():
                unknown = "; the intrinsics are not known" if K is None else ""
                raise ValueError(f"frames: the pose of {name} is not finite{unknown}")
            _, target = next(targets)
            motions |= {(target, target + offset): T for offset, T in zip(offsets, row)}
    return _chain(motions, offsets)


def _chain(motions: dict[tuple[int, int], NDArray[np.float64]], offsets: list[int]) -> Trajectory:
    """Poses from motions: (i, j) maps points of camera i to camera j."""
    poses = {0: np.eye(4)}
    last = max(max(pair) for pair in motions)
    # Forwards, then backwards to the frames that only a later one reaches.
    for frame in (*range(1, last + 1), *range(last - 1, 0, -1)):
        links = (frame + sign * step for step in sorted(map(abs, offsets)) for sign in (-1, 1))
        for known in links:
            if frame in poses or known not in poses:
                continue
            if (known, frame) in motions:
                poses[frame] = poses[known] @ np.linalg.inv(motions[known, frame])
            elif (frame, known) in motions:
                poses[frame] = poses[known] @ motions[frame, known]
    return Trajectory(np.array(sorted(poses)), np.array([poses[frame] for frame in sorted(poses)]))

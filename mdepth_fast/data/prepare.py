"""From a video or a folder of frames to a folder that the data set `folder` reads."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mdepth_fast.data.check import STATIC, image_motion, thumbnail
from mdepth_fast.data.frames import read_intrinsics
from mdepth_fast.data.samples import DataError, list_clip, read_image, resize_image, upright_frame
from mdepth_fast.files import making_folder
from mdepth_fast.geometry import scale_intrinsics

__all__ = ["Prepared", "prepare_frames", "read_video", "split_blocks"]

# Phones and action cameras lie between 50 and 90 degrees across.
_GUESSED_FOV = 60.0
_GAP = 2  # targets for training keep this distance to the frames for validation


@dataclass
class Prepared:
    """What `prepare_frames` has written."""

    output: Path
    read: int
    kept: int
    static: int
    size: tuple[int, int]
    """(height, width)"""
    K: NDArray[np.float64]
    guessed: bool
    """whether K is a guess"""
    train: int
    val: int


def prepare_frames(
    source: str | Path,
    output: str | Path,
    *,
    width: int = 640,
    every: int = 1,
    intrinsics: str | Path | None = None,
    focal: float | None = None,
    fov: float | None = None,
    keep_static: bool = False,
    val_share: float = 0.1,
    quality: int = 92,
    track: Any = lambda frames: frames,
) -> Prepared:
    """Writes frames as JPEG, K.txt in their pixels, and train_files.txt and val_files.txt with the names of targets.

    The folder appears as a whole or not at all. A frame is static if it has hardly moved since the last one kept.
    Validation frames are contiguous blocks, the last share of every 500 frames; the frames within 2 of them belong to
    neither set.

    Args:
        source: a video that PyAV reads, or a folder of images in natural order.
        output: the folder to write, which must not exist.
        width: of the written frames; the height keeps the aspect ratio. Frames are never enlarged.
        every: keep every n-th frame of the source.
        intrinsics: file of the 3x3 camera matrix in pixels of the source. Without it, the principal point is the
            centre and the focal length is one of:
        focal: in pixels of the source,
        fov: from the horizontal field of view in degrees; 60 is assumed, and said to be a guess, if nothing is given.
        keep_static: keep static frames.
        val_share: share of frames for validation.
        quality: of the JPEG files.
        track: may wrap the iterator of frames in a progress display.

    Raises:
        ValueError: an argument is out of range, two say what the camera is, or no frame is left to train on.
        FileExistsError: the output exists.
        DataError: the source cannot be read, changes its size, or has fewer than 3 frames that move.
    """
    source, output = Path(source), Path(output)
    if width < 32 or every < 1 or not 0 <= val_share < 1 or not 1 <= quality <= 100:
        raise ValueError(
            "width, every, val_share, quality: expected at least 32, at least 1, 0 <= share < 1 and 1..100, got "
            f"{width}, {every}, {val_share} and {quality}"
        )
    if sum(value is not None for value in (intrinsics, focal, fov)) > 1:
        raise ValueError("intrinsics, focal, fov: expected one of them at most")
    if focal is not None and not (math.isfinite(focal) and focal > 0):
        raise ValueError(f"focal: expected a positive number of pixels, got {focal}")
    if fov is not None and not 0 < fov < 180:
        raise ValueError(f"fov: expected degrees between 0 and 180, got {fov}")
    K = read_intrinsics(intrinsics) if intrinsics is not None else None
    if output.exists():
        raise FileExistsError(f"{output}: exists already; expected a folder to be made")
    with making_folder(output) as folder:
        return _write(source, folder, output, width, every, keep_static, val_share, quality, track, K, focal, fov)


def _write(
    source: Path,
    folder: Path,
    output: Path,
    width: int,
    every: int,
    keep_static: bool,
    val_share: float,
    quality: int,
    track: Any,
    K: NDArray[np.float64] | None,
    focal: float | None,
    fov: float | None,
) -> Prepared:
    from PIL import Image

    read, static = 0, 0
    names: list[str] = []
    last: NDArray[np.float32] | None = None
    size = small = (0, 0)
    for number, image in enumerate(track(_frames(source))):
        if number % every:
            continue
        if not read:
            size = image.shape[:2]
            scale = min(width / size[1], 1.0)
            small = max(round(size[0] * scale), 2), round(size[1] * scale)
        elif image.shape[:2] != size:
            raise DataError(f"{source}: frame {number} is {image.shape[:2]}, expected the size of the first, {size}")
        read += 1
        if not keep_static:
            grey = thumbnail(image)
            motion = None if last is None else image_motion(last, grey)
            # Without a match (a cut, or nothing to match) a frame counts as moved, unless it is the same.
            still = last is not None and (motion < STATIC if motion is not None else bool((last == grey).all()))
            if still:
                static += 1
                continue
            last = grey
        names.append(f"{number:06d}.jpg")
        Image.fromarray(resize_image(image, *small)).save(folder / names[-1], quality=quality, subsampling=0)
    if len(names) < 3:
        raise DataError(f"{source}: expected at least 3 frames that move, got {len(names)} of {read} read")
    guessed = K is None and focal is None and fov is None
    if K is None:
        angle = fov if fov is not None else _GUESSED_FOV
        f = focal if focal is not None else size[1] / 2 / math.tan(math.radians(angle) / 2)
        K = np.array([[f, 0, (size[1] - 1) / 2], [0, f, (size[0] - 1) / 2], [0, 0, 1]])
    scaled = scale_intrinsics(torch.from_numpy(K), small[1] / size[1], small[0] / size[0]).numpy()
    comment = f"A GUESS: {_GUESSED_FOV:g} degrees across. Calibrate the camera." if guessed else ""
    np.savetxt(folder / "K.txt", scaled, "%.9g", header=comment)
    train, val = split_blocks(len(names), val_share)
    if not set(train) & set(range(1, len(names) - 1)):  # the first and the last frame lack a neighbour
        raise ValueError(
            f"val_share, --val: expected a share that leaves frames to train on, got {val_share:g} of {len(names)} "
            "frames"
        )
    for name, rows in (("train", train), ("val", val)):
        (folder / f"{name}_files.txt").write_text("".join(f"{names[row]}\n" for row in rows))
    return Prepared(output, read, len(names), static, small, scaled, guessed, len(train), len(val))


def split_blocks(count: int, share: float, *, period: int = 500) -> tuple[list[int], list[int]]:
    """Frames for training and for validation out of `count`: a block of validation ends every `period` frames."""
    val: set[int] = set()
    edges = np.linspace(0, count, max(round(count / period), 1) + 1).astype(int)
    for start, stop in pairwise(edges.tolist()):
        val |= set(range(stop - round((stop - start) * share), stop))
    near = {frame + step for frame in val for step in range(-_GAP, _GAP + 1)}
    return [frame for frame in range(count) if frame not in near], sorted(val)


def _frames(source: Path) -> Iterator[NDArray[np.uint8]]:
    if source.is_dir():
        paths = list_clip(source)
        return (read_image(path, upright=True) for path in paths)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such video or folder")
    return read_video(source)


def read_video(path: str | Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, RGB (h,w,3), upright as its metadata say. DataError if it cannot be decoded."""
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: expected a video, got a file without pictures")
            for frame in container.decode(video=0):
                yield upright_frame(frame)
    except av.error.FFmpegError as error:
        raise DataError(f"{path}: cannot be read as a video ({error})") from error

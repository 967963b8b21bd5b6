"""Folders of video frames with given intrinsics, and poses and depth where somebody has them."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mdepth_fast.data.samples import (
    DataError,
    DepthEncoding,
    Sample,
    SourceName,
    check_size,
    check_sources,
    list_clip,
    make_sample,
    open_image,
    read_depth,
    read_image,
    read_matrices,
)
from mdepth_fast.data.trajectory import Trajectory

__all__ = ["FrameFolder", "read_intrinsics"]

PathLike = str | Path


class FrameFolder(Dataset[Sample]):
    """Frames in natural order of their names (frame2 before frame10), one folder per clip.

    folders: one folder or several; sources never cross from one clip to another. Every frame that has all its
    sources (frame offsets) is a target.
    K: a text file or an array in a form of `read_intrinsics`, in pixels of the frames as stored; with `normalized` as
    fractions of their width and height (cx = 0.5 is the middle of the image). None: not known, NaN in every sample; a
    pose network does without. K_size: (height, width) of the images that K is for, by default those of the first clip;
    for resized copies it is scaled, and an image of another shape is a `DataError`.
    poses: a text file per clip, row i camera-to-world of frame i, in a format of `Trajectory.read`. Then T is known and
    the attribute `sources` says "known". depth: a folder per clip of 16-bit PNGs named like the frames, value /
    `depth_units_per_metre` in metres, 0 = none; read with `evaluation=True`. split: a file with the names of the frames
    that are targets, one per line; None takes every frame. encoding, invalid_value: of the depth, see `read_depth`;
    white_level: of the frames, see `read_image`. check_sizes: look at the headers of all files at once, and refuse
    a clip of frames of several sizes; without, reading a sample of them is the `DataError`.
    """

    def __init__(
        self,
        folders: PathLike | Sequence[PathLike],
        K: PathLike | Sequence[Any] | NDArray[Any] | None,
        height: int = 192,
        width: int = 640,
        *,
        sources: tuple[SourceName, ...] = (-1, 1),
        normalized: bool = False,
        poses: PathLike | Sequence[PathLike] | None = None,
        depth: PathLike | Sequence[PathLike] | None = None,
        depth_units_per_metre: float = 1000.0,
        evaluation: bool = False,
        split: PathLike | None = None,
        encoding: DepthEncoding = "metres",
        invalid_value: float | None = None,
        white_level: float | None = None,
        K_size: tuple[int, int] | None = None,
        check_sizes: bool = True,
    ) -> None:
        self._size = check_size(height, width)
        offsets = check_sources(sources, ())
        self._offsets = [offset for offset in offsets if isinstance(offset, int)]
        self.sources: tuple[SourceName, ...] = tuple("known" for _ in offsets) if poses is not None else offsets
        self._K, self._normalized = read_intrinsics(K), normalized
        self._evaluation, self._units = evaluation, depth_units_per_metre
        self._read_depth = partial(read_depth, encoding=encoding, invalid_value=invalid_value)
        self._read_image = partial(read_image, white_level=white_level)
        if not depth_units_per_metre > 0:
            raise ValueError(f"depth_units_per_metre: expected a positive number, got {depth_units_per_metre}")
        if evaluation and depth is None:
            raise ValueError("depth: expected the folder of the ground truth, as evaluation=True, got None")

        clips = _per_clip(folders)
        self._frames: list[list[Path]] = []
        self._poses: list[NDArray[np.float64]] = []
        self._depth: list[Path] = _per_clip(depth, len(clips), "depth")
        self._targets: list[tuple[int, int]] = []
        pose_files = _per_clip(poses, len(clips), "poses")
        for clip, folder in enumerate(clips):
            frames = list_clip(folder)
            if check_sizes and self._offsets:  # a frame alone may have any size
                _check_one_size(frames)
            self._frames.append(frames)
            if pose_files:
                self._poses.append(_read_poses(pose_files[clip], len(frames)))
            inside = range(len(frames))
            self._targets += [(clip, i) for i in inside if all(i + offset in inside for offset in self._offsets)]
        self._K_size = None if K is None or normalized else K_size or _size_of(self._frames)
        if self._K_size and K_size is None and self._K[:2].max() < 10 < max(self._K_size):
            raise ValueError(
                f"K: expected pixels of {self._K_size[1]}x{self._K_size[0]} (width x height), got "
                f"{self._K[:2].tolist()}, which look like fractions of it: give normalized=True, "
                "--data.intrinsics_normalized true"
            )
        if split is not None:
            chosen = self._chosen(Path(split))
            self._targets = [target for target in self._targets if target in chosen]
        if not self._targets:
            raise ValueError(f"sources: no frame of {', '.join(map(str, clips))} has all of {offsets}")

    def _chosen(self, split: Path) -> set[tuple[int, int]]:
        """Clip and position of the frames that a split file names."""
        try:
            lines = split.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{split}: cannot be read as a split file ({error})") from error
        # With several clips a name may need its folder.
        places: dict[str, list[tuple[int, int]]] = {}
        for clip, frames in enumerate(self._frames):
            for position, path in enumerate(frames):
                for name in {path.name, f"{path.parent.name}/{path.name}"}:
                    places.setdefault(name, []).append((clip, position))
        chosen = set()
        for number, line in enumerate(lines, 1):
            if name := line.strip():
                found = places.get(name, [])
                if len(found) != 1:
                    what = "no frame" if not found else f"{len(found)} frames"
                    raise DataError(f"{split}, line {number}: expected the name of one frame, got {name!r}: {what}")
                chosen.add(found[0])
        return chosen

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def targets(self) -> list[tuple[int, int]]:
        """Clip and position in the clip of every sample's target."""
        return list(self._targets)

    def __getitem__(self, index: int) -> Sample:
        clip, position = self._targets[index]
        frames = self._frames[clip]
        target = self._read_image(frames[position])
        positions = [position + offset for offset in self._offsets]
        images = [self._read_image(frames[i]) for i in positions]
        for i, image in zip(positions, images):
            if image.shape != target.shape:
                raise DataError(f"{frames[i]}: expected the size of {frames[position].name}, got {image.shape[:2]}")
        height, width = target.shape[:2]
        K = self._K.copy()
        if self._K_size and self._K_size != (height, width):
            of_height, of_width = self._K_size
            # It holds for a resized copy, not for a cropped one.
            if abs(height * of_width / (width * of_height) - 1) > _SAME_SHAPE:
                raise DataError(
                    f"{frames[position]}: K is for images of {of_width}x{of_height} (width x height) and holds for "
                    f"resized copies, got {width}x{height}; give each camera its own run, or K_size"
                )
        if self._normalized:
            K[0] *= width
            K[1] *= height
            K[:2, 2] -= 0.5  # the middle of an image of w pixels is at (w - 1) / 2: pixel centres lie on integers
        if self._poses:
            poses = self._poses[clip]
            T = [np.linalg.inv(poses[i]) @ poses[position] for i in positions]
        else:
            T = [np.eye(4)] * len(positions)
        depth = None
        if self._evaluation:
            depth = self._read_depth(self._depth[clip] / f"{frames[position].stem}.png", self._units)
        name = f"{frames[position].parent.name}/{frames[position].name}"
        return make_sample(name, target, images, K, [K] * len(images), T, self._size, K_size=self._K_size, depth=depth)


_SAME_SHAPE = 0.02  # of width / height


def _size_of(clips: list[list[Path]]) -> tuple[int, int] | None:
    """(height, width) of the first frame that can be read; reading tells what is wrong with the others."""
    for path in (path for frames in clips for path in frames):
        try:
            if path.suffix == ".npy":
                return None
            with open_image(path) as image:
                return int(image.height), int(image.width)
        except DataError:
            continue
    return None


def _check_one_size(frames: list[Path]) -> None:
    """DataError for the first frame of a clip of another size than most have, by the headers of the files."""
    sizes: dict[Path, tuple[int, int]] = {}
    for path in frames:
        with suppress(DataError), open_image(path) as image:  # what cannot be read is told, or left out, on reading
            sizes[path] = image.size
    counts = Counter(sizes.values())
    if len(counts) > 1:
        (width, height), number = counts.most_common(1)[0]
        path, (odd_width, odd_height) = next(item for item in sizes.items() if item[1] != (width, height))
        raise DataError(
            f"{path}: expected the size of the other frames of its clip, {width}x{height} (width x height; {number} of "
            f"{len(sizes)}), got {odd_width}x{odd_height}"
        )


def _per_clip(paths: PathLike | Sequence[PathLike] | None, clips: int | None = None, name: str = "") -> list[Path]:
    if paths is None:
        return []
    listed = [Path(paths)] if isinstance(paths, (str, Path)) else [Path(path) for path in paths]
    if clips is None and not listed:
        raise ValueError("folders: expected at least one, got none")
    if clips is not None and len(listed) != clips:
        raise ValueError(f"{name}: expected one for each of the {clips} folders, got {len(listed)}")
    return listed


def read_intrinsics(K: PathLike | Sequence[Any] | NDArray[Any] | None) -> NDArray[np.float64]:
    """A camera matrix (3,3).

    K is an array or a text file: 3x3 numbers, the nine of them in a line, `fx fy cx cy`, or a 3x4 or 4x4 matrix with
    the camera at the origin. None: not known, NaN.
    """
    if K is None:
        return np.full((3, 3), np.nan)
    from_file = isinstance(K, (str, Path))
    matrix = read_matrices(K, (3, 4, 9)) if isinstance(K, (str, Path)) else np.array(K, dtype=np.float64)
    where, error = (str(K), DataError) if from_file else ("K", ValueError)
    shape = matrix.shape
    if shape in ((4,), (1, 4)):
        fx, fy, cx, cy = matrix.flatten()
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    elif shape in ((3, 3), (9,), (1, 9)):
        matrix = matrix.reshape(3, 3)
    elif (
        shape in ((3, 4), (4, 4)) and not matrix[:3, 3].any() and np.array_equal(matrix[3:], np.eye(4)[3 : len(matrix)])
    ):
        matrix = matrix[:3, :3]
    else:
        raise error(
            f"{where}: expected 3x3 numbers, nine in a line, fx fy cx cy, or 3x4 or 4x4 with a last column of zeros, "
            f"got {'x'.join(map(str, shape))}"
        )
    plausible = np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0
    if not plausible or matrix[1, 0] != 0 or not np.array_equal(matrix[2], [0, 0, 1]):
        raise error(f"{where}: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0, got {matrix.tolist()}")
    return matrix


def _read_poses(path: Path, frames: int) -> NDArray[np.float64]:
    trajectory = Trajectory.read(path)
    if len(trajectory) != frames:
        raise DataError(f"{path}: expected a pose for each of the {frames} frames, got {len(trajectory)}")
    return trajectory.poses

"""Trajectories of a camera: KITTI odometry poses, 4x4 matrices, and TUM files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.samples import DataError, read_rows
from mdepth_fast.files import replacing

__all__ = ["Trajectory"]

Array = NDArray[np.float64]

# By the numbers in a line, which differ.
_FORMATS = {12: "kitti", 16: "matrix", 8: "tum"}
_TOLERANCE = 1e-2  # of |R R^T - I| and of a quaternion's norm: files with few digits pass, what is no rotation does not


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Camera-to-world poses (N,4,4), N >= 1, with timestamps (N,) that increase.

    Rotations may be off by what few digits in a file explain; the nearest rotations take their place. timed: whether
    the timestamps are seconds; otherwise they are frame numbers. ValueError for anything that is no trajectory.
    """

    timestamps: Array
    poses: Array
    timed: bool = False

    def __post_init__(self) -> None:
        timestamps, poses = (np.array(values, dtype=np.float64) for values in (self.timestamps, self.poses))
        if poses.shape[1:] != (4, 4) or not len(poses):
            raise ValueError(f"poses: expected (N, 4, 4) with N of at least 1, got {poses.shape}")
        if timestamps.shape != poses.shape[:1]:
            raise ValueError(f"timestamps: expected ({len(poses)},), one for each pose, got {timestamps.shape}")
        _check(timestamps, poses, lambda index, text: ValueError(f"pose {index + 1} {text}"))
        u, _, v = np.linalg.svd(poses[:, :3, :3])
        poses[:, :3, :3] = u @ v
        object.__setattr__(self, "timestamps", timestamps)
        object.__setattr__(self, "poses", poses)

    def __len__(self) -> int:
        return len(self.poses)

    def __getitem__(self, rows: slice | NDArray[Any] | list[int]) -> "Trajectory":
        """Some of the poses, in ascending order."""
        return Trajectory(self.timestamps[rows], self.poses[rows], self.timed)

    @property
    def positions(self) -> Array:
        """Camera centres in the world, (N,3)."""
        return self.poses[:, :3, 3]

    @property
    def length(self) -> float:
        """Length of the path through the camera centres, in the unit of the poses."""
        return float(np.linalg.norm(np.diff(self.positions, axis=0), axis=1).sum())

    def from_start(self) -> "Trajectory":
        """The same motion in the coordinates of the first camera."""
        return Trajectory(self.timestamps, _inverse(self.poses[0]) @ self.poses, self.timed)

    @staticmethod
    def read(path: str | Path) -> "Trajectory":
        """Reads a file of camera-to-world poses, one per line; the numbers in a line say the format.

        12: KITTI odometry, a 3x4 matrix row by row. 16: a 4x4 matrix row by row. 8: TUM, timestamp in seconds,
        translation, quaternion x y z w. Without timestamps, row i is frame i. Lines may have `#` comments.

        Raises:
            DataError: naming file and line: a number is missing or not finite, a matrix is not rigid, a quaternion is
                not of norm 1, or a timestamp does not increase.
        """
        lines, rows = read_rows(path, tuple(_FORMATS))
        poses = np.tile(np.eye(4), (len(rows), 1, 1))
        timestamps = np.arange(len(rows), dtype=np.float64)
        kind = _FORMATS[rows.shape[1]]

        def fault(index: int, text: str) -> DataError:
            return DataError(f"{path}, line {lines[index]}: pose {index + 1} {text}")

        if kind == "tum":
            from scipy.spatial.transform import Rotation

            norms = np.linalg.norm(rows[:, 4:], axis=1)
            wrong = np.flatnonzero(np.abs(norms - 1) > _TOLERANCE)
            if len(wrong):
                raise fault(wrong[0], f"has a quaternion of norm {norms[wrong[0]]:.4g}, expected 1")
            timestamps = rows[:, 0]
            poses[:, :3, :3] = Rotation.from_quat(rows[:, 4:]).as_matrix()
            poses[:, :3, 3] = rows[:, 1:4]
        else:
            matrices = rows.reshape(len(rows), -1, 4)
            poses[:, : matrices.shape[1]] = matrices
        _check(timestamps, poses, fault)
        return Trajectory(timestamps, poses, kind == "tum")

    def write_kitti(self, path: str | Path) -> None:
        """Writes a line of 12 numbers per pose, the 3x4 matrix row by row. The format has no timestamps."""
        self._write(path, self.poses[:, :3].reshape(-1, 12), "%.12g")

    def write_tum(self, path: str | Path) -> None:
        """Writes a line `t tx ty tz qx qy qz qw` per pose, qw >= 0."""
        from scipy.spatial.transform import Rotation

        quaternions = Rotation.from_matrix(self.poses[:, :3, :3]).as_quat(canonical=True)
        self._write(path, np.hstack([self.timestamps[:, None], self.positions, quaternions]), "%.17g", "%.12g")

    @staticmethod
    def _write(path: str | Path, rows: Array, *formats: str) -> None:
        with replacing(path) as temporary:
            np.savetxt(temporary, rows, [*formats, *formats[-1:] * (rows.shape[1] - len(formats))])


def _inverse(pose: Array) -> Array:
    inverse = np.eye(4)
    inverse[:3, :3] = pose[:3, :3].T
    inverse[:3, 3] = -pose[:3, :3].T @ pose[:3, 3]
    return inverse


def _check(timestamps: Array, poses: Array, fault: Callable[[int, str], Exception]) -> None:
    """Raises the fault of the first pose that is none."""
    finite = np.isfinite(poses).all((1, 2)) & np.isfinite(timestamps)
    rotations = np.where(finite[:, None, None], poses[:, :3, :3], np.eye(3))
    off = np.abs(rotations @ rotations.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    determinants = np.linalg.det(rotations)
    rigid = (off <= _TOLERANCE) & (determinants > 0)
    affine = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1) <= 1e-6
    ordered = np.append(True, np.diff(timestamps) > 0)
    for index in np.flatnonzero(~(finite & rigid & affine & ordered))[:1]:
        if not finite[index]:
            raise fault(index, "is not finite")
        if not affine[index]:
            raise fault(index, f"ends in the row {poses[index, 3].tolist()}, expected 0 0 0 1")
        if off[index] <= _TOLERANCE and not rigid[index]:
            text = f"its determinant is {determinants[index]:.2g}, a reflection's, expected 1"
            raise fault(index, f"is not a rotation with a translation: {text}")
        if not rigid[index]:
            raise fault(index, f"is not a rotation with a translation: |R R^T - I| is {off[index]:.2g}")
        raise fault(index, f"has timestamp {timestamps[index]:.17g}, not after {timestamps[index - 1]:.17g}")

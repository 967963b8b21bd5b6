"""The KITTI odometry benchmark (Geiger et al., CVPR 2012): 22 sequences of stereo video, poses for the first eleven."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.kitti import CAMERA, KittiCalibration, KittiRaw, _Frame, read_numbers
from mdepth_fast.data.samples import DataError, Sample, SourceName, list_images
from mdepth_fast.data.trajectory import Trajectory

__all__ = ["TRAINING_SEQUENCES", "KittiOdometry", "list_odometry_frames"]

TRAINING_SEQUENCES = tuple(range(9))
"""The sequences that monocular odometry is trained on; 09 and 10 are its test."""
_FOLDERS = {"l": "image_2", "r": "image_3"}


class KittiOdometry(KittiRaw):
    """Frames of the odometry benchmark that a split lists.

    root: the folder that holds `sequences/00/image_2/000000.png` (left) and `image_3` (right), PNG or JPEG at their own
    size, `sequences/00/calib.txt` and, for `poses`, `poses/00.txt`. split: a file of lines "sequence index side", or
    the lines themselves; `list_odometry_frames` makes some. poses: the frame offsets' motion is read from the files,
    and the attribute `sources` says "known" in their place.

    Everything else is as in `KittiRaw`. There is no ground-truth depth.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | Path | Iterable[str],
        height: int = 192,
        width: int = 640,
        *,
        sources: tuple[SourceName, ...] = (-1, 1),
        nominal_K: bool = False,
        stereo_baseline: float | None = None,
        poses: bool = False,
        skip_missing: bool = False,
    ) -> None:
        super().__init__(
            root,
            split,
            height,
            width,
            sources=sources,
            nominal_K=nominal_K,
            stereo_baseline=stereo_baseline,
            skip_missing=skip_missing,
        )
        self._poses: dict[str, NDArray[np.float64]] = {}
        if poses:
            self.sources = tuple("known" if isinstance(source, int) else source for source in sources)
            self._poses = {sequence: self._read_poses(sequence) for sequence in self.calibration}

    _digits = 6

    @staticmethod
    def _parse(line: str, where: str) -> tuple[str, int, str]:
        words = line.split()
        if len(words) != 3 or not (words[0].isdecimal() and words[1].isdecimal()) or words[2] not in CAMERA:
            raise DataError(f"{where}: expected 'sequence index l|r', got {line.strip()!r}")
        return f"{int(words[0]):02d}", int(words[1]), words[2]

    def _images(self, drive: str, side: str) -> Path:
        return self._root / "sequences" / drive / _FOLDERS[side]

    def _calibrate(self, rig: str) -> KittiCalibration:
        path = self._root / "sequences" / rig / "calib.txt"
        P = {side: read_numbers(path, f"P{number}", 12).reshape(3, 4) for side, number in (("l", 2), ("r", 3))}
        return KittiCalibration(P, np.eye(3), np.eye(4), {})

    def _read_poses(self, sequence: str) -> NDArray[np.float64]:
        """Camera 0 to world, (N,4,4)."""
        path = self._root / "poses" / f"{sequence}.txt"
        poses = Trajectory.read(path).poses
        frames = [frame for frame in self._frames if frame.drive == sequence]
        reach = max([0, *(source for source in self._wanted if isinstance(source, int))])
        if len(poses) <= (last := max(frame.index for frame in frames) + reach):
            raise DataError(f"{path}: expected a pose for frame {last}, got {len(poses)} lines")
        return poses

    def _motion(self, frame: _Frame, offset: int) -> NDArray[np.float64]:
        if not self._poses:
            return np.eye(4)
        # The poses are those of camera 0: K^-1 times the last column of P places its points in the camera at hand.
        calibration, poses = self.calibration[frame.drive], self._poses[frame.drive]
        shift = np.eye(4)
        shift[:3, 3] = np.linalg.solve(calibration.K(frame.side), calibration.P[frame.side][:, 3])
        motion = np.linalg.inv(poses[frame.index + offset]) @ poses[frame.index]
        T: NDArray[np.float64] = shift @ motion @ np.linalg.inv(shift)
        return T

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        frame = self._frames[index]
        # calib.txt has no size: only the position of the principal point tells that it is not for these images.
        cx, cy = sample["K"][:2, 2] / sample["K"].new_tensor(self._size[::-1])
        if not (0.4 < cx < 0.6 and 0.3 < cy < 0.7):
            raise DataError(
                f"{frame.target}: expected the size that calib.txt is for, but its principal point is not near the "
                "middle of the image: resized images need nominal_K"
            )
        return sample


def list_odometry_frames(
    root: str | Path,
    *,
    sequences: Sequence[int] = TRAINING_SEQUENCES,
    offsets: tuple[int, ...] = (-1, 1),
    sides: tuple[str, ...] = ("l", "r"),
    stereo: bool = False,
) -> list[str]:
    """Split lines "sequence index side" of the frames of some sequences that have their neighbours (and, with `stereo`,
    the other camera's view). DataError if a sequence is missing."""
    lines = []
    for sequence in sequences:
        folder = Path(root) / "sequences" / f"{sequence:02d}"
        present: dict[str, Any] = {
            side: {int(path.stem) for path in list_images(folder / name) if path.stem.isdecimal()}
            for side, name in _FOLDERS.items()
            if side in sides or stereo
        }
        for side in sides:
            both = present["l"] & present["r"] if stereo else present[side]
            lines += [
                f"{sequence} {index} {side}"
                for index in sorted(both)
                if all(index + offset in present[side] for offset in offsets)
            ]
    return lines

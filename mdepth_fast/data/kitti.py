"""KITTI raw recordings: frames, calibration, LiDAR and annotated ground truth (Geiger et al., IJRR 2013)."""

import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mdepth_fast.data.samples import (
    DataError,
    Sample,
    SourceName,
    check_size,
    check_sources,
    clean_depth,
    list_images,
    make_sample,
    read_depth,
    read_image,
)
from mdepth_fast.weights.numpy_pickle import read_numpy_pickle
from mdepth_fast.weights.read import check_archive

__all__ = [
    "KittiCalibration",
    "KittiGroundTruth",
    "KittiRaw",
    "list_frames",
    "project_lidar",
    "read_ground_truth",
    "read_lidar",
]

CAMERA = {"l": "image_02", "r": "image_03"}
_OTHER = {"l": "r", "r": "l"}
_GROUND_TRUTH = ("lidar", "lidar_x", "annotated")
# (height, width) to which KITTI is resized ahead of training, though it changes the shape.
_RESIZED = ((320, 1024), (192, 640), (256, 512), (128, 416))
# The intrinsics that Monodepth2 uses for every drive, as fractions of width and height.
_NOMINAL_K = np.array([[0.58, 0, 0.5], [0, 1.92, 0.5], [0, 0, 1]])


@dataclass(frozen=True)
class KittiCalibration:
    """Calibration of one date; sides are "l" (image_02) and "r" (image_03), rectified.

    P: side to 3x4 projection of rectified camera 0; R_rect: (3,3); velo_to_cam: (4,4) LiDAR to unrectified camera 0;
    size: side to (height, width).
    """

    P: dict[str, NDArray[np.float64]]
    R_rect: NDArray[np.float64]
    velo_to_cam: NDArray[np.float64]
    size: dict[str, tuple[int, int]]

    @staticmethod
    def read(folder: Path | str) -> "KittiCalibration":
        """Read `calib_cam_to_cam.txt` and `calib_velo_to_cam.txt` of a date's folder."""
        cameras, velodyne = (_read_calibration(Path(folder) / f"calib_{name}_to_cam.txt") for name in ("cam", "velo"))
        velo_to_cam = np.eye(4)
        velo_to_cam[:3, :3] = velodyne.numbers("R", 9).reshape(3, 3)
        velo_to_cam[:3, 3] = velodyne.numbers("T", 3)
        P, size = {}, {}
        for side, number in (("l", "02"), ("r", "03")):
            P[side] = cameras.numbers(f"P_rect_{number}", 12).reshape(3, 4)
            width, height = cameras.numbers(f"S_rect_{number}", 2)
            size[side] = int(height), int(width)
        return KittiCalibration(P, cameras.numbers("R_rect_00", 9).reshape(3, 3), velo_to_cam, size)

    def K(self, side: str) -> NDArray[np.float64]:
        """Intrinsics (3,3) of the rectified images, in pixels of `size`."""
        return self.P[side][:, :3]

    def stereo(self, side: str) -> NDArray[np.float64]:
        """Transform (4,4) from the camera of `side` to the other one, metres."""
        # P = K [I | t]: K^-1 times its last column places camera 0's points in the rectified camera.
        here, there = (np.linalg.solve(self.K(s), self.P[s][:, 3]) for s in (side, _OTHER[side]))
        T = np.eye(4)
        T[:3, 3] = there - here
        return T

    def lidar_to_image(self, side: str) -> NDArray[np.float64]:
        """`P_rect R_rect_00 [R|T]`, (3,4): LiDAR point to pixel times depth."""
        R_rect = np.eye(4)
        R_rect[:3, :3] = self.R_rect
        return self.P[side] @ R_rect @ self.velo_to_cam


@dataclass(frozen=True)
class _CalibrationFile:
    path: Path
    values: dict[str, tuple[int, str]]  # key to (line number, text)

    def numbers(self, key: str, count: int) -> NDArray[np.float64]:
        if key not in self.values:
            raise DataError(f"{self.path}: expected a line '{key}: ...', got none")
        line, text = self.values[key]
        try:
            numbers = np.array([float(word) for word in text.split()])
        except ValueError:
            raise DataError(f"{self.path}, line {line}: expected numbers after '{key}:', got {text!r}") from None
        if len(numbers) != count or not np.isfinite(numbers).all():
            raise DataError(f"{self.path}, line {line}: expected {count} numbers after '{key}:', got {text!r}")
        return numbers


def _read_calibration(path: Path) -> _CalibrationFile:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as calibration ({error})") from error
    values = {}
    for number, line in enumerate(lines, 1):
        key, colon, text = line.partition(":")
        if line.strip() and not colon:
            raise DataError(f"{path}, line {number}: expected 'key: numbers', got {line.strip()!r}")
        values[key.strip()] = (number, text.strip())
    return _CalibrationFile(path, values)


def read_numbers(path: Path, key: str, count: int) -> NDArray[np.float64]:
    """The numbers after `key:` in a calibration file. `DataError` names file and line."""
    return _read_calibration(path).numbers(key, count)


def read_lidar(path: Path | str) -> NDArray[np.float32]:
    """Velodyne scan as (n, 4) float32: x forward, y left, z up, in metres, and reflectance."""
    try:
        values = np.fromfile(path, dtype="<f4")
        size = Path(path).stat().st_size
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a LiDAR scan ({error.strerror})") from error
    if size == 0 or size % 16:
        raise DataError(f"{path}: expected points of 16 bytes, got {size} bytes: truncated")
    return values.reshape(-1, 4)


def project_lidar(
    points: NDArray[Any],
    projection: NDArray[np.float64],
    size: tuple[int, int],
    *,
    depth_from: str = "z",
    one_based: bool = False,
) -> NDArray[np.float32]:
    """LiDAR points (n, >=3) to a depth map (h, w), metres, 0 = none; the nearest point wins a pixel.

    projection: (3,4), see `KittiCalibration.lidar_to_image`. depth_from: "z", depth along the camera's axis, or "x",
    the LiDAR's forward coordinate, which the historic Eigen ground truth stores. one_based: round(u) - 1 instead of
    round(u), the historic pixel convention.
    """
    if depth_from not in ("x", "z"):
        raise ValueError(f'depth_from: expected "x" or "z", got {depth_from!r}')
    height, width = size
    xyz = points[points[:, 0] >= 0, :3].astype(np.float64)
    uvw = xyz @ projection[:, :3].T + projection[:, 3]
    front = uvw[:, 2] > 0
    xyz, uvw = xyz[front], uvw[front]
    pixels = np.round(uvw[:, :2] / uvw[:, 2:]) - int(one_based)
    depth = uvw[:, 2] if depth_from == "z" else xyz[:, 0]
    inside = (pixels >= 0).all(1) & (pixels[:, 0] < width) & (pixels[:, 1] < height) & (depth > 0)
    u, v = pixels[inside].astype(np.int64).T
    nearest = np.full(height * width, np.inf)
    np.minimum.at(nearest, v * width + u, depth[inside])
    return np.where(np.isinf(nearest), 0, nearest).astype(np.float32).reshape(height, width)


@dataclass(frozen=True)
class _Frame:
    drive: str  # "2011_09_26/2011_09_26_drive_0001_sync"
    index: int
    side: str
    target: Path
    sources: list[Path]
    truth: Path | None


class Tree:
    """Which frames a tree holds, each folder listed once: a split has tens of thousands of lines."""

    def __init__(self) -> None:
        self._listings: dict[Path, dict[int, Path]] = {}
        self._looked: dict[Path, list[Path]] = {}

    def find(self, folder: Path, index: int, suffix: str = ".png", digits: int = 10) -> Path:
        """The file of that frame index; where there is none, the name that is missing."""
        if folder not in self._listings:
            files: dict[int, Path] = {}
            if folder.is_dir():
                # A png wins over a jpg.
                for path in sorted(folder.iterdir(), key=lambda path: (path.suffix == suffix, path.name)):
                    if path.stem.isdecimal():
                        files[int(path.stem)] = path
            self._listings[folder] = files
        found = self._listings[folder].get(index)
        return found if found is not None else folder / f"{index:0{digits}d}{suffix}"

    def find_annotated(self, root: Path, drive: str, index: int, side: str) -> Path:
        """That frame's annotated depth: in the official tree, which splits the drives into train/ and val/; in a folder
        of the drives, one of these two or both merged, as BTS has them; or where Monodepth2 expects it, in the drive of
        the raw data."""
        within = Path("proj_depth") / "groundtruth" / CAMERA[side]
        name = drive.split("/")[-1]
        folders = [root / "train" / name, root / "val" / name, root / name, root / drive]
        candidates = [self.find(folder / within, index) for folder in folders]
        found = next(filter(self.has, candidates), candidates[0])
        if not self.has(found):
            self._looked[found] = candidates
        return found

    def name(self, missing: Path) -> str:
        """A file that is not there, and where else it was looked for."""
        others = self._looked.get(missing, [])[1:]
        return f"{missing}{''.join(f' or {path}' for path in others)}"

    def has(self, path: Path) -> bool:
        return path in self._listings[path.parent].values()


class KittiRaw(Dataset[Sample]):
    """Frames of KITTI raw that a split lists.

    root: the folder of the dates (`2011_09_26/...`), images PNG or JPEG. split: a file of the published form, a line
    "folder index side" for each target (side l or r), or the lines themselves; `list_frames` makes some.
    sources: frame offsets (same camera) and "stereo" (same moment, the other camera, T from the calibration).
    Use `sources=()` to evaluate.

    K is the drive's own, from the calibration; `nominal_K` takes Monodepth2's for all drives (0.58 w, 1.92 h, centre).
    `stereo_baseline` replaces the calibrated transform, in metres, by a shift of that many units along x: Monodepth2
    trains with 0.1, its depths are then in units of 5.4 m.
    With `evaluation=True` samples have "depth" by `ground_truth`: "lidar" (camera z), "lidar_x" (the historic Eigen
    ground truth: LiDAR's forward coordinate, pixels rounded minus one), or "annotated", the PNGs of the depth
    benchmark under `annotated_root` (with `train/` and `val/`).

    Images may have been resized, as a whole: K is scaled along each axis. Of other sizes than 1024x320, 640x192,
    512x256 and 416x128, width / height may differ from the calibrated one by the share `aspect_tolerance`: a
    cropped image is a `DataError`.

    A line whose target, sources or ground truth are not on the disk is a `DataError` naming split, line and path;
    `skip_missing` leaves it out, counts it in `missing` and warns once.
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
        evaluation: bool = False,
        ground_truth: str = "lidar",
        annotated_root: str | Path | None = None,
        skip_missing: bool = False,
        aspect_tolerance: float = 0.02,
    ) -> None:
        self._aspect_tolerance = aspect_tolerance
        self._size = check_size(height, width)
        self._wanted = check_sources(sources, ("stereo",))
        self.sources: tuple[SourceName, ...] = self._wanted
        if ground_truth not in _GROUND_TRUTH:
            raise ValueError(f"ground_truth: expected one of {_GROUND_TRUTH}, got {ground_truth!r}")
        if stereo_baseline is not None and not stereo_baseline > 0:
            raise ValueError(f"stereo_baseline: expected a positive number, got {stereo_baseline}")
        if evaluation and (ground_truth == "annotated") != (annotated_root is not None):
            raise ValueError(
                f'annotated_root: goes with ground_truth="annotated", got {annotated_root!r} with {ground_truth!r}'
            )
        self._root = Path(root)
        self._nominal_K, self._baseline = nominal_K, stereo_baseline
        self._truth = ground_truth if evaluation else None
        self._annotated_root = Path(annotated_root) if annotated_root is not None else None

        self.missing = 0
        self._frames: list[_Frame] = []
        tree = Tree()
        where, lines = read_split(split)
        first_missing = ""
        for number, line in lines:
            frame, missing = self._locate(self._parse(line, f"{where}, line {number}"), tree)
            if missing is None:
                self._frames.append(frame)
            elif skip_missing:
                self.missing += 1
                first_missing = first_missing or f"{where}, line {number}: {tree.name(missing)}"
            else:
                raise DataError(
                    f"{where}, line {number}: {line.strip()!r} needs {tree.name(missing)}, which does not exist"
                )
        if self.missing:
            warnings.warn(f"left out {self.missing} lines of missing files, first {first_missing}", stacklevel=2)
        if not self._frames:
            raise DataError(f"{where}: no line with all its files under {self._root}")
        self.calibration = {name: self._calibrate(name) for name in sorted({self._rig(f.drive) for f in self._frames})}

    # What a tree of another layout does otherwise.

    _digits = 10
    _needs_images = True

    @staticmethod
    def _parse(line: str, where: str) -> tuple[str, int, str]:
        """Drive, index and side of a line."""
        return parse_line(line, where)

    def _images(self, drive: str, side: str) -> Path:
        return self._root / drive / CAMERA[side] / "data"

    @staticmethod
    def _rig(drive: str) -> str:
        """What shares a calibration: the recordings of a date."""
        return drive.split("/")[0]

    def _calibrate(self, rig: str) -> KittiCalibration:
        return KittiCalibration.read(self._root / rig)

    def _motion(self, frame: _Frame, offset: int) -> NDArray[np.float64]:
        """Transform (4,4) from the target to the frame at an offset, the identity where it is not known."""
        return np.eye(4)

    def _locate(self, line: tuple[str, int, str], tree: Tree) -> tuple[_Frame, Path | None]:
        """The files of a line, and the first of them that is missing."""
        drive, index, side = line
        folder = self._root / drive

        def image(side: str, index: int) -> Path:
            return tree.find(self._images(drive, side), index, digits=self._digits)

        target = image(side, index)
        sources = [
            image(side, index + source) if isinstance(source, int) else image(_OTHER[side], index)
            for source in self._wanted
        ]
        wanted = [target, *sources] if self._needs_images else []
        truth = None
        if self._annotated_root is not None and self._truth:
            truth = tree.find_annotated(self._annotated_root, drive, index, side)
        elif self._truth:
            truth = tree.find(folder / "velodyne_points" / "data", index, ".bin")
        if truth is not None:
            wanted.append(truth)
        missing = next((path for path in wanted if not tree.has(path)), None)
        return _Frame(drive, index, side, target, sources, truth), missing

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Sample:
        frame = self._frames[index]
        calibration = self.calibration[self._rig(frame.drive)]
        side = frame.side
        K: list[NDArray[np.float64]] = []
        T: list[NDArray[np.float64]] = []
        for source in self._wanted:
            moved = isinstance(source, int)
            K.append(calibration.K(side if moved else _OTHER[side]))
            T.append(self._motion(frame, source) if isinstance(source, int) else self._stereo(calibration, side))
        target = read_image(frame.target)
        size = calibration.size.get(side, target.shape[:2])
        # The intrinsics hold for a resized copy, not for a cropped one.
        differs = abs(target.shape[0] * size[1] / (target.shape[1] * size[0]) - 1) > self._aspect_tolerance
        if differs and target.shape[:2] not in _RESIZED:
            raise DataError(
                f"{frame.target}: expected the calibrated size {size} or a resized copy, got {target.shape[:2]}; is it "
                f"cropped? aspect_tolerance, {self._aspect_tolerance:g}, says how far its shape may differ"
            )
        sample = make_sample(
            f"{frame.drive} {frame.index} {side}",
            target,
            [read_image(path) for path in frame.sources],
            calibration.K(side),
            K,
            T,
            self._size,
            K_size=size,
            depth=None if frame.truth is None else self._read_truth(frame),
        )
        if self._nominal_K:
            nominal = sample["K"].new_tensor(_NOMINAL_K)
            nominal[0] *= self._size[1]
            nominal[1] *= self._size[0]
            sample["K"] = nominal
            sample["source_K"] = nominal.repeat(len(self.sources), 1, 1)
        return sample

    def _stereo(self, calibration: KittiCalibration, side: str) -> NDArray[np.float64]:
        if self._baseline is None:
            return calibration.stereo(side)
        T = np.eye(4)
        T[0, 3] = -self._baseline if side == "l" else self._baseline
        return T

    def _read_truth(self, frame: _Frame) -> NDArray[np.float32]:
        assert frame.truth is not None
        if self._truth == "annotated":
            return read_depth(frame.truth)
        historic = self._truth == "lidar_x"
        calibration = self.calibration[self._rig(frame.drive)]
        return project_lidar(
            read_lidar(frame.truth),
            calibration.lidar_to_image(frame.side),
            calibration.size[frame.side],
            depth_from="x" if historic else "z",
            one_based=historic,
        )


class KittiGroundTruth(KittiRaw):
    """Ground truth (h, w) of the frames that a split lists, in metres, 0 = none; their images need not be there.

    The arguments are those of `KittiRaw`. Annotated depth may also lie in the drives, `<drive>/proj_depth/...`, and
    needs no calibration.
    """

    _needs_images = False

    def __init__(
        self,
        root: str | Path,
        split: str | Path | Iterable[str],
        ground_truth: str = "lidar_x",
        annotated_root: str | Path | None = None,
    ) -> None:
        super().__init__(
            root, split, sources=(), evaluation=True, ground_truth=ground_truth, annotated_root=annotated_root
        )

    def _calibrate(self, rig: str) -> KittiCalibration:
        annotated = self._truth == "annotated"
        return KittiCalibration({}, np.eye(3), np.eye(4), {}) if annotated else super()._calibrate(rig)

    def __getitem__(self, index: int) -> NDArray[np.float32]:  # type: ignore[override]
        return self._read_truth(self._frames[index])


def read_split(split: str | Path | Iterable[str]) -> tuple[str, list[tuple[int, str]]]:
    if isinstance(split, (str, Path)):
        where = str(split)
        try:
            lines: Sequence[str] = Path(split).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{split}: cannot be read as a split file ({error})") from error
    else:
        where, lines = "split", list(split)
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise DataError(f"{where}: expected lines 'folder index side', got none")
    return where, numbered


# Not absolute, and no part of it the parent folder.
_DRIVE = re.compile(r"(?!\.\./)[^/]+(/(?!\.\.(/|$))[^/]+)+")


def parse_line(line: str, where: str) -> tuple[str, int, str]:
    words = line.split()
    if len(words) != 3 or not words[1].isdecimal() or words[2] not in CAMERA or not _DRIVE.fullmatch(words[0]):
        raise DataError(f"{where}: expected 'date/drive index l|r', got {line.strip()!r}")
    return words[0], int(words[1]), words[2]


def list_frames(
    root: str | Path, *, offsets: tuple[int, ...] = (-1, 1), sides: tuple[str, ...] = ("l", "r"), stereo: bool = False
) -> list[str]:
    """Split lines "folder index side" of all frames under `root` that have their neighbours (and, with `stereo`, the
    other camera's view)."""
    lines = []
    for drive in sorted(path for path in Path(root).glob("*/*_sync") if path.is_dir()):
        present = {}
        for side, camera in CAMERA.items():
            folder = drive / camera / "data"
            images = list_images(folder) if folder.is_dir() else []
            present[side] = {int(path.stem) for path in images if path.stem.isdecimal()}
        for side in sides:
            for index in sorted(present[side] & present[_OTHER[side]] if stereo else present[side]):
                if all(index + offset in present[side] for offset in offsets):
                    lines.append(f"{drive.parent.name}/{drive.name} {index} {side}")
    return lines


def read_ground_truth(path: str | Path) -> list[NDArray[np.float32]]:
    """The depth maps (h, w) of a `gt_depths.npz`: its key `data`, an array of arrays. `DataError` names the file.

    Metres, 0 = none, which is also what becomes of negative values and those that are not finite. The pickle in the
    file is read without running what it names.
    """
    path = Path(path)
    try:
        check_archive(path, checksums=False)
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory() as folder:
            member = Path(archive.extract("data.npy", folder))
            try:
                stored = np.load(member, allow_pickle=False)
                maps = list(stored if stored.ndim else [stored])
            except ValueError:  # of objects, maps of different sizes
                maps = [np.asarray(one) for one in read_numpy_pickle(member).values()]
    except Exception as error:  # a damaged archive or header can fail in any way
        reason = " ".join(str(error).rpartition("data.npy: ")[2].split()) or type(error).__name__
        raise DataError(f"{path}: cannot be read as ground truth, an .npz with the key data ({reason:.200})") from error
    for index, one in enumerate(maps):
        if one.ndim != 2 or one.dtype.kind != "f":
            raise DataError(f"{path}: expected depth maps (h, w), got {one.dtype} of shape {one.shape} at {index}")
    return [clean_depth(one) for one in maps]

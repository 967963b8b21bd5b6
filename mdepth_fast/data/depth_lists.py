"""Image files paired with depth files: by a list, by KITTI's official tree of annotated depth, or by two folders."""

import re
import warnings
from collections.abc import Iterable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.kitti import CAMERA, Tree, parse_line, read_split
from mdepth_fast.data.samples import (
    Crop,
    DataError,
    DepthDataset,
    DepthEncoding,
    natural_key,
    read_depth,
    read_image,
    within,
)

__all__ = ["DepthList", "KittiDepth", "RgbdFolder"]

_ANNOTATED_PARTS = ("train", "val")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".npy"}


class _Pairs(DepthDataset):
    """Pairs of files; `places` begin the errors about them and say where they were listed."""

    def __init__(
        self,
        names: list[str],
        files: list[tuple[Path, Path]],
        places: list[str],
        units_per_metre: float,
        crop: Crop,
        *,
        encoding: DepthEncoding = "metres",
        invalid_value: float | None = None,
        white_level: float | None = None,
    ) -> None:
        _check_units(units_per_metre)
        # A cache that was made without these choices stays valid.
        chosen: dict[str, Any] = {"encoding": encoding} if encoding != "metres" else {}
        chosen |= {"invalid_value": invalid_value} if invalid_value is not None else {}
        chosen |= {"white_level": white_level} if white_level is not None else {}
        super().__init__(names, crop=crop, units_per_metre=units_per_metre, **chosen)
        self._files, self._places, self._units = files, places, units_per_metre
        self._white_level = white_level
        self._depth = partial(read_depth, encoding=encoding, invalid_value=invalid_value)

    def files(self, index: int) -> tuple[Path, Path]:
        """Image and depth of a sample."""
        return self._files[index]

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        image, depth = self.files(index)
        try:
            return read_image(image, white_level=self._white_level), self._depth(depth, self._units)
        except DataError as error:
            raise DataError(f"{self._places[index]}{error}") from error

    def where(self, index: int) -> str:
        return f"{self._places[index]}{self.files(index)[1]}"


def _check_units(units_per_metre: float) -> None:
    if not units_per_metre > 0:
        raise ValueError(f"units_per_metre: expected a positive number, got {units_per_metre}")


class DepthList(_Pairs):
    """Frames that a list of the BTS form names (arXiv 1907.10326): a line "image depth focal" each, focal optional.

    Paths are relative to `image_root` and `depth_root` (by default the same), with or without a slash in front, or
    absolute and inside of them. An image may have another suffix than the list says. Depth that is not there is also
    looked for under `train/` and `val/` of its root, as the official KITTI tree has them, and in the folder of its
    date, as Monodepth2 has it. A missing file is a `DataError` at once; `skip_missing` leaves the line out, counts it
    in `missing` and warns once.
    A line whose depth is the word None is left out and counted in `without_depth`.
    units_per_metre: of 16-bit depth, 1000 for NYU, 256 for KITTI; a .npy holds metres. encoding, invalid_value: see
    `read_depth`; white_level: see `read_image`.
    """

    def __init__(
        self,
        list_file: str | Path,
        image_root: str | Path,
        depth_root: str | Path | None = None,
        *,
        units_per_metre: float = 1000.0,
        crop: Crop = None,
        encoding: DepthEncoding = "metres",
        invalid_value: float | None = None,
        white_level: float | None = None,
        skip_missing: bool = False,
    ) -> None:
        _check_units(units_per_metre)
        image_root = Path(image_root)
        depth_root = image_root if depth_root is None else Path(depth_root)
        for argument, root in (("image_root", image_root), ("depth_root", depth_root)):
            if not root.is_dir():
                raise DataError(f"{argument}: no such folder: {root}")
        try:
            lines = Path(list_file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{list_file}: cannot be read as a list of frames ({error})") from error
        self.without_depth = self.missing = 0
        first_missing, there = "", _Listings()
        listed, names, files, places = [], [], [], []
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words:
                continue
            place = f"{list_file}, line {number}"
            if len(words) not in (2, 3) or (len(words) == 3 and not _is_number(words[2])):
                raise DataError(f"{place}: expected 'image depth focal', got {line.strip()!r}")
            if words[1] == "None":
                self.without_depth += 1
                continue
            listed.append((place, within(image_root, words[0], place), within(depth_root, words[1], place)))
        for place, image, depth in listed:
            wanted = image_root / image, depth_root / depth
            others = (wanted[0].with_suffix(suffix) for suffix in sorted(_SUFFIXES))
            parts = (depth_root / part / depth for part in (*_ANNOTATED_PARTS, depth[:10]))
            found = [next(filter(there.has, chain([path], rest)), None) for path, rest in zip(wanted, (others, parts))]
            if found[0] is not None and found[1] is not None:
                names.append(image)
                files.append((found[0], found[1]))
                places.append(f"{place}: ")
                continue
            missing = wanted[0] if found[0] is None else wanted[1]
            if not skip_missing:
                raise DataError(f"{place}: {missing}: no such file")
            self.missing += 1
            first_missing = first_missing or f"{place}: {missing}"
        if self.missing:
            warnings.warn(f"left out {self.missing} lines of missing files, first {first_missing}", stacklevel=2)
        if not names:
            raise DataError(f"{list_file}: expected lines 'image depth focal', got none with depth")
        reading: Any = {"encoding": encoding, "invalid_value": invalid_value, "white_level": white_level}
        super().__init__(names, files, places, units_per_metre, crop, **reading)


class _Listings:
    """Which files there are, each folder listed once: a list has tens of thousands of lines."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}

    def has(self, path: Path) -> bool:
        if path.parent not in self._names:
            try:
                self._names[path.parent] = {found.name for found in path.parent.iterdir()}
            except OSError:
                self._names[path.parent] = set()
        return path.name in self._names[path.parent]


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


class KittiDepth(_Pairs):
    """Frames of KITTI raw with the annotated depth of the depth benchmark (Uhrig et al., 3DV 2017).

    root: the raw data, `2011_09_26/2011_09_26_drive_0001_sync/image_02/data/...`, PNG or JPEG.
    annotated_root: the folder with `train/` and `val/`, and in them
    `2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/...`; with a split file also a folder of these drives,
    or that of the raw data with `proj_depth` in its drives.
    split: "train" or "val", all frames of that part of the annotation; a file of lines "date/drive index side"; or the
    lines themselves. sides: cameras of the former two, "l" (image_02) and "r" (image_03).

    A frame without both files is a `DataError`; `skip_missing` leaves it out, counts it in `missing` and warns once.
    """

    def __init__(
        self,
        root: str | Path,
        annotated_root: str | Path,
        split: str | Path | Iterable[str] = "train",
        *,
        sides: tuple[str, ...] = ("l", "r"),
        crop: Crop = None,
        skip_missing: bool = False,
    ) -> None:
        root, annotated_root = Path(root), Path(annotated_root)
        if not sides or not set(sides) <= set(CAMERA):
            raise ValueError(f'sides: expected some of "l", "r", got {sides!r}')
        for argument, folder in (("root", root), ("annotated_root", annotated_root)):
            if not folder.is_dir():
                raise DataError(f"{argument}: no such folder: {folder}")
        if split in _ANNOTATED_PARTS:
            # The part itself may be given as the root.
            part = annotated_root if annotated_root.name == split else annotated_root / str(split)
            if not part.is_dir():
                raise DataError(
                    f"{part}: no such folder; where train/ and val/ are merged, or the depth lies in the drives of the "
                    "raw data, expected a file of lines as the split"
                )
            where, lines = str(part), _annotated_lines(part, sides)
        else:
            where, lines = read_split(split)
        tree = Tree()
        self.missing = 0
        first_missing = ""
        names, files, places = [], [], []
        for number, line in lines:
            place = f"{where}, line {number}" if number else where
            drive, index, side = parse_line(line, place)
            image = tree.find(root / drive / CAMERA[side] / "data", index)
            depth = tree.find_annotated(annotated_root, drive, index, side)
            missing = next((path for path in (image, depth) if not tree.has(path)), None)
            if missing is None:
                names.append(f"{drive} {index} {side}")
                files.append((image, depth))
                places.append(f"{place}: " if number else "")
            elif skip_missing:
                self.missing += 1
                first_missing = first_missing or f"{place}: {tree.name(missing)}"
            else:
                raise DataError(f"{place}: {line.strip()!r} needs {tree.name(missing)}, which does not exist")
        if self.missing:
            warnings.warn(f"left out {self.missing} frames of missing files, first {first_missing}", stacklevel=2)
        if not names:
            raise DataError(f"{where}: no frame with image under {root} and depth under {annotated_root}")
        super().__init__(names, files, places, 256.0, crop)


def _annotated_lines(folder: Path, sides: tuple[str, ...]) -> list[tuple[int, str]]:
    """Lines "date/drive index side", numbered 0, of all annotated frames below a folder."""
    lines = []
    for drive in sorted(path.name for path in folder.glob("*_sync")):
        for side in sides:
            frames = sorted((folder / drive / "proj_depth" / "groundtruth" / CAMERA[side]).glob("*.png"))
            # A drive is called after its date: 2011_09_26_drive_0001_sync.
            lines += [(0, f"{drive[:10]}/{drive} {int(path.stem)} {side}") for path in frames if path.stem.isdecimal()]
    return lines


class RgbdFolder(_Pairs):
    """The images of one folder and the depth maps of another, in natural order of their names (frame2 before frame10).

    images, depth: a folder each, or a pattern such as "scene/rgb_*.jpg". There must be as many of both, and the numbers
    in the names of a pair must be the same (rgb_00050.jpg and sync_depth_00050.png), so that a gap pairs nothing wrong.
    units_per_metre: of 16-bit depth; a .npy holds metres. encoding, invalid_value: see `read_depth`; white_level: see
    `read_image`.
    """

    def __init__(
        self,
        images: str | Path,
        depth: str | Path,
        *,
        units_per_metre: float = 1000.0,
        crop: Crop = None,
        encoding: DepthEncoding = "metres",
        invalid_value: float | None = None,
        white_level: float | None = None,
    ) -> None:
        pictures, maps = _list_files(images), _list_files(depth)
        if len(pictures) != len(maps):
            raise DataError(
                f"{depth}: expected a depth map for each of the {len(pictures)} images of {images}, got {len(maps)}"
            )
        files = list(zip(pictures, maps))
        for image, measured in files:
            if _numbers(image) != _numbers(measured):
                raise DataError(f"{measured}: expected the depth of {image.name}, whose numbers are {_numbers(image)}")
        names = [f"{path.parent.name}/{path.name}" for path in pictures]
        reading: Any = {"encoding": encoding, "invalid_value": invalid_value, "white_level": white_level}
        super().__init__(names, files, [""] * len(names), units_per_metre, crop, **reading)


def _numbers(path: Path) -> list[int]:
    return [int(run) for run in re.findall("[0-9]+", path.stem)]


def _list_files(where: str | Path) -> list[Path]:
    folder, pattern = Path(where), "*"
    if "*" in folder.name:
        folder, pattern = folder.parent, folder.name
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = [path for path in folder.glob(pattern) if path.suffix.lower() in _SUFFIXES and path.is_file()]
    if not files:
        raise DataError(f"{where}: expected image or .npy files, got none")
    return sorted(files, key=lambda path: natural_key(path.name))

"""NYU Depth V2: the labelled frames (Silberman et al., ECCV 2012) and the single-frame files of FastDepth."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.samples import Crop, DataError, DepthDataset, clean_depth, natural_key
from mdepth_fast.weights.read import check_expansion

__all__ = ["NYU_BORDER", "NYU_TRAINING_CROP", "FastDepthH5", "NyuLabelled"]

NYU_BORDER = (7, 474, 7, 632)
"""(top, bottom, left, right) of what the undistortion left of a 480x640 frame: the rest is white or black."""
NYU_TRAINING_CROP = (45, 472, 43, 608)
"""(top, bottom, left, right) of the 427x565 pixels that BTS-style training keeps (arXiv 1907.10326)."""

MAX_SPLITS = 2**20
"""Bytes of a `splits.mat`, whose compressed arrays are read whole; the published one has 2626."""
_KEYS = {"train": "trainNdxs", "test": "testNdxs"}


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """A file of HDF5; whatever goes wrong with it inside the block is a `DataError` naming it.

    It is opened for each read, which takes 0.2 ms: an open handle would survive neither fork nor pickling.
    """
    try:
        import h5py
    except ImportError as error:  # pragma: no cover
        raise ImportError("reading HDF5 needs h5py: pip install 'mdepth-fast[train]'") from error
    try:
        with h5py.File(path, "r") as file:
            yield file
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    # h5py reports damage as any of these.
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as HDF5 ({error})") from error


def _require(path: Path, file: Any, name: str, kind: type[Any], shape: tuple[int | None, ...]) -> Any:
    """The array `name` of a file, if it has that kind of numbers and that shape (None: any length)."""
    if name not in file:
        raise DataError(f"{path}: expected an array {name!r}, got {sorted(file)}")
    array = _inside(path, file, name)
    found = tuple(getattr(array, "shape", ()))
    fits = len(found) == len(shape) and all(n in (None, m) for n, m in zip(shape, found))
    if not fits or not np.issubdtype(array.dtype, kind):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise DataError(f"{path}: expected {name!r} of ({wanted}), {kind.__name__}, got {found}, {array.dtype}")
    return array


def _inside(path: Path, file: Any, name: str) -> Any:
    """The array of that name. Links, and arrays that only say where their numbers are, may name any file there is."""
    import h5py

    link = file.get(name, getlink=True)
    array = None if isinstance(link, h5py.ExternalLink) else file[name]
    elsewhere = array is None or array.file.filename != file.filename
    if elsewhere or getattr(array, "external", None) or getattr(array, "is_virtual", False):
        raise DataError(f"{path}: refused: {name!r} lies in another file")
    if isinstance(array, h5py.Dataset):
        try:
            check_expansion(path, array.size * array.dtype.itemsize)
        except ValueError as error:
            raise DataError(f"{path}: {name!r}: {error}") from None
    return array


class NyuLabelled(DepthDataset):
    """Frames of `nyu_depth_v2_labeled.mat`: 480x640 images, depth from a Kinect.

    split: "train" or "test", the official 795 and 654 frames by `splits`, or "all".
    splits: `splits.mat`, by default the one beside the file, which needs SciPy; or a text file with the 1-based numbers
    of the wanted frames, one a line, whatever `split` is called.
    filled: depth with its holes filled by colourisation, on which Eigen and FCRN are evaluated; without, as the
    sensor measured it, 0 = none, as BTS and DPT evaluate.

    Outside of `NYU_BORDER` the images are white, and BTS's copies of them black.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        *,
        splits: str | Path | None = None,
        filled: bool = True,
        crop: Crop = None,
    ) -> None:
        if split not in (*_KEYS, "all"):
            raise ValueError(f'split: expected "train", "test" or "all", got {split!r}')
        self._path = Path(path)
        self._key = "depths" if filled else "rawDepths"
        with _open(self._path) as file:
            # MATLAB stores the last index slowest: (frame, channel, column, row).
            count, _, width, height = _require(self._path, file, "images", np.uint8, (None, 3, None, None)).shape
            _require(self._path, file, self._key, np.floating, (count, width, height))
        if width < height:
            raise DataError(
                f"{self._path}: expected MATLAB's axes, images (frame, 3, width, height) and {self._key} (frame, "
                f"width, height) of landscape frames, got a width of {width} and a height of {height}: turned axes"
            )
        if splits is None and split != "all":
            splits = self._path.with_name("splits.mat")
            if not splits.is_file():
                raise ValueError(f'splits: expected the path of splits.mat for split={split!r} (or "all"), got none')
        self._frames = list(range(count)) if splits is None else _read_splits(Path(splits), split, count)
        super().__init__([f"nyu {frame + 1:04d}" for frame in self._frames], crop=crop, filled=filled)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        frame = self._frames[index]
        with _open(self._path) as file:
            image, depth = file["images"][frame], file[self._key][frame]
        return image.transpose(2, 1, 0), clean_depth(depth.T)

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._path,)

    def where(self, index: int) -> str:
        return f"{self._path}, frame {self._frames[index] + 1}"


def _read_splits(path: Path, split: str, count: int) -> list[int]:
    """Indices from 0 of the frames of a split."""
    if path.suffix == ".mat":
        if split == "all":
            raise ValueError(f'splits: goes with split="train" or "test", got {path} with "all"')
        numbers = _read_mat(path, _KEYS[split])
        places = [f"{path}, {_KEYS[split]}"] * len(numbers)
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read as frame numbers ({error})") from error
        listed = [(f"{path}, line {line}", text.strip()) for line, text in enumerate(lines, 1) if text.strip()]
        for place, text in listed:
            if not text.isdecimal():
                raise DataError(f"{place}: expected a frame number, got {text!r}")
        places, numbers = [place for place, _ in listed], [int(text) for _, text in listed]
    if not numbers:
        raise DataError(f"{path}: expected frame numbers, got none")
    seen: set[int] = set()
    for place, number in zip(places, numbers):
        if not 1 <= number <= count or number in seen:
            raise DataError(f"{place}: expected each frame number once, from 1 to {count}, got {number}")
        seen.add(number)
    return [number - 1 for number in numbers]


def _read_mat(path: Path, key: str) -> list[int]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError("reading splits.mat needs SciPy; or give a text file of frame numbers as splits") from error
    try:
        if path.stat().st_size > MAX_SPLITS:
            raise ValueError(f"expected at most {MAX_SPLITS} bytes")
        with path.open("rb") as file:
            return [int(number) for number in np.asarray(loadmat(file)[key]).flatten()]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    # SciPy reports a foreign or damaged file in many ways.
    except Exception as error:
        raise DataError(f"{path}: cannot be read as splits.mat with {key} ({error!r})") from error


class FastDepthH5(DepthDataset):
    """Frames of the HDF5 files that FastDepth was trained on: one per frame, in scene folders of `train/` and `val/`.

    Each holds `rgb` uint8 (3,h,w) and `depth` floating point (h,w), metres.
    split: "train"; "holdout", the frames 00001 and 00201 of each scene of `train/`, which guide NetAdapt and are not in
    "train"; or "val", all of `val/`.
    """

    def __init__(self, root: str | Path, split: str = "train", *, crop: Crop = None) -> None:
        if split not in ("train", "holdout", "val"):
            raise ValueError(f'split: expected "train", "holdout" or "val", got {split!r}')
        self._root = Path(root)
        folder = self._root / ("val" if split == "val" else "train")
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder")
        names = [path.relative_to(self._root).as_posix() for path in folder.rglob("*.h5")]
        if split != "val":
            names = [name for name in names if name.endswith(("00001.h5", "00201.h5")) == (split == "holdout")]
        if not names:
            raise DataError(f"{folder}: expected .h5 files of split {split!r}, got none")
        super().__init__(sorted(names, key=natural_key), crop=crop)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        path = self._root / self.names[index]
        with _open(path) as file:
            rgb = _require(path, file, "rgb", np.uint8, (3, None, None))
            depth = _require(path, file, "depth", np.floating, (None, None))
            if rgb.shape[1] > rgb.shape[2]:
                raise DataError(f"{path}: expected rgb (3, height, width) of a landscape frame, got {rgb.shape}")
            return rgb[()].transpose(1, 2, 0), clean_depth(depth[()])

    def files(self, index: int) -> tuple[Path, ...]:
        return (self._root / self.names[index],)

    def where(self, index: int) -> str:
        return str(self._root / self.names[index])

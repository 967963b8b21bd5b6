"""A data set decoded once: pre-resized samples in memory-mapped files."""

import errno
import hashlib
import json
import shutil
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from mdepth_fast.data.samples import DataError, DepthSample, check_size, resize_image
from mdepth_fast.files import making_folder

__all__ = ["Cached"]

_FORMAT = 1
_META = "meta.json"
_DTYPES = ("float32", "float16")


class Cached(Dataset[DepthSample]):
    """Serves the samples of a data set from `folder`; the first time that one is asked for it is decoded and stored.

    The second epoch decodes nothing. Any number of processes may read and fill the same folder (loader workers, the
    processes of a run, another run), and whenever one is killed the folder stays valid: a sample counts as soon as its
    checksum is written, which is written last and compared when a process first reads it.

    dataset: see `DepthDataset`; what it yields must not be random. size: (height, width) that samples are resized to,
    images by Lanczos, depth by the nearest pixel; None where all files have one size.
    depth_dtype: "float16" takes 5 bytes per pixel instead of 7 and keeps depth to 1/2048 of itself (5 mm at 10 m).
    Storage: 0.54 MB per sample at 240x320, 2.2 MB at 480x640, 3.0 MB at 352x1216, that is 13 GB, 52 GB and 69 GB for
    24,000; the files have their full length at once but take space as they fill.

    `folder` is made if it is not there. One that holds the cache of another data set (other names, settings, size;
    files in another place, of another length or changed since) is a ValueError.
    """

    def __init__(
        self,
        dataset: Any,
        folder: str | Path,
        size: tuple[int, int] | None = None,
        *,
        depth_dtype: str = "float32",
    ) -> None:
        if depth_dtype not in _DTYPES:
            raise ValueError(f"depth_dtype: expected one of {_DTYPES}, got {depth_dtype!r}")
        if not hasattr(dataset, "names") or not hasattr(dataset, "settings"):
            raise TypeError(
                f"dataset: expected one with `names` and `settings` (see DepthDataset), got {type(dataset).__name__}"
            )
        self.dataset, self.folder = dataset, Path(folder)
        self.names: list[str] = dataset.names
        meta = {
            "format": _FORMAT,
            "dataset": type(dataset).__name__,
            "length": len(dataset),
            "names": hashlib.sha256("\n".join(self.names).encode()).hexdigest(),
            "settings": dataset.settings,
            "files": _state_of_files(dataset),
            "size": None if size is None else check_size(*size),
            "depth_dtype": depth_dtype,
        }
        meta = json.loads(json.dumps(meta))
        if not (self.folder / _META).is_file():
            self._create(meta)
        stored = self._read_meta()
        if meta["size"] is None:
            meta["size"] = stored["size"]
        if "files" not in stored:  # made by an earlier version
            warnings.warn(
                f"{self.folder} does not say from which files it was made; delete it if they may have changed",
                stacklevel=2,
            )
            del meta["files"]
        different = [key for key in meta if stored.get(key) != meta[key]]
        if different:
            old, new = ({key: values.get(key) for key in different} for values in (stored, meta))
            raise ValueError(
                f"folder: {self.folder} holds the cache of another data set: {old} there, {new} here; "
                "give another folder, or delete it"
            )
        height, width = meta["size"]
        self.size: tuple[int, int] = (height, width)
        self.settings = {**dataset.settings, "size": [height, width], "depth_dtype": depth_dtype}
        self._resize = size is not None
        self._dtype = np.dtype(depth_dtype)
        self._verified = np.zeros(len(self), dtype=bool)
        self._maps: tuple[Any, Any, Any] | None = None
        self._arrays()  # a damaged cache is noticed now

    def _create(self, meta: dict[str, Any]) -> None:
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f"folder: expected a new or empty folder or a cache, got {self.folder}")
        height, width = meta["size"] or self._common_size()
        length, parent = meta["length"], self.folder.absolute().parent
        parent.mkdir(parents=True, exist_ok=True)
        needed = length * height * width * (3 + np.dtype(meta["depth_dtype"]).itemsize)
        free = shutil.disk_usage(parent).free
        if needed > free:
            message = f"the cache needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"
            raise OSError(errno.ENOSPC, message, str(parent))
        # The folder appears whole: of several processes that start together, one's becomes the cache of all.
        try:
            with making_folder(self.folder) as temporary:
                for name, dtype, shape in (
                    ("images", "uint8", (length, 3, height, width)),
                    ("depth", meta["depth_dtype"], (length, 1, height, width)),
                    ("checksums", "uint32", (length,)),
                ):
                    np.lib.format.open_memmap(temporary / f"{name}.npy", "w+", dtype, shape)
                (temporary / _META).write_text(json.dumps({**meta, "size": [height, width]}, indent=2) + "\n")
        except OSError:
            if not (self.folder / _META).is_file():
                raise

    def _common_size(self) -> tuple[int, int]:
        """That of the first sample which can be read."""
        for index in range(len(self.dataset)):
            try:
                height, width = self.dataset[index]["target"].shape[-2:]
                return int(height), int(width)
            except DataError:
                if index == len(self.dataset) - 1:
                    raise
        raise ValueError("dataset: expected samples, got none")

    def _read_meta(self) -> dict[str, Any]:
        try:
            stored = json.loads((self.folder / _META).read_text())
            if stored["format"] != _FORMAT:
                raise ValueError(f"format {stored['format']}, this version reads {_FORMAT}")
            return stored
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.folder / _META}: cannot be read as that of a cache ({error})") from error

    def _arrays(self) -> tuple[Any, Any, Any]:
        """Images, depth and checksums, mapped in this process; writes of other processes show."""
        if self._maps is None:
            maps = []
            for name, dtype, shape in (
                ("images", np.dtype("uint8"), (len(self), 3, *self.size)),
                ("depth", self._dtype, (len(self), 1, *self.size)),
                ("checksums", np.dtype("uint32"), (len(self),)),
            ):
                path = self.folder / f"{name}.npy"
                try:
                    array = np.load(path, mmap_mode="r")
                except (OSError, ValueError, EOFError) as error:
                    raise DataError(f"{path}: cannot be read as part of a cache ({error})") from error
                if array.dtype != dtype or array.shape != shape:
                    raise DataError(f"{path}: expected {dtype} {shape}, got {array.dtype} {array.shape}")
                maps.append(array)
            self._maps = (maps[0], maps[1], maps[2])
        return self._maps

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memmap would be its whole content.
        return {**self.__dict__, "_maps": None}

    @property
    def ready(self) -> int:
        """How many samples are stored."""
        return int(np.count_nonzero(self._arrays()[2]))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DepthSample:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        images, depths, checksums = self._arrays()
        checksum = int(checksums[index])
        if checksum:
            image, depth = np.array(images[index]), np.array(depths[index])
            if self._verified[index] or checksum == _checksum(image, depth):
                self._verified[index] = True
                return self._sample(index, image, depth)
        image, depth = self._decode(index)
        self._store("images", images, index, image)
        self._store("depth", depths, index, depth)
        self._store("checksums", checksums, index, np.array(_checksum(image, depth), dtype=np.uint32))
        return self._sample(index, image, depth)

    def _sample(self, index: int, image: NDArray[np.uint8], depth: NDArray[Any]) -> DepthSample:
        return {
            "target": torch.from_numpy(image),
            "depth": torch.from_numpy(depth.astype(np.float32, copy=False)),
            "name": self.names[index],
        }

    def _decode(self, index: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        sample = self.dataset[index]
        image, depth = sample["target"].numpy(), sample["depth"].numpy()
        if image.shape[1:] != self.size:
            if not self._resize:
                raise ValueError(
                    f"size: expected (height, width), as not all images are {self.size}: {self.names[index]} is "
                    f"{image.shape[1:]}"
                )
            image = resize_image(np.ascontiguousarray(image.transpose(1, 2, 0)), *self.size).transpose(2, 0, 1)
        rows, columns = (
            ((np.arange(new) + 0.5) * old / new).astype(np.intp) for new, old in zip(self.size, depth.shape[1:])
        )
        return np.ascontiguousarray(image), np.ascontiguousarray(depth[:, rows[:, None], columns].astype(self._dtype))

    def _store(self, name: str, array: Any, index: int, values: NDArray[Any]) -> None:
        """Written, not assigned to a mapping: a full disk is an OSError then, and not the end of the process."""
        path = self.folder / f"{name}.npy"
        try:
            with path.open("r+b") as file:
                file.seek(array.offset + index * values.nbytes)
                file.write(values.tobytes())
        except OSError as error:
            raise OSError(error.errno, f"the cache cannot be written: {error.strerror}", str(path)) from error


def _state_of_files(dataset: Any) -> str:
    """A digest of the places, lengths and times of change of the files of a data set."""
    files = getattr(dataset, "files", lambda index: ())
    digest, folders = hashlib.sha256(), dict[Path, Path]()
    seen: set[Path] = set()
    for index in range(len(dataset)):
        for path in files(index):
            if path in seen:
                continue
            seen.add(path)
            if path.parent not in folders:
                folders[path.parent] = path.parent.resolve()
            try:
                status = path.stat()
                state = f"{status.st_size} {status.st_mtime_ns}"
            except OSError:
                state = "none"
            digest.update(f"{folders[path.parent] / path.name} {state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _checksum(image: NDArray[np.uint8], depth: NDArray[Any]) -> int:
    """CRC-32 of a stored sample, never 0: that says that there is none."""
    return zlib.crc32(depth.tobytes(), zlib.crc32(image.tobytes())) or 1

"""Pairs of images with optical flow: their files, and the data sets that are read from disk."""

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mdepth_fast.data.samples import DataError, check_pixels, list_images, natural_key, read_image
from mdepth_fast.files import replacing

__all__ = [
    "FlowFile",
    "FlowPairs",
    "FlowSample",
    "FlyingChairs",
    "FramePairs",
    "KittiFlow",
    "read_flow",
    "write_flo",
    "write_flow_png",
]

_MAGIC = b"PIEH"  # the float 202021.25 in little-endian bytes
_UNKNOWN = 1e9  # Middlebury: flow of this size or more is unknown
_PNG = b"\x89PNG\r\n\x1a\n"


class FlowFile(NamedTuple):
    """Flow as a file holds it: flow float32 (h,w,2) in pixels, right and down, 0 where unknown; valid bool (h,w)."""

    flow: NDArray[np.float32]
    valid: NDArray[np.bool_]


def read_flow(path: Path | str) -> FlowFile:
    """Reads a Middlebury `.flo` file or a KITTI flow PNG. A truncated or foreign file is a `DataError` naming it.

    `.flo`: "PIEH", width and height as int32, then (u, v) as float32 row by row, little-endian; unknown where not
    finite or beyond 1e9 (Baker et al., IJCV 2011). PNG: 16-bit RGB, (R, G) = 64 (u, v) + 32768, B = 0 where unknown
    (Geiger et al., CVPR 2012).
    """
    path = Path(path)
    if path.suffix.lower() == ".flo":
        return _read_flo(path)
    if path.suffix.lower() == ".png":
        pixels = _read_png16(path)
        valid = pixels[..., 2] > 0
        flow: NDArray[np.float32] = (pixels[..., :2].astype(np.float32) - 32768) / np.float32(64)
        flow[~valid] = 0
        return FlowFile(flow, valid)
    raise DataError(f"{path}: expected a flow file .flo or .png, got {path.suffix or 'no suffix'}")


def _read_flo(path: Path) -> FlowFile:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read as a flow file ({error.strerror})") from error
    if content[:4] != _MAGIC or len(content) < 12:
        raise DataError(f"{path}: expected a Middlebury .flo file, which begins with PIEH, got {content[:4]!r}")
    width, height = struct.unpack("<ii", content[4:12])
    if width < 1 or height < 1 or len(content) != 12 + 8 * width * height:
        raise DataError(
            f"{path}: expected {12 + 8 * max(width, 0) * max(height, 0)} bytes for its width {width} and height "
            f"{height}, got {len(content)}"
        )
    flow = np.frombuffer(content, "<f4", offset=12).reshape(height, width, 2).astype(np.float32)
    valid: NDArray[np.bool_] = np.all(np.abs(flow) < _UNKNOWN, axis=2)  # not so where NaN
    flow[~valid] = 0
    return FlowFile(flow, valid)


def _read_png16(path: Path) -> NDArray[np.uint16]:
    """RGB of a 16-bit PNG, (h,w,3)."""
    from PIL import Image

    halves: list[NDArray[np.uint16]] = []
    try:
        # Pillow keeps 8 bits of 16: the high byte of each big-endian sample; read as little-endian, the low one.
        for mode in ("RGB;16B", "RGB;16L"):
            with Image.open(path, formats=["PNG"]) as image:
                check_pixels(path, *image.size)
                (tile,) = image.tile  # type: ignore[attr-defined]
                stored = tile[3] if isinstance(tile[3], str) else tile[3][0]
                if stored != "RGB;16B":
                    raise DataError(f"{path}: expected a flow PNG of 16-bit RGB, got {stored}")
                # A plain tuple before Pillow 11.
                image.tile = [tile._replace(args=mode) if hasattr(tile, "_replace") else (*tile[:3], mode)]  # type: ignore[attr-defined]
                halves.append(np.array(image).astype(np.uint16))
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such flow file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a flow PNG ({error})") from error
    high, low = halves
    return np.bitwise_or(high << 8, low, dtype=np.uint16)


def _checked(flow: Tensor | ArrayLike, valid: Tensor | ArrayLike | None) -> tuple[NDArray[np.float64], NDArray[Any]]:
    """Flow (2,h,w), or with leading sizes of 1, as (h,w,2), and where it is known."""
    array = np.asarray(flow.detach().cpu() if isinstance(flow, Tensor) else flow, dtype=np.float64)
    if array.ndim < 3 or array.shape[-3] != 2 or any(size != 1 for size in array.shape[:-3]):
        raise ValueError(f"flow: expected (2,H,W) or (1,2,H,W), got shape {tuple(array.shape)}")
    if array.size == 0:
        raise ValueError(f"flow: expected at least one pixel, got shape {tuple(array.shape)}")
    array = array.reshape(array.shape[-3:]).transpose(1, 2, 0)
    known = np.isfinite(array).all(2)
    if valid is not None:
        given = np.asarray(valid.detach().cpu() if isinstance(valid, Tensor) else valid, dtype=bool)
        if given.size != known.size or given.shape[-2:] != known.shape:
            raise ValueError(f"valid: expected shape {known.shape} as the flow, got {tuple(given.shape)}")
        known &= given.reshape(known.shape)
    return array, known


def write_flo(path: Path | str, flow: Tensor | ArrayLike, valid: Tensor | ArrayLike | None = None) -> None:
    """Writes flow (2,H,W) in pixels as a Middlebury `.flo` file; unknown (not finite, or not `valid`) is 1e10.

    ValueError for known flow of 1e9 pixels and more, which readers take for unknown.
    """
    array, known = _checked(flow, valid)
    if (longest := np.abs(array[known]).max(initial=0)) >= _UNKNOWN:
        raise ValueError(f"flow: expected components below {_UNKNOWN:g} pixels, got {longest:g}")
    values = np.where(known[..., None], array, 10 * _UNKNOWN).astype("<f4")
    with replacing(path) as temporary:
        temporary.write_bytes(_MAGIC + struct.pack("<ii", values.shape[1], values.shape[0]) + values.tobytes())


def write_flow_png(path: Path | str, flow: Tensor | ArrayLike, valid: Tensor | ArrayLike | None = None) -> int:
    """Writes flow (2,H,W) in pixels as a KITTI flow PNG, in steps of 1/64 pixel; unknown is 0.

    Components beyond -512 .. 511.98 are clamped, never wrapped.

    Returns:
        how many pixels were clamped.
    """
    array, known = _checked(flow, valid)
    scaled = np.rint(np.where(known[..., None], array, 0) * 64 + 32768)
    clamped = ((scaled < 0) | (scaled > 65535)).any(2)
    pixels = np.concatenate([scaled.clip(0, 65535), np.ones((*known.shape, 1))], 2).astype(">u2")
    pixels[~known] = 0
    height, width = known.shape
    # Each row begins with its filter, 0 for none.
    rows = np.zeros((height, 1 + 6 * width), np.uint8)
    rows[:, 1:] = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, 6 * width)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)  # 16 bits, RGB
    with replacing(path) as temporary, temporary.open("wb") as file:  # Pillow writes no 16-bit RGB
        file.write(_PNG)
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b"")):
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return int(clamped.sum())


class _Pair(TypedDict):
    first: Tensor
    second: Tensor
    name: str


class FlowSample(_Pair, total=False):
    """Two images and, where it is known, the flow from the first to the second, CPU tensors of one size.

    first, second uint8 (3,h,w); name says which pair. With ground truth also flow float32 (2,h,w) in pixels, right and
    down, 0 where unknown; valid bool (1,h,w), where it is known; visible bool (1,h,w), where the second image shows
    the point too: its own part of `valid`, empty where the data set does not say. skipped (int) is put in by
    `SkipBroken`.
    """

    flow: Tensor
    valid: Tensor
    visible: Tensor
    skipped: int


def make_flow_sample(
    name: str,
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    flow: FlowFile | None = None,
    visible: NDArray[np.bool_] | None = None,
) -> FlowSample:
    """Packs images (h,w,3) and flow of their size. DataError names the sample whose sizes differ."""
    sizes = {"second image": second.shape[:2]}
    if flow is not None:
        sizes |= {"flow": flow.valid.shape, "non-occluded flow": flow.valid.shape if visible is None else visible.shape}
    for what, size in sizes.items():
        if size != first.shape[:2]:
            raise DataError(f"{name}: expected the {what} to have the first image's size {first.shape[:2]}, got {size}")

    def planes(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))

    sample: FlowSample = {"first": planes(first), "second": planes(second), "name": name}
    if flow is not None:
        known = np.zeros_like(flow.valid) if visible is None else visible & flow.valid
        sample["flow"] = planes(flow.flow)
        sample["valid"], sample["visible"] = (torch.from_numpy(mask.copy())[None] for mask in (flow.valid, known))
    return sample


class FlowPairs(Dataset[FlowSample]):
    """Base of the data sets of image pairs: a subclass implements `read`. names: one for each pair."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)

    def read(self, index: int) -> FlowSample:
        """The sample at the size of its files. `DataError` names the file that cannot be read."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> FlowSample:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        return self.read(index)


class FlyingChairs(FlowPairs):
    """Flying Chairs (Dosovitskiy et al., ICCV 2015): 22,872 rendered pairs of 384x512 with dense flow.

    root: the published folder, or its `data`, with `00001_img1.ppm`, `00001_img2.ppm`, `00001_flow.flo`, ...
    split: "train" (22,232 pairs as published), "val" (640) or "all". split_file: lines of 1 (train) or 2 (val), one for
    each pair; by default `FlyingChairs_train_val.txt` in the folder or beside it. Occlusions are not known.
    """

    def __init__(self, root: Path | str, split: str = "train", *, split_file: Path | str | None = None) -> None:
        if split not in ("train", "val", "all"):
            raise ValueError(f"split: expected train, val or all, got {split!r}")
        root = Path(root)
        folder = root / "data" if (root / "data").is_dir() else root
        stems = sorted(path.name.removesuffix("_img1.ppm") for path in folder.glob("*_img1.ppm"))
        if not stems:
            raise DataError(f"{folder}: expected files such as 00001_img1.ppm, got none")
        if split != "all":
            name = "FlyingChairs_train_val.txt"
            places = [folder / name, folder.parent / name]
            listed = Path(split_file) if split_file else next((path for path in places if path.is_file()), places[0])
            try:
                words = listed.read_text(encoding="utf-8-sig").split()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{listed}: cannot be read as the list of training and test pairs ({error})") from error
            if len(words) != len(stems) or not set(words) <= {"1", "2"}:
                raise DataError(
                    f"{listed}: expected 1 or 2 for each of the {len(stems)} pairs in {folder}, got {len(words)} "
                    f"words, {sorted(set(words))[:4]}"
                )
            stems = [stem for stem, word in zip(stems, words) if word == ("1" if split == "train" else "2")]
            if not stems:
                raise DataError(f"{listed}: expected pairs of the split {split}, got none")
        super().__init__(stems)
        self._folder = folder

    def read(self, index: int) -> FlowSample:
        stem = self._folder / self.names[index]
        first, second = (read_image(f"{stem}_img{n}.ppm") for n in (1, 2))
        return make_flow_sample(self.names[index], first, second, read_flow(f"{stem}_flow.flo"))


class KittiFlow(FlowPairs):
    """KITTI flow 2012 (194 pairs; Geiger et al., CVPR 2012) or 2015 (200; Menze and Geiger, CVPR 2015).

    root: the published `training` folder, or `testing`, which has no ground truth, and so have its samples. images: the
    folder of the images below it: image_2 (2015), colored_0 or image_0 (2012, colour and grey); by default the first of
    these that is there. Ground truth is sparse: `flow_occ` is all of it, `flow_noc` the part that stays in view.
    """

    def __init__(self, root: Path | str, *, images: str | None = None) -> None:
        root = Path(root)
        choices = [images] if images else ["image_2", "colored_0", "image_0"]
        folder = next((root / choice for choice in choices if (root / choice).is_dir()), None)
        if folder is None:
            raise DataError(f"{root}: expected a folder {' or '.join(choices)} of a KITTI flow benchmark, got none")
        names = [path.name for path in list_images(folder) if path.name.endswith("_10.png")]
        if not names:
            raise DataError(f"{folder}: expected images such as 000000_10.png, got none")
        super().__init__(names)
        self._root, self._folder = root, folder
        self._has_flow = (root / "flow_occ").is_dir()

    def read(self, index: int) -> FlowSample:
        name = self.names[index]
        first, second = (read_image(self._folder / file) for file in (name, name.replace("_10.png", "_11.png")))
        if not self._has_flow:
            return make_flow_sample(name, first, second)
        everywhere, visible = (read_flow(self._root / kind / name) for kind in ("flow_occ", "flow_noc"))
        return make_flow_sample(name, first, second, everywhere, visible.valid)


class FramePairs(FlowPairs):
    """Neighbouring frames of videos, without ground truth; a folder is a clip, and no pair crosses from one to another.

    root: a folder of frames in natural order of their names, or, with `folders`, the folder that this pattern starts
    from, such as `"*/*/image_0[23]/data"` for KITTI's raw data. step: frames from the first image to the second.
    """

    def __init__(self, root: Path | str, *, folders: str | None = None, step: int = 1) -> None:
        if step < 1:
            raise ValueError(f"step: expected at least 1, got {step}")
        root = Path(root)
        clips = [root]
        if folders:
            clips = sorted((path for path in root.glob(folders) if path.is_dir()), key=lambda p: natural_key(str(p)))
            if not clips:
                raise DataError(f"{root}: expected folders that match {folders!r}, got none")
        self._pairs: list[tuple[Path, Path]] = []
        for clip in clips:
            frames = list_images(clip)
            self._pairs += zip(frames, frames[step:])
        if not self._pairs:
            raise DataError(f"{root}: expected folders of at least {step + 1} images, got none")
        super().__init__([str(first.relative_to(root)) for first, _ in self._pairs])

    def read(self, index: int) -> FlowSample:
        first, second = map(read_image, self._pairs[index])
        return make_flow_sample(self.names[index], first, second)

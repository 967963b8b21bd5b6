"""What a data set yields, how its files are read, and what happens to the files that cannot be."""

import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from mdepth_fast.geometry import scale_intrinsics
from mdepth_fast.kinds import METADATA, describe, is_inverse

__all__ = [
    "Crop",
    "DataError",
    "DepthDataset",
    "DepthEncoding",
    "DepthSample",
    "Sample",
    "SkipBroken",
    "SourceName",
    "check_pixels",
    "kb_crop",
    "list_clip",
    "list_images",
    "make_sample",
    "read_depth",
    "read_image",
    "read_matrices",
    "read_rows",
    "resize_image",
    "upright_frame",
    "upright_rgb",
    "within",
]

SourceName = int | str
"""A frame offset whose motion has to be predicted, or "stereo" / "known": the motion is in `Sample["T"]`."""

Crop = tuple[int, int, int, int] | Literal["kb"] | None
"""(top, bottom, left, right) in pixels of the file, half-open; "kb" is `kb_crop`; None keeps the whole image."""


class _Required(TypedDict):
    target: Tensor
    sources: Tensor
    K: Tensor
    source_K: Tensor
    T: Tensor
    name: str


class Sample(_Required, total=False):
    """One target frame with its sources, CPU tensors at the network's size H, W.

    target uint8 (3,H,W); sources uint8 (S,3,H,W); K float32 (3,3) and source_K float32 (S,3,3) in pixels of H, W;
    T float32 (S,4,4), target camera to source camera, identity where unknown; name says which frame it is.
    With `evaluation=True` also depth float32 (1,h,w), ground truth in metres, 0 = none, and image uint8 (3,h,w), the
    target as it was before resizing. skipped (int) is put in by `SkipBroken`.
    """

    depth: Tensor
    image: Tensor
    skipped: int


class DepthSample(TypedDict):
    """One image with measured depth, CPU tensors at the size of the file (or of the cache).

    target uint8 (3,h,w); depth float32 (1,h',w'), metres, 0 = none, usually of the same size; name says which frame.
    """

    target: Tensor
    depth: Tensor
    name: str


class DataError(ValueError):
    """A file of the data set is missing, truncated or malformed. The message names the file, and the line if any."""


MAX_PIXELS = int(os.environ.get("MDEPTH_MAX_PIXELS", 2**26))
"""Images with more pixels are refused before they are decoded; what is made of an image takes many times its memory."""


def check_pixels(path: Path | str, width: int, height: int) -> None:
    """`DataError` for an image of more than `MAX_PIXELS` pixels."""
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: refused: expected at most {MAX_PIXELS} pixels, got {width}x{height}; the environment variable "
            "MDEPTH_MAX_PIXELS allows more"
        )


def within(root: Path | str, entry: str, place: str) -> str:
    """The path that a list names, relative to `root`: with or without a slash in front, or absolute and inside of it.

    `DataError`, which begins with `place`, for one that leads out of `root`.
    """
    inside, whole = (Path(os.path.normpath(path)) for path in (Path(root).absolute(), entry))
    if whole.is_absolute() and whole.is_relative_to(inside):
        return str(whole.relative_to(inside))
    path = os.path.normpath(entry.lstrip("/"))
    if path.split("/")[0] == "..":
        raise DataError(f"{place}: refused: {entry} leads out of {root}")
    return path


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:  # pragma: no cover
        raise ImportError("reading images needs Pillow: pip install 'mdepth-fast[train]'") from error
    return Image


@contextmanager
def open_image(path: Any, name: str | None = None) -> Iterator[Any]:
    """A Pillow image. A missing, truncated or foreign file is a `DataError` naming it, here or inside the block.

    path: a path, or an open file that errors call `name`.
    """
    image_module, name = _pillow(), name or str(path)
    try:
        with image_module.open(path) as image:
            check_pixels(name, *image.size)
            yield image
    except FileNotFoundError:
        raise DataError(f"{name}: no such image") from None
    except DataError:
        raise
    # Pillow reports damage as OSError, SyntaxError (PNG chunks), ValueError or DecompressionBombError.
    except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
        raise DataError(f"{name}: cannot be read as an image ({error})") from error


def read_npy(path: Path | str) -> NDArray[Any]:
    try:
        # Mapped first: a header may declare more than there is.
        return np.array(np.load(path, allow_pickle=False, mmap_mode="r"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array ({error})") from error


def to_rgb(image: Any, *, upright: bool = False, white_level: float | None = None) -> NDArray[np.uint8]:
    """A Pillow image as (h, w, 3) uint8; upright and white_level as in `read_image`. ValueError for other values."""
    from PIL import ImageOps

    modes = [tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in getattr(image, "tile", ())]
    colours_of_16_bits = any(str(mode).startswith(("RGB", "LA")) and ";16" in mode for mode in modes)
    low = _lower_bytes(image) if colours_of_16_bits and white_level is not None else None
    whole_numbers = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if upright:
        image, low = ImageOps.exif_transpose(image), low and ImageOps.exif_transpose(low)
    if image.mode == "F" or image.mode.startswith("I"):
        grey = np.array(image)
        if whole_numbers and grey.dtype != np.uint16:  # before Pillow 11
            grey = grey.astype(np.uint16)
        return np.repeat(_to_bytes(grey, white_level)[..., None], 3, 2)
    rgb = np.array(image.convert("RGB"))
    if low is not None:
        return _to_bytes(rgb.astype(np.uint16) << 8 | np.array(low.convert("RGB")), white_level)
    if colours_of_16_bits and rgb.size and 0 < rgb.max() <= _DARK >> 8:
        warnings.warn(_DARK_WARNING, stacklevel=3)
    return rgb


_DARK = 4095
_DARK_WARNING = (
    "a 16-bit image uses a sixteenth of its range or less: if its camera has fewer bits, state the white level, such "
    "as 4095 for 12 bits"
)


def _to_bytes(values: NDArray[Any], white_level: float | None) -> NDArray[np.uint8]:
    """Values of any type as uint8: 0 stays, `white_level` becomes 255; None is 65535 for uint16, 1 for floats."""
    if not values.size:
        return values.astype(np.uint8)
    low, high = float(values.min()), float(values.max())  # NaN if there is one
    white = {"u": 65535.0, "f": 1.0}.get(values.dtype.kind) if white_level is None else float(white_level)
    if white is None or not (low >= 0 and high <= white):
        expected = "16 bits, or a white level" if white is None else f"values in 0 .. {white:g}"
        hint = "" if white_level is not None else "; the white level says which value is white"
        raise ValueError(f"expected {expected}, got {values.dtype} in {low:g} .. {high:g}{hint}")
    if white == 65535 and white_level is None and 0 < high <= _DARK:
        warnings.warn(_DARK_WARNING, stacklevel=4)
    return np.rint(values * (255 / white)).astype(np.uint8)


def _lower_bytes(image: Any) -> Any:
    """The lower bytes of a colour image of 16 bits, of which Pillow keeps the upper ones: decoded once more."""
    place = image.fp.tell()
    image.fp.seek(0)
    other = _pillow().open(io.BytesIO(image.fp.read()))
    image.fp.seek(place)
    swapped = str.maketrans("BLN", "LB" + ("B" if sys.byteorder == "little" else "L"))

    def turned(mode: str) -> str:
        depth = mode.index(";16")
        return mode[:depth] + mode[depth:].translate(swapped)

    for n, tile in enumerate(other.tile):
        given = tile[3]
        changed = turned(given) if isinstance(given, str) else (turned(given[0]), *given[1:])
        # A plain tuple before Pillow 11.
        other.tile[n] = tile._replace(args=changed) if hasattr(tile, "_replace") else (*tile[:3], changed)
    return other


def upright_rgb(image: Any, white_level: float | None = None) -> NDArray[np.uint8]:
    """A Pillow image as (h, w, 3) uint8, turned as its EXIF orientation says: cameras store pictures lying down."""
    return to_rgb(image, upright=True, white_level=white_level)


def upright_frame(frame: Any) -> NDArray[np.uint8]:
    """A decoded frame of a video (PyAV) as RGB (h, w, 3), turned as the video's metadata say."""
    image: NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def read_image(path: Path | str, *, upright: bool = False, white_level: float | None = None) -> NDArray[np.uint8]:
    """RGB image file as (h, w, 3) uint8. A missing, truncated or foreign file is a `DataError` naming it.

    A `.npy` file holds (h, w, 3). Images of 16 bits are scaled by 65535; floating point is in [0, 1]. white_level: the
    value in such a file that is white, such as 4095 for a camera of 12 bits; images of 8 bits are read as they are. A
    value above it is a `DataError` that gives the range.
    upright: turn a photograph as its EXIF orientation says; a data set's images are read as they are stored, as are
    their ground truth and intrinsics.
    """
    if Path(path).suffix != ".npy":
        with open_image(path) as image:
            return to_rgb(image, upright=upright, white_level=white_level)
    pixels = read_npy(path)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype.kind not in "uf":
        raise DataError(f"{path}: expected (h, w, 3), uint8 or in [0, 1], got {pixels.dtype} of shape {pixels.shape}")
    if pixels.dtype == np.uint8:
        return pixels
    try:
        return _to_bytes(pixels, white_level)
    except ValueError as error:
        raise DataError(f"{path}: expected (h, w, 3), uint8 or in [0, 1]: {error}") from None


DepthEncoding = Literal["metres", "sunrgbd", "uint8"]
"""How whole numbers in a depth image stand for depth, see `read_depth`."""


def read_depth(
    path: Path | str,
    units_per_metre: float = 256.0,
    *,
    encoding: DepthEncoding = "metres",
    invalid_value: float | None = None,
) -> NDArray[np.float32]:
    """Depth file as (h, w) float32 metres, 0 = none; what is not finite or not positive is none.

    A 16-bit image holds metres * `units_per_metre` (KITTI 256, millimetres 1000); a `.npy` file or a floating-point
    TIFF holds metres (h, w). `DataError` for a file of `inference.write_map` that says it holds something else, or of
    another scale; a warning if it says that the depth has no unit.

    encoding: "sunrgbd" turns each 16-bit number back by three bits, as SUN RGB-D stores its millimetres; "uint8" takes
    images of 8 bits, which are refused otherwise: most of them are pictures of depth. invalid_value: what the file
    holds where there is no depth, besides 0, such as 65535; a warning if a 16-bit image has that value and nothing says
    what it means.
    """
    if encoding not in get_args(DepthEncoding):
        raise ValueError(f"encoding: expected one of {get_args(DepthEncoding)}, got {encoding!r}")
    if Path(path).suffix == ".npy":
        values = read_npy(path)
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
            raise DataError(f"{path}: expected metres (h, w), floating point, got {values.dtype} of {values.shape}")
        _check_metadata(path, metadata_beside(path), units_per_metre)
        return clean_depth(values, invalid_value)
    with open_image(path) as image:
        pixels, text, mode = np.array(image), metadata_inside(image), image.mode
    _check_metadata(path, text, units_per_metre)
    if pixels.ndim == 2 and np.issubdtype(pixels.dtype, np.floating):
        return clean_depth(pixels, invalid_value)
    few = pixels.dtype in (np.uint8, np.bool_)
    if pixels.ndim != 2 or mode == "P" or (few and (encoding != "uint8" or mode == "1")):
        hint = '; encoding "uint8" takes 8 bits as depth' if few and pixels.ndim == 2 and mode == "L" else ""
        raise DataError(
            f"{path}: expected a 16-bit single-channel depth image, got {pixels.dtype} of shape {pixels.shape}{hint}"
        )
    if encoding == "sunrgbd":
        bits = pixels.astype(np.uint32) & 0xFFFF
        pixels = (bits >> 3 | bits << 13) & 0xFFFF
    elif invalid_value is None and text is None and pixels.size and pixels.max() == 65535:
        warnings.warn(
            "a depth image holds 65535, which counts as depth; if it means that there is none, say invalid_value 65535",
            stacklevel=2,
        )
    return clean_depth(pixels, invalid_value, units_per_metre)


def sidecar(path: Path | str) -> Path:
    """The file in which `inference.write_map` says what an `.npy` holds."""
    path = Path(path)
    return path.with_name(f"{path.name}.json")


def metadata_beside(path: Path | str) -> str | None:
    """The text in that file, None where there is none."""
    about = sidecar(path)
    text = about.read_text(errors="replace") if about.is_file() else ""
    return text if METADATA in text else None


def metadata_inside(image: Any) -> str | None:
    """The same of an open PNG or TIFF."""
    text = image.tag_v2.get(TIFF_DESCRIPTION) if image.format == "TIFF" else image.info.get(METADATA)
    return text if isinstance(text, str) and METADATA in text else None


TIFF_DESCRIPTION = 270  # the tag ImageDescription


def _check_metadata(path: Path | str, text: str | None, units_per_metre: float) -> None:
    try:
        about = json.loads(text or "{}")
        kind: Any = about.get("kind", "metric")
        scale = about.get("scale")
        words, inverse = describe(kind), is_inverse(kind)
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: its metadata cannot be read ({error})") from error
    if inverse:
        raise DataError(f"{path}: expected depth in metres, got {words}")
    if scale not in (None, units_per_metre):
        raise DataError(f"{path}: expected value = metres * {units_per_metre:g}, got value = depth * {scale:g}")
    if kind == "relative":
        warnings.warn(f"a file of depth is read as metres, but holds {words}", stacklevel=3)


def clean_depth(
    values: NDArray[Any], invalid_value: float | None = None, units_per_metre: float = 1.0
) -> NDArray[np.float32]:
    """`values` / units_per_metre in float32, 0 where `values` are not finite, not positive, or `invalid_value`."""
    depth = values.astype(np.float32) / np.float32(units_per_metre)
    none = ~(np.isfinite(depth) & (depth > 0))
    if invalid_value is not None:
        none |= values.astype(np.float32) == np.float32(invalid_value)
    depth[none] = 0
    return depth


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """(h, w, 3) uint8 to (height, width, 3), Lanczos with antialiasing; the same array where the size is right."""
    if image.shape[:2] == (height, width):
        return image
    pillow = _pillow()
    return np.array(pillow.fromarray(image).resize((width, height), pillow.Resampling.LANCZOS))


def read_matrices(path: Path | str, columns: tuple[int, ...]) -> NDArray[np.float64]:
    """Text file of numbers (blank or comma separated, `#` comments) as (lines, c); c, one of `columns`, per line."""
    return read_rows(path, columns)[1]


def read_rows(path: Path | str, columns: tuple[int, ...]) -> tuple[list[int], NDArray[np.float64]]:
    """As `read_matrices`, with the number of each row's line before it."""
    rows: list[list[float]] = []
    numbers: list[int] = []
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            row = [float(word) for word in words]
        except ValueError:
            row = [math.nan]
        if not all(map(math.isfinite, row)):
            raise DataError(f"{path}, line {number}: expected finite numbers, got {line.strip()!r}")
        if len(row) not in columns or (rows and len(row) != len(rows[0])):
            expected = " or ".join(map(str, columns)) if not rows else str(len(rows[0]))
            raise DataError(f"{path}, line {number}: expected {expected} numbers, got {len(row)}")
        rows.append(row)
        numbers.append(number)
    if not rows:
        raise DataError(f"{path}: expected lines of {' or '.join(map(str, columns))} numbers, got an empty file")
    return numbers, np.array(rows)


def _tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def make_sample(
    name: str,
    target: NDArray[np.uint8],
    sources: list[NDArray[np.uint8]],
    K: NDArray[Any],
    source_K: list[NDArray[Any]],
    T: list[NDArray[Any]],
    size: tuple[int, int],
    *,
    K_size: tuple[int, int] | None = None,
    depth: NDArray[np.float32] | None = None,
) -> Sample:
    """Resize images (h, w, 3) and their intrinsics (3, 3) to `size` (height, width) and pack them.

    `K_size` is the (height, width) that the intrinsics were given for, the target's where None. `depth` (h, w) turns
    it into an evaluation sample: it is kept at its size, and so is the target, as "image".
    """
    height, width = size
    of_height, of_width = K_size or (int(target.shape[0]), int(target.shape[1]))

    def scaled(matrices: list[NDArray[Any]]) -> Tensor:
        stack = torch.from_numpy(np.array(matrices, dtype=np.float64).reshape(-1, 3, 3))
        return scale_intrinsics(stack, width / of_width, height / of_height).float()

    frames = [_tensor(resize_image(frame, height, width)) for frame in sources]
    sample: Sample = {
        "target": _tensor(resize_image(target, height, width)),
        "sources": torch.stack(frames) if frames else torch.empty(0, 3, height, width, dtype=torch.uint8),
        "K": scaled([K])[0],
        "source_K": scaled(source_K),
        "T": torch.from_numpy(np.array(T, dtype=np.float32).reshape(-1, 4, 4)),
        "name": name,
    }
    if depth is not None:
        sample["depth"] = torch.from_numpy(np.ascontiguousarray(depth, dtype=np.float32))[None]
        sample["image"] = _tensor(target)
    return sample


def kb_crop(height: int, width: int) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) of the 352x1216 pixels at the bottom centre that the KITTI depth benchmark keeps."""
    if height < 352 or width < 1216:
        raise ValueError(f"height, width: expected at least 352x1216 to crop, got {height}x{width}")
    left = (width - 1216) // 2
    return height - 352, height, left, left + 1216


class DepthDataset(Dataset[DepthSample]):
    """Base of the data sets with measured depth: a subclass implements `read`.

    names: one for each sample, the same on every machine. settings: the choices that change what a sample holds, of
    types that JSON knows. Both together are what a cache is recognised by. crop: see `Crop`.
    """

    def __init__(self, names: Sequence[str], *, crop: Crop = None, **settings: Any) -> None:
        if crop is not None and crop != "kb":
            box = tuple(crop)
            if len(box) != 4 or not all(isinstance(n, int) for n in box) or not (0 <= box[0] < box[1]):
                raise ValueError(f'crop: expected (top, bottom, left, right) in pixels or "kb", got {crop!r}')
            if not 0 <= box[2] < box[3]:
                raise ValueError(f"crop: expected 0 <= left < right, got {crop!r}")
            crop = box
        self.names = list(names)
        self.settings = {**settings, "crop": crop}
        self._crop = crop

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Image (h, w, 3) and depth (h, w) in metres, 0 = none, as the files hold them. `DataError` names the file."""
        raise NotImplementedError

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample, by which a cache tells whether they are still the same."""
        return ()

    def where(self, index: int) -> str:
        """What an error calls a sample."""
        return self.names[index]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> DepthSample:
        if not 0 <= index < len(self):
            raise IndexError(f"index: expected 0..{len(self) - 1}, got {index}")
        image, depth = self.read(index)
        if image.shape[:2] != depth.shape:
            raise DataError(
                f"{self.where(index)}: expected depth of the image's size {image.shape[:2]}, got {depth.shape}"
            )
        if self._crop is not None:
            height, width = depth.shape
            try:
                top, bottom, left, right = kb_crop(height, width) if self._crop == "kb" else self._crop
            except ValueError as error:
                raise DataError(f"{self.where(index)}: {error}") from None
            if bottom > height or right > width:
                raise DataError(
                    f"{self.where(index)}: expected an image that holds crop {self._crop}, got {depth.shape}"
                )
            image, depth = image[top:bottom, left:right], depth[top:bottom, left:right]
        return {
            "target": _tensor(image),
            "depth": torch.from_numpy(np.ascontiguousarray(depth))[None],
            "name": self.names[index],
        }


def check_size(height: int, width: int) -> tuple[int, int]:
    for name, value in (("height", height), ("width", width)):
        if not isinstance(value, int) or value < 2:
            raise ValueError(f"{name}: expected an integer of at least 2, got {value!r}")
    return height, width


def check_sources(sources: object, names: tuple[str, ...]) -> tuple[SourceName, ...]:
    """Frame offsets (integers but 0) and some of `names`, each once."""
    if isinstance(sources, str) or not isinstance(sources, (tuple, list)):
        raise TypeError(f"sources: expected a tuple such as (-1, 1), got {sources!r}")
    for source in sources:
        offset = isinstance(source, int) and not isinstance(source, bool) and source != 0
        if not offset and source not in names:
            known = "".join(f' or "{name}"' for name in names)
            raise ValueError(f"sources: expected frame offsets other than 0{known}, got {source!r}")
    if len(set(sources)) < len(sources):
        raise ValueError(f"sources: expected each source once, got {tuple(sources)!r}")
    return tuple(sources)


class SkipBroken(Dataset[Sample]):
    """Serves the next sample that can be read in place of one that cannot, and counts.

    Every sample carries "skipped": how many were passed over for it, 0 when it is itself; the sum over a batch is
    the batch's count. `broken` holds the indices found so far by this process and all its loader workers together
    (the flags lie in shared memory). Each broken file is named in one warning. Only `DataError` is skipped: an error
    of the program stays one. Raises `DataError` when no sample can be read.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.sources: tuple[SourceName, ...] = getattr(dataset, "sources", ())
        self.blocks: Sequence[int] | None = getattr(dataset, "blocks", None)
        self._flags = torch.zeros(len(dataset), dtype=torch.uint8).share_memory_()

    @property
    def broken(self) -> list[int]:
        return self._flags.nonzero().flatten().tolist()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        length = len(self)
        if not 0 <= index < length:
            raise IndexError(f"index: expected 0..{length - 1}, got {index}")
        for skipped in range(length):
            position = (index + skipped) % length
            try:
                sample: Sample = self.dataset[position]
            except DataError as error:
                if not self._flags[position]:
                    self._flags[position] = 1
                    warnings.warn(f"skipped a broken sample: {error}", stacklevel=2)
                continue
            return {**sample, "skipped": skipped}
        raise DataError(f"none of the {length} samples can be read, see the warnings before this error")


def list_images(folder: Path) -> list[Path]:
    """Image files of a folder in natural order: frame2 before frame10."""
    suffixes = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if Path(entry.name).suffix.lower() in suffixes]
    except OSError as error:
        raise DataError(f"{folder}: cannot list the folder ({error.strerror})") from error
    return [folder / name for name in sorted(names, key=natural_key)]


def list_clip(folder: Path) -> list[Path]:
    """The frames of a clip in natural order: image files without those hidden by a dot. `DataError` if there is none,
    or if two files differ in their suffix only: a frame would be its own neighbour."""
    frames = [path for path in list_images(folder) if not path.name.startswith(".")]
    if not frames:
        raise DataError(f"{folder}: expected image files, got none")
    by_stem: dict[str, Path] = {}
    for path in frames:
        if (other := by_stem.setdefault(path.stem, path)) != path:
            raise DataError(f"{folder}: expected one file for each frame, got {other.name} and {path.name}")
    return frames


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key under which runs of digits compare as numbers."""
    # Even positions of the split are text (perhaps empty), odd ones digits: like always meets like.
    return [(int(run) if position % 2 else 0, run) for position, run in enumerate(re.split(r"([0-9]+)", name))]

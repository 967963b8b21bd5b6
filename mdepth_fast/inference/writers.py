"""One predicted map to one file, with its kind, unit and camera in the file's metadata, and back."""

import json
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdepth_fast.data.frames import read_intrinsics
from mdepth_fast.data.intrinsics import implausible_intrinsics
from mdepth_fast.data.samples import DataError
from mdepth_fast.files import replacing
from mdepth_fast.geometry import backproject
from mdepth_fast.kinds import Kind, check_kind, describe, is_inverse
from mdepth_fast.models import DepthPrediction
from mdepth_fast.visualize import valid_values, write_depth_png, write_npy

__all__ = ["MAP_FORMATS", "DepthMap", "read_map", "write_map"]

MAP_FORMATS = ("png", "npy", "tiff", "ply")

_KEY = "mdepth_fast"  # of the PNG's text chunk, and the first key of every metadata


@dataclass(frozen=True)
class DepthMap:
    """The prediction for one image, on the host.

    values: float32 (H, W); what they are say `kind` and `unit`, as in `DepthPrediction`. K: camera matrix (3, 3) in
    pixels of the map, or None. image: uint8 (H, W, 3), or None. TypeError or ValueError for anything else, such as a
    coloured picture.
    """

    values: NDArray[np.float32]
    kind: Kind
    unit: str | None
    K: NDArray[np.float64] | None = None
    image: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        check_kind(self.kind, self.unit)
        values = np.asarray(self.values)
        if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating):
            hint = "; a coloured picture holds no depth" if values.ndim == 3 or values.dtype == np.uint8 else ""
            raise ValueError(
                f"values: expected one map (H, W), floating point, got {values.dtype} of shape {values.shape}{hint}"
            )
        object.__setattr__(self, "values", values.astype(np.float32, copy=False))
        if self.K is not None:
            object.__setattr__(self, "K", read_intrinsics(np.asarray(self.K)))
        image = self.image
        if image is not None and (image.dtype != np.uint8 or image.shape != (*values.shape, 3)):
            raise ValueError(
                f"image: expected uint8 of shape {(*values.shape, 3)}, got {image.dtype} of shape {tuple(image.shape)}"
            )

    @classmethod
    def of(
        cls,
        prediction: DepthPrediction,
        index: int = 0,
        *,
        K: Tensor | NDArray[Any] | None = None,
        image: NDArray[np.uint8] | None = None,
    ) -> "DepthMap":
        """The map of image `index` of a prediction; K (3, 3) or (B, 3, 3) and image (H, W, 3) as in the class."""
        values = prediction.depth[index, 0].detach().float().cpu().numpy()
        if K is not None:
            matrices = np.asarray(K.detach().cpu() if isinstance(K, Tensor) else K, np.float64)
            K = matrices[index] if matrices.ndim == 3 else matrices
        return cls(values, prediction.kind, prediction.unit, K, image)


def write_map(
    path: str | Path, map: DepthMap, *, format: str, scale: float = 256.0, flying: float | None = None
) -> int:
    """Writes one map to one file, which appears whole or not at all.

    format "png": 16 bits, value = map * scale, 0 = none (KITTI: metres * 256). "npy": float32 (H, W), untouched, beside
    a file of its name and `.json` with the metadata. "tiff": float32 (H, W), untouched. "ply": a point cloud, binary, x
    to the right, y down, z forward, in the unit of the depth, with the colours of the image. It needs `map.K`, and
    depth: inverse depth and disparity are refused. Pixels without depth give no point.

    The metadata are kind, unit, scale and K as JSON: in the PNG's text chunk `mdepth_fast`, in TIFF's ImageDescription,
    in comments of the PLY.

    Args:
        scale: value of a PNG for 1.
        flying: of a point cloud, leaves out pixels at edges of depth, which lie between two surfaces: those whose 3x3
            neighbours differ in depth by more than this share of it, such as 0.05. None keeps all.

    Returns:
        how many pixels a PNG had to clamp to 1 .. 65535.

    Raises:
        TypeError, ValueError: no `DepthMap`, an unknown format, or a map that the format cannot hold.
    """
    if not isinstance(map, DepthMap):
        raise TypeError(f"map: expected a DepthMap, got {type(map).__name__}; a coloured picture holds no depth")
    if format not in MAP_FORMATS:
        raise ValueError(f"format: expected one of {', '.join(MAP_FORMATS)}, got {format!r}")
    if flying is not None and (format != "ply" or not flying > 0):
        raise ValueError(f"flying: expected a positive share of the depth and format ply, got {flying} and {format}")
    path = Path(path)
    if format == "png":
        about = json.dumps(_metadata(map, scale))
        return write_depth_png(path, map.values, scale, kind=map.kind, text={_KEY: about})
    if format == "npy":
        _write_npy(path, map)
    elif format == "tiff":
        _write_tiff(path, map)
    else:
        _write_ply(path, map, flying)
    return 0


def read_map(path: str | Path) -> DepthMap:
    """Reads a PNG, npy or TIFF that `write_map` wrote: values, kind, unit and K. What a PNG marks as none is NaN.

    `DataError` for a missing or damaged file, one without these metadata, and an npy that its metadata do not describe.
    """
    path = Path(path)
    values, text = _read_npy(path) if path.suffix == ".npy" else _read_image(path)
    try:
        about = json.loads(text)
        if about[_KEY] != _VERSION:
            raise ValueError(f"version {about[_KEY]!r} of the metadata, expected {_VERSION}")
        if (crc := about.get("crc32")) is not None and crc != zlib.crc32(np.ascontiguousarray(values)):
            raise ValueError("the array is not the one that its metadata describe")
        if (scale := about.get("scale")) is not None:
            pixels = values.astype(np.float64)
            values = np.where(pixels == 0, np.nan, pixels / scale).astype(np.float32)
        K = None if about["K"] is None else np.array(about["K"], np.float64)
        return DepthMap(values, about["kind"], about["unit"], K)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a map of mdepth-fast ({error})") from error


_VERSION = 1


def _metadata(map: DepthMap, scale: float | None = None) -> dict[str, Any]:
    return {
        _KEY: _VERSION,
        "kind": map.kind,
        "unit": map.unit,
        "holds": describe(map.kind) + ("" if scale is None else f" = value / {scale:g}, 0 = none"),
        "scale": scale,
        "K": None if map.K is None else map.K.tolist(),
    }


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _write_npy(path: Path, map: DepthMap) -> None:
    # A crash between the two renames leaves new metadata beside an old array: the checksum tells.
    about = {**_metadata(map), "crc32": zlib.crc32(np.ascontiguousarray(map.values))}
    with replacing(path) as array, replacing(_sidecar(path)) as text:
        write_npy(array, map.values)
        text.write_text(json.dumps(about, indent=2) + "\n")


def _read_npy(path: Path) -> tuple[NDArray[Any], str]:
    try:
        values = np.asarray(np.load(path, allow_pickle=False))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be read as a NumPy array ({error})") from error
    try:
        return values, _sidecar(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected its kind and unit in {_sidecar(path).name} beside it ({error})") from error


def _write_tiff(path: Path, map: DepthMap) -> None:
    from PIL import Image

    with replacing(path) as temporary:
        Image.fromarray(map.values).save(temporary, format="TIFF", tiffinfo={_DESCRIPTION: json.dumps(_metadata(map))})


_DESCRIPTION = 270  # TIFF's tag


def _read_image(path: Path) -> tuple[NDArray[Any], str]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            text = image.tag_v2.get(_DESCRIPTION) if image.format == "TIFF" else image.info.get(_KEY)  # type: ignore[attr-defined]
            values = np.array(image)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error
    if not isinstance(text, str) or _KEY not in text:
        raise DataError(
            f"{path}: expected a map with kind and unit in its metadata, as write_map writes it, found none"
        )
    return values, text


def _write_ply(path: Path, map: DepthMap, flying: float | None) -> None:
    if is_inverse(map.kind):
        raise ValueError(
            f"kind: expected depth for a point cloud, got {describe(map.kind)}; make it metric by to_metric(...) first"
        )
    if map.K is None:
        raise ValueError("K: expected the camera matrix, which a point cloud needs, got none")
    K, depth = map.K, map.values
    height, width = depth.shape
    if K[0, 0] < 0.1 * width or K[1, 1] < 0.1 * height:
        raise ValueError(
            f"K: expected focal lengths in pixels of {width}x{height}, got {K[0, 0]:g} and {K[1, 1]:g}; is it for an "
            "image of unit size?"
        )
    if problem := implausible_intrinsics(K, height, width):
        warnings.warn(f"K: the point cloud may be bent: {problem}", stacklevel=3)
    kept = valid_values(depth, map.kind)
    if flying is not None:
        kept &= ~_at_edges(depth, kept, flying)
    points = backproject(torch.from_numpy(depth).double()[None, None], torch.from_numpy(K)[None])[0]
    fields = [(axis, "<f4") for axis in "xyz"]
    if map.image is not None:
        fields += [(colour, "u1") for colour in ("red", "green", "blue")]
    vertices = np.empty(int(kept.sum()), fields)
    for axis, values in zip("xyz", points.numpy()):
        vertices[axis] = values[kept]
    if map.image is not None:
        for channel, colour in enumerate(("red", "green", "blue")):
            vertices[colour] = map.image[kept, channel]
    unit = "metres" if map.kind == "metric" else "no unit: depth is known up to one factor"
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {_KEY} {json.dumps(_metadata(map))}",
        f"comment x to the right, y down, z forward; {unit}",
        f"element vertex {len(vertices)}",
        *(f"property {'uchar' if kind == 'u1' else 'float'} {name}" for name, kind in fields),
        "end_header",
    ]
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(vertices.tobytes())


def _at_edges(depth: NDArray[np.float32], valid: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """Where the valid depths of the 3x3 neighbours differ by more than a share of the depth."""
    low, high = (np.pad(np.where(valid, depth, fill), 1, constant_values=fill) for fill in (np.inf, -np.inf))
    windows = [np.lib.stride_tricks.sliding_window_view(values, (3, 3)) for values in (low, high)]
    with np.errstate(invalid="ignore"):  # inf - inf, where no neighbour is valid
        spread = windows[1].max((-1, -2)) - windows[0].min((-1, -2))
        found: NDArray[np.bool_] = valid & (spread > share * depth)
    return found

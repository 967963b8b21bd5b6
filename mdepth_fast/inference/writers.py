"""One predicted map to one file, with its kind, unit and camera in the file's metadata, and back."""

import io
import json
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mdepth_fast.data.frames import read_intrinsics
from mdepth_fast.data.intrinsics import implausible_intrinsics
from mdepth_fast.data.samples import (
    TIFF_DESCRIPTION,
    DataError,
    metadata_beside,
    metadata_inside,
    open_image,
    read_npy,
    sidecar,
)
from mdepth_fast.files import replacing
from mdepth_fast.geometry import backproject
from mdepth_fast.kinds import METADATA, Kind, check_kind, describe, is_inverse
from mdepth_fast.models import DepthPrediction
from mdepth_fast.visualize import valid_values, write_depth_png, write_npy

__all__ = ["MAP_FORMATS", "DepthMap", "point_cloud", "read_map", "write_glb", "write_map"]

MAP_FORMATS = ("png", "npy", "tiff", "ply")

_VERSION = 1  # of the metadata


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
        if values.ndim != 2 or not values.size or not np.issubdtype(values.dtype, np.floating):
            hint = "; a coloured picture holds no depth" if values.ndim == 3 or values.dtype == np.uint8 else ""
            raise ValueError(
                f"values: expected one map (H, W), floating point, got {values.dtype} of shape {values.shape}{hint}"
            )
        object.__setattr__(self, "values", values.astype(np.float32, copy=False))
        if self.K is not None:
            object.__setattr__(self, "K", read_intrinsics(np.asarray(self.K)))
        image = self.image
        if image is None:
            return
        if not isinstance(image, np.ndarray):
            raise TypeError(f"image: expected a NumPy array, got {type(image).__name__}")
        if image.dtype != np.uint8 or image.shape != (*values.shape, 3):
            raise ValueError(
                f"image: expected uint8 of shape {(*values.shape, 3)}, got {image.dtype} of shape {image.shape}"
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
    if flying is not None and not flying > 0:
        raise ValueError(f"flying: expected a positive share of the depth, got {flying}")
    path = Path(path)
    if format == "png":
        about = json.dumps(_metadata(map, scale))
        return write_depth_png(path, map.values, scale, kind=map.kind, text={METADATA: about})
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
    if path.suffix == ".npy":
        values, text = read_npy(path), metadata_beside(path)
    else:
        with open_image(path) as image:
            values, text = np.array(image), metadata_inside(image)
    if text is None:
        raise DataError(f"{path}: expected a map that says its kind and unit, as write_map writes it, got none")
    try:
        about = json.loads(text)
        if about[METADATA] != _VERSION:
            raise ValueError(f"version {about[METADATA]!r} of the metadata, expected {_VERSION}")
        if (crc := about.get("crc32")) is not None and crc != zlib.crc32(values.tobytes()):
            raise ValueError("the array is not the one that its metadata describe")
        if (scale := about.get("scale")) is not None:
            if not scale > 0:
                raise ValueError(f"a scale of {scale}")
            pixels = values.astype(np.float64)
            values = np.where(pixels == 0, np.nan, pixels / scale).astype(np.float32)
        K = None if about["K"] is None else np.array(about["K"], np.float64)
        return DepthMap(values, about["kind"], about["unit"], K)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read as a map of mdepth-fast ({error})") from error


def write_glb(path: str | Path, points: NDArray[np.float64], colours: NDArray[np.uint8]) -> None:
    """Writes a point cloud, as `point_cloud` gives it, in the format that web pages show: glTF 2.0, binary.

    The axes are glTF's: x to the right, y up, z backward. ValueError for no points, which the format cannot hold.
    """
    if not len(points):
        raise ValueError("points: expected at least one, got none")
    positions = (points * [1, -1, -1]).astype("<f4")
    # Colours are linear light there, with opacity: 16 bits hold the dark ones of a photograph, too.
    light = np.full((len(points), 4), 65535, "<u2")
    light[:, :3] = np.rint(65535 * (colours / 255.0) ** 2.2)
    content = positions.tobytes() + light.tobytes()
    about = {
        "asset": {"version": "2.0", "generator": "mdepth_fast"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0, "COLOR_0": 1}, "mode": 0, "material": 0}]}],
        "materials": [{"extensions": {"KHR_materials_unlit": {}}}],
        "extensionsUsed": ["KHR_materials_unlit"],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,  # float
                "count": len(points),
                "type": "VEC3",
                "min": positions.min(0).tolist(),
                "max": positions.max(0).tolist(),
            },
            {
                "bufferView": 1,
                "componentType": 5123,  # unsigned short
                "normalized": True,
                "count": len(points),
                "type": "VEC4",
            },
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": positions.nbytes, "target": 34962},
            {"buffer": 0, "byteOffset": positions.nbytes, "byteLength": light.nbytes, "target": 34962},
        ],
        "buffers": [{"byteLength": len(content)}],
    }
    text = json.dumps(about).encode("ascii")
    text += b" " * (-len(text) % 4)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + len(content)))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", len(content), b"BIN\0") + content)


def _metadata(map: DepthMap, scale: float | None = None) -> dict[str, Any]:
    return {
        METADATA: _VERSION,
        "kind": map.kind,
        "unit": map.unit,
        "holds": describe(map.kind) + ("" if scale is None else f" = value / {scale:g}, 0 = none"),
        "scale": scale,
        "K": None if map.K is None else map.K.tolist(),
    }


def _write_npy(path: Path, map: DepthMap) -> None:
    # A crash between the two renames leaves new metadata beside an old array: the checksum tells.
    about = {**_metadata(map), "crc32": zlib.crc32(map.values.tobytes())}
    with replacing(path) as array, replacing(sidecar(path)) as text:
        write_npy(array, map.values)
        text.write_text(json.dumps(about, indent=2) + "\n")


def _write_tiff(path: Path, map: DepthMap) -> None:
    from PIL import Image

    content, text = io.BytesIO(), json.dumps(_metadata(map))
    with replacing(path) as temporary:
        # Into memory first: Pillow's TIFF encoder takes a full disk for success.
        Image.fromarray(map.values).save(content, format="TIFF", tiffinfo={TIFF_DESCRIPTION: text})
        temporary.write_bytes(content.getbuffer())


def point_cloud(
    map: DepthMap, *, flying: float | None = None, most: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.uint8] | None]:
    """The points (N, 3) of a map and their colours (N, 3), None where it has no image.

    x to the right, y down, z forward, in the unit of the depth; pixels without depth give no point. flying: see
    `write_map`. most: of more points, so many at random, always the same ones. ValueError for inverse depth, disparity,
    or a map without K.
    """
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
    kept = valid_values(depth, map.kind)
    if flying is not None:
        kept &= ~_at_edges(depth, kept, flying)
    if most is not None and (count := int(kept.sum())) > most:
        # At random, for every n-th pixel in the order of rows would make stripes.
        chosen = np.random.default_rng(0).choice(count, most, replace=False, shuffle=False)
        kept.flat[np.delete(np.flatnonzero(kept), chosen)] = False
    points = backproject(torch.from_numpy(depth).double()[None, None], torch.from_numpy(K)[None])[0]
    return points.numpy()[:, kept].T, None if map.image is None else map.image[kept]


def _write_ply(path: Path, map: DepthMap, flying: float | None) -> None:
    points, colours = point_cloud(map, flying=flying)
    assert map.K is not None
    if problem := implausible_intrinsics(map.K, *map.values.shape):
        warnings.warn(f"K: the point cloud may be bent: {problem}", stacklevel=3)
    fields = [(axis, "<f4") for axis in "xyz"]
    if colours is not None:
        fields += [(colour, "u1") for colour in ("red", "green", "blue")]
    vertices = np.empty(len(points), fields)
    for number, axis in enumerate("xyz"):
        vertices[axis] = points[:, number]
    if colours is not None:
        for number, colour in enumerate(("red", "green", "blue")):
            vertices[colour] = colours[:, number]
    unit = "metres" if map.kind == "metric" else "no unit: depth is known up to one factor"
    header = [
        "ply",
        "format binary_little_endian 1.0",
        f"comment {METADATA} {json.dumps(_metadata(map))}",
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
    high, low = (torch.from_numpy(np.where(valid, side, -np.inf))[None] for side in (depth, -depth))
    # Padding counts for nothing: it is -inf. Where no neighbour is valid, the spread is too.
    spread = F.max_pool2d(high, 3, 1, 1) + F.max_pool2d(low, 3, 1, 1)
    found: NDArray[np.bool_] = valid & (spread[0].numpy() > share * depth)
    return found

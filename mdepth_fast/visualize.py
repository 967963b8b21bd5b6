"""Depth and flow for the eye and for the disk: coloured maps, panels, 16-bit PNG. Every file appears whole or not at
all."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mdepth_fast.files import replacing
from mdepth_fast.kinds import Kind, is_inverse

__all__ = [
    "Cell",
    "color_pixels",
    "color_range",
    "colorize",
    "colorize_flow",
    "draw_panel",
    "draw_trajectories",
    "valid_values",
    "write_depth_png",
    "write_maps",
    "write_npy",
    "write_png",
]

Array = NDArray[Any]


def _plane(name: str, values: Tensor | Array) -> Array:
    """A (H,W) array from a map with any number of leading dimensions of size 1."""
    array = values.detach().cpu().float().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim < 2 or any(size != 1 for size in array.shape[:-2]):
        raise ValueError(f"{name}: expected one map (H,W) or (1,...,H,W), got shape {tuple(array.shape)}")
    return array.reshape(array.shape[-2:])


def valid_values(values: Array, kind: Kind) -> NDArray[np.bool_]:
    """Where a map holds a value: depth that is finite and positive, inverse depth or disparity that is finite."""
    finite = np.isfinite(values)
    return finite if is_inverse(kind) else finite & (values > 0)


def _inverse(values: Array, kind: Kind) -> tuple[Array, Array]:
    valid = valid_values(values, kind)
    if is_inverse(kind):
        return np.where(valid, values, 0.0), valid
    return np.where(valid, 1.0 / np.where(valid, values, 1.0), 0.0), valid


def color_range(depth: Tensor | Array, *, kind: Kind = "relative") -> tuple[float, float]:
    """The range of inverse depth that `colorize` spreads its colours over: minimum and 95th percentile.

    `depth` (H,W), what it holds says `kind`, see `valid_values`; (0, 1) where nothing is valid.
    Source: the published pictures of Monodepth2, arXiv 1806.01260.
    """
    inverse, valid = _inverse(_plane("depth", depth), kind)
    if not valid.any():
        return 0.0, 1.0
    return float(inverse[valid].min()), float(np.percentile(inverse[valid], 95))


def colorize(
    depth: Tensor | Array,
    bounds: tuple[float, float] | None = None,
    *,
    kind: Kind = "relative",
    colormap: str = "magma",
) -> NDArray[np.uint8]:
    """Depth (H,W) to RGB uint8 (H,W,3): near is bright, invalid (see `valid_values`) is black.

    `bounds`: range of inverse depth, in 1 / unit of depth; `color_range(depth, kind=kind)` where None. Give one range
    to all the frames of a video, or its colours flicker. `kind`: what `depth` holds. Inverse depth and disparity are
    coloured as they are.
    """
    pixels = color_pixels(depth, bounds, kind=kind, colormap=colormap)
    return np.ascontiguousarray(pixels[..., :3])


def color_pixels(
    depth: Tensor | Array,
    bounds: tuple[float, float] | None = None,
    *,
    kind: Kind = "relative",
    colormap: str = "magma",
) -> NDArray[np.uint8]:
    """The colours of `colorize` with a fourth byte of 0, (H,W,4): faster, and a format that video encoders take."""
    low, high = color_range(depth, kind=kind) if bounds is None else bounds
    inverse, valid = _inverse(_plane("depth", depth), kind)
    scaled = (inverse - low) / max(high - low, 1e-12)
    # matplotlib's own rule for its 256 colours, each looked up as one number.
    indices = np.clip(scaled * 256, 0, 255).astype(np.uint8)
    pixels = _color_table(colormap).take(indices)
    if not valid.all():
        pixels[~valid] = 0
    return pixels.view(np.uint8).reshape(*indices.shape, 4)


@lru_cache
def _color_table(colormap: str) -> NDArray[np.uint32]:
    """The 256 colours of a map, R G B 0 in the order of bytes."""
    from matplotlib import colormaps

    table = np.zeros((256, 4), np.uint8)
    table[:, :3] = colormaps[colormap](np.arange(256) / 255)[:, :3] * 255 + 0.5
    return table.view(np.uint32).reshape(256)


# Middlebury's circle of hues: the colour at each corner, and how many steps lead to the next.
_HUES = (
    ((255, 0, 0), 15),
    ((255, 255, 0), 6),
    ((0, 255, 0), 4),
    ((0, 255, 255), 11),
    ((0, 0, 255), 13),
    ((255, 0, 255), 6),
)


def _color_wheel() -> NDArray[np.float64]:
    """The 55 colours of the circle, (55,3) in [0, 1]."""
    following = _HUES[1:] + _HUES[:1]
    parts = [
        np.array(start) + np.trunc(np.arange(steps)[:, None] / steps * (np.array(end) - start))
        for (start, steps), (end, _) in zip(_HUES, following)
    ]
    return np.concatenate(parts) / 255


def colorize_flow(flow: Tensor | Array, bound: float | None = None) -> NDArray[np.uint8]:
    """Flow (2,H,W) or (1,2,H,W) to RGB uint8 (H,W,3) by Middlebury's colour circle; the unknown is black.

    Hue is the direction (red: to the right), saturation the length over `bound`, in pixels: white stands still. Longer
    flow is darker. Unknown is what is not finite or beyond 1e9. `bound`: the longest flow where None. Give one to all
    the frames of a video, or its colours flicker.
    Source: Baker et al., A database and evaluation methodology for optical flow, IJCV 2011.
    """
    array = np.asarray(flow.detach().cpu() if isinstance(flow, Tensor) else flow, dtype=np.float64)
    if array.ndim < 3 or array.shape[-3] != 2 or any(size != 1 for size in array.shape[:-3]):
        raise ValueError(f"flow: expected (2,H,W) or (1,2,H,W), got shape {tuple(array.shape)}")
    if bound is not None and not bound > 0:
        raise ValueError(f"bound: expected a positive number of pixels, got {bound}")
    u, v = array.reshape(array.shape[-3:])
    valid = (np.abs(u) < 1e9) & (np.abs(v) < 1e9)  # not so where NaN; Middlebury's files mark the unknown by 1e10
    u, v = np.where(valid, u, 0), np.where(valid, v, 0)
    length = np.hypot(u, v)
    length /= bound if bound is not None else max(length.max(initial=0), 1e-12)
    wheel = _color_wheel()
    # The circle begins on the right, and its last colour is half a turn from where -u, -v points.
    place = (np.arctan2(-v, -u) / np.pi + 1) / 2 * (len(wheel) - 1)
    below = np.floor(place).astype(int)
    share = (place - below)[..., None]
    color = (1 - share) * wheel[below] + share * wheel[(below + 1) % len(wheel)]
    length = length[..., None]
    color = np.where(length <= 1, 1 - length * (1 - color), 0.75 * color)
    rgb = np.floor(255 * color).astype(np.uint8)
    rgb[~valid] = 0
    return rgb


def write_png(path: str | Path, rgb: NDArray[np.uint8]) -> None:
    """Writes RGB uint8 (H,W,3)."""
    from PIL import Image

    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ValueError(f"rgb: expected uint8 (H,W,3), got {rgb.dtype} {tuple(rgb.shape)}")
    with replacing(path) as temporary:
        Image.fromarray(rgb).save(temporary, format="PNG")


def write_npy(path: str | Path, depth: Tensor | Array) -> None:
    """Writes depth as float32 (H,W), untouched."""
    with replacing(path) as temporary, temporary.open("wb") as file:  # by name, np.save adds a suffix of its own
        np.save(file, _plane("depth", depth).astype(np.float32))


def write_maps(path: str | Path, maps: Sequence[Array]) -> None:
    """Writes maps (H,W) of one size as one float32 array (N,H,W)."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.stack(maps).astype(np.float32, copy=False))


def write_depth_png(
    path: str | Path,
    depth: Tensor | Array,
    scale: float = 256.0,
    *,
    kind: Kind = "relative",
    text: Mapping[str, str] | None = None,
) -> int:
    """Writes depth (H,W) as 16-bit PNG, value = depth * scale, 0 = none (KITTI depth: metres * 256).

    What is no value (see `valid_values`, `kind` says what `depth` holds) becomes 0. Values outside 1..65535 are
    clamped, never wrapped. `text` goes into text chunks of these names.

    Returns:
        how many pixels were clamped. Inverse depth of 0 that becomes 1, one step of the scale, is not counted.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    if not 0 < scale < np.inf:
        raise ValueError(f"scale: expected a positive number, got {scale}")
    values = _plane("depth", depth).astype(np.float64)
    valid = valid_values(values, kind)
    scaled = np.rint(np.where(valid, values, 0.0) * scale)
    clamped = valid & ((scaled < (0 if is_inverse(kind) else 1)) | (scaled > 65535))
    pixels = np.where(valid, np.clip(scaled, 1, 65535), 0).astype(np.uint16)
    chunks = PngInfo()
    for key, value in (text or {}).items():
        chunks.add_text(key, value)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=chunks)
    return int(clamped.sum())


class Cell(NamedTuple):
    """One picture of a panel: RGB (H,W,3), or a map (H,W) with its colours; NaN is drawn grey."""

    title: str
    picture: Array
    colormap: str = "magma"
    bounds: tuple[float, float] | None = None
    unit: str = ""


def draw_panel(path: str | Path, cells: Sequence[Cell], *, title: str = "", columns: int = 3) -> None:
    """Draws labelled cells in rows of `columns`, maps with a colour bar in their unit, and writes one PNG."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    rows = -(-len(cells) // columns)
    height, width = cells[0].picture.shape[:2]
    figure = Figure(figsize=(4.6 * columns, (4.2 * height / width + 0.5) * rows + 0.4), layout="constrained")
    figure.suptitle(title)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if index >= len(cells):
            continue
        cell = cells[index]
        axes.set_title(cell.title, fontsize=10)
        if cell.picture.ndim == 3:
            axes.imshow(cell.picture)
            continue
        low, high = cell.bounds or (None, None)
        colors = colormaps[cell.colormap].with_extremes(bad="0.6")
        drawn = axes.imshow(cell.picture, cmap=colors, vmin=low, vmax=high, interpolation="nearest")
        figure.colorbar(drawn, ax=axes, shrink=0.8, label=cell.unit)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_trajectories(path: str | Path, tracks: Mapping[str, Array], *, title: str = "", unit: str = "m") -> None:
    """Draws a bird's-eye view and writes a PNG.

    tracks: name to camera centres (N,3) in the coordinates of one camera, x to the right and z forward; both axes have
    one scale. A dot marks each start.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 7), layout="constrained")
    axes = figure.subplots()
    for number, (name, centres) in enumerate(tracks.items()):
        axes.plot(centres[:, 0], centres[:, 2], "--" if number else "-", label=name, color=f"C{number}")
        axes.plot(*centres[0, [0, 2]], "o", color=f"C{number}", markersize=5)
    axes.set(aspect="equal", title=title, xlabel=f"x, to the right ({unit})", ylabel=f"z, forward ({unit})")
    axes.set_adjustable("datalim")
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")

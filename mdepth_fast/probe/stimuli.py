"""Edited frames: obstacles on the road, shifted and rolled cameras, other colours.

A frame is float (H,W,3) in [0, 1]. The road is a flat ground plane that vanishes at `horizon`, a row of the frame. A
point of the road at `z` times the distance of another one is seen at 1 / z of its rows below the horizon, and an object
that stands there at 1 / z of its size.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data.samples import DataError, check_pixels

__all__ = [
    "RECOLOURED",
    "TEXTURES",
    "Box",
    "Obstacle",
    "car_from_behind",
    "crop_rows",
    "false_colours",
    "grey",
    "insert",
    "low_contrast",
    "read_obstacle",
    "roll",
    "roll_size",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Obstacle:
    """A picture of an object that stands on its lower edge: RGB and opacity (h,w,4), in [0, 1]."""

    rgba: Array

    def __post_init__(self) -> None:
        if self.rgba.ndim != 3 or self.rgba.shape[2] != 4 or 0 in self.rgba.shape:
            raise ValueError(f"rgba: expected (h,w,4), got {self.rgba.shape}")
        if not (self.rgba[..., 3] > 0.5).any():
            raise ValueError("rgba: expected an opaque object, the picture is transparent everywhere")

    def resized(self, width: int) -> Array:
        """The picture (h,width,4) at another size, with its opacity as the weight of its colours."""
        from PIL import Image

        height = max(1, round(self.rgba.shape[0] * width / self.rgba.shape[1]))
        alpha = self.rgba[..., 3:]
        planes = np.concatenate([self.rgba[..., :3] * alpha, alpha], 2).astype(np.float32)
        small = np.stack(
            [
                np.asarray(Image.fromarray(planes[..., i]).resize((width, height), Image.Resampling.BOX))
                for i in range(4)
            ],
            2,
        )
        small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
        return small.clip(0, 1).astype(np.float64)


def read_obstacle(path: str | Path) -> Obstacle:
    """An object cut out of a photograph: a PNG with transparency, whose lowest opaque row touches the ground.

    DataError if the file is no such image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            check_pixels(path, *image.size)
            if "A" not in image.getbands() and "transparency" not in image.info:
                raise DataError(f"{path}: expected an image with transparency around the object, got mode {image.mode}")
            rgba = np.asarray(image.convert("RGBA"), np.float64) / 255
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read ({error})") from error
    opaque = rgba[..., 3] > 0.5
    if not opaque.any():
        raise DataError(f"{path}: expected an opaque object, the image is transparent everywhere")
    rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
    return Obstacle(rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@cache
def car_from_behind() -> Obstacle:
    """A drawn car, seen from behind: body, rear window, lamps, number plate, bumper, tyres. 1.5 wide to 1.2 high."""
    height, width = 240, 300
    v, u = np.mgrid[0:height, 0:width]
    x, y = (u + 0.5) / width * 2 - 1, (v + 0.5) / height  # x in -1..1, y down from the roof
    rgba = np.zeros((height, width, 4))

    def paint(where: Array, colour: tuple[float, float, float]) -> None:
        rgba[where] = (*colour, 1.0)

    cabin = (y < 0.5) & (np.abs(x) < 0.62 + 0.5 * y) & (y > 0.06 * x**2)
    body = (y >= 0.42) & (y < 0.88) & (np.abs(x) < 0.97 - 0.25 * np.maximum(0, y - 0.8))
    tyre = (y >= 0.7) & (np.abs(np.abs(x) - 0.75) < 0.17)
    paint(tyre, (0.04, 0.04, 0.05))
    paint(cabin | body, (0.36, 0.07, 0.09))
    paint((y > 0.09) & (y < 0.38) & (np.abs(x) < 0.5 + 0.45 * y), (0.12, 0.14, 0.17))
    paint((y > 0.5) & (y < 0.6) & (np.abs(np.abs(x) - 0.8) < 0.15), (0.75, 0.1, 0.08))
    paint((y > 0.56) & (y < 0.65) & (np.abs(x) < 0.25), (0.85, 0.85, 0.8))
    paint((y > 0.76) & (y < 0.88) & (np.abs(x) < 0.95), (0.13, 0.13, 0.14))
    shading = 1.08 - 0.25 * y
    rgba[..., :3] *= shading[..., None]
    return Obstacle(rgba.clip(0, 1))


@dataclass(frozen=True)
class Box:
    """Where an obstacle stands in a frame: rows top..bottom and columns left..right, as slices have them."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def inside(self) -> tuple[slice, slice]:
        """The flat middle of the object, which is measured."""
        height, width = self.bottom - self.top, self.right - self.left
        top, left = self.top + round(0.45 * height), self.left + width // 4
        return slice(top, max(top + 1, self.bottom - height // 4)), slice(left, max(left + 1, self.right - width // 4))


def insert(
    frame: Array,
    obstacle: Obstacle,
    contact: int,
    column: float,
    width: int,
    *,
    shadow: bool = True,
    texture: str = "original",
    outline: bool = False,
) -> tuple[Array, Box]:
    """The frame with an obstacle whose lower edge is just above row `contact`, centred on `column`, `width` wide.

    shadow: darken the ground under and before it. texture: a name of `TEXTURES`. outline: only the rim of its
    silhouette. ValueError if it does not fit into the frame.
    """
    picture = obstacle.resized(width)
    height = len(picture)
    left, top = round(column - width / 2 + 0.5), contact - height
    if top < 0 or left < 0 or contact > frame.shape[0] or left + width > frame.shape[1]:
        raise ValueError(
            f"frame: expected room for an obstacle of {height}x{width} pixels above row {contact} at column "
            f"{column:.0f}, got a frame of {frame.shape[0]}x{frame.shape[1]}"
        )
    out = frame.copy()
    if shadow:
        v, u = np.mgrid[0 : frame.shape[0], 0 : frame.shape[1]]
        distance = np.hypot((u - left - width / 2 + 0.5) / (0.55 * width), (v - contact + 0.5) / (0.07 * width + 1))
        out *= 1 - 0.75 * (1 - distance).clip(0, 0.3)[..., None] / 0.3
    colours, alpha = TEXTURES[texture](picture[..., :3]), picture[..., 3:]
    if outline:
        rim = max(1, round(0.04 * width))
        padded = np.pad(alpha[..., 0], rim)
        core = np.min(
            [
                padded[rim + dv : rim + dv + height, rim + du : rim + du + width]
                for dv, du in ((-rim, 0), (rim, 0), (0, -rim), (0, rim))
            ],
            0,
        )
        alpha = (alpha[..., 0] - core).clip(0, 1)[..., None]
    place = out[top:contact, left : left + width]
    place[:] = alpha * colours + (1 - alpha) * place
    return out, Box(top, contact, left, left + width)


def grey(colours: Array) -> Array:
    """Luma (ITU-R BT.601) in all three channels."""
    return np.repeat(colours @ np.array([0.299, 0.587, 0.114])[:, None], 3, -1)


def false_colours(colours: Array) -> Array:
    """The channels in another order, at the luma of before: other hues, the same brightness."""
    turned = colours[..., [1, 2, 0]]
    return (turned * (grey(colours) / np.maximum(grey(turned), 1e-3))).clip(0, 1)


def low_contrast(colours: Array) -> Array:
    """A third of the contrast around middle grey."""
    return 0.5 + (colours - 0.5) / 3


def _noise(colours: Array) -> Array:
    return np.random.default_rng(0).uniform(0, 1, colours.shape)


def _flat(colours: Array) -> Array:
    return np.broadcast_to(colours.mean((0, 1)), colours.shape)


RECOLOURED = {"grey": grey, "false colours": false_colours, "low contrast": low_contrast}
"""Other colours of a whole frame."""
TEXTURES = {"original": lambda colours: colours, **RECOLOURED, "one colour": _flat, "noise": _noise}
"""Other textures of an obstacle."""


def crop_rows(frame: Array, top: int, height: int) -> Array:
    """`height` rows from `top`: what a camera sees that is pitched by `top` pixels."""
    return frame[top : top + height]


def roll_size(height: int, width: int, degrees: float) -> tuple[int, int]:
    """The largest frame of the same shape that lies inside one of `height` x `width` rolled by up to `degrees`."""
    angle = np.deg2rad(abs(degrees))
    scale = 1 / (np.cos(angle) + max(height / width, width / height) * np.sin(angle))
    return int(height * scale), int(width * scale)


def roll(frame: Array, degrees: float, size: tuple[int, int]) -> Array:
    """The middle (h,w) of the frame, its content turned clockwise by `degrees` around the centre; bilinear."""
    from PIL import Image

    height, width = size
    angle = np.deg2rad(degrees)
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    # Output pixel to frame pixel, about both centres; PIL counts from the outer corner of a pixel.
    centre = frame.shape[1] / 2, frame.shape[0] / 2
    middle = width / 2, height / 2
    matrix = (
        *(cos, sin, centre[0] - cos * middle[0] - sin * middle[1]),
        *(-sin, cos, centre[1] + sin * middle[0] - cos * middle[1]),
    )
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(frame[..., i], np.float32)).transform(
                (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
            )
        )
        for i in range(3)
    ]
    return np.stack(planes, 2).astype(np.float64).clip(0, 1)

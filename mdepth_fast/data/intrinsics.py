"""Camera matrices: one from an angle of view, and whether one can belong to an image."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ASSUMED_VIEW", "implausible_intrinsics", "intrinsics_from_view"]

ASSUMED_VIEW = 60.0
"""Degrees from the left to the right edge of an image that nobody tells anything about; phones have 55 to 75."""

_FOCAL = (0.3, 5.0)  # in image widths: 118 to 11 degrees across
_OFF_CENTRE = 0.25  # of width and height
_ASPECT = (0.4, 4.0)  # of frames with square pixels: upright phones to KITTI
_SQUARE = 0.05  # of fx / fy, where the image is as the camera took it


def implausible_intrinsics(K: NDArray[Any], height: int, width: int, *, as_taken: bool = False) -> str | None:
    """What is wrong with K (3,3) for an image of that size in pixels, with the likely reason; None if nothing is.

    as_taken: the image has the camera's own aspect ratio, so that fx and fy are about equal. Otherwise it may have been
    stretched, as network inputs are.
    """
    fx, fy, cx, cy = (float(K[row, column]) for row, column in ((0, 0), (1, 1), (0, 2), (1, 2)))
    numbers = f"fx {fx:.4g}, fy {fy:.4g}, cx {cx:.4g}, cy {cy:.4g}"
    image = f"{width}x{height} pixels (width x height)"
    if not np.isfinite([fx, fy, cx, cy]).all() or fx <= 0 or fy <= 0:
        return f"intrinsics {numbers}: expected finite numbers and positive focal lengths"
    if max(fx, fy, cx, cy) < 10:
        return f"intrinsics {numbers} look like fractions of the image: expected pixels of {image}"
    if abs(cx - (width - 1) / 2) > _OFF_CENTRE * width or abs(cy - (height - 1) / 2) > _OFF_CENTRE * height:
        return (
            f"intrinsics {numbers}: the principal point is far from the centre of {image}; are they for another "
            "resolution, before a crop or a resize?"
        )
    if not _FOCAL[0] <= fx / width <= _FOCAL[1]:
        return (
            f"intrinsics {numbers}: the focal length is {fx / width:.2f} widths of {image}, expected {_FOCAL[0]} to "
            f"{_FOCAL[1]}; are they for another resolution?"
        )
    if as_taken and abs(fx / fy - 1) > _SQUARE:
        return f"intrinsics {numbers}: fx / fy is {fx / fy:.3f}, expected about 1 for {image} that nobody has stretched"
    aspect = width / height * fy / fx
    if not _ASPECT[0] <= aspect <= _ASPECT[1]:
        return (
            f"intrinsics {numbers}: with square pixels they belong to frames {aspect:.2f} times as wide as high, "
            f"expected {_ASPECT[0]} to {_ASPECT[1]}; is fx or fy wrong?"
        )
    return None


def intrinsics_from_view(degrees: float, height: int, width: int) -> NDArray[np.float64]:
    """K (3,3) of a camera that sees `degrees` from the left to the right edge of an image of that size in pixels.

    Its pixels are square and its axis goes through the middle. ValueError outside 1 .. 170 degrees.
    """
    if not 1 <= degrees <= 170:
        raise ValueError(f"angle of view: expected 1 to 170 degrees, got {degrees:g}")
    focal = width / 2 / math.tan(math.radians(degrees) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])

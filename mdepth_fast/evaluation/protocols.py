"""Evaluation protocols: everything that changes a number, stated in one place and printed with every table."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PROTOCOLS", "Protocol", "get_protocol"]

# top, bottom, left, right as fractions of the image, cut to whole pixels; half-open.
# Garg et al. (ECCV 2016) and Eigen et al. (NIPS 2014) on KITTI.
_FRACTIONS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
_NYU_SIZE, _NYU_CROP = (480, 640), (45, 471, 41, 601)

_CROPS = {None: "no crop", "garg": "Garg crop", "eigen": "Eigen crop", "nyu": "NYU crop 45:471, 41:601 of 480x640"}
_ALIGNMENTS = {
    "none": "no alignment",
    "median": "per-image median scaling",
    "lsq_disparity": "per-image least-squares scale and shift in disparity",
    "lsq_depth": "per-image least-squares scale and shift in depth",
}


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with ground truth. Make variants with `dataclasses.replace`.

    Order: times `scale`; bilinear to the ground truth's size, as `resize` ("disparity" or "depth"); mask; `alignment`
    on the masked pixels; clip to [min_depth, max_depth]; metrics; mean over images.
    The mask is min_depth < ground truth < max_depth (`cap_ground_truth=False`: every ground truth > 0) inside `crop`.
    `flip` asks the predictor to average with the prediction of the mirrored image; the evaluator only states it.
    """

    name: str
    min_depth: float = 1e-3
    max_depth: float = 80.0
    crop: str | None = None
    alignment: str = "none"
    resize: str = "disparity"
    scale: float = 1.0
    cap_ground_truth: bool = True
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth, max_depth: expected 0 < min_depth < max_depth, got {self.min_depth} and {self.max_depth}"
            )
        if self.crop not in _CROPS:
            raise ValueError(f"crop: expected one of {list(_CROPS)}, got {self.crop!r}")
        if self.alignment not in _ALIGNMENTS:
            raise ValueError(f"alignment: expected one of {list(_ALIGNMENTS)}, got {self.alignment!r}")
        if self.resize not in ("disparity", "depth"):
            raise ValueError(f'resize: expected "disparity" or "depth", got {self.resize!r}')
        if not self.scale > 0:
            raise ValueError(f"scale: expected a positive number, got {self.scale}")

    def describe(self) -> str:
        """One line that states everything."""
        kept = (
            f"{self.min_depth:g} < ground truth < {self.max_depth:g} m" if self.cap_ground_truth else "ground truth > 0"
        )
        parts = [
            kept,
            _CROPS[self.crop],
            f"prediction resized as {self.resize}",
            _ALIGNMENTS[self.alignment],
            f"prediction clipped to [{self.min_depth:g}, {self.max_depth:g}] m",
            "mean over images",
        ]
        if self.scale != 1:
            parts.insert(2, f"prediction times {self.scale:g}")
        if self.flip:
            parts.insert(2, "flip post-processing")
        return f"protocol {self.name}: {', '.join(parts)}"

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of the crop, half-open."""
        if self.crop is None:
            return 0, height, 0, width
        if self.crop == "nyu":
            (full_height, full_width), (top, bottom, left, right) = _NYU_SIZE, _NYU_CROP
            return (
                top * height // full_height,
                bottom * height // full_height,
                left * width // full_width,
                right * width // full_width,
            )
        top_f, bottom_f, left_f, right_f = _FRACTIONS[self.crop]
        return int(top_f * height), int(bottom_f * height), int(left_f * width), int(right_f * width)

    def mask(self, ground_truth: NDArray[Any]) -> NDArray[np.bool_]:
        """Pixels (h, w) of a ground truth (h, w) that count."""
        if self.cap_ground_truth:
            inside = (ground_truth > self.min_depth) & (ground_truth < self.max_depth)
        else:
            inside = (ground_truth > 0) & np.isfinite(ground_truth)
        top, bottom, left, right = self.window(*ground_truth.shape)
        cropped = np.zeros_like(inside)
        cropped[top:bottom, left:right] = inside[top:bottom, left:right]
        return cropped


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("kitti_eigen", crop="garg", alignment="median"),
        Protocol("kitti_eigen_stereo", crop="garg"),
        Protocol("kitti_eigen_benchmark", alignment="median", cap_ground_truth=False),
        Protocol("nyu", max_depth=10.0, crop="nyu", resize="depth"),
        Protocol("motorcycle"),
        Protocol("synthetic"),
    )
}


def get_protocol(name: str) -> Protocol:
    """A preset by name, see `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {list(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]

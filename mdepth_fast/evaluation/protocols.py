"""Evaluation protocols: everything that changes a number, stated in one place and printed with every table."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdepth_fast.evaluation.metrics import METRICS

__all__ = ["COLUMNS", "PROTOCOLS", "Protocol", "get_protocol"]

# top, bottom, left, right as fractions of the image, cut to whole pixels; half-open.
# Garg et al. (ECCV 2016) and Eigen et al. (NIPS 2014) on KITTI.
_FRACTIONS = {
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}
# Of images of 480x640, and as much of those of another size.
_NYU_SIZE = (480, 640)
_NYU_CROPS = {"nyu": (45, 471, 41, 601), "nyu_toolbox": (44, 471, 40, 601)}

_CROPS = {
    None: "no crop",
    "garg": "Garg crop",
    "eigen": "Eigen crop",
    "nyu": "NYU crop 45:471, 41:601 of 480x640",
    "nyu_toolbox": "NYU toolbox crop 44:471, 40:601 of 480x640",
}
_ALIGNMENTS = {
    "none": "no alignment",
    "median": "per-image median scaling",
    "median_set": "one median scale for the whole set",
    "lsq_disparity": "per-image least-squares scale and shift in disparity",
    "lsq_depth": "per-image least-squares scale and shift in depth",
}
_RESIZES = {
    "disparity": "prediction resized as disparity",
    "depth": "prediction resized as depth",
    "nearest": "prediction resized to the nearest pixel",
}
_AVERAGES = {"images": "mean over images", "pixels": "pooled over all pixels of all images"}

# What a table shows unless the protocol says otherwise; "rmse_of_mse" and "si_log" are shown besides `METRICS`.
COLUMNS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3", "silog", "log10")
_EXTRA = {
    "rmse_of_mse": "RMSE(MSE) = root of the mean of the images' squared errors",
    "si_log": "SI-log = sqrt(D) = SILog / 100",
}


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with ground truth. Make variants with `dataclasses.replace`.

    Order: times `scale`; to the ground truth's size, bilinear as `resize` says ("disparity" or "depth"), or "nearest";
    mask; `alignment` on the masked pixels; clip to [min_depth, max_depth]; metrics; `average`.
    The mask is min_depth < ground truth < max_depth (`cap_ground_truth=False`: every finite ground truth > 0) inside
    `crop`. `average` is over "images", each counting alike, or over "pixels", all images pooled into one. `size` is
    that of the ground truth where it is part of the protocol. `columns` are those of the table, out of `METRICS`,
    "rmse_of_mse" and "si_log".
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
    average: str = "images"
    size: tuple[int, int] | None = None
    columns: tuple[str, ...] = COLUMNS

    def __post_init__(self) -> None:
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth, max_depth: expected 0 < min_depth < max_depth, got {self.min_depth} and {self.max_depth}"
            )
        for argument, choices in (
            ("crop", _CROPS),
            ("alignment", _ALIGNMENTS),
            ("resize", _RESIZES),
            ("average", _AVERAGES),
        ):
            value = getattr(self, argument)
            if value not in choices:
                raise ValueError(f"{argument}: expected one of {list(choices)}, got {value!r}")
        if self.alignment == "lsq_disparity" and math.isinf(self.max_depth):
            raise ValueError("max_depth: expected a finite number with alignment 'lsq_disparity', got infinity")
        if not self.scale > 0:
            raise ValueError(f"scale: expected a positive number, got {self.scale}")
        if unknown := [key for key in self.columns if key not in (*METRICS, *_EXTRA)]:
            raise ValueError(f"columns: expected some of {[*METRICS, *_EXTRA]}, got {unknown[0]!r}")

    def describe(self) -> str:
        """One line that states everything."""
        kept = (
            f"{self.min_depth:g} < ground truth < {self.max_depth:g} m" if self.cap_ground_truth else "ground truth > 0"
        )
        clipped = f"clipped to [{self.min_depth:g}, {self.max_depth:g}] m"
        if math.isinf(self.max_depth):
            clipped = f"at least {self.min_depth:g} m"
        parts = [
            kept,
            _CROPS[self.crop],
            _RESIZES[self.resize],
            _ALIGNMENTS[self.alignment],
            f"prediction {clipped}",
            _AVERAGES[self.average],
            *(text for key, text in _EXTRA.items() if key in self.columns),
        ]
        if self.scale != 1:
            parts.insert(2, f"prediction times {self.scale:g}")
        if self.flip:
            parts.insert(2, "flip post-processing")
        if self.size:
            parts.insert(0, f"compared at {self.size[0]}x{self.size[1]}")
        return f"protocol {self.name}: {', '.join(parts)}"

    @property
    def valid_range(self) -> tuple[float, float]:
        """Ground truth strictly between these counts."""
        return (self.min_depth, self.max_depth) if self.cap_ground_truth else (0.0, math.inf)

    def window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) of the crop, half-open."""
        if self.crop is None:
            return 0, height, 0, width
        if self.crop in _NYU_CROPS:
            (full_height, full_width), (top, bottom, left, right) = _NYU_SIZE, _NYU_CROPS[self.crop]
            return (
                top * height // full_height,
                bottom * height // full_height,
                left * width // full_width,
                right * width // full_width,
            )
        top_f, bottom_f, left_f, right_f = _FRACTIONS[self.crop]
        return int(top_f * height), int(bottom_f * height), int(left_f * width), int(right_f * width)

    def mask(self, ground_truth: Any) -> Any:
        """Pixels (h, w) of a ground truth (h, w) that count, bool; tensor or array, as what is given."""
        low, high = self.valid_range
        top, bottom, left, right = self.window(*ground_truth.shape)
        inside: Any = (
            torch.zeros_like(ground_truth, dtype=torch.bool)
            if isinstance(ground_truth, Tensor)
            else np.zeros_like(ground_truth, dtype=bool)
        )
        window = ground_truth[top:bottom, left:right]
        inside[top:bottom, left:right] = (window > low) & (window < high)
        return inside


_KITTI = Protocol("kitti_garg_80", crop="garg", resize="depth")
_NYU = Protocol("nyu", max_depth=10.0, crop="nyu", resize="depth")

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("kitti_eigen", crop="garg", alignment="median"),
        Protocol("kitti_eigen_stereo", crop="garg"),
        Protocol("kitti_eigen_benchmark", alignment="median", cap_ground_truth=False),
        Protocol("kitti_eigen_benchmark_stereo", cap_ground_truth=False),
        # SfMLearner and vid2depth resize depth, where Monodepth2 resizes disparity.
        Protocol("kitti_sfmlearner", crop="garg", alignment="median", resize="depth"),
        # Metric depth from supervised networks, with the improved ground truth of 652 images.
        _KITTI,
        replace(_KITTI, name="kitti_garg_50", max_depth=50.0),
        # The server of the depth prediction benchmark: images of 352x1216, no crop; depth as its 16-bit PNGs hold it,
        # but not rounded to them. Ranked by SILog.
        Protocol(
            "kitti_benchmark",
            min_depth=1 / 256,
            max_depth=65535 / 256,
            resize="depth",
            cap_ground_truth=False,
            columns=("silog", "sq_rel_kitti", "abs_rel", "irmse", "rmse"),
        ),
        _NYU,
        # Inverse depth up to scale and shift (DPT, MiDaS): fitted in disparity, clipped, inverted.
        replace(_KITTI, name="kitti_affine", alignment="lsq_disparity", resize="disparity"),
        replace(_NYU, name="nyu_affine", alignment="lsq_disparity", resize="disparity"),
        # FCRN (3DV 2016): the pixels of all 654 images pooled, filled depth, no crop, no cap. The caller gives what the
        # network says of the centre crop, and the whole ground truth, over which the map is stretched.
        Protocol(
            "fcrn",
            max_depth=math.inf,
            resize="depth",
            cap_ground_truth=False,
            average="pixels",
            columns=("abs_rel", "rmse", "log10", "d1", "d2", "d3"),
        ),
        # FastDepth (ICRA 2019): ground truth of the centre crop taken at the nearest pixel to 224x224, by the caller.
        # The published code also counts pixels where the prediction alone is positive, which divides by zero wherever
        # ground truth has a hole; here holes do not count, and without any the numbers are the same.
        Protocol(
            "fastdepth",
            max_depth=math.inf,
            resize="nearest",
            cap_ground_truth=False,
            size=(224, 224),
            columns=("rmse", "abs_rel", "log10", "d1", "d2", "d3"),
        ),
        # Eigen et al. (NIPS 2014): upsampled to the nearest pixel, filled depth on NYU, sqrt(D) reported. The caller
        # leaves out of the ground truth what the network does not see, and what the published table's Make3D does not.
        Protocol(
            "eigen2014",
            max_depth=math.inf,
            resize="nearest",
            cap_ground_truth=False,
            columns=("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "si_log"),
        ),
        Protocol("motorcycle"),
        Protocol("synthetic"),
        # Depth of one's own: whole images, with the scale of each image's median, or as it is.
        Protocol("median", alignment="median"),
        Protocol("metric"),
        Protocol("synthetic_median", alignment="median"),
    )
}


def get_protocol(name: str) -> Protocol:
    """A preset by name, see `PROTOCOLS`."""
    if name not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {list(PROTOCOLS)}, got {name!r}")
    return PROTOCOLS[name]

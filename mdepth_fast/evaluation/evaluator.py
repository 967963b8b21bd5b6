"""Accumulates per-image metrics under one protocol."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mdepth_fast.evaluation.metrics import METRICS, depth_metrics
from mdepth_fast.evaluation.protocols import Protocol, get_protocol

__all__ = ["Evaluator"]

_TITLES = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse": "RMSE",
    "rmse_log": "RMSElog",
    "d1": "d<1.25",
    "d2": "d<1.25^2",
    "d3": "d<1.25^3",
    "silog": "SILog",
    "log10": "log10",
}


class Evaluator:
    """`update` once per image, then `compute` the averages or print the `table`.

    An image without valid ground truth has NaN metrics: it is counted, and left out of the averages in plain sight.
    """

    def __init__(self, protocol: Protocol | str) -> None:
        self.protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
        self._results: list[dict[str, float]] = []
        self._ratios: list[float] = []

    def update(
        self, prediction: Tensor | ArrayLike, ground_truth: Tensor | ArrayLike, name: str | None = None
    ) -> dict[str, float]:
        """Add one image and return its metrics.

        prediction: depth, (h,w), (1,h,w) or (1,1,h,w); ground_truth: depth in metres, the same ranks at any size,
        0 or non-finite = none. `name` stands in the error raised for a non-finite prediction, or one that is not
        positive where the protocol inverts it.
        """
        name = name if name is not None else f"image {len(self._results)}"
        truth = _as_map(ground_truth, "ground_truth", name)
        depth = _as_map(prediction, "prediction", name)
        protocol = self.protocol
        if not np.isfinite(depth).all():
            count = int((~np.isfinite(depth)).sum())
            raise ValueError(f"prediction of {name}: expected finite depths, got {count} non-finite of {depth.size}")
        inverts = protocol.resize == "disparity" or protocol.alignment == "lsq_disparity"
        if inverts and not (depth > 0).all():
            raise ValueError(f"prediction of {name}: expected positive depths, got {depth.min():g}")
        depth = _resize(depth * protocol.scale, truth.shape, protocol.resize)
        mask = protocol.mask(truth)
        p, g = depth[mask], truth[mask]
        if len(p):
            p = self._align(p, g).clip(protocol.min_depth, protocol.max_depth)
        result = depth_metrics(p, g)
        self._results.append(result)
        return result

    def _align(self, p: NDArray[Any], g: NDArray[Any]) -> NDArray[Any]:
        alignment = self.protocol.alignment
        if alignment == "median":
            middle = float(np.median(p))
            # A prediction that is not positive at its median has no scale: it stays as it is, to be clipped.
            ratio = float(np.median(g)) / middle if middle > 0 else 1.0
            self._ratios.append(ratio)
            return p * ratio
        if alignment == "lsq_depth":
            scale, shift = _fit(p, g)
            return p * scale + shift
        if alignment == "lsq_disparity":
            scale, shift = _fit(1 / p, 1 / g)
            # A fitted disparity may fall to zero or below: that is as far as the protocol sees.
            return 1 / np.maximum(scale / p + shift, 1 / self.protocol.max_depth)
        return p

    def compute(self) -> dict[str, float]:
        """Averages over the images with ground truth (NaN when there is none), and the counts.

        Keys: `METRICS`; "images", those averaged; "without_ground_truth", those left out; for median alignment also
        "scale_median", the median of the per-image ratios, and "scale_std", the standard deviation of
        ratio / scale_median.
        """
        valid = [result for result in self._results if not math.isnan(result["abs_rel"])]
        summary = {key: float(np.mean([result[key] for result in valid])) if valid else float("nan") for key in METRICS}
        summary["images"] = len(valid)
        summary["without_ground_truth"] = len(self._results) - len(valid)
        if self.protocol.alignment == "median":
            middle = float(np.median(self._ratios)) if self._ratios else float("nan")
            summary["scale_median"] = middle
            summary["scale_std"] = float(np.std(np.array(self._ratios) / middle)) if self._ratios else float("nan")
        return summary

    def table(self) -> str:
        """The averages under a line that states the protocol."""
        summary = self.compute()
        counts = f"{summary['images']:.0f} images"
        if summary["without_ground_truth"]:
            counts += f", {summary['without_ground_truth']:.0f} more had no valid ground truth and are left out"
        lines = [
            self.protocol.describe(),
            " ".join(f"{_TITLES[key]:>9}" for key in METRICS),
            " ".join(f"{summary[key]:9.3f}" for key in METRICS),
            counts,
        ]
        if "scale_median" in summary:
            lines.append(f"scale: median {summary['scale_median']:.3f}, std/median {summary['scale_std']:.3f}")
        return "\n".join(lines)


def _as_map(values: Tensor | ArrayLike, argument: str, name: str) -> NDArray[np.float64]:
    if isinstance(values, Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    array = np.asarray(values, dtype=np.float64)
    shape = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{argument} of {name}: expected (h,w), (1,h,w) or (1,1,h,w), got {shape}")
    return array


def _resize(depth: NDArray[np.float64], shape: tuple[int, ...], how: str) -> NDArray[np.float64]:
    if depth.shape == shape:
        return depth
    values = torch.from_numpy(depth if how == "depth" else 1 / depth)[None, None]
    resized = F.interpolate(values, shape, mode="bilinear", align_corners=False)[0, 0].numpy()
    return resized if how == "depth" else 1 / resized


def _fit(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """Scale and shift of the least-squares line y = scale * x + shift; a constant x gives its mean offset."""
    centred = x - x.mean()
    square = float((centred**2).sum())
    scale = float((centred * (y - y.mean())).sum()) / square if square > 0 else 1.0
    return scale, float(y.mean() - scale * x.mean())

"""The eleven depth metrics, made from the sums of `ops.depth_metrics`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from mdepth_fast import ops

__all__ = ["METRICS", "d1_all", "depth_metrics", "metrics_of"]

METRICS = (
    "abs_rel",
    "sq_rel",
    "rmse",
    "rmse_log",
    "d1",
    "d2",
    "d3",
    "silog",
    "log10",
    "sq_rel_kitti",
    "irmse",
)


def metrics_of(sums: Sequence[float]) -> dict[str, float]:
    """`METRICS` of the pixels whose sums `ops.depth_metrics` gave: of an image, or of a set if they were added up.

    With predicted depth p, true depth g, both in metres, and e = ln p - ln g: abs_rel = mean |p-g|/g;
    sq_rel = mean (p-g)^2/g, in metres; sq_rel_kitti = mean (p-g)^2/g^2, which the KITTI server calls SqRel;
    rmse = sqrt mean (p-g)^2; rmse_log = sqrt mean e^2; log10 = mean |log10 p - log10 g|; d1, d2, d3 = share with
    max(p/g, g/p) < 1.25, 1.25^2, 1.25^3; silog = 100 * standard deviation of e, a hundred times the scale-invariant
    error sqrt(D) of Eigen et al. (NIPS 2014); irmse = sqrt mean (1000/p - 1000/g)^2, in 1/km. All NaN of no pixel.
    """
    count = sums[0]
    if not count:
        return dict.fromkeys(METRICS, math.nan)
    abs_rel, sq_rel, sq_rel_kitti, sq_error, sq_log, log, abs_log, d1, d2, d3, sq_inverse = (
        value / count for value in sums[1:]
    )
    variance = sq_log - log * log  # rounding may leave it below zero
    return {
        "abs_rel": abs_rel,
        "sq_rel": sq_rel,
        "rmse": math.sqrt(sq_error),
        "rmse_log": math.sqrt(sq_log),
        "d1": d1,
        "d2": d2,
        "d3": d3,
        "silog": 100 * math.sqrt(variance if not variance < 0 else 0.0),
        "log10": abs_log / math.log(10),
        "sq_rel_kitti": sq_rel_kitti,
        "irmse": 1000 * math.sqrt(sq_inverse),
    }


def depth_metrics(prediction: ArrayLike, ground_truth: ArrayLike) -> dict[str, float]:
    """`METRICS` of depths p against g, both (n,), positive, in metres, already masked, aligned and clipped.

    See `metrics_of` for the definitions. All NaN for n = 0. Computed in float64.
    """
    p, g = (np.asarray(values, dtype=np.float64) for values in (prediction, ground_truth))
    if p.ndim != 1 or p.shape != g.shape:
        raise ValueError(f"prediction, ground_truth: expected two vectors of one length, got {p.shape} and {g.shape}")
    for name, values in (("prediction", p), ("ground_truth", g)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{name}: expected finite, positive depths, got {_first_bad(values)}")
    rows = (torch.from_numpy(np.ascontiguousarray(values)).view(1, 1, -1) for values in (p, g))
    return metrics_of(ops.depth_metrics(*rows, valid=(0.0, math.inf), clip=(1e-300, math.inf))[0].tolist())


def d1_all(prediction: ArrayLike, ground_truth: ArrayLike) -> float:
    """Percentage of disparities that are wrong by at least 3 pixels and at least 5 % of the true one (KITTI 2015).

    prediction, ground_truth: of one shape, in pixels of the full image. Pixels whose ground truth is not finite or not
    positive do not count, as KITTI's 0 says "none". NaN if none counts. A prediction that is not finite is wrong.
    ValueError for different shapes. Menze and Geiger, CVPR 2015.
    """
    p, g = (np.asarray(values, dtype=np.float64) for values in (prediction, ground_truth))
    if p.shape != g.shape:
        raise ValueError(f"prediction, ground_truth: expected one shape, got {p.shape} and {g.shape}")
    counted = np.isfinite(g) & (g > 0)
    if not counted.any():
        return math.nan
    error = np.abs(p[counted] - g[counted])
    return 100 * float(1 - ((error < 3) | (error < 0.05 * g[counted])).mean())


def _first_bad(values: NDArray[Any]) -> float:
    return float(values[~(np.isfinite(values) & (values > 0))][0])

"""The seven depth metrics of Eigen et al. (NIPS 2014), and two more that are reported beside them."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["METRICS", "depth_metrics"]

METRICS = ("abs_rel", "sq_rel", "rmse", "rmse_log", "d1", "d2", "d3", "silog", "log10")


def depth_metrics(prediction: ArrayLike, ground_truth: ArrayLike) -> dict[str, float]:
    """Metrics of depths p against g, both (n,), positive, in metres, already masked, aligned and clipped.

    abs_rel = mean |p-g|/g; sq_rel = mean (p-g)^2/g (metres: not the KITTI server's, which divides by g^2);
    rmse = sqrt mean (p-g)^2; rmse_log = sqrt mean (ln p - ln g)^2; d1, d2, d3 = share with
    max(p/g, g/p) < 1.25, 1.25^2, 1.25^3; silog = 100 * standard deviation of ln p - ln g;
    log10 = mean |log10 p - log10 g|. All NaN for n = 0. Computed in float64.
    """
    p, g = (np.asarray(values, dtype=np.float64) for values in (prediction, ground_truth))
    if p.ndim != 1 or p.shape != g.shape:
        raise ValueError(f"prediction, ground_truth: expected two vectors of one length, got {p.shape} and {g.shape}")
    if not len(p):
        return dict.fromkeys(METRICS, float("nan"))
    for name, values in (("prediction", p), ("ground_truth", g)):
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"{name}: expected finite, positive depths, got {_first_bad(values)}")
    error = p - g
    log_error = np.log(p) - np.log(g)
    ratio = np.maximum(p / g, g / p)
    return {
        "abs_rel": float(np.mean(np.abs(error) / g)),
        "sq_rel": float(np.mean(error**2 / g)),
        "rmse": float(np.sqrt(np.mean(error**2))),
        "rmse_log": float(np.sqrt(np.mean(log_error**2))),
        "d1": float(np.mean(ratio < 1.25)),
        "d2": float(np.mean(ratio < 1.25**2)),
        "d3": float(np.mean(ratio < 1.25**3)),
        "silog": float(100 * np.std(log_error)),
        "log10": float(np.mean(np.abs(log_error)) / np.log(10)),
    }


def _first_bad(values: NDArray[Any]) -> float:
    return float(values[~(np.isfinite(values) & (values > 0))][0])

"""The depth metrics of one KITTI frame under the Garg crop, 375 x 1242: the op, and all eleven metrics from it against
the NumPy code that evaluates most published networks, in turn within one process."""

import os
import statistics
import time

import numpy as np
import pytest

from mdepth_fast import ops
from mdepth_fast.benchmark import lidar_frame
from mdepth_fast.evaluation import METRICS, get_protocol, metrics_of

HEIGHT, WIDTH = 375, 1242
WINDOW = get_protocol("kitti_garg_80").window(HEIGHT, WIDTH)
ROUNDS = int(os.environ.get("MDEPTH_BENCH_ROUNDS", "5"))


def test_depth_metrics(compare):
    compare("depth_metrics")


def numpy_metrics(prediction, ground_truth):
    """In the usual order: non-finite values replaced, clipped, masked by range and crop, then the formulas."""
    prediction[np.isinf(prediction)] = 80.0
    prediction[np.isnan(prediction)] = 1e-3
    prediction[prediction < 1e-3] = 1e-3
    prediction[prediction > 80.0] = 80.0
    valid = np.logical_and(ground_truth > 1e-3, ground_truth < 80.0)
    top, bottom, left, right = WINDOW
    crop = np.zeros(valid.shape)
    crop[top:bottom, left:right] = 1
    valid = np.logical_and(valid, crop)
    p, g = prediction[valid], ground_truth[valid]

    ratio = np.maximum(g / p, p / g)
    log_error = np.log(p) - np.log(g)
    return {
        "abs_rel": np.mean(np.abs(g - p) / g),
        "sq_rel": np.mean((g - p) ** 2 / g),
        "rmse": np.sqrt(np.mean((g - p) ** 2)),
        "rmse_log": np.sqrt(np.mean((np.log(g) - np.log(p)) ** 2)),
        "d1": np.mean(ratio < 1.25),
        "d2": np.mean(ratio < 1.25**2),
        "d3": np.mean(ratio < 1.25**3),
        "silog": 100 * np.sqrt(np.mean(log_error**2) - np.mean(log_error) ** 2),
        "log10": np.mean(np.abs(np.log10(p) - np.log10(g))),
        "sq_rel_kitti": np.mean((g - p) ** 2 / g**2),
        "irmse": np.sqrt(np.mean((1000 / g - 1000 / p) ** 2)),
    }


def fused_metrics(prediction, ground_truth):
    sums = ops.depth_metrics(prediction, ground_truth, window=WINDOW)
    return metrics_of(sums.tolist()[0])


@pytest.mark.parametrize("scans", [1, 11])  # KITTI's annotated ground truth is gathered from eleven
def test_against_numpy(benchmark, scans):
    frame = lidar_frame(1, HEIGHT, WIDTH, scans)
    maps = {numpy_metrics: [value[0, 0].numpy() for value in frame.values()], fused_metrics: list(frame.values())}
    want, found = (function(*maps[function]) for function in maps)
    assert set(want) == set(METRICS)
    assert all(abs(found[key] - want[key]) < 1e-4 * abs(want[key]) for key in METRICS), (found, want)
    times = {function: [] for function in maps}

    def both():
        for function, arguments in maps.items():
            for _ in range(20):
                start = time.perf_counter()
                function(*arguments)
                times[function].append(time.perf_counter() - start)

    benchmark.pedantic(both, rounds=ROUNDS)
    numpy, fused = (1e6 * statistics.median(times[function]) for function in maps)
    benchmark.extra_info.update(numpy=numpy, fused=fused, ratio=numpy / fused)
    share = float((frame["ground_truth"] > 0).double().mean())
    print(
        f"\nground truth at {share:.1%} of the pixels: {numpy / fused:.1f}x, NumPy {numpy:.0f} us, fused {fused:.0f} us"
    )

"""All eleven depth metrics of a KITTI frame under the Garg crop, 375 x 1242, from the op's sums, against the NumPy code
that evaluates most published networks."""

import numpy as np
import pytest

from mdepth_fast import ops
from mdepth_fast.bench.cases import lidar_frame
from mdepth_fast.evaluation import METRICS, get_protocol, metrics_of

HEIGHT, WIDTH = 375, 1242
WINDOW = get_protocol("kitti_garg_80").window(HEIGHT, WIDTH)


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
def test_against_numpy(in_turn, device, scans):
    frame = lidar_frame(1, HEIGHT, WIDTH, scans)
    arrays = [value[0, 0].numpy() for value in frame.values()]
    tensors = [value.to(device) for value in frame.values()]
    steps = {"numpy": lambda: numpy_metrics(*arrays), "mdepth_fast": lambda: fused_metrics(*tensors)}
    want, found = (step() for step in steps.values())
    assert set(want) == set(METRICS)
    assert all(abs(found[key] - want[key]) < 1e-4 * abs(want[key]) for key in METRICS), (found, want)
    case = f"kitti_metrics_{scans}_scans"
    title = f"all metrics of a KITTI frame, ground truth of {scans} LiDAR scan{'s' * (scans > 1)}"
    in_turn(case, f"1x{HEIGHT}x{WIDTH}", steps, title=title, rounds=100)

import math

import numpy as np
import pytest
import torch

from mdepth_fast import ops
from mdepth_fast.evaluation import METRICS, d1_all, depth_metrics, metrics_of


def test_four_pixels_by_hand() -> None:
    found = depth_metrics([2.0, 3.0, 5.0, 4.0], [1.0, 3.0, 4.0, 8.0])
    assert found["abs_rel"] == pytest.approx((1 + 0 + 0.25 + 0.5) / 4)
    assert found["sq_rel"] == pytest.approx((1 + 0 + 0.25 + 2) / 4)
    assert found["sq_rel_kitti"] == pytest.approx((1 + 0 + 1 / 16 + 1 / 4) / 4)
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 0 + 1 + 16) / 4))
    logs = [math.log(2), 0, math.log(1.25), -math.log(2)]
    assert found["rmse_log"] == pytest.approx(math.sqrt(sum(e * e for e in logs) / 4))
    # 5 / 4 is not below 1.25; 2 is below none of 1.25, 1.5625, 1.953125.
    assert (found["d1"], found["d2"], found["d3"]) == (0.25, 0.5, 0.5)
    mean = sum(logs) / 4
    assert found["silog"] == pytest.approx(100 * math.sqrt(sum((e - mean) ** 2 for e in logs) / 4))
    assert found["log10"] == pytest.approx((2 * math.log10(2) + math.log10(1.25)) / 4)
    # 1 / 2, 1 / 3, 1 / 5 and 1 / 4 against 1, 1 / 3, 1 / 4 and 1 / 8 per metre.
    assert found["irmse"] == pytest.approx(math.sqrt((500**2 + 0 + 50**2 + 125**2) / 4))


def test_square_error_over_depth_and_over_its_square() -> None:
    found = depth_metrics([4.0], [2.0])
    assert (found["sq_rel"], found["sq_rel_kitti"]) == (pytest.approx(2.0), pytest.approx(1.0))


def test_against_loops() -> None:
    rng = np.random.default_rng(0)
    g = rng.uniform(1, 80, 500)
    p = g * np.exp(rng.normal(0, 0.4, 500))
    sums = np.zeros(11)
    for a, b in zip(p, g):
        ratio = max(a / b, b / a)
        log = math.log(a / b)
        sums += [
            abs(a - b) / b,
            (a - b) ** 2 / b,
            (a - b) ** 2,
            log * log,
            ratio < 1.25,
            ratio < 1.5625,
            ratio < 1.953125,
            log,
            abs(log) / math.log(10),
            (a - b) ** 2 / b**2,
            (1000 / a - 1000 / b) ** 2,
        ]
    m = sums / 500
    silog = 100 * (m[3] - m[7] ** 2) ** 0.5
    expected = [m[0], m[1], m[2] ** 0.5, m[3] ** 0.5, *m[4:7], silog, m[8], m[9], m[10] ** 0.5]
    found = depth_metrics(p.astype(np.float64), g)
    assert list(found) == list(METRICS)
    assert list(found.values()) == pytest.approx(expected, rel=1e-10)
    assert 0.3 < found["d1"] < 0.6  # no share is trivially 0 or 1


def test_perfect_and_scaled() -> None:
    g = np.linspace(1, 9, 50)
    perfect = depth_metrics(g, g)
    assert [perfect[key] for key in METRICS] == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0]
    scaled = depth_metrics(1.3 * g, g)
    assert scaled["silog"] == pytest.approx(0, abs=1e-6) and scaled["abs_rel"] == pytest.approx(0.3)
    assert (scaled["d1"], scaled["d2"]) == (0, 1)


def test_bad_input() -> None:
    assert all(math.isnan(value) for value in depth_metrics([], []).values())
    with pytest.raises(ValueError, match=r"expected two vectors of one length, got \(2,\) and \(3,\)"):
        depth_metrics([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="prediction: expected finite, positive depths, got nan"):
        depth_metrics([1, float("nan")], [1, 2])
    with pytest.raises(ValueError, match="ground_truth: expected finite, positive depths, got 0"):
        depth_metrics([1, 1], [1, 0])


def test_of_sums() -> None:
    """Sums of images make the metrics of both pooled; rounding cannot make a variance negative."""
    rng = np.random.default_rng(1)
    g = rng.uniform(1, 80, (2, 30))
    p = g * np.exp(rng.normal(0, 0.4, g.shape))
    maps = (torch.from_numpy(values)[:, None] for values in (p, g))
    sums = ops.depth_metrics(*maps, valid=(0, 100), clip=(1e-3, 1e3))
    assert metrics_of(sums.sum(0).tolist()) == pytest.approx(depth_metrics(p.ravel(), g.ravel()), rel=1e-12)
    assert metrics_of([3, 0, 0, 0, 0, 3 * 0.1**2 - 1e-17, 3 * 0.1, 0.3, 3, 3, 3, 0])["silog"] == 0
    assert math.isnan(metrics_of([3, *[math.nan] * 7, 1, 1, 1, math.nan])["silog"])


def test_share_of_wrong_disparities() -> None:
    """Wrong is what is off by 3 pixels and by 5 %; 0 and infinity are no ground truth."""
    truth = [20.0, 20.0, 100.0, 100.0, 0.0, math.inf, 20.0, 20.0]
    found = [22.9, 23.0, 104.9, 95.0, 50.0, 1.0, math.nan, math.inf]
    assert d1_all(found, truth) == pytest.approx(100 * 4 / 6)
    assert math.isnan(d1_all([1.0], [0.0]))
    assert d1_all(np.ones((2, 3)), np.ones((2, 3))) == 0
    with pytest.raises(ValueError, match=r"expected one shape, got \(2,\) and \(1,\)"):
        d1_all([1.0, 2.0], [1.0])

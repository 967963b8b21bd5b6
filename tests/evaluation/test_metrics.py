import math

import numpy as np
import pytest

from mdepth_fast.evaluation import METRICS, depth_metrics


def test_by_hand() -> None:
    found = depth_metrics([2.0, 3.0, 5.0], [1.0, 3.0, 4.0])
    assert found["abs_rel"] == pytest.approx((1 + 0 + 0.25) / 3)
    assert found["sq_rel"] == pytest.approx((1 + 0 + 0.25) / 3)
    assert found["rmse"] == pytest.approx(math.sqrt(2 / 3))
    logs = [math.log(2), 0, math.log(1.25)]
    assert found["rmse_log"] == pytest.approx(math.sqrt(sum(e * e for e in logs) / 3))
    # 5 / 4 is not below 1.25; 2 is below none of 1.25, 1.5625, 1.953125.
    assert (found["d1"], found["d2"], found["d3"]) == pytest.approx((1 / 3, 2 / 3, 2 / 3))
    mean = sum(logs) / 3
    assert found["silog"] == pytest.approx(100 * math.sqrt(sum((e - mean) ** 2 for e in logs) / 3))
    assert found["log10"] == pytest.approx((math.log10(2) + math.log10(1.25)) / 3)


def test_square_error_is_over_depth_not_its_square() -> None:
    assert depth_metrics([4.0], [2.0])["sq_rel"] == pytest.approx(2.0)


def test_against_loops() -> None:
    rng = np.random.default_rng(0)
    g = rng.uniform(1, 80, 500)
    p = g * np.exp(rng.normal(0, 0.4, 500))
    sums = np.zeros(9)
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
        ]
    m = sums / 500
    expected = [m[0], m[1], m[2] ** 0.5, m[3] ** 0.5, m[4], m[5], m[6], 100 * (m[3] - m[7] ** 2) ** 0.5, m[8]]
    found = depth_metrics(p.astype(np.float64), g)
    assert list(found) == list(METRICS)
    assert list(found.values()) == pytest.approx(expected, rel=1e-10)
    assert 0.3 < found["d1"] < 0.6  # no share is trivially 0 or 1


def test_perfect_and_scaled() -> None:
    g = np.linspace(1, 9, 50)
    perfect = depth_metrics(g, g)
    assert [perfect[key] for key in METRICS] == [0, 0, 0, 0, 1, 1, 1, 0, 0]
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

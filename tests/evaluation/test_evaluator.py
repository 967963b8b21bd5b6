import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.evaluation import METRICS, Evaluator, Protocol, depth_metrics, get_protocol

PLAIN = Protocol("plain")


def scene(seed: int = 0, shape: tuple[int, int] = (40, 60)) -> np.ndarray:
    return np.random.default_rng(seed).uniform(2, 40, shape)


def test_averages_over_images_not_pixels() -> None:
    evaluator = Evaluator(PLAIN)
    many, few = scene(0), scene(1)
    few[2:] = 0  # ground truth in two rows only
    first = evaluator.update(many * 1.1, many)
    second = evaluator.update(few + (few == 0) * 5 + few * 0.3, few)
    assert first["abs_rel"] == pytest.approx(0.1) and second["abs_rel"] == pytest.approx(0.3)
    summary = evaluator.compute()
    assert summary["abs_rel"] == pytest.approx(0.2)
    assert (summary["images"], summary["without_ground_truth"]) == (2, 0)


def test_inputs_of_every_kind() -> None:
    truth = scene()
    expected = Evaluator(PLAIN).update(truth * 1.2, truth)
    for prediction, target in (
        (torch.from_numpy(truth * 1.2)[None], torch.from_numpy(truth)[None]),
        (torch.from_numpy(truth * 1.2)[None, None].requires_grad_(), truth[None]),
        ((truth * 1.2).tolist(), truth),
    ):
        assert Evaluator(PLAIN).update(prediction, target) == pytest.approx(expected)
    assert Evaluator("kitti_eigen").protocol == get_protocol("kitti_eigen")
    with pytest.raises(ValueError, match=r"ground_truth of image 0: expected \(h,w\).* got \(2, 40, 60\)"):
        Evaluator(PLAIN).update(truth, np.stack([truth, truth]))
    with pytest.raises(ValueError, match=r"prediction of image 0: expected .* got \(60,\)"):
        Evaluator(PLAIN).update(truth[0], truth)


def test_prediction_is_resized_in_disparity_or_depth() -> None:
    truth = scene(0, (37, 53))
    small = scene(1, (12, 16))
    disparity = F.interpolate(torch.from_numpy(1 / small)[None, None], (37, 53), mode="bilinear", align_corners=False)
    depth = F.interpolate(torch.from_numpy(small)[None, None], (37, 53), mode="bilinear", align_corners=False)
    for how, resized in (("disparity", 1 / disparity), ("depth", depth)):
        found = Evaluator(replace(PLAIN, resize=how)).update(small, truth)
        assert found == pytest.approx(depth_metrics(resized.numpy().ravel(), truth.ravel()))
    assert Evaluator(PLAIN).update(small, truth)["rmse"] != pytest.approx(
        Evaluator(replace(PLAIN, resize="depth")).update(small, truth)["rmse"], rel=1e-3
    )


def test_crop_caps_and_holes() -> None:
    truth = scene(0, (375, 1242))
    truth[::3] = 0
    truth[1::3, ::2] = 85
    prediction = truth.copy()
    window = (slice(153, 371), slice(44, 1197))
    outside = np.ones_like(truth, dtype=bool)
    outside[window] = False
    prediction[outside | (truth == 0) | (truth == 85)] = 1  # wrong wherever it does not count
    assert Evaluator("kitti_eigen_stereo").update(prediction, truth)["abs_rel"] == 0
    assert Evaluator(replace(get_protocol("kitti_eigen_stereo"), crop=None)).update(prediction, truth)["abs_rel"] > 0.1
    # Clipping comes last: 200 m counts as 80 m.
    truth = np.full((4, 4), 60.0)
    assert Evaluator(PLAIN).update(np.full((4, 4), 200.0), truth)["rmse"] == pytest.approx(20)
    benchmark = Evaluator("kitti_eigen_benchmark")
    truth[0] = 84
    assert benchmark.update(truth * 3, truth)["rmse"] == pytest.approx(2)  # 84 m counts, its prediction is clipped


def test_median_scaling_recovers_the_scale() -> None:
    evaluator = Evaluator(replace(PLAIN, alignment="median"))
    for seed, scale in enumerate((0.05, 0.04, 0.08)):
        truth = scene(seed)
        assert evaluator.update(truth * scale, truth)["abs_rel"] == pytest.approx(0, abs=1e-12)
    summary = evaluator.compute()
    ratios = np.array([20, 25, 12.5])
    assert summary["scale_median"] == pytest.approx(20)
    assert summary["scale_std"] == pytest.approx(np.std(ratios / 20))
    # Even counts take the mean of the middle two, on the masked pixels alone.
    truth = np.array([[1.0, 2, 4, 8, 0]])
    found = Evaluator(replace(PLAIN, alignment="median")).update([[1.0, 2, 3, 4, 70]], truth)
    p = np.array([1.0, 2, 3, 4]) * 3 / 2.5
    assert found["abs_rel"] == pytest.approx(np.mean(np.abs(p - truth[0, :4]) / truth[0, :4]))


def test_least_squares_recovers_scale_and_shift() -> None:
    truth = scene()
    truth[:5] = 0
    guess = np.where(truth > 0, truth, 33)
    in_depth = Evaluator(replace(PLAIN, alignment="lsq_depth"))
    assert in_depth.update(guess * 0.3 + 7, truth)["abs_rel"] == pytest.approx(0, abs=1e-12)
    in_disparity = Evaluator(replace(PLAIN, alignment="lsq_disparity"))
    assert in_disparity.update(1 / (4 / guess + 0.2), truth)["abs_rel"] == pytest.approx(0, abs=1e-12)
    # Each fits its own space.
    assert in_depth.update(1 / (4 / guess + 0.2), truth)["abs_rel"] > 0.01
    assert in_disparity.update(guess * 0.3 + 7, truth)["abs_rel"] > 0.01
    # Against numpy's least squares.
    noisy = guess * np.exp(np.random.default_rng(3).normal(0, 0.3, guess.shape))
    p, g = noisy[truth > 0], truth[truth > 0]
    line = np.polyfit(1 / p, 1 / g, 1)
    expected = depth_metrics((1 / np.maximum(np.polyval(line, 1 / p), 1 / 80)).clip(1e-3, 80), g)
    assert in_disparity.update(noisy, truth) == pytest.approx(expected)
    assert in_depth.update(np.full_like(truth, 3), truth)["abs_rel"] > 0  # a constant has no scale, and no crash


def test_scale_comes_before_everything() -> None:
    truth = scene()
    assert Evaluator(replace(PLAIN, scale=5.4)).update(truth / 5.4, truth)["abs_rel"] == pytest.approx(0, abs=1e-12)


def test_image_without_ground_truth_is_counted_not_averaged() -> None:
    evaluator = Evaluator(replace(PLAIN, alignment="median"))
    truth = scene()
    evaluator.update(truth * 2, truth)
    empty = evaluator.update(truth, np.zeros_like(truth))
    assert list(empty) == list(METRICS) and all(math.isnan(value) for value in empty.values())
    summary = evaluator.compute()
    assert (summary["images"], summary["without_ground_truth"]) == (1, 1)
    assert summary["abs_rel"] == pytest.approx(0, abs=1e-12) and summary["scale_median"] == pytest.approx(0.5)
    assert "1 more had no valid ground truth" in evaluator.table()
    nothing = Evaluator(PLAIN)
    nothing.update(truth, np.full_like(truth, np.nan))
    assert all(math.isnan(nothing.compute()[key]) for key in METRICS)
    assert math.isnan(Evaluator(replace(PLAIN, alignment="median")).compute()["scale_median"])


def test_predictions_that_make_no_sense_are_named() -> None:
    truth = scene()
    for bad in (float("nan"), float("inf")):
        prediction = truth.copy()
        prediction[3, 4] = bad
        with pytest.raises(ValueError, match="prediction of frame 7: expected finite depths, got 1 non-finite of 2400"):
            Evaluator(PLAIN).update(prediction, truth, "frame 7")
    prediction = truth.copy()
    prediction[3, 4] = -2
    evaluator = Evaluator(PLAIN)
    evaluator.update(truth, truth)
    with pytest.raises(ValueError, match="prediction of image 1: expected positive depths, got -2"):
        evaluator.update(prediction, truth)
    assert evaluator.compute()["images"] == 1  # the refused image left no trace
    assert Evaluator(replace(PLAIN, resize="depth")).update(prediction, truth)["abs_rel"] > 0  # clipped instead


def test_table() -> None:
    evaluator = Evaluator("kitti_eigen")
    for seed in range(3):
        truth = scene(seed, (375, 1242))
        evaluator.update(truth[::4, ::4], truth)
    lines = evaluator.table().splitlines()
    assert lines[0] == get_protocol("kitti_eigen").describe()
    assert lines[1].split() == [
        "AbsRel", "SqRel", "RMSE", "RMSElog", "d<1.25", "d<1.25^2", "d<1.25^3", "SILog", "log10"
    ]  # fmt: skip
    summary = evaluator.compute()
    assert lines[2].split() == [f"{summary[key]:.3f}" for key in METRICS]
    assert lines[3] == "3 images"
    assert lines[4].startswith(f"scale: median {summary['scale_median']:.3f}, std/median")
    assert len({len(lines[1]), len(lines[2])}) == 1
    assert not any(line.startswith("scale") for line in Evaluator(PLAIN).table().splitlines())

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mdepth_fast.evaluation import COLUMNS, METRICS, PROTOCOLS, Evaluator, Protocol, depth_metrics, get_protocol

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
    prediction[3, 4] = 0  # as a ReLU gives it
    clamping = Evaluator(PLAIN)
    found = clamping.update(prediction, truth)
    prediction[3, 4] = PLAIN.min_depth
    assert found == Evaluator(PLAIN).update(prediction, truth) and clamping.compute()["clamped"] == 1
    for inverse in (False, True):  # the others keep their values, in whatever unit they are
        unit = 1e-5 * scene(2)
        unit[3, 4] = 0
        aligning = Evaluator(replace(PLAIN, alignment="median"))
        found = aligning.update(unit, truth, inverse=inverse)
        unit[3, 4] = unit[unit > 0].min()
        assert found == aligning.update(unit, truth, inverse=inverse) and aligning.compute()["clamped"] == 1
    clamping.merge(clamping)
    assert "2 pixels were predicted as exactly 0" in clamping.table()
    with pytest.raises(ValueError, match="expected positive depths, got 0"):
        Evaluator(PLAIN).update(np.zeros_like(truth), truth)
    prediction[3, 4] = -2
    evaluator = Evaluator(PLAIN)
    evaluator.update(truth, truth)
    with pytest.raises(ValueError, match="prediction of image 1: expected positive depths, got -2"):
        evaluator.update(prediction, truth)
    assert evaluator.compute()["images"] == 1  # the refused image left no trace
    assert Evaluator(replace(PLAIN, resize="depth")).update(prediction, truth)["abs_rel"] > 0  # clipped instead


def test_predictions_are_resized_in_double() -> None:
    truth, small = scene(0, (375, 1242)), scene(1, (192, 640)).astype(np.float32)
    found = Evaluator(PLAIN).update(small, truth)
    expected = Evaluator(PLAIN).update(small.astype(np.float64), truth)
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_table_names_the_ground_truth() -> None:
    evaluator = Evaluator("kitti_eigen")
    evaluator.ground_truth = "raw LiDAR"
    assert evaluator.table().splitlines()[-1] == "ground truth: raw LiDAR"


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
    assert lines[2].split() == [f"{summary[key]:.3f}" for key in COLUMNS]
    assert lines[3] == "3 images"
    assert lines[4].startswith(f"scale: median {summary['scale_median']:.3f}, std/median")
    assert len({len(lines[1]), len(lines[2])}) == 1
    assert not any(line.startswith("scale") for line in Evaluator(PLAIN).table().splitlines())
    for name, protocol in PROTOCOLS.items():
        evaluator = Evaluator(name)
        shape = protocol.size or (40, 60)
        evaluator.update(scene(1, shape), scene(0, shape))
        _, titles, numbers, count = evaluator.table().splitlines()[:4]
        assert len(titles) == len(numbers) == 10 * len(protocol.columns) - 1 and count == "1 images"
        assert "nan" not in numbers


def per_image(seeds: Iterable[int], factor: float = 1.0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Noisy predictions and sparse ground truths, each image with noise and a number of pixels of its own."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        truth = np.where(rng.random((40, 60)) < 0.1 + 0.2 * seed, scene(seed), 0)
        found.append((factor * scene(seed) * np.exp(rng.normal(0, 0.1 + 0.1 * seed, truth.shape)), truth))
    return found


def test_pooled_and_both_averages_of_rmse() -> None:
    images = per_image(range(3))
    pixels = [(p[g > 0].clip(1e-3, 80), g[g > 0]) for p, g in images]
    each, pooled = Evaluator(PLAIN), Evaluator(replace(PLAIN, average="pixels"))
    for evaluator in (each, pooled):
        for prediction, truth in images:
            evaluator.update(prediction, truth)
    want = depth_metrics(*(np.concatenate(values) for values in zip(*pixels)))
    found = pooled.compute()
    assert {key: found[key] for key in METRICS} == pytest.approx(want, rel=1e-12)
    errors = [np.mean((p - g) ** 2) for p, g in pixels]
    mean, root = np.mean(np.sqrt(errors)), np.sqrt(np.mean(errors))
    summary = each.compute()
    assert summary["rmse"] == pytest.approx(mean) and summary["rmse_of_mse"] == pytest.approx(root)
    assert len({round(value, 3) for value in (mean, root, want["rmse"])}) == 3  # three different numbers
    assert summary["si_log"] == pytest.approx(summary["silog"] / 100)
    assert "nan" in Evaluator(replace(PLAIN, average="pixels")).table()


def test_merged_evaluators_are_one() -> None:
    images = per_image(range(4), 0.1)
    images[2][1][:] = 0
    for alignment in ("none", "median", "median_set"):
        for average in ("images", "pixels"):
            protocol = replace(PLAIN, alignment=alignment, average=average)
            whole, parts = Evaluator(protocol), [Evaluator(protocol) for _ in range(3)]
            for index, image in enumerate(images):
                whole.update(*image)
                parts[index % 2].update(*image)
            for part in parts[1:]:
                parts[0].merge(part)
            assert parts[0].compute() == pytest.approx(whole.compute(), rel=1e-12)
            assert whole.compute()["without_ground_truth"] == 1
    with pytest.raises(ValueError, match=r"other: expected an evaluator of protocol plain: .* got one of protocol nyu"):
        Evaluator(PLAIN).merge(Evaluator("nyu"))


def test_one_median_for_the_whole_set() -> None:
    images = per_image(range(3), 0.1)
    evaluator = Evaluator(replace(PLAIN, alignment="median_set", crop="garg"))
    assert [evaluator.update(*image) for image in images] == [{}, {}, {}]
    summary = evaluator.compute()
    # Twice over the set: the ratios, then everything times their median.
    ratios = Evaluator(replace(PLAIN, alignment="median", crop="garg"))
    for image in images:
        ratios.update(*image)
    scale = ratios.compute()["scale_median"]
    plain = Evaluator(replace(PLAIN, scale=scale, crop="garg"))
    for image in images:
        plain.update(*image)
    assert {key: summary[key] for key in METRICS} == pytest.approx({key: plain.compute()[key] for key in METRICS})
    assert summary["scale_median"] == scale and summary["images"] == 3
    assert summary["abs_rel"] != pytest.approx(ratios.compute()["abs_rel"], rel=1e-6)
    assert "one median scale for the whole set" in evaluator.table() and "scale: median" in evaluator.table()
    assert math.isnan(Evaluator(evaluator.protocol).compute()["abs_rel"])


def test_inverse_depth_up_to_scale_and_shift() -> None:
    truth = scene(0, (37, 53))
    truth[::3] = 0
    inverse = 3 / np.where(truth > 0, truth, 9) - 0.4  # partly negative: DPT's zero is anywhere
    assert inverse.min() < 0
    affine = Evaluator(replace(PLAIN, alignment="lsq_disparity"))
    assert affine.update(inverse, truth, inverse=True)["abs_rel"] == pytest.approx(0, abs=1e-12)
    # Noise that the fit takes below 1 / 80: as far as the protocol sees.
    noisy = inverse + np.random.default_rng(0).normal(0, 0.15, truth.shape)
    p, g = noisy[truth > 0], truth[truth > 0]
    line = np.polyval(np.polyfit(p, 1 / g, 1), p)
    assert (line < 1 / 80).any()
    expected = depth_metrics((1 / np.maximum(line, 1 / 80)).clip(1e-3, 80), g)
    assert affine.update(noisy, truth, inverse=True) == pytest.approx(expected)
    # It is resized as it is.
    small = scene(1, (12, 16)) / 10 - 1
    large = F.interpolate(torch.from_numpy(small)[None, None], truth.shape, mode="bilinear", align_corners=False)
    assert affine.update(small, truth, inverse=True) == pytest.approx(affine.update(large, truth, inverse=True))
    by_depth = replace(PLAIN, alignment="lsq_disparity", resize="depth")
    assert Evaluator(by_depth).update(inverse, truth, inverse=True)["abs_rel"] == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="prediction of image 0: expected a protocol that resizes as disparity"):
        Evaluator(by_depth).update(small, truth, inverse=True)


@pytest.mark.parametrize("alignment", ["none", "median", "median_set", "lsq_depth", "lsq_disparity"])
@pytest.mark.parametrize("resize", ["disparity", "depth"])
@pytest.mark.parametrize("shape", [(40, 60), (20, 31)])
def test_inverse_depth_is_the_depth_inverted(alignment: str, resize: str, shape: tuple[int, int]) -> None:
    truth, depth = scene(0), scene(0, shape) ** 0.8
    if alignment == "lsq_disparity" and resize == "depth":
        resize = "disparity"
    protocol = replace(PLAIN, alignment=alignment, resize=resize, scale=0.7)
    results = []
    for values, inverse in ((depth, False), (1 / depth, True)):
        evaluator = Evaluator(protocol)
        evaluator.update(values, truth, inverse=inverse)
        results.append(evaluator.compute())
    assert results[0] == pytest.approx(results[1], rel=1e-9)
    if alignment not in ("lsq_depth", "lsq_disparity"):
        with pytest.raises(ValueError, match="prediction of image 0: expected positive depths, got -1"):
            Evaluator(protocol).update(depth - depth.min() - 1, truth, inverse=True)


def test_nearest_pixel_and_prescribed_size() -> None:
    truth, small = scene(0, (8, 12)), scene(1, (4, 4))
    found = Evaluator(replace(PLAIN, resize="nearest")).update(small, truth)
    assert found == pytest.approx(depth_metrics(small.repeat(2, 0).repeat(3, 1).ravel(), truth.ravel()))
    at_size = Evaluator(replace(PLAIN, size=(8, 12)))
    at_size.update(small, truth)
    with pytest.raises(ValueError, match="ground_truth of image 1: expected 8x12 under protocol plain, got 4x4"):
        at_size.update(truth, small)


def test_precision_and_layout_of_the_maps() -> None:
    truth, prediction = scene(0), scene(1)
    want = Evaluator(PLAIN).update(prediction, truth)
    single = [values.astype(np.float32) for values in (prediction, truth)]
    assert Evaluator(PLAIN).update(*single) == pytest.approx(want, rel=1e-6)
    assert Evaluator(PLAIN).update(single[0], truth) == pytest.approx(want, rel=1e-6)
    assert Evaluator(PLAIN).update(prediction[::-1, ::-1], truth[::-1, ::-1]) == pytest.approx(want)
    assert Evaluator(PLAIN).update(torch.from_numpy(prediction).half(), truth) == pytest.approx(want, rel=1e-2)
    integers = truth.round().astype(np.int32)
    assert Evaluator(PLAIN).update(integers, integers)["abs_rel"] == 0


def test_published_prediction_of_fastdepth(real_data: Path) -> None:
    """Its numbers by NumPy loops over the 50176 pixels, which are close to the published means of 654 images."""
    folder = real_data / "nyu" / "fastdepth_224"
    evaluator = Evaluator("fastdepth")
    found = evaluator.update(np.load(folder / "pred.npy"), np.load(folder / "depth.npy"))
    assert found == pytest.approx(
        {
            "abs_rel": 0.140498173450,
            "sq_rel": 0.098668341817,
            "sq_rel_kitti": 0.037049160435,
            "rmse": 0.618000691679,
            "rmse_log": 0.193073560235,
            "silog": 18.870580837739,
            "log10": 0.062048652100,
            "d1": 0.777264030612,
            "d2": 0.964724170918,
            "d3": 0.999621332908,
            "irmse": 104.102815742530,
        },
        rel=1e-9,
    )
    assert evaluator.table().splitlines()[2].split() == ["0.618", "0.140", "0.062", "0.777", "0.965", "1.000"]


def test_annotated_kitti_frame_against_plain_numpy(real_data: Path) -> None:
    paths = sorted((real_data / "kitti_depth" / "depth").glob("*.png"))
    if not paths:
        pytest.skip("real frames: no kitti_depth")
    evaluators = {cap: Evaluator(f"kitti_garg_{cap}") for cap in (80, 50)}
    for path in paths:
        truth = np.asarray(Image.open(path)).astype(np.float32) / 256
        prediction = np.where(truth > 0, truth, 30) ** 0.9 * 1.4
        for cap, evaluator in evaluators.items():
            mask = np.zeros(truth.shape, bool)
            mask[int(0.40810811 * truth.shape[0]) : int(0.99189189 * truth.shape[0]),
                 int(0.03594771 * truth.shape[1]) : int(0.96405229 * truth.shape[1])] = True  # fmt: skip
            mask &= (truth > 1e-3) & (truth < cap)
            p, g = prediction[mask].clip(1e-3, cap).astype(np.float64), truth[mask].astype(np.float64)
            found = evaluator.update(prediction, truth)
            assert found["abs_rel"] == pytest.approx(np.mean(np.abs(p - g) / g), rel=1e-6)
            assert found["silog"] == pytest.approx(100 * np.std(np.log(p) - np.log(g)), rel=1e-6)
            assert found["irmse"] == pytest.approx(np.sqrt(np.mean((1000 / p - 1000 / g) ** 2)), rel=1e-6)
            assert found["d1"] == np.mean(np.maximum(p / g, g / p) < 1.25)
    assert evaluators[80].compute()["rmse"] > evaluators[50].compute()["rmse"]

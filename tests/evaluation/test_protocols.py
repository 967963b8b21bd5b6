import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mdepth_fast.evaluation import PROTOCOLS, Protocol, get_protocol


def test_published_crops() -> None:
    assert Protocol("x", crop="garg").window(375, 1242) == (153, 371, 44, 1197)
    assert Protocol("x", crop="eigen").window(375, 1242) == (124, 342, 44, 1197)
    assert Protocol("x", crop="nyu").window(480, 640) == (45, 471, 41, 601)
    assert Protocol("x", crop="nyu_toolbox").window(480, 640) == (44, 471, 40, 601)
    assert Protocol("x", crop="nyu").window(240, 320) == (22, 235, 20, 300)
    assert Protocol("x").window(7, 9) == (0, 7, 0, 9)


def test_mask_is_strict_and_cropped() -> None:
    truth = np.full((375, 1242), 5.0)
    garg = Protocol("x", crop="garg")
    mask = garg.mask(truth)
    assert mask.sum() == (371 - 153) * (1197 - 44)
    assert mask[153, 44] and mask[370, 1196] and not mask[152, 44] and not mask[371, 1196] and not mask[200, 1197]
    row = np.array([[0, 1e-3, 1.1e-3, 79.9, 80, 90, np.inf, np.nan, -1]])
    assert Protocol("x").mask(row).tolist() == [[False, False, True, True, False, False, False, False, False]]
    assert Protocol("x", cap_ground_truth=False).mask(row).tolist() == [[False, *[True] * 5, False, False, False]]
    for protocol in (garg, Protocol("x"), Protocol("x", cap_ground_truth=False)):
        for values in (truth, row):
            found = protocol.mask(torch.from_numpy(values))
            assert found.dtype == torch.bool and np.array_equal(found.numpy(), protocol.mask(values))


def test_presets() -> None:
    assert set(PROTOCOLS) == {
        "kitti_eigen",
        "kitti_eigen_stereo",
        "kitti_eigen_benchmark",
        "kitti_eigen_benchmark_stereo",
        "kitti_garg_80",
        "kitti_garg_50",
        "kitti_benchmark",
        "kitti_affine",
        "nyu",
        "nyu_affine",
        "fcrn",
        "fastdepth",
        "eigen2014",
        "motorcycle",
        "synthetic",
        "kitti_sfmlearner",
        "synthetic_median",
        "median",
        "metric",
    }
    assert PROTOCOLS["kitti_sfmlearner"] == replace(PROTOCOLS["kitti_eigen"], name="kitti_sfmlearner", resize="depth")
    eigen, stereo, benchmark = (PROTOCOLS[f"kitti_eigen{suffix}"] for suffix in ("", "_stereo", "_benchmark"))
    assert (eigen.crop, eigen.alignment, eigen.min_depth, eigen.max_depth) == ("garg", "median", 1e-3, 80)
    assert (stereo.crop, stereo.alignment) == ("garg", "none")
    assert (benchmark.crop, benchmark.alignment, benchmark.cap_ground_truth) == (None, "median", False)
    assert PROTOCOLS["kitti_eigen_benchmark_stereo"] == replace(
        benchmark, name="kitti_eigen_benchmark_stereo", alignment="none"
    )
    for name in ("motorcycle", "synthetic"):
        assert (PROTOCOLS[name].crop, PROTOCOLS[name].alignment, PROTOCOLS[name].scale) == (None, "none", 1)
    assert get_protocol("nyu").max_depth == 10
    for name, cap in (("kitti_garg_80", 80), ("kitti_garg_50", 50)):
        supervised = PROTOCOLS[name]
        assert (supervised.crop, supervised.alignment, supervised.resize) == ("garg", "none", "depth")
        assert supervised.valid_range == (1e-3, cap) == (supervised.min_depth, supervised.max_depth)
    for name in ("kitti_affine", "nyu_affine"):
        assert (PROTOCOLS[name].alignment, PROTOCOLS[name].resize) == ("lsq_disparity", "disparity")
    for name in ("kitti_benchmark", "fcrn", "fastdepth", "eigen2014"):
        assert (PROTOCOLS[name].crop, PROTOCOLS[name].valid_range) == (None, (0, math.inf))
    assert PROTOCOLS["kitti_benchmark"].columns[:2] == ("silog", "sq_rel_kitti")
    assert {name for name in PROTOCOLS if PROTOCOLS[name].average == "pixels"} == {"fcrn"}
    assert PROTOCOLS["fastdepth"].size == (224, 224)
    with pytest.raises(ValueError, match=r"protocol: expected one of \['kitti_eigen', .* got 'kitti'"):
        get_protocol("kitti")


def test_description_states_everything() -> None:
    protocol = get_protocol("kitti_eigen")
    assert protocol.describe() == (
        "protocol kitti_eigen: 0.001 < ground truth < 80 m, Garg crop, prediction resized as disparity, per-image "
        "median scaling, prediction clipped to [0.001, 80] m, mean over images"
    )
    changes = {
        "min_depth": 0.5,
        "max_depth": 50.0,
        "crop": "eigen",
        "alignment": "lsq_depth",
        "resize": "depth",
        "scale": 5.4,
        "cap_ground_truth": False,
        "flip": True,
        "average": "pixels",
        "size": (375, 1242),
        "columns": ("rmse", "rmse_of_mse"),
        "name": "other",
    }
    texts = {replace(protocol, **{field: value}).describe() for field, value in changes.items()}
    assert len(texts | {protocol.describe()}) == len(changes) + 1
    assert all("\n" not in text for text in texts)
    assert len({one.describe() for one in PROTOCOLS.values()}) == len(PROTOCOLS)
    assert "at least 0.001 m, pooled over all pixels of all images" in get_protocol("fcrn").describe()
    assert "SI-log = sqrt(D)" in get_protocol("eigen2014").describe()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": "Garg"}, "crop: expected one of"),
        ({"alignment": "lsq"}, "alignment: expected one of"),
        ({"resize": "area"}, "resize: expected"),
        ({"min_depth": 0}, "expected 0 < min_depth < max_depth"),
        ({"min_depth": 90}, "expected 0 < min_depth < max_depth"),
        ({"scale": 0}, "scale: expected a positive number"),
        ({"average": "mean"}, r"average: expected one of \['images', 'pixels'\], got 'mean'"),
        ({"columns": ("rmse", "mae")}, "columns: expected some of .*, got 'mae'"),
        ({"alignment": "lsq_disparity", "max_depth": math.inf}, "max_depth: expected a finite number with alignment"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol("x", **arguments)

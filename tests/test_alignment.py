"""The scale from the plane of the ground. Reference points are tested in tests/models/test_predict.py."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mdepth_fast.alignment import scale_from_ground
from mdepth_fast.data.samples import read_depth
from mdepth_fast.geometry import backproject

K = torch.tensor([[120.0, 0, 99.5], [0, 120.0, 49.5], [0, 0, 1]], dtype=torch.float64)
SIZE = (100, 200)


def road(height: float, pitch: float = 0.0, roll: float = 0.0) -> Tensor:
    """Depth (1,1,H,W) of a plane `height` below the camera, which looks down by `pitch`; infinite beyond 60."""
    normal = torch.tensor(
        [math.sin(roll), math.cos(roll) * math.cos(pitch), math.cos(roll) * math.sin(pitch)], dtype=torch.float64
    )
    rays = backproject(torch.ones(1, 1, *SIZE, dtype=torch.float64), K[None])
    inverse = (normal[:, None, None] * rays).sum(1, keepdim=True) / height
    return torch.where(inverse > 1 / 60, 1 / inverse, math.inf)


@pytest.mark.parametrize(("pitch", "roll"), [(0.0, 0.0), (0.2, 0.1), (-0.05, -0.3), (0.55, 0.0)])
def test_scale_puts_the_camera_at_its_height(pitch: float, roll: float) -> None:
    relative = road(1.7, pitch, roll) / 7.3
    torch.testing.assert_close(scale_from_ground(relative, K, 1.7), torch.tensor([7.3], dtype=torch.float64))


def test_every_image_has_its_own_scale_with_noise_cars_and_holes() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = torch.cat([road(1.5, 0.1), road(1.5, 0.1) / 4])
    depth[:, :, 55:90, 60:100] = depth[:, :, 89:90, 80:81]  # a car: a fifth of the region
    depth = depth * (1 + 0.01 * torch.randn(depth.shape, generator=generator))
    depth[:, :, 70:75] = math.nan
    depth[:, :, 80:82] = 0
    found = scale_from_ground(depth.float(), K.expand(2, 3, 3), 1.5)
    torch.testing.assert_close(found, torch.tensor([1.0, 4.0], dtype=torch.float64), rtol=0.01, atol=0)
    assert torch.equal(found, scale_from_ground(depth.float(), K, 1.5)), "the same each time"


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param(torch.full((1, 1, *SIZE), 5.0), id="a wall"),
        pytest.param(road(1.5).flip(-2), id="a ceiling"),
        pytest.param(road(1.5, roll=1.2), id="on its side"),
        pytest.param(1 + 9 * torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)), id="noise"),
        pytest.param(torch.full((1, 1, *SIZE), math.nan), id="nothing"),
    ],
)
def test_no_ground_is_an_error(depth: Tensor) -> None:
    with pytest.raises(ValueError, match=r"camera_height: expected a plane below the camera .* image 0, found none"):
        scale_from_ground(depth, K, 1.5)


def test_kittis_camera_stands_at_its_height(real_data: Path) -> None:
    """1.65 m by KITTI's set-up page; the depth is LiDAR's, as far as it is measured."""
    folder = real_data / "kitti_depth"
    fx, fy, cx, cy = json.loads((folder / "test_annotations.json").read_text())["files"][0]["cam_in"]
    camera = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    depth = np.stack([read_depth(path) for path in sorted((folder / "depth").iterdir())])
    found = scale_from_ground(torch.from_numpy(depth)[:, None] / 5.4, camera, 1.65)
    assert ((found / 5.4 - 1).abs() < 0.03).all(), found

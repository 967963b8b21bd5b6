from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast.data import Sample


@pytest.fixture(scope="session")
def warp() -> Callable[..., tuple[Tensor, Tensor]]:
    """Source s of a sample warped to the target by ground-truth depth, pose and intrinsics, and where that holds.

    Written from the pinhole equations alone: it shares nothing with the package.
    """

    def warp_source(sample: Sample, depth: Tensor, s: int) -> tuple[Tensor, Tensor]:
        height, width = sample["target"].shape[-2:]
        v, u = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
        rays = torch.linalg.inv(sample["K"].double()) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
        T = sample["T"][s].double()
        points = T[:3, :3] @ (rays * depth.double().flatten()) + T[:3, 3:]
        uvw = sample["source_K"][s].double() @ points
        x, y = (uvw[:2] / uvw[2]).view(2, height, width)
        valid = (depth > 0) & (uvw[2].view(height, width) > 0)
        valid &= (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        image = sample["sources"][s].double()
        return F.grid_sample(image[None], grid[None], align_corners=True)[0], valid

    return warp_source


@pytest.fixture(scope="session")
def warp_errors(warp: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[float, float, Tensor]]:
    """Mean absolute error (0-255) of the warped and of the unwarped source, and the map of the former."""

    def errors(sample: Sample, s: int = 0) -> tuple[float, float, Tensor]:
        target = sample["target"].double()
        depth = F.interpolate(sample["depth"][None], target.shape[-2:], mode="nearest")[0, 0]
        warped, valid = warp(sample, depth, s)
        still = (sample["sources"][s].double() - target).abs().mean(0)
        error = (warped - target).abs().mean(0)
        return float(error[valid].mean()), float(still[valid].mean()), error[valid]

    return errors

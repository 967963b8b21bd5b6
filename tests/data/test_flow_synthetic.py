"""Textured layers: the flow explains the second image, and what is hidden is hidden."""

import pytest
import torch
import torch.nn.functional as F

from mdepth_fast.data import SyntheticFlow


def warped(image: torch.Tensor, flow: torch.Tensor) -> torch.Tensor:
    height, width = image.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([2 * (x + flow[0]) / (width - 1) - 1, 2 * (y + flow[1]) / (height - 1) - 1], -1)
    return F.grid_sample(image[None].float(), grid[None], align_corners=True)[0]


@pytest.mark.parametrize("index", range(4))
def test_the_flow_explains_the_second_image(index: int) -> None:
    sample = SyntheticFlow(4, 96, 128, seed=5, motion=6.0)[index]
    first, second, flow = sample["first"].float(), sample["second"], sample["flow"]
    assert sample["valid"].all() and sample["valid"].shape == sample["visible"].shape == (1, 96, 128)
    visible = sample["visible"][0]
    assert 0.6 < visible.float().mean() < 1
    error = (warped(second, flow) - first).abs().mean(0)[visible]
    still = (second.float() - first).abs().mean(0)[visible]
    # Of 255. What remains is interpolation, and edges, where it mixes two layers.
    assert error.median() < 2 and error.mean() < 0.25 * still.mean()
    wrong = (warped(second, flow + 0.5) - first).abs().mean(0)[visible]
    assert wrong.median() > 2 * error.median()
    hidden = (warped(second, flow) - first).abs().mean(0)[~visible & _lands_inside(flow)]
    assert not len(hidden) or hidden.median() > 5 * error.median(), "what is covered shows something else"


def _lands_inside(flow: torch.Tensor) -> torch.Tensor:
    height, width = flow.shape[1:]
    x, y = torch.arange(width) + flow[0], torch.arange(height)[:, None] + flow[1]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def test_a_background_alone() -> None:
    """One layer: a pixel is hidden only where it leaves the image, and the flow is affine and within its limits."""
    sample = SyntheticFlow(2, 64, 64, objects=0, motion=3.0)[1]
    assert (sample["visible"][0] == _lands_inside(sample["flow"])).all()
    flow = sample["flow"].double()
    second_difference = flow[:, :, 2:] - 2 * flow[:, :, 1:-1] + flow[:, :, :-2]
    assert second_difference.abs().max() < 1e-5
    assert flow[:, 32, 32].abs().max() <= 3.0
    spread = flow[:, :, -1] - flow[:, :, 0]
    assert spread.abs().max() <= 63 * 0.0816


def test_depends_on_seed_and_index_alone() -> None:
    data = SyntheticFlow(3, 32, 48, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(_tensors(data[2]), _tensors(SyntheticFlow(9, 32, 48, seed=1)[2])))
    kept = SyntheticFlow(3, 32, 48, seed=1, keep=True)
    assert all(torch.equal(a, b) for a, b in zip(_tensors(kept[2]), _tensors(kept[2])))
    assert torch.equal(kept[2]["first"], data[2]["first"]) and kept[2]["first"] is kept[2]["first"]
    assert not torch.equal(data[1]["first"], data[2]["first"])
    assert not torch.equal(data[2]["first"], SyntheticFlow(3, 32, 48, seed=2)[2]["first"])
    assert data[2]["name"] == "synthetic 1/2"


def _tensors(sample: object) -> list[torch.Tensor]:
    return [value for value in sample.values() if isinstance(value, torch.Tensor)]  # type: ignore[attr-defined]


def test_bad_options_are_named() -> None:
    for options, message in (
        ({"length": 0}, "length: expected at least 1"),
        ({"seed": -1}, "seed: expected a non-negative integer"),
        ({"motion": 65.0}, "motion: expected pixels from 0 to the shorter side 64, got 65"),
        ({"objects": -1}, "objects: expected a non-negative integer"),
        ({"height": 1}, "height: expected an integer of at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            SyntheticFlow(**options)  # type: ignore[arg-type]

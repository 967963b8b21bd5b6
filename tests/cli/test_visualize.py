"""Coloured depth, 16-bit PNG, panels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image

from mdepth_fast.data.samples import read_depth
from mdepth_fast.visualize import Cell, color_range, colorize, colorize_flow, draw_panel, write_depth_png, write_npy


def test_depth_png_round_trip(tmp_path: Path) -> None:
    depth = torch.rand(1, 1, 20, 30) * 80 + 0.5
    assert write_depth_png(tmp_path / "depth.png", depth) == 0
    read = read_depth(tmp_path / "depth.png")
    assert np.abs(read - depth[0, 0].numpy()).max() <= 0.5 / 256 + 1e-6


def test_depth_png_marks_what_is_not_depth_and_counts_what_does_not_fit(tmp_path: Path) -> None:
    depth = np.array([[np.nan, np.inf, 0.0, -1.0], [1e-4, 300.0, 255.996, 2.0]])
    assert write_depth_png(tmp_path / "depth.png", depth) == 2
    pixels = np.array(Image.open(tmp_path / "depth.png"))
    assert pixels.tolist() == [[0, 0, 0, 0], [1, 65535, 65535, 512]]
    with pytest.raises(ValueError, match="scale: expected a positive number"):
        write_depth_png(tmp_path / "depth.png", depth, 0)
    with pytest.raises(ValueError, match=r"depth: expected one map .* got shape \(2, 4, 4\)"):
        write_depth_png(tmp_path / "depth.png", np.ones((2, 4, 4)))


def test_colours_spread_over_inverse_depth_up_to_its_95th_percentile() -> None:
    inverse = np.linspace(0.1, 1.0, 101).reshape(1, 101)
    low, high = color_range(1 / inverse)
    assert low == pytest.approx(0.1)
    assert high == pytest.approx(np.percentile(inverse, 95))
    rgb = colorize(1 / inverse)
    magma = np.array([colormaps["magma"](x)[:3] for x in (0.0, 1.0)]) * 255
    np.testing.assert_allclose(rgb[0, 0], magma[0], atol=1)
    np.testing.assert_allclose(rgb[0, 96:], np.broadcast_to(magma[1], (5, 3)), atol=1)
    brightness = rgb[0].astype(int).sum(1)
    assert (np.diff(brightness[:96]) >= 0).all(), "near is bright"


def test_invalid_depth_is_black_and_does_not_change_the_colours() -> None:
    depth = np.linspace(1, 10, 50).reshape(5, 10)
    holes = depth.copy()
    holes[2, :3] = (np.nan, 0.0, -5.0)
    bounds = color_range(depth)
    rgb, with_holes = colorize(depth, bounds), colorize(holes, bounds)
    assert (with_holes[2, :3] == 0).all()
    with_holes[2, :3] = rgb[2, :3]
    np.testing.assert_array_equal(rgb, with_holes)
    assert (colorize(np.zeros((2, 2))) == 0).all()


def test_npy_is_untouched(tmp_path: Path) -> None:
    depth = torch.rand(1, 7, 9)
    write_npy(tmp_path / "depth.npy", depth)
    np.testing.assert_array_equal(np.load(tmp_path / "depth.npy"), depth[0].numpy())


def test_panel(tmp_path: Path) -> None:
    picture, map_ = np.zeros((40, 60, 3)), np.linspace(0, 1, 2400).reshape(40, 60)
    map_[:10] = np.nan
    cells = [
        Cell("image", picture),
        Cell("depth", map_, "magma_r", (0.0, 2.0), "m"),
        Cell("mask", map_),
        Cell("x", map_),
    ]
    draw_panel(tmp_path / "panel.png", cells, title="sample")
    drawn = np.array(Image.open(tmp_path / "panel.png").convert("RGB"))
    assert drawn.shape[1] > drawn.shape[0], "two rows of three"
    assert (drawn == round(0.6 * 255)).all(-1).any(), "what is not a number is grey"


def test_colours_of_flow_are_middleburys() -> None:
    """Its circle at the four directions; white stands still, half the length is half the saturation."""
    flow = np.array([[[1, -1, 0, 0, 0, 0.5, 2, np.nan, 1e10]], [[0, 0, 1, -1, 0, 0, 0, 0, 0]]])
    rgb = colorize_flow(flow, 1.0)[0].tolist()
    right, left, down, up = [255, 0, 0], [0, 209, 255], [255, 229, 0], [88, 0, 255]
    assert rgb == [right, left, down, up, [255, 255, 255], [255, 127, 127], [191, 0, 0], [0, 0, 0], [0, 0, 0]]
    longest = colorize_flow(torch.tensor([[[2.0, 4.0]], [[0.0, 0.0]]])[None])
    assert longest.tolist() == [[[255, 127, 127], [255, 0, 0]]]
    assert (colorize_flow(np.zeros((2, 3, 4))) == 255).all()
    with pytest.raises(ValueError, match=r"flow: expected \(2,H,W\) or \(1,2,H,W\), got shape \(3, 4\)"):
        colorize_flow(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="bound: expected a positive number of pixels, got 0"):
        colorize_flow(flow, 0)

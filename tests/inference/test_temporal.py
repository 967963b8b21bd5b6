"""Alignment of a clip's maps to each other, and the measure of flicker."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mdepth_fast.inference import TemporalAlignment, flicker, open_sources


def aligned(maps: list[torch.Tensor], kind: str) -> list[np.ndarray]:
    align = TemporalAlignment(kind)
    return [align(values)[0].numpy() for values in maps]


def test_flicker_in_closed_form() -> None:
    grey = np.full((4, 5, 3), 100, np.uint8)
    depth = np.linspace(1, 9, 20).reshape(4, 5)
    moved = grey.copy()
    moved[0] += 6  # these pixels count no more, and their depth is ten times as large
    far = depth * np.where(moved[..., 0] > 100, 10, 1.1)
    assert flicker([depth, far, far * 1.2], [grey, moved, moved]) == pytest.approx((np.log(1.1) + np.log(1.2)) / 2)
    assert flicker([1 / depth, 1 / far], [grey, moved]) == pytest.approx(np.log(1.1)), "the same for inverse depth"
    with pytest.raises(ValueError, match="pixels that change little, found none from frame 0"):
        flicker([depth, depth], [grey, grey + 6])
    with pytest.raises(ValueError, match="at least two"):
        flicker([depth], [grey])


def test_jumps_of_the_scale_go(real_data: Path) -> None:
    """On a real clip, for maps that follow its brightness and whose scale, and shift, jump by 10 % per frame."""
    (source,) = open_sources([str(real_data / "video" / "test_video.mp4")], limit=12)
    images = [frame.image[::4, ::4] for frame in source.read(lambda *frame: True)]
    random = np.random.default_rng(0)
    for kind in ("relative", "affine_inverse"):
        maps = []
        for image in images:
            values = torch.from_numpy(image.mean(-1)).float()[None] / 255 + 0.5
            shift = 0.1 * abs(random.normal()) if kind == "affine_inverse" else 0
            maps.append(values * float(np.exp(0.1 * random.normal())) + shift)
        before = flicker([values[0].numpy() for values in maps], images)
        assert before > 0.05 and flicker(aligned(maps, kind), images) < 0.2 * before


def test_a_still_scene_keeps_its_depth_and_noise_does_not_wear_it_away() -> None:
    """Ordinary regression would lose contrast in each of many frames."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.linspace(1, 5, 64 * 80).reshape(1, 64, 80)
    for kind in ("relative", "affine_inverse"):
        exact = aligned([scene] * 3, kind)
        np.testing.assert_allclose(exact[2], scene[0], rtol=1e-5)
        maps = [scene + 0.15 * torch.randn(scene.shape, generator=generator) for _ in range(200)]
        last = aligned(maps, kind)[-1]
        slope = np.polyfit(scene.reshape(-1), last.reshape(-1), 1)[0]
        assert 0.95 < slope < 1.05


def test_a_cut_begins_anew_and_a_state_goes_on() -> None:
    ramp = torch.linspace(1, 5, 64 * 80).reshape(1, 64, 80)
    for kind in ("relative", "affine_inverse"):
        first, second = TemporalAlignment(kind), TemporalAlignment(kind)
        first(ramp)
        cut = ramp.flip(-2)
        assert first(cut) is cut
        second.restore(first.state())
        np.testing.assert_allclose(second(cut * 1.1), first(cut * 1.1))
        assert torch.allclose(first(cut * 1.1), cut, rtol=0.01)
    for kind in ("metric", "disparity"):
        with pytest.raises(ValueError, match=f"--temporal: expected a network of depth up to scale, got .* {kind}"):
            TemporalAlignment(kind)  # type: ignore[arg-type]

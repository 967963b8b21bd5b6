"""Crop, flips, order in time and colours of image pairs."""

from typing import Any

import pytest
import torch

from mdepth_fast.data import FlowAugment, SyntheticFlow, collate_flow


def ramp(height: int, width: int, name: str = "ramp") -> Any:
    """A pair whose channels are row, column, and which image it is."""
    rows = torch.arange(height).view(-1, 1).expand(height, width)
    columns = torch.arange(width).expand(height, width)
    first, second = (torch.stack([rows, columns, torch.full_like(rows, n)]).byte() for n in (100, 200))
    return {"first": first, "second": second, "name": name, "flow": torch.zeros(2, height, width)}


def test_a_batch_of_several_sizes_is_cropped_within_each() -> None:
    batch = collate_flow([ramp(40, 60, "a"), ramp(50, 52, "b"), ramp(32, 48, "c")])
    assert batch["first"].shape == (3, 3, 50, 60) and batch["name"] == ["a", "b", "c"] and "flow" not in batch
    augment = FlowAugment(32, 48)
    places = set()
    for seed in range(20):
        out = augment(batch, torch.Generator().manual_seed(seed))
        assert out["first"].shape == (3, 3, 32, 48) and "size" not in out
        for n, (height, width) in enumerate(((40, 60), (50, 52), (32, 48))):
            pixels = (out["first"][n] * 255).round()
            top, left = pixels[0, 0, 0].item(), pixels[1, 0, 0].item()
            assert top + 32 <= height and left + 48 <= width, "no padding"
            assert (pixels[0] == top + torch.arange(32).view(-1, 1)).all()
            assert torch.equal(out["second"][n, :2], out["first"][n, :2]), "one crop for both images"
            places.add((n, top, left))
        assert torch.equal(out["first"], out["first_aug"])
    assert len(places) > 30
    middle = augment.eval()(batch)["first"][:, :2, 0, 0].mul(255).round().tolist()
    assert middle == [[4, 6], [9, 2], [0, 0]]


def test_flips_and_order() -> None:
    batch = collate_flow([ramp(8, 8)])
    for options, top_left, first in (
        ({"flip": 1.0}, (0, 7), 100),
        ({"flip_vertical": 1.0}, (7, 0), 100),
        ({"swap": 1.0}, (0, 0), 200),
        ({"flip": 1.0, "flip_vertical": 1.0, "swap": 1.0}, (7, 7), 200),
    ):
        out = FlowAugment(8, 8, **options)(batch)  # type: ignore[arg-type]
        pixel = out["first"][0, :, 0, 0].mul(255).round().tolist()
        assert pixel == [*top_left, first]
        assert out["second"][0, 2, 0, 0].mul(255).round() == 300 - first
    plain = FlowAugment(8, 8, flip=1.0, swap=1.0).eval()(batch)
    assert torch.equal(plain["first"], batch["first"] / 255)


def test_colours_are_one_draw_for_both_images_and_leave_the_clean_ones_alone() -> None:
    samples = [SyntheticFlow(2, 16, 16, motion=0.0)[n] for n in range(2)]
    batch = collate_flow([{**sample, "second": sample["first"]} for sample in samples])  # type: ignore[typeddict-item]
    augment = FlowAugment(16, 16, contrast=(0.7, 1.3), brightness=0.2, color=(0.9, 1.1), gamma=(0.7, 1.5))
    out = augment(batch, torch.Generator().manual_seed(1))
    assert torch.equal(out["first"], batch["first"] / 255)
    assert torch.equal(out["first_aug"], out["second_aug"])
    changed = out["first_aug"] - out["first"]
    assert (
        changed.abs().amax((1, 2, 3)).min() > 0.02 and (out["first_aug"] >= 0).all() and (out["first_aug"] <= 1).all()
    )
    alone = augment({**collate_flow([samples[0]])}, torch.Generator().manual_seed(1))
    assert torch.equal(alone["first"][0], out["first"][0])
    # With these draws, one after the other: contrast, brightness, colour, gamma.
    generator = torch.Generator().manual_seed(1)
    draws, normal = torch.rand(2, 12, generator=generator)[0, 5:], torch.randn(2, generator=generator)[0]
    x = out["first"][0] * (0.7 + 0.6 * draws[0]) + 0.2 * normal
    x = (x * (0.9 + 0.2 * draws[1:4]).view(3, 1, 1)).clamp(0, 1) ** (1 / (0.7 + 0.8 * draws[4]))
    torch.testing.assert_close(out["first_aug"][0], x)
    assert torch.equal(augment(batch, torch.Generator().manual_seed(1))["first_aug"], out["first_aug"])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="small: expected images of at least the crop's 32x48, got 30x60"):
        FlowAugment(32, 48)(collate_flow([ramp(30, 60, "small")]))
    with pytest.raises(TypeError, match=r"first, second: expected uint8 \(B,3,h,w\), got torch.float32"):
        FlowAugment(8, 8)({"first": torch.zeros(1, 3, 8, 8), "second": torch.zeros(1, 3, 8, 8), "name": ["x"]})
    for options, message in (
        ({"swap": 1.5}, r"swap: expected a probability in \[0, 1\]"),
        ({"gamma": (0.0, 1.0)}, "gamma: expected a range"),
        ({"color": (1.2, 0.8)}, "color: expected a range"),
        ({"brightness": -0.1}, "brightness: expected a standard deviation"),
    ):
        with pytest.raises(ValueError, match=message):
            FlowAugment(8, 8, **options)  # type: ignore[arg-type]

"""What part of an image is evaluated: where it lies, what is seen there and what counts."""

from typing import Any

import pytest
import torch

from mdepth_fast.data import AUGMENTATIONS, VIEWS, DepthAugment, EvaluationView


def frame(height: int, width: int) -> dict[str, Any]:
    """Red is the row, green the column, blue 0; depth is 1 + row / 1000 + column / 1e6."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    target = torch.stack([rows % 256, columns % 256, torch.zeros_like(rows)]).to(torch.uint8)
    return {"target": target, "depth": (1 + rows / 1000 + columns / 1e6)[None].float(), "name": "frame"}


def look(view: str, recipe: str, height: int = 480, width: int = 640) -> tuple[dict[str, Any], dict[str, Any]]:
    sample = frame(height, width)
    return sample, EvaluationView([sample], view, DepthAugment(**AUGMENTATIONS[recipe]))[0]


def test_the_whole_image_is_as_it_is() -> None:
    sample, seen = look("whole", "eigen_nyu")
    assert seen is sample


@pytest.mark.parametrize(
    ("recipe", "size", "window"),
    [
        # 228x304 in the middle of 240x320: 12 and 16 pixels of the file are cut off at every side.
        ("eigen_nyu", (480, 640), [12, 468, 16, 624]),
        ("fcrn_nyu", (480, 640), [12, 468, 16, 624]),
        # 172x576 of 184x612.
        ("eigen_kitti", (375, 1242), [12, 363, 37, 1205]),
        # 228x304 of 250x333: the shorter side is resized by 480 / 250.
        ("fastdepth_nyu", (480, 640), [21, 459, 27, 611]),
    ],
)
def test_the_centre_is_what_training_sees_without_augmentation(
    recipe: str, size: tuple[int, int], window: list[int]
) -> None:
    sample, seen = look("centre", recipe, *size)
    top, bottom, left, right = window
    assert seen["window"].tolist() == window
    assert torch.equal(seen["target"], sample["target"][:, top:bottom, left:right])
    assert seen["depth"].shape == sample["depth"].shape
    inside = torch.zeros_like(sample["depth"], dtype=torch.bool)
    inside[:, top:bottom, left:right] = True
    assert torch.equal(seen["depth"], torch.where(inside, sample["depth"], 0))

    augment = DepthAugment(**AUGMENTATIONS[recipe]).eval()
    batch = augment({"target": sample["target"][None], "depth": sample["depth"][None], "name": ["frame"]})
    corner = batch["depth"][0, 0, 0, 0] - 1  # the nearest pixel: at most one step of the resized image away
    row, column = divmod(round(float(corner) * 1e6), 1000)
    assert 0 <= row - top <= size[0] / 100 and 0 <= column - left <= size[1] / 100


def test_the_kitti_benchmark_keeps_the_bottom_centre() -> None:
    _, seen = look("kb", "bts_kitti", 375, 1242)
    assert seen["window"].tolist() == [23, 375, 13, 1229]
    assert seen["target"].shape == (3, 352, 1216)
    assert int((seen["depth"] > 0).sum()) == 352 * 1216


def test_a_prediction_for_the_centre_is_stretched_over_all_ground_truth() -> None:
    sample, seen = look("stretched", "fcrn_nyu")
    assert torch.equal(seen["target"], sample["target"][:, 12:468, 16:624])
    assert torch.equal(seen["depth"], sample["depth"])
    assert "window" not in seen


def test_the_network_sees_what_it_is_given_in_evaluation() -> None:
    sample, seen = look("network", "fastdepth_nyu")
    assert seen["target"].shape == (3, 224, 224) and seen["depth"].shape == (1, 224, 224)
    assert seen["target"].dtype == torch.float32 and 0 <= seen["target"].min() <= seen["target"].max() <= 1
    # Depth is read, not mixed: every value is one of the file.
    assert torch.isin(seen["depth"], sample["depth"]).all()


def test_a_view_that_does_not_exist_is_refused() -> None:
    assert VIEWS == ("whole", "centre", "kb", "stretched", "network")
    with pytest.raises(ValueError, match=r"view: expected one of whole, centre, .*'left'"):
        look("left", "fcrn_nyu")

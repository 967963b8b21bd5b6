import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from mdepth_fast.data import MotorcycleStereo


@pytest.mark.parametrize("size", [(192, 288), (500, 741), (160, 320)])
def test_true_depth_explains_the_other_view(warp_errors, size: tuple[int, int]) -> None:
    sample = MotorcycleStereo(*size, evaluation=True)[0]
    warped, still, errors = warp_errors(sample)
    assert warped < 0.3 * still
    assert errors.median() < 4  # of 255; the mean holds the occlusions
    # The wrong sign, the wrong principal point or a shifted baseline would be seen.
    wrong = {
        "T": -sample["T"] + 2 * torch.eye(4),
        "source_K": sample["K"][None],
    }
    for key, value in wrong.items():
        assert warp_errors({**sample, key: value})[0] > 2 * warped


def test_ground_truth_and_calibration() -> None:
    from skimage.data import stereo_motorcycle

    sample = MotorcycleStereo(250, 741, evaluation=True)[0]
    left, _, disparity = stereo_motorcycle()
    depth = sample["depth"][0]
    assert depth.shape == (500, 741) and torch.equal(sample["image"], torch.from_numpy(left).permute(2, 0, 1))
    assert int((depth == 0).sum()) == (disparity == float("inf")).sum() > 0
    row, column = 250, 400
    assert float(depth[row, column]) == pytest.approx(0.193001 * 994.978 / (disparity[row, column] + 31.086), rel=1e-6)
    known = depth[depth > 0]
    assert 2.1 < known.min() < 2.12 and 5.0 < known.max() < 5.03
    assert float(sample["T"][0, 0, 3]) == pytest.approx(-0.193001)
    assert float(sample["source_K"][0, 0, 2] - sample["K"][0, 2]) == pytest.approx(31.086, rel=1e-4)
    assert float(sample["K"][0, 0]) == pytest.approx(994.978)
    assert float(sample["K"][1, 1]) == pytest.approx(994.978 / 2)
    assert float(sample["K"][1, 2]) == pytest.approx((254.877 + 0.5) / 2 - 0.5)


def test_right_view_is_the_mirror_case() -> None:
    dataset = MotorcycleStereo(96, 144, length=4, sides=("left", "right"))
    left, right = dataset[0], dataset[1]
    assert [dataset[i]["name"] for i in range(4)] == ["motorcycle left", "motorcycle right"] * 2
    assert torch.equal(right["target"], left["sources"][0]) and torch.equal(right["sources"][0], left["target"])
    assert torch.equal(right["K"], left["source_K"][0]) and torch.equal(right["source_K"][0], left["K"])
    assert torch.allclose(right["T"][0] @ left["T"][0], torch.eye(4), atol=1e-7)


def test_loading() -> None:
    dataset = pickle.loads(pickle.dumps(MotorcycleStereo(32, 48, length=5)))
    assert dataset.sources == ("stereo",)
    batches = list(DataLoader(dataset, batch_size=2, num_workers=2))
    assert [tuple(batch["sources"].shape) for batch in batches] == [(n, 1, 3, 32, 48) for n in (2, 2, 1)]
    assert batches[0]["target"].dtype == torch.uint8
    assert set(batches[0]) == {"target", "sources", "K", "source_K", "T", "name"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 1}, "height: expected an integer of at least 2, got 1"),
        ({"width": 288.0}, "width: expected an integer"),
        ({"length": 0}, "length: expected at least 1"),
        ({"sides": ("middle",)}, "sides: expected some of"),
        ({"sides": ("left", "right"), "evaluation": True}, "sides: evaluation has ground truth"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotorcycleStereo(**arguments)

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdepth_fast.data import DataError, KittiOdometry, kitti_odometry, list_odometry_frames
from mdepth_fast.systems import load_config
from mdepth_fast.systems.views import evaluation_views, training_views

SIZE = (30, 48)
# P0 and P1, the grey cameras, are not used; the colour cameras are at x = -2/40 and +18/40 of camera 0.
CALIBRATION = """P0: 40 0 23 0 0 40 15 0 0 0 1 0
P1: 40 0 23 -20 0 40 15 0 0 0 1 0
P2: 40 0 23 2 0 40 15 0 0 0 1 0
P3: 40 0 23 -18 0 40 15 0 0 0 1 0
Tr: 0 -1 0 0 0 0 -1 0 1 0 0 0
"""
# Lines of the poses of sequences 00 to 10, the frames that each has.
FRAMES = (4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Sequences 03 and 04 of four frames, whose brightness says which they are."""
    for sequence in (3, 4):
        folder = tmp_path / "sequences" / f"{sequence:02d}"
        for side, name in enumerate(("image_2", "image_3")):
            (folder / name).mkdir(parents=True)
            for index in range(4):
                pixels = np.full((*SIZE, 3), 100 * (sequence - 3) + 10 * side + index, np.uint8)
                Image.fromarray(pixels).save(folder / name / f"{index:06d}.png")
        (folder / "calib.txt").write_text(CALIBRATION)
    (tmp_path / "poses").mkdir()
    # Forward by the frame's number, and a quarter turn to the right in frame 2.
    rows = ["1 0 0 0 0 1 0 0 0 0 1 0", "1 0 0 0 0 1 0 0 0 0 1 1", "0 0 1 0 0 1 0 0 -1 0 0 2", "1 0 0 0 0 1 0 0 0 0 1 3"]
    (tmp_path / "poses" / "03.txt").write_text("\n".join(rows) + "\n")
    return tmp_path


def level(image: torch.Tensor) -> int:
    return int(image[0, 0, 0])


def test_lines_find_their_frames(tree: Path) -> None:
    dataset = KittiOdometry(tree, ["3 1 l", "04 000002 r"], *SIZE, sources=(-1, 1, "stereo"))
    left, right = dataset[0], dataset[1]
    assert [level(left["target"]), *map(level, left["sources"])] == [1, 0, 2, 11]
    assert [level(right["target"]), *map(level, right["sources"])] == [112, 111, 113, 102]
    assert (left["name"], right["name"]) == ("03 1 l", "04 2 r") and dataset.sources == (-1, 1, "stereo")
    K = torch.tensor([[40.0, 0, 23], [0, 40, 15], [0, 0, 1]])
    assert torch.allclose(left["K"], K) and torch.allclose(left["source_K"], K.expand(3, 3, 3))
    assert torch.equal(left["T"][:2], torch.eye(4).expand(2, 4, 4))
    assert [float(sample["T"][2, 0, 3]) for sample in (left, right)] == pytest.approx([-0.5, 0.5])
    nominal = KittiOdometry(tree, ["3 1 l"], 32, 64, nominal_K=True)[0]["K"]
    assert torch.allclose(nominal, torch.tensor([[0.58 * 64, 0, 32], [0, 1.92 * 32, 16], [0, 0, 1]]))


def test_known_poses_are_those_of_the_camera_at_hand(tree: Path) -> None:
    dataset = KittiOdometry(tree, ["3 1 r"], *SIZE, sources=(-1, 1, "stereo"), poses=True)
    assert dataset.sources == ("known", "known", "stereo")
    back, forth, _ = dataset[0]["T"].double()
    # A point of the right camera in frame 1, by hand: to camera 0, to the world, and back in the other frames.
    point = np.array([0.3, -0.2, 5.0])
    world = point + np.array([0.45, 0, 1])
    turned = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]).T @ (world - [0, 0, 2])
    for T, expected in ((back, world - [0.45, 0, 0]), (forth, turned - [0.45, 0, 0])):
        found = T.numpy() @ [*point, 1]
        assert np.allclose(found[:3], expected, atol=1e-6)


def test_bad_trees_are_named(tree: Path) -> None:
    for line in ("3 1", "three 1 l", "3 1 x", "2011_09_26/drive 1 l"):
        with pytest.raises(DataError, match=r"split, line 1: expected 'sequence index l\|r', got"):
            KittiOdometry(tree, [line])
    with pytest.raises(DataError, match=r"needs .*sequences.03.image_2.000004.png, which does not exist"):
        KittiOdometry(tree, ["3 3 l"])
    with pytest.raises(DataError, match=r"poses.04.txt: cannot be read"):
        KittiOdometry(tree, ["4 1 l"], poses=True)
    path = tree / "poses" / "03.txt"
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    with pytest.raises(DataError, match=r"03.txt: expected a pose for frame 2, got 2 lines"):
        KittiOdometry(tree, ["3 1 l"], poses=True)
    calibration = tree / "sequences" / "03" / "calib.txt"
    calibration.write_text(CALIBRATION.replace("40 0 23 2 0 40 15", "80 0 46 2 0 80 30"))
    with pytest.raises(DataError, match=r"000001.png: expected the size that calib.txt is for"):
        KittiOdometry(tree, ["3 1 l"])[0]
    assert KittiOdometry(tree, ["3 1 l"], nominal_K=True)[0]["target"].shape == (3, 192, 640)
    calibration.write_text(CALIBRATION.replace("P2", "P5"))
    with pytest.raises(DataError, match=r"calib.txt: expected a line 'P2: ...', got none"):
        KittiOdometry(tree, ["3 1 l"])


def test_listing_frames(tree: Path) -> None:
    lines = list_odometry_frames(tree, sequences=(3, 4), stereo=True)
    assert lines == [f"{sequence} {index} {side}" for sequence in (3, 4) for side in "lr" for index in (1, 2)]
    assert len(KittiOdometry(tree, lines, sources=(-1, 1, "stereo"))) == 8
    with pytest.raises(DataError, match=r"sequences.00.image_2: cannot list the folder"):
        list_odometry_frames(tree)


def test_the_published_splits_have_these_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training and validation lines share the frames of 00 to 08 that are two or more from an end; odometry is tested
    on all pairs of neighbours of 09 and 10."""

    def listed(folder: Path) -> list[Path]:
        return [folder / f"{index:06d}.png" for index in range(FRAMES[int(folder.parent.name)])]

    monkeypatch.setattr(kitti_odometry, "list_images", listed)
    assert len(list_odometry_frames("root", offsets=(-2, 2))) == 36_671 + 4_075
    for sequence, pairs in ((9, 1590), (10, 1200)):
        assert len(list_odometry_frames("root", sequences=(sequence,), offsets=(1,), sides=("l",))) == pairs


def test_a_preset_reads_them(tree: Path) -> None:
    split = tree / "split.txt"
    split.write_text("3 1 l\n4 2 r\n")
    config = load_config("kitti_odometry_mono_stereo", [f"--data.root={tree}", f"--data.split={split}"])
    dataset = training_views(config.data, 0)
    assert len(dataset) == 2 and dataset[0]["sources"].shape == (3, 3, 192, 640)
    assert evaluation_views(config.data, 0) is None
    config.data.nominal_K = True
    assert float(training_views(config.data, 0)[0]["K"][0, 0]) == pytest.approx(0.58 * 640)

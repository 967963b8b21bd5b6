from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mdepth_fast.data import DataError, KittiRaw
from mdepth_fast.data.kitti import KittiCalibration, list_frames, project_lidar, read_lidar

DATE, DRIVE = "2011_09_26", "2011_09_26/2011_09_26_drive_0001_sync"
SIZE = (30, 48)
CAMERAS = """calib_time: 09-Jan-2012 13:57:47
corner_dist: 9.950000e-02
R_rect_00: 1 0 0 0 1 0 0 0 1
S_rect_02: 4.8e+01 3.0e+01
P_rect_02: 40 0 23 2 0 40 15 0 0 0 1 0
S_rect_03: 4.8e+01 3.0e+01
P_rect_03: 40 0 23 -18 0 40 15 0 0 0 1 0
"""
# LiDAR x forward, y left, z up to camera x right, y down, z forward, 0.3 m behind.
VELODYNE = "calib_time: x\nR: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 -0.3\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    drive = root / DRIVE
    for side, camera in enumerate(("image_02", "image_03")):
        (drive / camera / "data").mkdir(parents=True)
        for i in range(4):
            pixels = np.full((*SIZE, 3), 10 * side + i, np.uint8)
            suffix = "jpg" if i == 3 else "png"
            Image.fromarray(pixels).save(drive / camera / "data" / f"{i:010d}.{suffix}")
    (drive / "velodyne_points" / "data").mkdir(parents=True)
    scan = np.array([[10.3, 0, 0, 0.5], [5.3, 0, 0, 0.5], [5.3, 1, -1, 0.5], [-5, 0, 0, 0.5]], "<f4")
    scan.tofile(drive / "velodyne_points" / "data" / "0000000001.bin")
    (root / DATE / "calib_cam_to_cam.txt").write_text(CAMERAS)
    (root / DATE / "calib_velo_to_cam.txt").write_text(VELODYNE)
    return root


def split_file(folder: Path, *lines: str) -> Path:
    path = folder / "split.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def level(image: torch.Tensor) -> int:
    return int(image[0, 0, 0])


def test_split_lines_find_their_frames(tree: Path) -> None:
    split = split_file(tree, f"{DRIVE} 0000000001 l", "", f"{DRIVE} 2 r")
    dataset = KittiRaw(tree, split, *SIZE, sources=(-1, 1, "stereo"))
    assert len(dataset) == 2 and dataset.sources == (-1, 1, "stereo")
    left, right = dataset[0], dataset[1]
    assert [level(left["target"]), *map(level, left["sources"])] == [1, 0, 2, 11]
    assert [level(right["target"]), *map(level, right["sources"])] == [12, 11, 13, 2]  # frame 3 is a JPEG
    assert left["name"] == f"{DRIVE} 1 l"
    K = torch.tensor([[40.0, 0, 23], [0, 40, 15], [0, 0, 1]])
    assert torch.allclose(left["K"], K) and torch.allclose(left["source_K"], K.expand(3, 3, 3))
    assert torch.equal(left["T"][:2], torch.eye(4).expand(2, 4, 4))
    # P_rect: the left camera is at x = -2/40, the right one at +18/40 of camera 0: 0.5 m apart.
    assert torch.allclose(left["T"][2, :3, 3], torch.tensor([-0.5, 0, 0]))
    assert torch.allclose(right["T"][2, :3, 3], torch.tensor([0.5, 0, 0]))


def test_published_geometry(tree: Path) -> None:
    dataset = KittiRaw(
        tree, [f"{DRIVE} 1 l", f"{DRIVE} 1 r"], 32, 64, sources=("stereo",), nominal_K=True, stereo_baseline=0.1
    )
    K = torch.tensor([[0.58 * 64, 0, 32], [0, 1.92 * 32, 16], [0, 0, 1]])
    assert torch.allclose(dataset[0]["K"], K) and torch.allclose(dataset[0]["source_K"][0], K)
    assert [float(dataset[i]["T"][0, 0, 3]) for i in range(2)] == pytest.approx([-0.1, 0.1])


def test_images_stored_smaller_keep_their_geometry(tree: Path) -> None:
    for path in (tree / DRIVE / "image_02" / "data").iterdir():
        with Image.open(path) as image:
            smaller = image.resize((24, 15))
        smaller.save(path)
    K = KittiRaw(tree, [f"{DRIVE} 1 l"], *SIZE)[0]["K"]
    assert torch.allclose(K, torch.tensor([[40.0, 0, 23], [0, 40, 15], [0, 0, 1]]))


def test_a_png_wins_over_a_jpeg_of_the_same_frame(tree: Path) -> None:
    for name in ("0000000001.jpg", "0000000001.jpeg"):
        Image.fromarray(np.full((*SIZE, 3), 99, np.uint8)).save(tree / DRIVE / "image_02" / "data" / name)
    assert level(KittiRaw(tree, [f"{DRIVE} 1 l"], *SIZE, sources=())[0]["target"]) == 1


def test_copies_resized_offline_and_a_stated_tolerance(tree: Path) -> None:
    path = tree / DRIVE / "image_02" / "data" / "0000000001.png"
    for height, width in ((320, 1024), (256, 512)):
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
        sample = KittiRaw(tree, [f"{DRIVE} 1 l"], *SIZE, sources=())[0]
        assert torch.allclose(sample["K"], torch.tensor([[40.0, 0, 23], [0, 40, 15], [0, 0, 1]]), atol=1e-5)
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match="is it cropped\\? aspect_tolerance"):
        KittiRaw(tree, [f"{DRIVE} 1 l"], *SIZE, sources=())[0]
    assert KittiRaw(tree, [f"{DRIVE} 1 l"], *SIZE, sources=(), aspect_tolerance=0.5)[0]["target"].shape == (3, *SIZE)


def test_byte_order_marks(tree: Path) -> None:
    split = split_file(tree, f"{DRIVE} 1 l", f"{DRIVE} 2 l")
    for path in (split, tree / DATE / "calib_cam_to_cam.txt", tree / DATE / "calib_velo_to_cam.txt"):
        path.write_text("\ufeff" + path.read_text(), encoding="utf-8")
    assert len(KittiRaw(tree, split, *SIZE)) == 2


def test_cropped_images_are_refused(tree: Path) -> None:
    path = tree / DRIVE / "image_02" / "data" / "0000000001.png"
    Image.fromarray(np.zeros((20, 48, 3), np.uint8)).save(path)
    with pytest.raises(DataError, match=r"0000000001.png: expected the calibrated size \(30, 48\) or a resized copy"):
        KittiRaw(tree, [f"{DRIVE} 1 l"], sources=())[0]


@pytest.mark.parametrize("line", ["only two", f"{DRIVE} one l", f"{DRIVE} 1 x", "drive 1 l", f"{DRIVE} 1 l more"])
def test_malformed_line_is_named(tree: Path, line: str) -> None:
    split = split_file(tree, f"{DRIVE} 1 l", line)
    with pytest.raises(DataError, match=r"split.txt, line 2: expected 'date/drive index l\|r', got") as error:
        KittiRaw(tree, split)
    assert str(split) in str(error.value)


def test_missing_frames_are_named_or_counted(tree: Path) -> None:
    split = split_file(tree, f"{DRIVE} 1 l", f"{DRIVE} 3 l", f"{DRIVE} 7 r", f"{DRIVE} 2 l")
    with pytest.raises(DataError, match=r"split.txt, line 2: .* needs .*image_02.data.0000000004.png, which does not"):
        KittiRaw(tree, split)
    with pytest.warns(UserWarning, match=r"left out 2 lines .* line 2: .*0000000004.png"):
        dataset = KittiRaw(tree, split, skip_missing=True)
    assert (len(dataset), dataset.missing) == (2, 2)
    with pytest.raises(DataError, match="no line with all its files"), pytest.warns(UserWarning):
        KittiRaw(tree, [f"{DRIVE} 9 l"], skip_missing=True)
    with pytest.raises(DataError, match=r"line 1: .* needs .*velodyne_points.data.0000000002.bin"):
        KittiRaw(tree, [f"{DRIVE} 2 l"], evaluation=True)
    with pytest.raises(DataError, match=r"none\.txt: cannot be read as a split file"):
        KittiRaw(tree, tree / "none.txt")
    with pytest.raises(DataError, match="expected lines 'folder index side', got none"):
        KittiRaw(tree, split_file(tree, ""))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cam", CAMERAS.replace("P_rect_02", "P_02"), "expected a line 'P_rect_02: ...', got none"),
        ("cam", CAMERAS.replace("40 0 23 -18", "40 0 23"), "line 7: expected 12 numbers after 'P_rect_03:'"),
        ("cam", CAMERAS.replace("40 0 23 -18", "40 0 x -18"), "line 7: expected numbers after 'P_rect_03:'"),
        ("cam", CAMERAS.replace("R_rect_00: 1", "R_rect_00: nan"), "line 3: expected 9 numbers"),
        ("cam", CAMERAS + "garbage\n", "line 8: expected 'key: numbers', got 'garbage'"),
        ("velo", VELODYNE.replace("T:", "t:"), "expected a line 'T: ...'"),
        ("velo", None, "cannot be read as calibration"),
    ],
)
def test_bad_calibration_is_named(tree: Path, name: str, text: str | None, message: str) -> None:
    path = tree / DATE / f"calib_{name}_to_cam.txt"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        KittiRaw(tree, [f"{DRIVE} 1 l"])
    assert str(path) in str(error.value)


def test_lidar_ground_truth(tree: Path) -> None:
    lines = [f"{DRIVE} 1 l"]
    sample = KittiRaw(tree, lines, 15, 24, sources=(), evaluation=True)[0]
    assert sample["sources"].shape == (0, 3, 15, 24) and sample["T"].shape == (0, 4, 4)
    assert sample["image"].shape == (3, *SIZE)
    # Two points on the axis (the nearer wins) and one a metre to the right and down... P adds 2 / 40 m to x.
    expected = torch.zeros(1, *SIZE)
    expected[0, 15, 23] = 5
    expected[0, 15 + 8, 23 - 8] = 5
    assert torch.equal(sample["depth"] > 0, expected > 0)
    assert torch.allclose(sample["depth"], expected)
    historic = KittiRaw(tree, lines, 15, 24, sources=(), evaluation=True, ground_truth="lidar_x")[0]["depth"]
    assert torch.allclose(historic, (expected * 5.3 / 5).roll((-1, -1), (1, 2)))
    scan = tree / DRIVE / "velodyne_points" / "data" / "0000000001.bin"
    scan.write_bytes(scan.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"0000000001.bin: expected points of 16 bytes, got 60 bytes: truncated"):
        KittiRaw(tree, lines, sources=(), evaluation=True)[0]


def test_projection_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-5, -10, -3, 0], [40, 10, 3, 1], (3000, 4)).astype(np.float32)
    projection = np.array([[23.0, -40, 0.3, 2], [15, 0.1, -40, 1], [1, 0.001, -0.002, -0.3]])
    for depth_from in ("z", "x"):
        for shift in (0, 1):
            expected = np.zeros(SIZE)
            for x, y, z, _ in points.astype(np.float64):
                u, v, depth = projection @ (x, y, z, 1)
                if x < 0 or depth <= 0:
                    continue
                column, row = round(u / depth) - shift, round(v / depth) - shift
                value = depth if depth_from == "z" else x
                if 0 <= column < SIZE[1] and 0 <= row < SIZE[0] and value > 0:
                    nearest = expected[row, column]
                    expected[row, column] = min(value, nearest) if nearest else value
            found = project_lidar(points, projection, SIZE, depth_from=depth_from, one_based=bool(shift))
            assert (expected > 0).sum() > 500
            assert np.allclose(found, expected, rtol=1e-6)
    with pytest.raises(ValueError, match="depth_from"):
        project_lidar(points, projection, SIZE, depth_from="y")


def test_annotated_ground_truth(tree: Path, tmp_path: Path) -> None:
    folder = tmp_path / "annotated" / "val" / DRIVE.split("/")[1] / "proj_depth" / "groundtruth" / "image_02"
    folder.mkdir(parents=True)
    stored = np.arange(SIZE[0] * SIZE[1], dtype=np.uint16).reshape(SIZE)
    Image.fromarray(stored).save(folder / "0000000002.png")
    options = {"sources": (), "evaluation": True, "ground_truth": "annotated", "annotated_root": tmp_path / "annotated"}
    depth = KittiRaw(tree, [f"{DRIVE} 2 l"], **options)[0]["depth"]
    assert torch.equal(depth[0], torch.from_numpy(stored.astype(np.float32) / 256))
    with pytest.raises(DataError, match=r"line 1: .* needs .*groundtruth.image_02.0000000001.png"):
        KittiRaw(tree, [f"{DRIVE} 1 l"], **options)
    with pytest.raises(ValueError, match='annotated_root: goes with ground_truth="annotated"'):
        KittiRaw(tree, [f"{DRIVE} 2 l"], evaluation=True, ground_truth="annotated")


def test_listing_frames(tree: Path) -> None:
    assert list_frames(tree) == [f"{DRIVE} {i} {side}" for side in "lr" for i in (1, 2)]
    assert list_frames(tree, offsets=(), sides=("r",)) == [f"{DRIVE} {i} r" for i in range(4)]
    (tree / DRIVE / "image_03" / "data" / "0000000002.png").unlink()
    assert list_frames(tree, offsets=(), sides=("l",), stereo=True) == [f"{DRIVE} {i} l" for i in (0, 1, 3)]
    assert len(KittiRaw(tree, list_frames(tree, offsets=(1,)), sources=(1,))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sources": (-1, "right")}, 'sources: expected frame offsets other than 0 or "stereo"'),
        ({"ground_truth": "radar"}, "ground_truth: expected one of"),
        ({"stereo_baseline": 0}, "stereo_baseline: expected a positive number"),
        ({"height": 0}, "height"),
    ],
)
def test_bad_arguments(tree: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KittiRaw(tree, [f"{DRIVE} 1 l"], **arguments)


def test_real_calibration(real_data: Path) -> None:
    calibration = KittiCalibration.read(real_data / "kitti_raw" / DATE)
    assert calibration.size == {"l": (375, 1242), "r": (375, 1242)}
    assert np.allclose(calibration.K("l"), [[721.5377, 0, 609.5593], [0, 721.5377, 172.854], [0, 0, 1]])
    assert np.linalg.norm(calibration.stereo("l")[:3, 3]) == pytest.approx(0.5327, abs=1e-4)
    assert calibration.stereo("l")[0, 3] < 0
    assert np.allclose(calibration.stereo("l") @ calibration.stereo("r"), np.eye(4))


# Points inside the image, as counted point by point from the calibration.
@pytest.mark.parametrize(("index", "points"), [(0, 16333), (2, 16125), (4, 15469), (6, 15196)])
def test_real_lidar(real_data: Path, index: int, points: int) -> None:
    root = real_data / "kitti_raw"
    drive = "2011_09_26/2011_09_26_drive_0052_sync"
    path = root / drive / "velodyne_points" / "data" / f"{index:010d}.bin"
    calibration = KittiCalibration.read(root / DATE)
    scan = read_lidar(path)
    projection = calibration.lidar_to_image("l")
    uvw = np.concatenate([scan[:, :3], np.ones((len(scan), 1))], 1) @ projection.T
    u, v = (uvw[:, :2] / uvw[:, 2:]).T
    inside = (uvw[:, 2] > 0) & (scan[:, 0] >= 0) & (u >= 0) & (u < 1242) & (v >= 0) & (v < 375)
    assert inside.sum() == points
    sample = KittiRaw(root, [f"{drive} {index} l"], 192, 640, sources=(), evaluation=True)[0]
    depth = sample["depth"][0].numpy()
    assert depth.shape == (375, 1242)
    assert 0.99 * points < (depth > 0).sum() <= points  # some points share a pixel, some round out of the image
    assert 3.0 < depth[depth > 0].min() < 3.1 and 78 < depth.max() < 79
    expected = np.zeros_like(depth)
    for column, row, z in zip(np.round(u[inside]), np.round(v[inside]), uvw[inside, 2]):
        if column < 1242 and row < 375:
            old = expected[int(row), int(column)]
            expected[int(row), int(column)] = min(old, z) if old else z
    # Points up to half a pixel outside round into the border.
    assert np.allclose(depth[1:-1, 1:-1], expected[1:-1, 1:-1], rtol=1e-5)


def test_real_frames_train_in_both_modes(real_data: Path) -> None:
    root = real_data / "kitti_raw"
    mono = KittiRaw(root, list_frames(root), 96, 320)
    assert len(mono) == 14  # drive 0052: 1..10, drive 0104: 42 and 43 of both cameras
    batch = next(iter(DataLoader(mono, batch_size=4, num_workers=2)))
    assert batch["sources"].shape == (4, 2, 3, 96, 320)
    lines = list_frames(root, offsets=(-1, 1), sides=("l",), stereo=True)
    assert [line.split()[1] for line in lines] == ["42", "43"]
    both = KittiRaw(root, lines, 96, 320, sources=(-1, 1, "stereo"))[0]
    assert float(both["T"][2, 0, 3]) == pytest.approx(-0.5327, abs=1e-4)
    assert float(both["K"][0, 0]) == pytest.approx(721.5377 * 320 / 1242, rel=1e-6)


def test_real_annotated_depth(real_data: Path) -> None:
    from mdepth_fast.data.samples import read_depth

    depth = read_depth(real_data / "kitti_depth" / "depth" / "0000000005.png")
    known = depth[depth > 0]
    assert depth.shape == (375, 1242)
    assert 0.1 < known.size / depth.size < 0.3
    assert known.min() > 5 and known.max() < 85

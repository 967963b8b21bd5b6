from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdepth_fast.data import DataError, FrameFolder

K = (30.0, 31.0, 15.5, 11.5)


def make_clip(folder: Path, count: int = 4, size: tuple[int, int] = (24, 32)) -> Path:
    folder.mkdir()
    for i in range(count):
        pixels = np.full((*size, 3), i, np.uint8)
        Image.fromarray(pixels).save(folder / f"frame{i + 8}.png")  # frame8, frame9, frame10: natural order matters
    return folder


def level(sample: dict) -> tuple[int, ...]:
    """The grey level of target and sources, which is the position in the clip."""
    return (int(sample["target"][0, 0, 0]), *(int(source[0, 0, 0]) for source in sample["sources"]))


def test_neighbours_follow_natural_order_and_stay_in_the_clip(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path / "a"), make_clip(tmp_path / "b", 3)]
    dataset = FrameFolder(clips, K, 24, 32, sources=(-1, 1))
    assert dataset.sources == (-1, 1)
    assert [level(dataset[i]) for i in range(len(dataset))] == [(1, 0, 2), (2, 1, 3), (1, 0, 2)]
    assert [dataset[i]["name"] for i in range(3)] == ["a/frame9.png", "a/frame10.png", "b/frame9.png"]
    ahead = FrameFolder(clips[0], K, 24, 32, sources=(2,))
    assert [level(ahead[i]) for i in range(len(ahead))] == [(0, 2), (1, 3)]
    assert len(FrameFolder(clips, K, 24, 32, sources=())) == 7
    with pytest.raises(ValueError, match="has all of"):
        FrameFolder(clips[1], K, sources=(-2, 2))


def test_intrinsics_in_every_form(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a")
    matrix = np.array([[30.0, 0, 15.5], [0, 31.0, 11.5], [0, 0, 1]])
    (tmp_path / "K.txt").write_text("30 0 15.5\n0 31 11.5\n0 0 1\n")
    fractions = (30 / 32, 31 / 24, 0.5, 0.5)
    expected = torch.tensor([[60.0, 0, 31.5], [0, 31.0, 11.5], [0, 0, 1]])
    forms = {
        "nine.txt": "\ufeff30 0 15.5 0 31 11.5 0 0 1",  # with a byte-order mark
        "four.txt": "# fx fy cx cy\n30, 31, 15.5, 11.5\n",
        "3x4.txt": "30 0 15.5 0\n0 31 11.5 0\n0 0 1 0\n",
        "4x4.txt": "30 0 15.5 0\n0 31 11.5 0\n0 0 1 0\n0 0 0 1\n",
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    files = [(tmp_path / name, False) for name in ("K.txt", *forms)]
    for given, normalized in ((K, False), (matrix, False), *files, (fractions, True)):
        sample = FrameFolder(clip, given, 24, 64, normalized=normalized)[0]
        assert torch.allclose(sample["K"], expected)
        assert torch.allclose(sample["source_K"], expected.expand(2, 3, 3))
        assert torch.equal(sample["T"], torch.eye(4).expand(2, 4, 4))


def test_a_camera_matrix_belongs_to_a_size(tmp_path: Path) -> None:
    small, large = make_clip(tmp_path / "small"), make_clip(tmp_path / "large", size=(48, 64))
    other = make_clip(tmp_path / "other", size=(48, 48))
    expected = torch.tensor([[30.0, 0, 15.5], [0, 31, 11.5], [0, 0, 1]])
    camera = (30, 31, 15.5, 11.5)
    for clips, options in (
        ([small, large], {}),
        ([large, small], {"K_size": (24, 32)}),
        ([large, small], {"normalized": True}),
    ):
        given = (30 / 32, 31 / 24, 0.5, 0.5) if "normalized" in options else camera
        dataset = FrameFolder(clips, given, 24, 32, **options)  # type: ignore[arg-type]
        assert all(torch.allclose(sample["K"], expected) for sample in dataset)  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"other/frame9\.png: K is for images of 32x24 .* got 48x48"):
        FrameFolder([small, other], camera, 24, 32)[2]
    with pytest.raises(ValueError, match=r"K: expected pixels of 32x24 .* fractions .* normalized=True"):
        FrameFolder(small, (0.58, 1.92, 0.5, 0.5), 24, 32)


def test_copies_of_frames_are_refused_and_hidden_files_are_no_frames(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a")
    (clip / "._frame9.png").write_bytes(b"\0\5\26\7")  # macOS keeps attributes in such files
    assert [level(sample) for sample in FrameFolder(clip, K, 24, 32)] == [(1, 0, 2), (2, 1, 3)]  # type: ignore[attr-defined]
    (clip / "frame9.jpg").write_bytes((clip / "frame9.png").read_bytes())
    with pytest.raises(DataError, match=r"a: expected one file for each frame, got frame9\.jpg and frame9\.png"):
        FrameFolder(clip, K)


def test_bad_intrinsics(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a")
    path = tmp_path / "K.txt"
    for text, message in (
        ("30 0 15\n0 31 11\n", "expected 3x3 numbers, nine in a line, .* got 2x3"),
        ("30 0 15\n0 31 x\n0 0 1\n", "line 2: expected finite numbers"),
        ("30 0\n", "line 1: expected 3 or 4 or 9 numbers, got 2"),
        ("-30 0 15\n0 31 11\n0 0 1\n", "fx, fy > 0"),
        ("30 0 15\n0 31 11\n0 0 2\n", "fx, fy > 0"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as error:
            FrameFolder(clip, path)
        assert str(path) in str(error.value)
    with pytest.raises(ValueError, match=r"K: expected .* got 2x3"):
        FrameFolder(clip, np.eye(2, 3))
    with pytest.raises(ValueError, match="K: expected"):
        FrameFolder(clip, (30, float("nan"), 15, 11))


def test_poses_give_the_motion(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a", 3)
    angle = 0.3
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    poses = [np.eye(4) for _ in range(3)]
    for i, pose in enumerate(poses):
        pose[:3, :3] = np.linalg.matrix_power(turn, i)
        pose[:3, 3] = (i, 2 * i, 0)
    for rows in (4, 3):
        text = "\n".join(" ".join(map(str, pose[:rows].ravel())) for pose in poses)
        (tmp_path / "poses.txt").write_text(text)
        dataset = FrameFolder(clip, K, 24, 32, poses=tmp_path / "poses.txt")
        assert dataset.sources == ("known", "known")
        point = np.array([0.5, -0.2, 3, 1])
        for s, other in enumerate((0, 2)):
            in_source = dataset[0]["T"][s].double().numpy() @ point
            assert np.allclose(poses[other] @ in_source, poses[1] @ point, atol=1e-6)  # the same point of the world


def test_bad_poses(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a", 3)
    row = "1 0 0 0 0 1 0 0 0 0 1 0"
    path = tmp_path / "poses.txt"
    for lines, message in (
        ([row] * 2, "a pose for each of the 3 frames, got 2"),
        ([row, row + " 1", row], "line 2: expected 12 numbers, got 13"),
        ([row, row, "2 0 0 0 0 1 0 0 0 0 1 0"], "pose 3 is not a rotation"),
        ([row, "1 0 0 0 0 1 0 0 0 0 -1 0", row], "pose 2 is not a rotation"),
        ([row, "nan 0 0 0 0 1 0 0 0 0 1 0", row], "line 2: expected finite numbers"),
    ):
        path.write_text("\n".join(lines))
        with pytest.raises(DataError, match=message) as error:
            FrameFolder(clip, K, poses=path)
        assert str(path) in str(error.value)
    with pytest.raises(ValueError, match="poses: expected one for each of the 2 folders, got 1"):
        FrameFolder([clip, clip], K, poses=[path])


def test_broken_folders(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    for folder, message in ((tmp_path / "empty", "expected image files, got none"), (tmp_path / "none", "cannot list")):
        with pytest.raises(DataError, match=message) as error:
            FrameFolder([clip, folder], K)
        assert str(folder) in str(error.value)
    with pytest.raises(ValueError, match="folders: expected at least one"):
        FrameFolder([], K)
    with pytest.raises(ValueError, match="sources: expected frame offsets"):
        FrameFolder(clip, K, sources=("stereo",))
    Image.fromarray(np.zeros((24, 30, 3), np.uint8)).save(clip / "frame10.png")
    with pytest.raises(DataError, match=r"frame10.png: expected the size of the other frames .* got 30x24"):
        FrameFolder(clip, K)
    # Who leaves out bad samples loses those of that frame alone, and a frame without sources has no other to fit.
    frames = FrameFolder(clip, K, check_sizes=False)
    with pytest.raises(DataError, match=r"frame9\.png: expected the size of frame10\.png"):
        frames[len(frames) - 1]
    assert len(FrameFolder(clip, K, sources=())) == len(frames) + 2


def test_depth_folder(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a", 3)
    (tmp_path / "depth").mkdir()
    Image.fromarray(np.full((24, 32), 1500, np.uint16)).save(tmp_path / "depth" / "frame9.png")
    dataset = FrameFolder(clip, K, 12, 16, depth=tmp_path / "depth", evaluation=True)
    sample = dataset[0]
    assert torch.equal(sample["depth"], torch.full((1, 24, 32), 1.5)) and sample["image"].shape == (3, 24, 32)
    assert "depth" not in FrameFolder(clip, K, depth=tmp_path / "depth")[0]
    with pytest.raises(DataError, match=r"depth.frame8.png: no such image"):
        FrameFolder(clip, K, sources=(), depth=tmp_path / "depth", evaluation=True)[0]
    with pytest.raises(ValueError, match="depth: expected the folder of the ground truth"):
        FrameFolder(clip, K, evaluation=True)
    with pytest.raises(ValueError, match="depth_units_per_metre"):
        FrameFolder(clip, K, depth_units_per_metre=0)


# Mean grey difference (of 255) of the source to the target as it is, and warped by ground truth; known to a tenth,
# the latter depends on the interpolation by up to 0.4.
@pytest.mark.parametrize(("index", "offset", "still", "warped"), [(0, 3, 8.8, 5.5), (5, 5, 34.5, 4.7)])
def test_real_indoor_frames(real_data: Path, warp, index: int, offset: int, still: float, warped: float) -> None:
    folder = real_data / "indoor_rgbd"
    dataset = FrameFolder(
        folder / "images",
        folder / "K.txt",
        360,
        540,
        sources=(offset,),
        poses=folder / "poses.txt",
        depth=folder / "depth",
        evaluation=True,
    )
    assert len(dataset) == 12 - offset
    sample = dataset[index]
    image, valid = warp(sample, sample["depth"][0], 0)
    grey = torch.tensor([0.299, 0.587, 0.114]).double()[:, None, None]
    target, source = ((grey * frame.double()).sum(0) for frame in (sample["target"], sample["sources"][0]))
    assert float((source - target).abs()[valid].mean()) == pytest.approx(still, abs=0.06)
    assert float(((grey * image).sum(0) - target).abs()[valid].mean()) == pytest.approx(warped, abs=0.4)

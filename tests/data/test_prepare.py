"""Folders made from videos and images: what is kept, the camera matrix, the splits, and nothing half-written."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from mdepth_fast.data import DataError, FrameFolder
from mdepth_fast.data.frames import read_intrinsics
from mdepth_fast.data.prepare import prepare_frames, read_video, split_blocks


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight frames of 320x160; the third, fourth and last show what the one before shows."""
    folder = tmp_path_factory.mktemp("source")
    noise = np.random.default_rng(0).integers(0, 255, (160, 400, 3), dtype=np.uint8)
    scenery = np.asarray(Image.fromarray(noise).filter(ImageFilter.GaussianBlur(2)))
    for number, x in enumerate((0, 3, 3, 3, 6, 9, 12, 12)):
        Image.fromarray(scenery[:, x : x + 320]).save(folder / f"f{number}.png")
    return folder


def test_static_frames_go_and_the_camera_follows_the_size(frames: Path, tmp_path: Path) -> None:
    (tmp_path / "K.txt").write_text("300 0 170\n0 300 90\n0 0 1\n")
    done = prepare_frames(frames, tmp_path / "out", width=160, intrinsics=tmp_path / "K.txt", val_share=0)
    assert (done.read, done.kept, done.static, done.size, done.guessed) == (8, 5, 3, (80, 160), False)
    names = ["000000.jpg", "000001.jpg", "000004.jpg", "000005.jpg", "000006.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        *names,
        "K.txt",
        "train_files.txt",
        "val_files.txt",
    ]
    assert (tmp_path / "out" / "train_files.txt").read_text().split() == names
    K = read_intrinsics(tmp_path / "out" / "K.txt")
    np.testing.assert_allclose(K, [[150, 0, 84.75], [0, 150, 44.75], [0, 0, 1]])  # pixel centres on integers
    whole = prepare_frames(frames, tmp_path / "whole", keep_static=True)
    assert (whole.kept, whole.size) == (8, (160, 320))  # never enlarged
    assert prepare_frames(frames, tmp_path / "half", every=2, keep_static=True).kept == 4


def test_the_camera_by_focal_length_field_of_view_or_guess(frames: Path, tmp_path: Path) -> None:
    focal = prepare_frames(frames, tmp_path / "focal", width=160, focal=320.0)
    fov = prepare_frames(frames, tmp_path / "fov", width=160, fov=2 * np.degrees(np.arctan(0.5)))
    for done in (focal, fov):
        np.testing.assert_allclose(done.K, [[160, 0, 79.5], [0, 160, 39.5], [0, 0, 1]])
        assert not done.guessed
    guess = prepare_frames(frames, tmp_path / "guess")
    assert guess.guessed and guess.K[0, 0] == pytest.approx(160 * np.sqrt(3))
    assert (tmp_path / "guess" / "K.txt").read_text().startswith("# A GUESS: 60 degrees")
    assert "GUESS" not in (tmp_path / "focal" / "K.txt").read_text()


def test_splits_are_blocks_that_do_not_touch() -> None:
    for count, share in ((38, 0.1), (1700, 0.1), (1000, 0.25), (10, 0.0)):
        train, val = split_blocks(count, share)
        assert len(val) == pytest.approx(share * count, abs=3)
        assert not val or min(abs(a - b) for a in train for b in val) == 3
        blocks = 1 + sum(b - a > 1 for a, b in pairwise(val))
        assert blocks == max(round(count / 500), 1)
        assert len(train) + len(val) + 4 * blocks >= count


def test_the_data_set_reads_what_was_made(frames: Path, tmp_path: Path) -> None:
    prepare_frames(frames, tmp_path / "out", keep_static=True, val_share=0.25)
    folder = tmp_path / "out"
    train = FrameFolder(folder, folder / "K.txt", 64, 128, split=folder / "train_files.txt")
    assert [train[i]["name"] for i in range(len(train))] == ["out/000001.jpg", "out/000002.jpg", "out/000003.jpg"]
    val = FrameFolder(folder, folder / "K.txt", 64, 128, sources=(), split=folder / "val_files.txt")
    assert [val[i]["name"] for i in range(len(val))] == ["out/000006.jpg", "out/000007.jpg"]
    (tmp_path / "split.txt").write_text("000001.jpg\n\nother.jpg\n")
    with pytest.raises(DataError, match=r"split\.txt, line 3: expected the name of one frame, got 'other\.jpg': no"):
        FrameFolder(folder, folder / "K.txt", split=tmp_path / "split.txt")


def test_nothing_is_left_of_a_failure(frames: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for options, message in (
        ({"width": 8}, "width, every, val_share, quality"),
        ({"focal": -1.0}, "focal: expected a positive"),
        ({"fov": 180.0}, "fov: expected degrees"),
        ({"val_share": 0.99, "keep_static": True}, "--val: expected a share .* got 0.99 of 8 frames"),
        ({"focal": 1.0, "fov": 60.0}, "one of them at most"),
        ({"every": 4}, "expected at least 3 frames that move, got 2 of 2 read"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare_frames(frames, output, **options)  # type: ignore[arg-type]
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number in range(4):
        Image.fromarray(np.zeros((64, 64 + number // 3, 3), np.uint8)).save(mixed / f"{number}.png")
    with pytest.raises(DataError, match=r"frame 3 is \(64, 65\), expected the size of the first, \(64, 64\)"):
        prepare_frames(mixed, output, keep_static=True)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"text\.mp4: cannot be read as a video"):
        prepare_frames(tmp_path / "text.mp4", output)
    with pytest.raises(FileNotFoundError, match="no such video or folder"):
        prepare_frames(tmp_path / "none.mp4", output)
    assert {path.name for path in tmp_path.iterdir()} == {"mixed", "text.mp4"}
    output.mkdir()
    with pytest.raises(FileExistsError, match="exists already"):
        prepare_frames(frames, output)


def test_a_real_video(real_data: Path, tmp_path: Path) -> None:
    video = real_data / "video" / "test_video.mp4"
    assert sum(1 for _ in read_video(video)) == 38
    done = prepare_frames(video, tmp_path / "out", width=320, every=4)
    assert (done.read, done.size) == (10, (180, 320)) and done.kept == 10 and done.guessed
    assert len(FrameFolder(tmp_path / "out", tmp_path / "out" / "K.txt", 64, 96)) == 8

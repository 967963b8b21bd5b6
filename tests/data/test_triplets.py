from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdepth_fast.data import DataError, Triplets


def write(root: Path, frame: str = "000001", frames: int = 3, camera: str = "20,0,11,0,18,7,0,0,1") -> np.ndarray:
    """A sequence of frames of 16x24, each of one grey; losslessly, so that they come back."""
    folder = root / "drive"
    folder.mkdir(exist_ok=True)
    strip = np.concatenate([np.full((16, 24, 3), 10 + 40 * n, np.uint8) for n in range(frames)], 1)
    Image.fromarray(strip).save(folder / f"{frame}.png")
    (folder / f"{frame}_cam.txt").write_text(camera)
    (root / "train.txt").write_text(f"drive {frame}\n\n")
    return strip


def test_frames_and_intrinsics(tmp_path: Path) -> None:
    write(tmp_path)
    data = Triplets(tmp_path, tmp_path / "train.txt", 16, 24, sources=(1, -1))
    sample = data[0]
    assert len(data) == 1 and data.sources == (1, -1) and sample["name"] == "drive/000001"
    assert (sample["target"] == 50).all() and (sample["sources"][0] == 90).all() and (sample["sources"][1] == 10).all()
    assert sample["K"].tolist() == [[20, 0, 11], [0, 18, 7], [0, 0, 1]]
    # In pixels of the network: the outer edge of the image is what stays.
    half = Triplets(tmp_path, ["drive 000001"], 8, 12)[0]
    assert half["target"].shape == (3, 8, 12)
    np.testing.assert_allclose(half["K"].numpy(), [[10, 0, 5.25], [0, 9, 3.25], [0, 0, 1]])
    Image.fromarray(np.zeros((16, 72, 3), np.uint8)).save(tmp_path / "drive" / "000001.jpg")
    assert (data[0]["target"] == 0).all()  # the published kind comes first


def test_sequences_of_other_lengths(tmp_path: Path) -> None:
    write(tmp_path, frames=5)
    five = Triplets(tmp_path, ["drive 000001"], 16, 24, sources=(-2, -1, 1, 2))[0]
    assert [int(one.float().mean()) for one in five["sources"]] == [10, 50, 130, 170]
    write(tmp_path, frames=2)
    assert (Triplets(tmp_path, ["drive 000001"], 16, 24, sources=(1,))[0]["target"] == 10).all()


def test_bad_files_are_named(tmp_path: Path) -> None:
    write(tmp_path)
    for lines, message in (
        (["drive"], "split, line 1: expected 'folder frame', got 'drive'"),
        ([], "split: expected lines 'folder frame', got none"),
    ):
        with pytest.raises(DataError, match=message):
            Triplets(tmp_path, lines)
    with pytest.raises(DataError, match=r"none\.txt: cannot be read as a split"):
        Triplets(tmp_path, tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"000002.jpg: no such image"):
        Triplets(tmp_path, ["drive 000002"], 16, 24)[0]
    with pytest.raises(DataError, match=r"000001.png: expected 5 frames side by side, got a width of 72"):
        Triplets(tmp_path, ["drive 000001"], 16, 24, sources=(-2, -1, 1, 2))[0]
    for camera, message in (
        ("1,2,3", "expected the nine numbers of K"),
        ("0,0,1,0,1,1,0,0,1", "fx, fy > 0"),
        ("20,0,0,0,18,0,11,7,1", r"000001_cam\.txt: K: expected \[\[fx"),
        ("20,0,11,0,18,7,0,0,7", "K: expected"),
        ("20,0,11,3,18,7,0,0,1", "K: expected"),
        ("a,b", "line 1: expected finite numbers"),
    ):
        write(tmp_path, camera=camera)
        with pytest.raises(DataError, match=message):
            Triplets(tmp_path, ["drive 000001"], 16, 24)[0]
    with pytest.raises(ValueError, match=r"sources: expected offsets that are consecutive with 0.*got \(1, 2, 4\)"):
        Triplets(tmp_path, ["drive 000001"], sources=(1, 2, 4))
    with pytest.raises(IndexError, match=r"index: expected 0\.\.0, got 1"):
        Triplets(tmp_path, ["drive 000001"])[1]

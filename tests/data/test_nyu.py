import pickle
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from scipy.io import savemat
from torch.utils.data import DataLoader

from mdepth_fast.data import DataError, FastDepthH5, NyuLabelled, SkipBroken
from mdepth_fast.data.nyu import NYU_BORDER, NYU_TRAINING_CROP

COUNT, HEIGHT, WIDTH = 9, 12, 16
TRAIN, TEST = [2, 3, 7, 9], [1, 4, 5, 6, 8]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """A small `nyu_depth_v2_labeled.mat`: pixel (v, u) of frame n is (n, u, v) and 1 + n + v / 100 + u / 1000 m."""
    path = tmp_path / "nyu_depth_v2_labeled.mat"
    n, u, v = np.meshgrid(np.arange(COUNT), np.arange(WIDTH), np.arange(HEIGHT), indexing="ij")
    depth = (1 + n + v / 100 + u / 1000).astype(np.float32)
    raw = depth.copy()
    raw[:, 3, 5] = 0
    raw[:, 4, 6] = np.nan
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=np.stack([n, u, v], 1).astype(np.uint8), compression="gzip")
        file["depths"] = depth
        file["rawDepths"] = raw
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array(TRAIN)[:, None], "testNdxs": np.array(TEST)[:, None]})
    return path


def test_frames_come_upright_and_by_split(labelled: Path) -> None:
    for split, frames in (("train", TRAIN), ("test", TEST), ("all", range(1, COUNT + 1))):
        dataset = NyuLabelled(labelled, split)
        assert dataset.names == [f"nyu {frame:04d}" for frame in frames]
        for frame, sample in zip(frames, dataset, strict=True):
            assert sample["target"].dtype == torch.uint8 and sample["depth"].dtype == torch.float32
            assert sample["target"].shape == (3, HEIGHT, WIDTH) and sample["depth"].shape == (1, HEIGHT, WIDTH)
            assert sample["target"][:, 5, 7].tolist() == [frame - 1, 7, 5]
            assert float(sample["depth"][0, 5, 7]) == pytest.approx(frame + 0.057)
            assert sample["name"] == f"nyu {frame:04d}"


def test_raw_depth_has_holes(labelled: Path) -> None:
    holes = NyuLabelled(labelled, "all", filled=False)[0]["depth"][0] == 0
    assert holes.nonzero().tolist() == [[5, 3], [6, 4]]
    assert (NyuLabelled(labelled, "all")[0]["depth"] > 0).all()


def test_crops_are_those_of_the_papers() -> None:
    top, bottom, left, right = NYU_TRAINING_CROP
    assert (bottom - top, right - left) == (427, 565)
    top, bottom, left, right = NYU_BORDER
    assert (top, bottom, left, right) == (7, 474, 7, 632)


def test_crop(labelled: Path) -> None:
    sample = NyuLabelled(labelled, "all", crop=(2, 10, 3, 15))[4]
    assert sample["target"].shape == (3, 8, 12) and sample["depth"].shape == (1, 8, 12)
    assert sample["target"][:, 0, 0].tolist() == [4, 3, 2]
    for crop, message in (((2, 2, 0, 4), "crop: expected"), ((0, 2, 4, 4), "left < right"), ((1, 2), "crop: expected")):
        with pytest.raises(ValueError, match=message):
            NyuLabelled(labelled, "all", crop=crop)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=rf"{re.escape(str(labelled))}, frame 1: .*352x1216"):
        NyuLabelled(labelled, "all", crop="kb")[0]
    with pytest.raises(DataError, match=r"frame 1: expected an image that holds crop \(2, 13, 3, 15\), got \(12, 16\)"):
        NyuLabelled(labelled, "all", crop=(2, 13, 3, 15))[0]


def test_split_from_a_text_file(labelled: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("9\n\n2\n")
    assert NyuLabelled(labelled, splits=path).names == ["nyu 0009", "nyu 0002"]
    for text, message in (
        ("1\n0\n", "line 2: expected each frame number once, from 1 to 9, got 0"),
        ("1\n10\n", "line 2: .* got 10"),
        ("3\n1\n3\n", "line 3: .* got 3"),
        ("1\n-2\n", "line 2: expected a frame number, got '-2'"),
        ("\n", "expected frame numbers, got none"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as error:
            NyuLabelled(labelled, splits=path)
        assert str(path) in str(error.value)


def test_splits_mat(labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = tmp_path / "splits.mat"
    savemat(splits, {"trainNdxs": [[1, 2, 2]]})
    with pytest.raises(DataError, match=rf"{re.escape(str(splits))}, trainNdxs: expected each frame number once"):
        NyuLabelled(labelled)
    with pytest.raises(DataError, match=rf"{re.escape(str(splits))}: cannot be read as splits.mat with testNdxs"):
        NyuLabelled(labelled, "test")
    splits.write_text("nothing")
    with pytest.raises(DataError, match=re.escape(str(splits))):
        NyuLabelled(labelled)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(ImportError, match="needs SciPy; or give a text file"):
        NyuLabelled(labelled)
    splits.unlink()
    with pytest.raises(ValueError, match=r"splits: expected the path of splits\.mat"):
        NyuLabelled(labelled)
    with pytest.raises(DataError, match=r"none\.mat: no such file"):
        monkeypatch.undo()
        NyuLabelled(labelled, splits=tmp_path / "none.mat")
    with pytest.raises(ValueError, match='split: expected "train", "test" or "all"'):
        NyuLabelled(labelled, "val")


def test_broken_files_are_named(labelled: Path, tmp_path: Path) -> None:
    name = re.escape(str(labelled))
    dataset = NyuLabelled(labelled)
    whole = labelled.read_bytes()
    with pytest.raises(DataError, match=r"none\.mat: no such file"):
        NyuLabelled(tmp_path / "none.mat")
    labelled.write_bytes(whole[: len(whole) // 2])
    for broken in (lambda: NyuLabelled(labelled), lambda: dataset[0]):
        with pytest.raises(DataError, match=f"{name}: cannot be read as HDF5"):
            broken()
    labelled.write_bytes(whole)
    with h5py.File(labelled, "a") as file:
        del file["rawDepths"]
        file["rawDepths"] = np.zeros((COUNT, HEIGHT, WIDTH), np.float32)
    with pytest.raises(DataError, match=rf"{name}: expected 'rawDepths' of \(9, 16, 12\), floating, got \(9, 12, 16\)"):
        NyuLabelled(labelled, filled=False)
    with h5py.File(labelled, "a") as file:
        del file["images"]
    with pytest.raises(DataError, match=f"{name}: expected an array 'images', got "):
        NyuLabelled(labelled)
    with pytest.raises(IndexError):
        dataset[len(TRAIN)]


def test_survives_pickling_and_forked_workers(labelled: Path) -> None:
    dataset = NyuLabelled(labelled, "all")
    expected = [dataset[i] for i in range(COUNT)]  # read in this process first
    dataset = pickle.loads(pickle.dumps(dataset))
    batches = list(DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context="fork"))
    for key in ("target", "depth"):
        assert torch.equal(torch.cat([batch[key] for batch in batches]), torch.stack([s[key] for s in expected]))


@pytest.fixture
def fastdepth(tmp_path: Path) -> Path:
    for name, value in (
        ("train/kitchen_0001/00001.h5", 1),
        ("train/kitchen_0001/00010.h5", 2),
        ("train/kitchen_0001/00002.h5", 3),
        ("train/bath_0002/00201.h5", 4),
        ("train/bath_0002/00005.h5", 5),
        ("val/official/00001.h5", 6),
        ("val/official/00002.h5", 7),
    ):
        path = tmp_path / "nyudepthv2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        v, u = np.mgrid[:6, :8]
        with h5py.File(path, "w") as file:
            file["rgb"] = np.stack([np.full_like(u, value), u, v]).astype(np.uint8)
            file["depth"] = (value + v / 10 + u / 100).astype(np.float32)
    return tmp_path / "nyudepthv2"


def test_fastdepth_files(fastdepth: Path) -> None:
    names = {
        "train": ["train/bath_0002/00005.h5", "train/kitchen_0001/00002.h5", "train/kitchen_0001/00010.h5"],
        "holdout": ["train/bath_0002/00201.h5", "train/kitchen_0001/00001.h5"],
        "val": ["val/official/00001.h5", "val/official/00002.h5"],
    }
    for split, expected in names.items():
        dataset = FastDepthH5(fastdepth, split)
        assert dataset.names == [sample["name"] for sample in dataset] == expected
    sample = FastDepthH5(fastdepth)[1]
    assert sample["target"].shape == (3, 6, 8) and sample["target"][:, 2, 5].tolist() == [3, 5, 2]
    assert float(sample["depth"][0, 2, 5]) == pytest.approx(3.25)


def test_fastdepth_errors(fastdepth: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='split: expected "train", "holdout" or "val", got \'test\''):
        FastDepthH5(fastdepth, "test")
    with pytest.raises(DataError, match="none/train: no such folder"):
        FastDepthH5(tmp_path / "none")
    (tmp_path / "empty" / "val").mkdir(parents=True)
    with pytest.raises(DataError, match=r"empty/val: expected \.h5 files"):
        FastDepthH5(tmp_path / "empty", "val")
    dataset = SkipBroken(FastDepthH5(fastdepth))
    assert dataset.sources == ()
    broken = fastdepth / "train/kitchen_0001/00002.h5"
    broken.write_bytes(b"nothing")
    with pytest.warns(UserWarning, match=re.escape(str(broken))):
        assert [sample["skipped"] for sample in dataset] == [0, 1, 0]
    with h5py.File(broken, "w") as file:
        file["rgb"] = np.zeros((3, 6, 8), np.uint8)
        file["depth"] = np.zeros((6, 9), np.float32)
    with pytest.raises(DataError, match=rf"{re.escape(str(broken))}: expected depth of the image's size \(6, 8\)"):
        FastDepthH5(fastdepth)[1]
    with h5py.File(broken, "a") as file:
        del file["depth"]
        file["depth"] = np.zeros((6, 8), np.uint16)
    with pytest.raises(DataError, match=rf"{re.escape(str(broken))}: expected 'depth' of \(any, any\), floating"):
        FastDepthH5(fastdepth)[1]


def test_turned_axes_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "turned.mat", "w") as file:  # (frame, 3, height, width), as other tools write it
        file["images"], file["depths"] = np.zeros((2, 3, 6, 8), np.uint8), np.ones((2, 6, 8), np.float32)
    with pytest.raises(DataError, match=r"turned\.mat: expected MATLAB's axes, images \(frame, 3, width, height\)"):
        NyuLabelled(tmp_path / "turned.mat", "all")
    (tmp_path / "val").mkdir()
    with h5py.File(tmp_path / "val" / "1.h5", "w") as file:
        file["rgb"], file["depth"] = np.zeros((3, 8, 6), np.uint8), np.ones((8, 6), np.float32)
    with pytest.raises(DataError, match=r"1\.h5: expected rgb \(3, height, width\) of a landscape frame"):
        FastDepthH5(tmp_path, "val")[0]

import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mdepth_fast.data import DataError, FrameFolder, Sample, SkipBroken
from mdepth_fast.data.samples import list_images, make_sample, read_depth, read_image, read_matrices


def write_image(path: Path, height: int = 12, width: int = 20, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def truncate(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_broken_images_are_named(tmp_path: Path, suffix: str) -> None:
    missing = tmp_path / f"missing{suffix}"
    truncated = write_image(tmp_path / f"truncated{suffix}", 64, 64)
    truncate(truncated)
    foreign = tmp_path / f"foreign{suffix}"
    foreign.write_text("not an image")
    empty = tmp_path / f"empty{suffix}"
    empty.touch()
    for path in (missing, truncated, foreign, empty, tmp_path):
        with pytest.raises(DataError, match=re.escape(str(path))):
            read_image(path)


def test_grey_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), 7, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((4, 5, 4), 7, np.uint8)).save(tmp_path / "rgba.png")
    for name in ("grey.png", "rgba.png"):
        assert np.array_equal(read_image(tmp_path / name), np.full((4, 5, 3), 7))


def test_depth_png(tmp_path: Path) -> None:
    stored = np.array([[0, 256, 65535], [1000, 1, 20480]], np.uint16)
    Image.fromarray(stored).save(tmp_path / "depth.png")
    depth = read_depth(tmp_path / "depth.png")
    assert depth.dtype == np.float32
    assert np.array_equal(depth, stored / np.float32(256))
    assert np.allclose(read_depth(tmp_path / "depth.png", 1000.0), stored / 1000)
    coloured = write_image(tmp_path / "coloured.png")
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "bytes.png")
    for path in (coloured, tmp_path / "bytes.png"):
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: expected a 16-bit"):
            read_depth(path)


def test_matrices_name_the_line(tmp_path: Path) -> None:
    path = tmp_path / "K.txt"
    path.write_text("# fx, fy\n1, 2 3\n\n4 5 6 # last\n")
    assert np.array_equal(read_matrices(path, (3,)), [[1, 2, 3], [4, 5, 6]])
    for text, message in (
        ("1 2 3\n4 five 6\n", "line 2: expected finite numbers, got '4 five 6'"),
        ("inf 2 3\n", "line 1: expected finite numbers"),
        ("1 2 3\n4 5\n", "line 2: expected 3 numbers, got 2"),
        ("\n# nothing\n", "got an empty file"),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=message) as error:
            read_matrices(path, (3, 4))
        assert str(path) in str(error.value)
    with pytest.raises(DataError, match=r"none\.txt"):
        read_matrices(tmp_path / "none.txt", (3,))


def test_natural_order(tmp_path: Path) -> None:
    for name in ("f10.png", "f2.PNG", "f1b.jpg", "f1.png", "10.png", "9.png", "notes.txt"):
        (tmp_path / name).touch()
    names = [path.name for path in list_images(tmp_path)]
    assert names == ["9.png", "10.png", "f1.png", "f1b.jpg", "f2.PNG", "f10.png"]


def test_resizing_keeps_points_under_their_pixels() -> None:
    # A smooth ramp of u and v: after resizing, the colour at a projected point is that of the point.
    height, width, size = 60, 80, (24, 20)
    v, u = np.mgrid[:height, :width]
    image = np.stack([u * 3, v * 4, u + v], -1).astype(np.uint8)
    K = np.array([[70.0, 0, 41], [0, 75.0, 28], [0, 0, 1]])
    sample = make_sample("ramp", image, [image], K, [K], [np.eye(4)], size)
    assert sample["target"].shape == (3, 24, 20) and sample["sources"].shape == (1, 3, 24, 20)
    for point in ([0.1, 0.05, 1.0], [-0.3, 0.2, 1.1], [0.25, -0.2, 0.9]):
        full, small = K @ point, sample["K"].double().numpy() @ point
        column, row = small[:2] / small[2]
        x0, y0 = int(column), int(row)
        patch = sample["target"][:2, y0 : y0 + 2, x0 : x0 + 2].double().numpy()
        wx, wy = column - x0, row - y0
        color = patch @ [1 - wx, wx] @ [1 - wy, wy]
        assert np.allclose(color / [3, 4], full[:2] / full[2], atol=0.3)


class Flaky(Dataset[Sample]):
    sources = (1,)

    def __init__(self, length: int, broken: set[int], error: type[Exception] = DataError) -> None:
        self.length, self.broken, self.error = length, broken, error

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise self.error(f"file{index}.png: truncated")
        pixels = np.full((4, 4, 3), index, np.uint8)
        return make_sample(str(index), pixels, [pixels], np.eye(3), [np.eye(3)], [np.eye(4)], (4, 4))


def test_skip_replaces_counts_and_warns_once() -> None:
    dataset = SkipBroken(Flaky(6, {1, 2, 5}))
    assert dataset.sources == (1,) and len(dataset) == 6
    with pytest.warns(UserWarning) as record:
        samples = [dataset[i] for i in range(6)]
    assert [sample["name"] for sample in samples] == ["0", "3", "3", "3", "4", "0"]
    assert [sample["skipped"] for sample in samples] == [0, 2, 1, 0, 0, 1]
    assert dataset.broken == [1, 2, 5]
    assert [str(warning.message) for warning in record] == [
        f"skipped a broken sample: file{i}.png: truncated" for i in (1, 2, 5)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dataset[1]["skipped"] == 2
    with pytest.raises(IndexError):
        dataset[6]


@pytest.mark.parametrize("context", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:skipped a broken sample")
def test_skip_counts_across_workers(tmp_path: Path, context: str) -> None:
    for i in range(7):
        write_image(tmp_path / f"{i}.png", 32, 32, seed=i)
    truncate(tmp_path / "3.png")
    dataset = SkipBroken(FrameFolder(tmp_path, (30, 30, 16, 16), 16, 16, sources=()))
    loader = DataLoader(dataset, batch_size=2, num_workers=2, multiprocessing_context=context)
    batches = list(loader)
    assert [int(batch["skipped"].sum()) for batch in batches] == [0, 1, 0, 0]
    assert [name for batch in batches for name in batch["name"]] == [
        f"{tmp_path.name}/{i}.png" for i in (0, 1, 2, 4, 4, 5, 6)
    ]
    assert dataset.broken == [3]  # found by a worker, seen here


def test_skip_has_limits() -> None:
    with pytest.warns(UserWarning), pytest.raises(DataError, match="none of the 3 samples"):
        SkipBroken(Flaky(3, {0, 1, 2}))[0]
    with pytest.raises(RuntimeError, match="file1"):
        SkipBroken(Flaky(3, {1}, RuntimeError))[1]


def test_samples_survive_pickling() -> None:
    dataset = pickle.loads(pickle.dumps(SkipBroken(Flaky(3, set()))))
    assert torch.equal(dataset[2]["target"], torch.full((3, 4, 4), 2, dtype=torch.uint8))

import pickle
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
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


def write_png_16(path: Path, values: NDArray[np.uint16]) -> None:
    """A PNG of 16 bits per channel, which Pillow does not write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    kind = 0 if values.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, kind, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def test_images_of_more_than_8_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep"
    values = np.array([[0, 255, 256, 30000], [4095, 40000, 65534, 65535]], np.uint16)

    def read(white_level: float | None = None) -> list[int]:
        image = read_image(path, white_level=white_level)
        assert np.array_equal(image, read_image(path, white_level=white_level, upright=True))
        assert (image[..., :1] == image).all()
        return image[..., 0].flatten().tolist()

    full = np.rint(values / 65535 * 255).astype(int).flatten().tolist()
    write_png_16(path, values)
    assert read() == full == [0, 1, 1, 117, 16, 156, 255, 255]
    path.write_bytes(b"P5 4 2 65535\n" + values.astype(">u2").tobytes())
    assert read() == full
    Image.fromarray((values / 65535).astype(np.float32)).save(path, "TIFF")
    assert read() == full
    write_png_16(path, np.repeat(values[..., None], 3, 2))
    assert np.abs(np.array(read()) - full).max() <= 1  # Pillow cuts the lower byte off

    of_12_bits = np.array([[0, 8, 9, 2048, 4095]], np.uint16)
    for shape in ((1, 5), (1, 5, 3)):
        write_png_16(path, np.broadcast_to(of_12_bits.reshape(1, 5, *[1] * (len(shape) - 2)), shape))
        assert read(4095) == [0, 0, 1, 128, 255]
        with pytest.warns(UserWarning, match="a sixteenth of its range or less: .* such as 4095 for 12 bits"):
            read()
    with pytest.raises(DataError, match=r"deep: .*expected values in 0 \.\. 1000, got uint16 in 0 \.\. 4095"):
        read(1000)

    for array, message in (
        (np.array([[0, 255.0]], np.float32), r"expected values in 0 \.\. 1, got float32 in 0 \.\. 255"),
        (np.array([[0, np.nan]], np.float32), "got float32 in nan"),
        (np.array([[-5, 70000]], np.int32), r"expected 16 bits, or a white level, got int32 in -5 \.\. 70000"),
    ):
        Image.fromarray(array).save(path, "TIFF")
        with pytest.raises(DataError, match=f"deep: .*{message}"):
            read()


def test_markers_and_encodings_of_depth(tmp_path: Path) -> None:
    path = tmp_path / "depth.tiff"
    Image.fromarray(np.array([[np.nan, np.inf, -1, 0, 2.5]], np.float32)).save(path)
    assert read_depth(path).tolist() == [[0, 0, 0, 0, 2.5]]
    Image.fromarray(np.array([[-1, 0, 2000]], np.int32)).save(path)
    assert read_depth(path, 1000).tolist() == [[0, 0, 2]]
    path = tmp_path / "depth.png"
    Image.fromarray(np.array([[65535, 0, 2000]], np.uint16)).save(path)
    assert read_depth(path, 1000, invalid_value=65535).tolist() == [[0, 0, 2]]
    with pytest.warns(UserWarning, match="a depth image holds 65535, .* invalid_value 65535"):
        assert read_depth(path, 1000)[0, 0] == np.float32(65.535)
    # SUN RGB-D turns the bits of its millimetres to the left by three.
    millimetres = np.array([[0, 8000, 8191, 65528]], np.uint32)
    Image.fromarray((millimetres << 3 | millimetres >> 13).astype(np.uint16)).save(path)
    assert np.array_equal(read_depth(path, 1000, encoding="sunrgbd"), millimetres.astype(np.float32) / 1000)
    for array in (np.ones((2, 2), bool), np.full((2, 2), 7, np.uint8)):
        Image.fromarray(array).save(path)
        with pytest.raises(DataError, match=r"expected a 16-bit single-channel depth image, got (bool|uint8)"):
            read_depth(path)
    assert read_depth(path, 10, encoding="uint8").tolist() == [[np.float32(0.7)] * 2] * 2
    with pytest.raises(ValueError, match=r"encoding: expected one of .*, got 'log'"):
        read_depth(path, encoding="log")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:a depth image holds 65535")
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

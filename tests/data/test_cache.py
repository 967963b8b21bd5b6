import json
import multiprocessing
import os
import pickle
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from mdepth_fast.data import Cached, DataError, DepthDataset, RgbdFolder, SkipBroken


class Counting(DepthDataset):
    """Samples made from their index; says how often each was decoded, over all processes."""

    def __init__(self, count: int = 6, size: tuple[int, int] = (8, 12), names: str = "frame", **settings: Any) -> None:
        super().__init__([f"{names} {i}" for i in range(count)], **settings)
        self.size, self.broken = size, -1
        self.decoded = torch.zeros(count, dtype=torch.int64).share_memory_()

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        self.decoded[index] += 1
        if index == self.broken:
            raise DataError(f"frame{index}.png: broken")
        generator = np.random.default_rng(index)
        image = generator.integers(0, 256, (*self.size, 3), dtype=np.uint8)
        return image, generator.uniform(0.5, 80, self.size).astype(np.float32)


def same(one: Any, other: Any) -> bool:
    return (
        torch.equal(one["target"], other["target"])
        and torch.equal(one["depth"], other["depth"])
        and one["name"] == other["name"]
    )


def test_decodes_once(tmp_path: Path) -> None:
    dataset = Counting()
    cached = Cached(dataset, tmp_path / "a" / "cache")
    assert len(cached) == 6 and cached.ready == 0 and cached.size == (8, 12)
    dataset.decoded.zero_()  # the first was looked at for its size
    for epoch in range(3):
        for index in range(6):
            assert same(cached[index], dataset[index]), epoch
    assert dataset.decoded.tolist() == [1 + 3] * 6 and cached.ready == 6
    # Another process, another day.
    again = Cached(Counting(), tmp_path / "a" / "cache")
    assert again.ready == 6 and all(same(again[i], dataset[i]) for i in range(6))
    assert again.dataset.decoded.tolist() == [0] * 6
    with pytest.raises(IndexError):
        cached[6]
    sample = cached[0]
    sample["target"].zero_()  # a copy
    sample["depth"].zero_()
    assert same(cached[0], dataset[0])
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["cache"]


def test_resized(tmp_path: Path) -> None:
    dataset = Counting(3, size=(16, 24))
    cached = Cached(dataset, tmp_path / "cache", (8, 12))
    for _ in range(2):
        for index in range(3):
            sample, whole = cached[index], dataset[index]
            assert torch.equal(sample["depth"], whole["depth"][:, 1::2, 1::2])
            image = Image.fromarray(whole["target"].permute(1, 2, 0).numpy()).resize((12, 8), Image.Resampling.LANCZOS)
            assert np.array_equal(sample["target"].permute(1, 2, 0).numpy(), np.array(image))
    larger = Cached(dataset, tmp_path / "larger", (32, 30))[1]
    assert torch.equal(larger["depth"][0, :, 0], dataset[1]["depth"][0, :, 0].repeat_interleave(2))


def test_half_precision(tmp_path: Path) -> None:
    dataset = Counting()
    cached = Cached(dataset, tmp_path / "cache", depth_dtype="float16")
    for _ in range(2):  # what is served while storing is what is served later
        depth, exact = cached[2]["depth"], dataset[2]["depth"]
        assert depth.dtype == torch.float32 and torch.equal(depth, exact.half().float())
        assert ((depth - exact).abs() <= exact / 2048).all()
    assert (tmp_path / "cache" / "depth.npy").stat().st_size == 128 + 6 * 8 * 12 * 2
    with pytest.raises(ValueError, match="depth_dtype: expected one of"):
        Cached(dataset, tmp_path / "other", depth_dtype="int8")


def test_forked_workers_fill_it_together(tmp_path: Path) -> None:
    dataset = Counting(20)
    cached = Cached(dataset, tmp_path / "cache")
    dataset.decoded.zero_()
    for _ in range(2):
        loader = DataLoader(cached, batch_size=2, num_workers=2, multiprocessing_context="fork")
        depth = torch.cat([batch["depth"] for batch in loader])
        assert dataset.decoded.tolist() == [1] * 20
    assert cached.ready == 20
    assert torch.equal(depth, torch.stack([dataset[i]["depth"] for i in range(20)]))


def test_pickling_takes_no_pixels(tmp_path: Path) -> None:
    cached = Cached(Counting(200, (64, 64)), tmp_path / "cache")
    first = cached[0]
    data = pickle.dumps(cached)
    assert len(data) < 200_000 < 200 * 64 * 64 * 3
    assert same(pickle.loads(data)[0], first)


FORK = multiprocessing.get_context("fork")


def fill(folder: Path, together: Any) -> None:
    together.wait(60)
    cached = Cached(Counting(40, (64, 96)), folder)
    for index in range(40):
        assert cached[index]["name"] == f"frame {index}"


def fill_half_way(folder: Path, stop_at: str, stopped: Any) -> None:
    """Stops, for good, in the middle of writing one array of sample 25."""
    cached = Cached(Counting(40, (64, 96)), folder)
    store = cached._store

    def stopping(name: str, array: Any, index: int, values: NDArray[Any]) -> None:
        if index == 25 and name == stop_at:
            with (folder / f"{name}.npy").open("r+b") as file:
                file.seek(array.offset + index * values.nbytes)
                file.write(values.tobytes()[: values.nbytes // 2])
            stopped.set()
            time.sleep(600)
        store(name, array, index, values)

    cached._store = stopping  # type: ignore[method-assign]
    for index in range(40):
        cached[index]


@pytest.mark.parametrize("name", ["images", "depth", "checksums"])
def test_a_killed_process_leaves_a_valid_cache(tmp_path: Path, name: str) -> None:
    stopped = FORK.Event()
    process = FORK.Process(target=fill_half_way, args=(tmp_path / "cache", name, stopped))
    process.start()
    try:
        assert stopped.wait(60)
    finally:
        process.kill()
        process.join(60)
    dataset = Counting(40, (64, 96))
    cached = Cached(dataset, tmp_path / "cache")
    # Half a checksum is one that does not fit.
    assert cached.ready == (26 if name == "checksums" else 25)
    assert all(same(cached[i], Counting(40, (64, 96))[i]) for i in range(40))
    assert dataset.decoded.tolist() == [0] * 25 + [1] * 15


def test_processes_that_start_together_share_one_cache(tmp_path: Path) -> None:
    together = FORK.Barrier(3)
    processes = [FORK.Process(target=fill, args=(tmp_path / "cache", together)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    dataset = Counting(40, (64, 96))
    cached = Cached(dataset, tmp_path / "cache")
    assert cached.ready == 40
    assert all(same(cached[i], Counting(40, (64, 96))[i]) for i in range(40))
    assert dataset.decoded.sum() == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_damaged_entry_is_decoded_again(tmp_path: Path) -> None:
    dataset = Counting()
    for sample in Cached(dataset, tmp_path / "cache"):
        assert sample
    for file, index in (("images", 2), ("depth", 4)):
        array = np.load(tmp_path / "cache" / f"{file}.npy", mmap_mode="r+")
        array[index, 0, 3] = 7
        array.flush()
    dataset.decoded.zero_()
    cached = Cached(dataset, tmp_path / "cache")
    for _ in range(2):
        assert all(same(cached[i], Counting()[i]) for i in range(6))
    assert dataset.decoded.tolist() == [0, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("other", "options", "says"),
    [
        (Counting(7), {}, "'length': 6"),
        (Counting(names="picture"), {}, "'names'"),
        (Counting(units_per_metre=256.0), {}, "'settings'"),
        (Counting(), {"size": (4, 6)}, r"'size': \[8, 12\]"),
        (Counting(), {"depth_dtype": "float16"}, "'depth_dtype': 'float32'"),
    ],
)
def test_a_foreign_cache_is_refused(tmp_path: Path, other: Any, options: dict[str, Any], says: str) -> None:
    Cached(Counting(), tmp_path / "cache")
    message = f"folder: {re.escape(str(tmp_path / 'cache'))} holds the cache of another data set: .*{says}"
    with pytest.raises(ValueError, match=message):
        Cached(other, tmp_path / "cache", **options)
    assert Cached(Counting(), tmp_path / "cache", (8, 12)).size == (8, 12)  # the size said or found is the same


def test_a_cache_of_other_files_is_refused(tmp_path: Path) -> None:
    def folder(name: str) -> RgbdFolder:
        root = tmp_path / name
        for part in ("rgb", "depth"):
            (root / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), len(name), np.uint8)).save(root / "rgb" / "0.png")
        Image.fromarray(np.full((4, 6), 1000, np.uint16)).save(root / "depth" / "0.png")
        return RgbdFolder(root / "rgb", root / "depth")

    one = folder("one")
    assert Cached(one, tmp_path / "cache")[0]["target"].unique().tolist() == [3]
    Cached(one, tmp_path / "cache")
    with pytest.raises(ValueError, match=r"holds the cache of another data set: \{'files'"):
        Cached(folder("other"), tmp_path / "cache")
    os.utime(tmp_path / "one" / "rgb" / "0.png", ns=(0, 0))
    with pytest.raises(ValueError, match=r"holds the cache of another data set: \{'files'"):
        Cached(one, tmp_path / "cache")
    meta = tmp_path / "cache" / "meta.json"
    meta.write_text(json.dumps({key: value for key, value in json.loads(meta.read_text()).items() if key != "files"}))
    with pytest.warns(UserWarning, match="does not say from which files it was made"):
        Cached(one, tmp_path / "cache")


def test_bad_folders_and_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="folder: expected a new or empty folder or a cache"):
        Cached(Counting(), tmp_path)
    with pytest.raises(ValueError, match="folder: expected a new or empty folder or a cache"):
        Cached(Counting(), tmp_path / "mine.txt")
    (tmp_path / "empty").mkdir()
    assert Cached(Counting(), tmp_path / "empty").ready == 0
    with pytest.raises(TypeError, match=r"dataset: expected one with `names` and `settings`.*, got SkipBroken"):
        Cached(SkipBroken(Counting()), tmp_path / "a")
    with pytest.raises(ValueError, match="dataset: expected samples, got none"):
        Cached(Counting(0), tmp_path / "a")

    for name in ("images", "depth", "checksums"):
        path = tmp_path / "empty" / f"{name}.npy"
        whole = path.read_bytes()
        path.write_bytes(whole[:-10])
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: cannot be read as part of a cache"):
            Cached(Counting(), tmp_path / "empty")
        np.save(path, np.zeros(3))
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: expected .*, got float64 \(3,\)"):
            Cached(Counting(), tmp_path / "empty")
        path.write_bytes(whole)
    meta = tmp_path / "empty" / "meta.json"
    for text in ("{", "[]", "{}", json.dumps({"format": 99})):
        meta.write_text(text)
        with pytest.raises(DataError, match=rf"{re.escape(str(meta))}: cannot be read as that of a cache"):
            Cached(Counting(), tmp_path / "empty")

    class Full:
        free = 1000

    monkeypatch.setattr("mdepth_fast.data.cache.shutil.disk_usage", lambda path: Full)
    with pytest.raises(OSError, match=r"the cache needs 0\.0 GB, 0\.0 GB are free"):
        Cached(Counting(), tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Counting()
    cached = Cached(dataset, tmp_path / "cache")
    whole = Path.open

    def full(path: Path, mode: str = "r", *rest: Any) -> Any:
        if mode == "r+b":
            raise OSError(28, "No space left on device")
        return whole(path, mode, *rest)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"the cache cannot be written: No space left on device.*images\.npy"):
        cached[1]
    monkeypatch.undo()
    assert cached.ready == 0 and same(cached[1], dataset[1])


def test_broken_samples_stay_errors_and_are_skipped(tmp_path: Path) -> None:
    dataset = Counting()
    dataset.broken = 0
    cached = Cached(dataset, tmp_path / "cache")  # the size is that of the first good one
    with pytest.raises(DataError, match=r"frame0\.png: broken"):
        cached[0]
    with pytest.warns(UserWarning, match="broken"):
        assert SkipBroken(cached)[0]["name"] == "frame 1"
    assert cached.ready == 1
    lone = Counting(1)
    lone.broken = 0
    with pytest.raises(DataError, match="broken"):
        Cached(lone, tmp_path / "lone")


def test_sizes_that_differ_need_one(tmp_path: Path) -> None:
    class Mixed(Counting):
        def read(self, index: int) -> Any:
            self.size = (8, 12 + index)
            return super().read(index)

    cached = Cached(Mixed(), tmp_path / "cache")
    assert cached[0]["target"].shape == (3, 8, 12)
    with pytest.raises(
        ValueError, match=r"size: expected \(height, width\), as not all images are \(8, 12\): frame 3 is"
    ):
        cached[3]
    assert Cached(Mixed(), tmp_path / "other", (8, 12))[3]["depth"].shape == (1, 8, 12)


def test_real_frames(real_data: Path, tmp_path: Path) -> None:
    frames = RgbdFolder(real_data / "indoor_rgbd/images", real_data / "indoor_rgbd/depth")
    cached = Cached(frames, tmp_path / "cache", (180, 270))
    for _ in range(2):
        for index in range(3):
            assert cached[index]["name"] == frames.names[index]
            assert torch.equal(cached[index]["depth"], frames[index]["depth"][:, 1::2, 1::2])
    with pytest.raises(ValueError, match=r"holds the cache of another data set: .*units_per_metre"):
        other = RgbdFolder(real_data / "indoor_rgbd/images", real_data / "indoor_rgbd/depth", units_per_metre=256)
        Cached(other, tmp_path / "cache", (180, 270))

"""Data sets in shards: what is read is what was packed, by whichever process, and what is broken is named."""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from mdepth_fast.cli import main
from mdepth_fast.data import DataError, DepthDataset, ShardedDepth, ShardedViews, SkipBroken, SyntheticScenes
from mdepth_fast.data import shards as module
from mdepth_fast.data.shards import pack
from mdepth_fast.inference.frames import Frame, open_sources
from mdepth_fast.systems import load_config, system_of
from mdepth_fast.training.loader import BatchSampler, build_loader


class Measured(DepthDataset):
    """KITTI's depth, millimetres, and depth that no 16-bit PNG holds; images of different sizes."""

    def __init__(self, length=7, broken=()):
        super().__init__([f"drive/{n}" for n in range(length)], root="anywhere")
        self.broken = broken

    def read(self, index):
        if index in self.broken:
            raise DataError(f"{self.names[index]}: damaged")
        random = np.random.default_rng(index)
        shape = (20 + index % 2, 30)
        units = random.integers(0, 65536, shape)
        depth = (units / (256, 1000)[index % 2]).astype(np.float32) if index % 3 else random.random(shape, np.float32)
        return random.integers(0, 256, (*shape, 3), dtype=np.uint8), depth


def same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) and value.dtype == b[key].dtype if torch.is_tensor(value) else value == b[key]


def test_measured_depth_comes_back_bit_by_bit(tmp_path):
    data = Measured()
    done = []
    assert pack(data, tmp_path / "s", shard_size=3, advance=done.append) == 0 and done == [3, 3, 1]
    packed = ShardedDepth(tmp_path / "s")
    assert len(packed) == 7 and packed.blocks == [3, 3, 1]
    for index in range(7):
        same({**data[index], "name": packed.names[index]}, packed[index])
    with tarfile.open(tmp_path / "s" / "000000.tar") as shard:
        names = shard.getnames()
    assert names[:3] == ["000000000.json", "000000000.png", "000000000.depth.npy"] and "000000001.depth.png" in names
    cropped = ShardedDepth(tmp_path / "s", crop=(0, 4, 0, 6))[0]
    assert cropped["target"].shape == (3, 4, 6)


def test_views_come_back_bit_by_bit(tmp_path):
    for evaluation in (False, True):
        data = SyntheticScenes(3, 32, 64, sources=() if evaluation else (-1, 1), evaluation=evaluation)
        folder = tmp_path / str(evaluation)
        pack(data, folder, shard_size=2)
        packed = ShardedViews(folder, 32, 64, evaluation=evaluation)
        assert packed.sources == tuple(data.sources)
        for index in range(3):
            same(data[index], packed[index])
    one = ShardedViews(tmp_path / "False", 32, 64, sources=(1,))
    assert torch.equal(one[0]["sources"][0], packed_source(tmp_path / "False", 1)) and one.sources == (1,)
    with pytest.raises(ValueError, match=r"data\.sources: expected some of \[-1, 1\], which are packed, got 2"):
        ShardedViews(tmp_path / "False", 32, 64, sources=(2,))
    with pytest.raises(ValueError, match=r"expected the size that is packed, 32x64, got 64x64"):
        ShardedViews(tmp_path / "False", 64, 64)
    frames = list(open_sources([str(tmp_path / "False" / "000000.tar")])[0].read(lambda *_: True))
    assert [frame.name for frame in frames] == ["000000/000000000", "000000/000000001"]
    assert all(isinstance(frame, Frame) for frame in frames)


def packed_source(folder, number):
    return ShardedViews(folder, 32, 64)[0]["sources"][number]


def test_a_killed_run_goes_on_and_processes_share_the_shards(tmp_path):
    data = Measured(9)
    pack(data, tmp_path / "s", shard_size=2, rank=1, world_size=2)
    assert sorted(path.name for path in (tmp_path / "s").glob("*")) == [".packing.json", "000001.tar", "000003.tar"]
    with pytest.raises(FileNotFoundError, match="expected a folder of `mdepth-fast data pack`"):
        ShardedDepth(tmp_path / "s")
    first = (tmp_path / "s" / "000001.tar").stat().st_mtime_ns
    pack(data, tmp_path / "s", shard_size=2, workers=1)
    assert (tmp_path / "s" / "000001.tar").stat().st_mtime_ns == first
    assert len(ShardedDepth(tmp_path / "s")) == 9
    with pytest.raises(ValueError, match=r"holds shards of other data: \{'length': 9\} there, \{'length': 8\} here"):
        pack(Measured(8), tmp_path / "s", shard_size=2)


def test_what_is_broken_is_named(tmp_path):
    folder = tmp_path / "s"
    with pytest.raises(DataError, match="drive/4: damaged"):
        pack(Measured(broken=(4,)), folder, shard_size=3)
    assert [path.name for path in folder.glob("*.tar")] == ["000000.tar"]
    assert pack(Measured(broken=(4,)), tmp_path / "t", shard_size=3, skip_bad=True) == 1
    assert ShardedDepth(tmp_path / "t").blocks == [3, 2, 1]
    pack(Measured(), folder, shard_size=3)
    path = folder / "000001.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as shard:
        place = shard.getmember("000000004.png").offset_data
    content[place : place + 40] = bytes(40)
    path.write_bytes(content)
    module._table.cache_clear()
    packed = ShardedDepth(folder)
    with pytest.raises(DataError, match=r"000001\.tar: 000000004: cannot be read as an image"):
        packed[4]
    with pytest.warns(UserWarning, match="skipped a broken sample: .*000000004"):
        assert SkipBroken(packed)[4]["skipped"] == 1
    path.write_bytes(content[:-600])
    with pytest.raises(DataError, match=r"000001\.tar: expected a shard of \d+ bytes, got \d+"):
        ShardedDepth(folder)
    (folder / "index.json").write_text("{}")
    with pytest.raises(DataError, match=r"index\.json: cannot be read as an index"):
        ShardedDepth(folder)


def test_every_sample_once_an_epoch_whatever_the_processes():
    blocks = [3, 3, 3, 3, 3, 3, 2]
    one = [batch for batch in BatchSampler(20, 4, seed=1, blocks=blocks)]
    assert sorted(index for batch in one for index in batch) == list(range(20))
    two = [BatchSampler(20, 4, seed=1, blocks=blocks, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*two)] == one
    # At most a window of files is read at a time, and files come in another order in another epoch.
    files = [index // 3 for batch in one for index in batch]
    assert all(len({*files[:12]}) <= 4 for _ in one) and one != [b for b in BatchSampler(20, 4, seed=2, blocks=blocks)]


def test_training_sees_the_same_from_shards(tmp_path, capsys):
    options = ["--data.height=32", "--data.width=64", "--data.length=4", "--data.batch_size=2"]
    assert main(["data", "pack", "synthetic_mono", str(tmp_path / "s"), "--shard-size=2", *options]) == 0
    assert "4 samples, 2 shards" in capsys.readouterr().out
    own = ["--data.name=webdataset", f"--data.root={tmp_path / 's'}", *options]
    config = load_config("synthetic_mono", own)
    system = system_of(config)
    dataset = system.training_data(config)
    original = load_config("synthetic_mono", options)
    scenes = system.training_data(original)
    for batch in build_loader(config, dataset):
        for row, name in enumerate(batch["name"]):
            sample = next(scene for scene in scenes if scene["name"] == name)
            assert torch.equal(batch["sources"][row], sample["sources"])


def test_measured_depth_from_a_preset(tmp_path):
    for part in ("images", "depth"):
        (tmp_path / "own" / part).mkdir(parents=True)
    for number in range(3):
        image, depth = Measured().read(number)
        Image.fromarray(image).save(tmp_path / "own" / "images" / f"{number}.png")
        units = np.clip(depth * 1000, 0, 65535).astype(np.uint16)
        Image.fromarray(units).save(tmp_path / "own" / "depth" / f"{number}.png")
    words = ["--data.name=rgbd_folder", f"--data.root={tmp_path / 'own'}", "--data.images=images", "--data.depth=depth"]
    assert main(["data", "pack", "fcrn_nyu", str(tmp_path / "s"), *words]) == 0
    shards = ["--data.name=webdataset", f"--data.root={tmp_path / 's'}", f"--data.val_split={tmp_path / 's'}"]
    config, files = load_config("fcrn_nyu", shards), load_config("fcrn_nyu", words)
    system = system_of(config)
    a, b = system.training_data(config), system.training_data(files)
    assert len(a) == 3 and all(torch.equal(x["depth"], y["depth"]) for x, y in zip(a, b))
    assert len(system.evaluation_data(config)) == 3
    assert json.loads((tmp_path / "s" / "index.json").read_text())["dataset"] == "RgbdFolder"

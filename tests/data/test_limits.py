"""Files that declare more than they hold, or lead elsewhere, are refused before memory goes."""

import pickle
import struct
import zipfile
import zlib

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from mdepth_fast.data.depth_lists import DepthList
from mdepth_fast.data.kitti import parse_line, read_ground_truth
from mdepth_fast.data.nyu import FastDepthH5, NyuLabelled
from mdepth_fast.data.samples import DataError, read_depth, read_image, within
from mdepth_fast.data.triplets import Triplets
from mdepth_fast.systems import Config, load_config
from mdepth_fast.weights import read, read_content


def _png(path, width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("reader", [read_image, read_depth])
def test_images_of_enormous_size(tmp_path, reader):
    path = tmp_path / "large.png"
    _png(path, 10_000, 10_000)
    with pytest.raises(
        DataError, match=r"large\.png: refused: expected at most \d+ pixels, got 10000x10000; .*MAX_PIX"
    ):
        reader(path)
    _png(path, 2**20, 2**20)
    with pytest.raises(DataError, match=r"large\.png: "):
        reader(path)
    with (tmp_path / "large.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 3)})
    with pytest.raises(DataError, match=r"large\.npy: cannot be read as a NumPy array"):
        reader(tmp_path / "large.npy")


def test_archives_that_unpack_to_far_more_than_they_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(read, "FREE_EXPANSION", 2**16)
    np.savez_compressed(tmp_path / "bomb.npz", data=np.zeros((1, 2**19), np.float32))
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": "b" * 2**21}, 2))
    for name in ("bomb.npz", "bomb.pth"):
        with pytest.raises(ValueError, match=rf"{name}: .*refused: it unpacks to 2\d+ bytes, over 100 times its size"):
            read_content(tmp_path / name)
    with pytest.raises(DataError, match=r"bomb\.npz: .*unpacks to"):
        read_ground_truth(tmp_path / "bomb.npz")
    generator = np.random.default_rng(0)  # as sparse as LiDAR
    depth = np.where(generator.random((1, 300, 300)) < 0.05, generator.random((1, 300, 300)), 0).astype(np.float32)
    np.savez_compressed(tmp_path / "sparse.npz", data=depth)
    assert np.array_equal(read_ground_truth(tmp_path / "sparse.npz")[0], depth[0])
    with pytest.raises(ValueError, match=r"few\.npz: .* bytes for an array"):
        stored = (tmp_path / "bomb.npz").with_name("few.npz")
        with zipfile.ZipFile(stored, "w") as archive, archive.open("a.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**9,)})
        read_content(stored)


def test_a_pickle_or_yaml_of_references_to_references(tmp_path):
    nested = ["x"]
    for _ in range(60):
        nested = [nested] * 2
    (tmp_path / "laughs.pk").write_bytes(pickle.dumps({"a": nested}, 2))
    with pytest.raises(ValueError, match=r"laughs\.pk: .*unfolds to more entries than it has bytes"):
        read_content(tmp_path / "laughs.pk")
    lines = ["system: monodepth2", "a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"laughs\.yaml: refused: it unfolds to more than \d+ entries"):
        load_config(str(tmp_path / "laughs.yaml"))


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system [touch ran]", "!!python/name:os.system", "!own 3"])
def test_yaml_with_tags(tmp_path, monkeypatch, tag):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(f"system: monodepth2\nseed: {tag}\n")
    with pytest.raises(ValueError, match=r"run\.yaml: not a YAML file: .*constructor"):
        load_config(str(tmp_path / "run.yaml"))
    with pytest.raises((ValueError, SystemExit)):
        load_config("motorcycle", ["--seed", tag])
    assert not (tmp_path / "ran").exists()


def test_hdf5_whose_arrays_lie_in_other_files(tmp_path):
    path = tmp_path / "train" / "scene" / "00002.h5"
    path.parent.mkdir(parents=True)
    rgb, depth = np.zeros((3, 4, 5), np.uint8), np.ones((4, 5), np.float32)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["depth"] = depth
    depth.tofile(tmp_path / "raw")
    layout = h5py.VirtualLayout((4, 5), np.float32)
    layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "depth", (4, 5))

    def linked(file):
        file["depth"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/depth")

    def linked_twice(file):
        file["group"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/")
        file["depth"] = h5py.SoftLink("/group/depth")

    ways = {
        "link": linked,
        "links": linked_twice,
        "raw": lambda file: file.create_dataset(
            "depth", (4, 5), np.float32, external=[(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)]
        ),
        "virtual": lambda file: file.create_virtual_dataset("depth", layout),
    }
    for name, write in ways.items():
        with h5py.File(path, "w") as file:
            file["rgb"] = rgb
            write(file)
        with pytest.raises(DataError, match=r"00002\.h5: refused: 'depth' lies in another file"):
            FastDepthH5(tmp_path)[0], name
    with h5py.File(path, "w") as file:
        file["rgb"] = rgb
        file["depth"] = depth
    assert FastDepthH5(tmp_path)[0]["depth"].shape == (1, 4, 5)
    with h5py.File(tmp_path / "nyu.mat", "w") as file:
        file.create_dataset("images", (10**9, 3, 5, 4), np.uint8, chunks=(1, 3, 5, 4))
        file.create_dataset("depths", (10**9, 5, 4), np.float32, chunks=(1, 5, 4))
    with pytest.raises(DataError, match=r"nyu\.mat: 'images': refused: it unpacks to 60000000000 bytes"):
        NyuLabelled(tmp_path / "nyu.mat", "all")


def test_lists_stay_in_their_folder(tmp_path):
    root, other = tmp_path / "root", tmp_path / "other"
    for folder in (root / "a", other):
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(folder / "rgb.png")
        np.save(folder / "depth.npy", np.ones((4, 5), np.float32))
    listed = tmp_path / "list.txt"
    for entry in ("a/{}", "/a/{}", f"{root}/a/{{}}", "a/../a/{}"):
        listed.write_text(f"{entry.format('rgb.png')} {entry.format('depth.npy')} 500\n")
        assert torch.equal(DepthList(listed, root)[0]["depth"], torch.ones(1, 4, 5)), entry
    for entry in ("../other/{}", "/../other/{}", "a/../../other/{}"):
        listed.write_text(f"a/rgb.png {entry.format('depth.npy')} 500\n")
        with pytest.raises(DataError, match=r"list\.txt, line 1: refused: \S+ leads out of \S+root"):
            DepthList(listed, root)
        with pytest.raises(DataError, match="split, line 1: refused"):
            Triplets(root, [f"{entry.format('')} 1"])
    # An absolute path from elsewhere is looked for in the folder, as lists of BTS begin with a slash.
    listed.write_text(f"a/rgb.png {other}/depth.npy 500\n")
    with pytest.raises(DataError, match=rf"{root}{other}/depth\.npy"):
        DepthList(listed, root)[0]
    with pytest.raises(DataError, match=rf"{root}{other}/1\.jpg"):
        Triplets(root, [f"{other} 1"])[0]
    for drive in ("2011/../../x", "/etc/x", "../x", "a/.."):
        with pytest.raises(DataError, match=r"s, line 1: expected 'date/drive index l\|r'"):
            parse_line(f"{drive} 3 l", "s, line 1")
    assert parse_line("2011_09_26/2011_09_26_drive_0001_sync 3 l", "")[0].endswith("0001_sync")
    assert within("/", "/data/a.png", "") == "data/a.png"


def test_a_run_stays_in_output(tmp_path):
    for run in ("../x", "/tmp/x", "a/../../x", "", "."):
        with pytest.raises(ValueError, match="run: expected a name, whose folder lies in that of output"):
            _ = Config(run=run, output=str(tmp_path)).folder
    assert Config(run="a/b", output=str(tmp_path)).folder == tmp_path / "a" / "b"

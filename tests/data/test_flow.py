"""Flow files byte by byte, and the data sets of image pairs on small files in the published layouts."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdepth_fast.data import DataError, FlyingChairs, FramePairs, KittiFlow, SkipBroken, read_flow, write_flo
from mdepth_fast.data.flow import write_flow_png


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: list[bytes], width: int, depth: int = 16, color: int = 2) -> bytes:
    """A PNG of rows that begin with their filter."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, color, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"".join(rows))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_flo_bytes(tmp_path: Path) -> None:
    """Two pixels beside each other: (1, -2), and an unknown one."""
    flow = np.array([[[1.0, np.nan]], [[-2.0, 0.5]]])
    write_flo(tmp_path / "a.flo", flow)
    known = bytes.fromhex("50494548 02000000 01000000 0000803f 000000c0".replace(" ", ""))
    content = (tmp_path / "a.flo").read_bytes()
    assert content[:20] == known and len(content) == 28
    assert struct.unpack("<f", content[:4]) == (202021.25,)
    assert struct.unpack("<ff", content[20:]) == pytest.approx((1e10, 1e10))
    found = read_flow(tmp_path / "a.flo")
    assert found.flow.tolist() == [[[1, -2], [0, 0]]] and found.valid.tolist() == [[True, False]]


def test_png_bytes(tmp_path: Path) -> None:
    """R and G are 64 u + 32768, B says whether it is known. The second row is coded by its difference to the first."""
    values = np.array([[[32768 + 64, 32768 - 96, 1], [0, 0, 0]], [[65535, 0, 1], [32769, 32768, 1]]], ">u2")
    first, second = (row.tobytes() for row in values)
    difference = bytes((b - a) % 256 for a, b in zip(first, second, strict=True))
    (tmp_path / "a.png").write_bytes(png([b"\0" + first, b"\2" + difference], 2))
    found = read_flow(tmp_path / "a.png")
    assert found.flow.tolist() == [[[1, -1.5], [0, 0]], [[32767 / 64, -512], [1 / 64, 0]]]
    assert found.valid.tolist() == [[True, False], [True, True]]

    assert write_flow_png(tmp_path / "b.png", found.flow.transpose(2, 0, 1), found.valid) == 0
    again = read_flow(tmp_path / "b.png")
    assert (again.flow == found.flow).all() and (again.valid == found.valid).all()
    with Image.open(tmp_path / "b.png") as image:
        image.verify()


@pytest.mark.parametrize("suffix", ["flo", "png"])
def test_round_trip(tmp_path: Path, suffix: str) -> None:
    path, write = tmp_path / f"new/a.{suffix}", {"flo": write_flo, "png": write_flow_png}[suffix]
    flow = torch.randn(1, 2, 13, 17) * 50
    valid = torch.rand(1, 1, 13, 17) < 0.8
    write(path, flow, valid)
    found = read_flow(path)
    assert found.flow.dtype == np.float32 and found.valid.dtype == bool
    assert (found.valid == valid[0, 0].numpy()).all() and (found.flow[~found.valid] == 0).all()
    error = np.abs(found.flow - flow[0].permute(1, 2, 0).numpy())[found.valid]
    assert error.max() <= (0 if suffix == "flo" else 0.5 / 64 + 1e-6)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "nothing temporary is left"


def test_what_does_not_fit_into_16_bits_is_clamped_and_counted(tmp_path: Path) -> None:
    flow = np.zeros((2, 1, 3))
    flow[:, 0] = [[600, 0, 5], [0, -600, np.inf]]
    assert write_flow_png(tmp_path / "a.png", flow) == 2
    found = read_flow(tmp_path / "a.png")
    assert found.flow.tolist() == [[[32767 / 64, 0], [0, -512], [0, 0]]]
    assert found.valid.tolist() == [[True, True, False]]
    with pytest.raises(ValueError, match=r"flow: expected components below 1e\+09 pixels, got 2e\+09"):
        write_flo(tmp_path / "far.flo", np.full((2, 3, 4), 2e9))
    for write in (write_flo, write_flow_png):
        with pytest.raises(ValueError, match="flow: expected at least one pixel"):
            write(tmp_path / "empty", np.zeros((2, 0, 4)))
        with pytest.raises(ValueError, match=r"flow: expected \(2,H,W\) or \(1,2,H,W\), got shape \(3, 1, 2\)"):
            write(tmp_path / "b", np.zeros((3, 1, 2)))
        with pytest.raises(ValueError, match=r"valid: expected shape \(1, 3\) as the flow, got \(3, 1\)"):
            write(tmp_path / "b", flow, np.ones((3, 1)))
    assert not (tmp_path / "b").exists()


def test_truncated_and_foreign_files_are_named(tmp_path: Path) -> None:
    flow = np.zeros((2, 4, 5))
    write_flo(tmp_path / "whole.flo", flow)
    write_flow_png(tmp_path / "whole.png", np.random.default_rng(0).normal(0, 9, (2, 40, 50)))
    flo, whole = (tmp_path / "whole.flo").read_bytes(), (tmp_path / "whole.png").read_bytes()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.zeros((4, 5), np.uint16)).save(tmp_path / "depth.png")
    cases = {
        "short.flo": (flo[:-1], "expected 172 bytes for its width 5 and height 4, got 171"),
        "long.flo": (flo + b"\0", "expected 172 bytes .* got 173"),
        "empty.flo": (b"", "begins with PIEH, got b''"),
        "other.flo": (b"P6 5 4 255 pixels", "begins with PIEH, got b'P6 5'"),
        "negative.flo": (flo[:4] + struct.pack("<ii", -5, -4) + flo[12:], "width -5 and height -4"),
        "short.png": (whole[: len(whole) // 2], "cannot be read as a flow PNG"),
        "other.png": (flo, "cannot be read as a flow PNG"),
        "colour.png": (None, "expected a flow PNG of 16-bit RGB, got RGB"),
        "depth.png": (None, "expected a flow PNG of 16-bit RGB, got I;16"),
        "none.png": (None, "no such flow file"),
        "none.flo": (None, "cannot be read as a flow file"),
        "flow.npy": (None, "expected a flow file .flo or .png, got .npy"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}: .*{message}"):
            read_flow(tmp_path / name)


def images(folder: Path, names: list[str], size: tuple[int, int] = (6, 8)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(names):
        Image.fromarray(np.full((*size, 3), index, np.uint8)).save(folder / name)


def test_flying_chairs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    images(data, [f"{n:05d}_img{k}.ppm" for n in (1, 2, 3) for k in (1, 2)])
    for n in (1, 2, 3):
        write_flo(data / f"{n:05d}_flow.flo", np.full((2, 6, 8), float(n)))
    with pytest.raises(DataError, match=r"FlyingChairs_train_val.txt: cannot be read as the list"):
        FlyingChairs(tmp_path)
    (tmp_path / "FlyingChairs_train_val.txt").write_text("1\n2\n1\n")
    assert FlyingChairs(tmp_path).names == FlyingChairs(data).names == ["00001", "00003"]
    sample = FlyingChairs(tmp_path, "val")[0]
    assert sample["name"] == "00002"
    assert (sample["first"] == 2).all() and (sample["second"] == 3).all() and sample["first"].shape == (3, 6, 8)
    assert (sample["flow"] == 2).all() and sample["valid"].all() and not sample["visible"].any()
    assert len(FlyingChairs(data, "all")) == 3
    (tmp_path / "list.txt").write_text("1 1")
    with pytest.raises(DataError, match=r"list.txt: expected 1 or 2 for each of the 3 pairs .*, got 2 words"):
        FlyingChairs(tmp_path, split_file=tmp_path / "list.txt")
    with pytest.raises(ValueError, match="split: expected train, val or all, got 'test'"):
        FlyingChairs(tmp_path, "test")
    with pytest.raises(DataError, match=r"expected files such as 00001_img1\.ppm, got none"):
        FlyingChairs(tmp_path / "nowhere")
    write_flo(data / "00002_flow.flo", np.zeros((2, 6, 7)))
    with pytest.raises(
        DataError, match=r"00002: expected the flow to have the first image's size \(6, 8\), got \(6, 7\)"
    ):
        FlyingChairs(tmp_path, "val")[0]


@pytest.mark.parametrize("folder", ["image_2", "colored_0", "image_0"])
def test_kitti_flow(tmp_path: Path, folder: str) -> None:
    images(tmp_path / folder, ["000000_10.png", "000000_11.png", "000001_10.png", "000001_11.png"])
    without = KittiFlow(tmp_path)
    assert without.names == ["000000_10.png", "000001_10.png"] and "flow" not in without[1]
    everywhere, visible = np.zeros((2, 6, 8)), np.zeros((6, 8), bool)
    visible[2, 3] = True
    for name in without.names:
        write_flow_png(_made(tmp_path / "flow_occ") / name, everywhere + 1, np.arange(48).reshape(6, 8) % 2 == 1)
        write_flow_png(_made(tmp_path / "flow_noc") / name, everywhere + 1, visible)
    sample = KittiFlow(tmp_path, images=folder)[1]
    assert (sample["first"] == 2).all() and (sample["second"] == 3).all()
    assert sample["valid"].sum() == 24 and sample["visible"].nonzero().tolist() == [[0, 2, 3]]
    assert (sample["flow"][:, sample["valid"][0]] == 1).all()
    with pytest.raises(DataError, match="expected a folder image_3 of a KITTI flow benchmark"):
        KittiFlow(tmp_path, images="image_3")


def _made(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    return folder


def test_frame_pairs(tmp_path: Path) -> None:
    for clip in ("b/drive_2/image_02/data", "a/drive_1/image_03/data", "a/drive_1/image_00/data"):
        images(tmp_path / clip, ["frame2.png", "frame10.png", "frame1.png"])
    pairs = FramePairs(tmp_path, folders="*/*/image_0[23]/data")
    assert [name.split("_", 1)[1] for name in pairs.names] == [
        "1/image_03/data/frame1.png",
        "1/image_03/data/frame2.png",
        "2/image_02/data/frame1.png",
        "2/image_02/data/frame2.png",
    ]
    assert (pairs[0]["first"] == 2).all() and (pairs[0]["second"] == 0).all(), "natural order, within one clip"
    assert "flow" not in pairs[0]
    folder = tmp_path / "a/drive_1/image_00/data"
    assert FramePairs(folder, step=2).names == ["frame1.png"]
    for options, message in (
        ({"folders": "*/image_04"}, "expected folders that match"),
        ({"step": 3}, "expected folders of at least 4 images"),
    ):
        with pytest.raises(DataError, match=message):
            FramePairs(folder, **options)  # type: ignore[arg-type]
    images(folder, ["frame10.png"], (6, 9))
    with pytest.raises(DataError, match=r"frame2.png: expected the second image to have the first image's size"):
        FramePairs(folder)[1]
    with pytest.warns(UserWarning, match=r"skipped a broken sample: frame2\.png"):
        assert SkipBroken(FramePairs(folder))[1]["skipped"] == 1
    with pytest.raises(IndexError, match=r"index: expected 0\.\.1, got 2"):
        FramePairs(folder)[2]

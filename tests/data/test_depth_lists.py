import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mdepth_fast.data import DataError, DepthList, KittiDepth, RgbdFolder, SkipBroken, kb_crop
from mdepth_fast.data.samples import read_depth, read_image


def write_pair(image: Path, depth: Path, value: int = 0, size: tuple[int, int] = (6, 9), units: float = 1000) -> None:
    """An image that is `value` in red, and depth of `value` + 1 metres without the first pixel."""
    for path in (image, depth):
        path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0] = value
    Image.fromarray(pixels).save(image)
    stored = np.full(size, (value + 1) * units, np.uint16)
    stored[0, 0] = 0
    Image.fromarray(stored).save(depth)


def values(dataset: object) -> list[tuple[int, float]]:
    return [(int(s["target"][0, 1, 1]), float(s["depth"][0, 1, 1])) for s in dataset]  # type: ignore[attr-defined]


def test_npy_files(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    for stored in (pixels, pixels / 255, (pixels / 255).astype(np.float32)):
        np.save(path, stored)
        assert np.array_equal(read_image(path), pixels)
    for stored in (
        pixels[0],
        pixels.astype(np.int32),
        pixels.astype(np.float64),
        pixels / -255.0,
        pixels / 255 * np.nan,
    ):
        np.save(path, stored)
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: expected \(h, w, 3\)"):
            read_image(path)
    np.save(path, np.array([[1.5, np.nan, -1], [np.inf, 0, 80]]))
    assert np.array_equal(read_depth(path, 1000), np.array([[1.5, 0, 0], [0, 0, 80]], np.float32))
    np.save(path, np.ones((2, 2), np.uint16))
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: expected metres"):
        read_depth(path)
    path.write_bytes(b"nothing")
    for read in (read_image, read_depth):
        with pytest.raises(DataError, match=rf"{re.escape(str(path))}: cannot be read as a NumPy array"):
            read(path)
    np.save(path, np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        read_image(path)


def test_kb_crop() -> None:
    for size, box in (
        ((375, 1242), (23, 375, 13, 1229)),
        ((370, 1226), (18, 370, 5, 1221)),
        ((376, 1241), (24, 376, 12, 1228)),
        ((352, 1216), (0, 352, 0, 1216)),
    ):
        assert kb_crop(*size) == box
    with pytest.raises(ValueError, match="expected at least 352x1216 to crop, got 370x1215"):
        kb_crop(370, 1215)


class TestDepthList:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for number in range(3):
            write_pair(
                tmp_path / f"kitchen/rgb_{number:05d}.png", tmp_path / f"kitchen/sync_depth_{number:05d}.png", number
            )
        (tmp_path / "list.txt").write_text(
            "kitchen/rgb_00002.png kitchen/sync_depth_00002.png 518.8579\n"
            "\n"
            "/kitchen/rgb_00000.png /kitchen/sync_depth_00000.png 518.8579\n"
            "kitchen/rgb_00001.png None 518.8579\n"
            "kitchen/rgb_00001.png kitchen/sync_depth_00001.png\n"
        )
        return tmp_path

    def test_lines(self, tree: Path) -> None:
        dataset = DepthList(tree / "list.txt", tree)
        assert dataset.without_depth == 1
        assert values(dataset) == [(2, 3), (0, 1), (1, 2)]
        assert dataset.names == ["kitchen/rgb_00002.png", "kitchen/rgb_00000.png", "kitchen/rgb_00001.png"]
        assert float(dataset[0]["depth"][0, 0, 0]) == 0
        doubled = DepthList(tree / "list.txt", tree, units_per_metre=500)
        assert values(doubled) == [(2, 6), (0, 2), (1, 4)]
        assert doubled.settings != dataset.settings
        assert dataset[1]["target"].shape == (3, 6, 9) and dataset[1]["depth"].shape == (1, 6, 9)

    def test_relative_roots(self, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tree.parent)
        dataset = DepthList(tree / "list.txt", tree.name)
        assert values(dataset) == values(dataset) == [(2, 3), (0, 1), (1, 2)]

    def test_kitti_with_the_parts_of_the_official_tree(self, tmp_path: Path) -> None:
        lines = []
        for part, drive, value in (("train", "0001", 4), ("val", "0002", 7)):
            name = f"2011_09_26_drive_{drive}_sync"
            image = f"2011_09_26/{name}/image_02/data/0000000005.png"
            depth = f"{name}/proj_depth/groundtruth/image_02/0000000005.png"
            write_pair(tmp_path / "raw" / image, tmp_path / "annotated" / part / depth, value, (375, 1242), 256)
            lines.append(f"{image} {depth} 721.5377")
        lines.append(f"{image} None 721.5377")
        (tmp_path / "list.txt").write_text("\n".join(lines))
        dataset = DepthList(
            tmp_path / "list.txt", tmp_path / "raw", tmp_path / "annotated", units_per_metre=256, crop="kb"
        )
        assert values(dataset) == [(4, 5), (7, 8)]
        assert dataset.without_depth == 1
        assert dataset[0]["target"].shape == (3, 352, 1216) and dataset[0]["depth"].shape == (1, 352, 1216)

    def test_crop_is_cut_at_the_bottom_centre(self, tmp_path: Path) -> None:
        v, u = np.mgrid[:370, :1226]
        Image.fromarray(np.stack([u % 256, v % 256, v // 256], -1).astype(np.uint8)).save(tmp_path / "i.png")
        Image.fromarray((u + 1).astype(np.uint16)).save(tmp_path / "d.png")
        (tmp_path / "list.txt").write_text("i.png d.png")
        sample = DepthList(tmp_path / "list.txt", tmp_path, units_per_metre=1, crop="kb")[0]
        assert sample["target"][:, 0, 0].tolist() == [5, 18, 0]
        assert sample["target"][:, -1, -1].tolist() == [(1226 - 6) % 256, 369 % 256, 1]
        assert torch.equal(sample["depth"][0, 3], torch.arange(6.0, 1222.0))

    def test_missing_files_are_found_at_once_and_another_suffix_is_taken(self, tree: Path) -> None:
        path = tree / "list.txt"
        text = path.read_text()
        # Of a tree that was converted to PNG, and with a byte-order mark.
        path.write_text("\ufeff" + text.replace("kitchen/rgb_00002.png", "kitchen/rgb_00002.jpg"), encoding="utf-8")
        assert values(DepthList(path, tree)) == [(2, 3), (0, 1), (1, 2)]
        (tree / "kitchen/rgb_00000.png").unlink()
        with pytest.raises(DataError, match=r"list\.txt, line 3: .*kitchen/rgb_00000\.png: no such file"):
            DepthList(path, tree)
        with pytest.warns(UserWarning, match=r"left out 1 lines of missing files, first .*line 3"):
            dataset = DepthList(path, tree, skip_missing=True)
        assert values(dataset) == [(2, 3), (1, 2)] and dataset.missing == 1

    def test_errors_name_file_and_line(self, tree: Path) -> None:
        path = tree / "list.txt"
        good = DepthList(path, tree)
        (tree / "kitchen/sync_depth_00000.png").unlink()
        with pytest.raises(DataError, match=r"list\.txt, line 3: .*kitchen/sync_depth_00000\.png: no such image"):
            good[1]
        (tree / "kitchen/rgb_00001.png").write_bytes(b"")
        with pytest.raises(DataError, match=r"list\.txt, line 5: .*rgb_00001\.png: cannot be read as an image"):
            good[2]
        skipping = SkipBroken(good)
        with pytest.warns(UserWarning, match="line 3"), pytest.warns(UserWarning, match="line 5"):
            assert [sample["skipped"] for sample in skipping] == [0, 2, 1]
        write_pair(tree / "kitchen/rgb_00002.png", tree / "other.png", 0, (5, 9))
        with pytest.raises(
            DataError, match=r"line 1: .*sync_depth_00002\.png: expected depth of the image's size \(5, 9\)"
        ):
            good[0]
        for text, message in (
            ("a.png b.png 518 4\n", "line 1: expected 'image depth focal', got 'a.png b.png 518 4'"),
            ("a.png b.png 518\na.png\n", "line 2: expected 'image depth focal'"),
            ("a.png b.png far\n", "line 1: expected 'image depth focal'"),
            ("a.png None 518\n", "got none with depth"),
            ("", "got none with depth"),
        ):
            path.write_text(text)
            with pytest.raises(DataError, match=message) as error:
                DepthList(path, tree)
            assert str(path) in str(error.value)
        with pytest.raises(DataError, match=r"none\.txt: cannot be read as a list"):
            DepthList(tree / "none.txt", tree)
        for roots, argument in (((tree / "none",), "image_root"), ((tree, tree / "none"), "depth_root")):
            with pytest.raises(DataError, match=f"{argument}: no such folder"):
                DepthList(path, *roots)
        with pytest.raises(ValueError, match="units_per_metre: expected a positive number, got 0"):
            path.write_text("a.png b.png")
            DepthList(path, tree, units_per_metre=0)


class TestKittiDepth:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for part, drive, frame, camera, value in (
            ("train", "2011_09_26_drive_0001_sync", 5, "image_02", 1),
            ("train", "2011_09_26_drive_0001_sync", 10, "image_02", 2),
            ("train", "2011_09_26_drive_0001_sync", 5, "image_03", 3),
            ("val", "2011_10_03_drive_0047_sync", 7, "image_02", 4),
        ):
            write_pair(
                tmp_path / "raw" / drive[:10] / drive / camera / "data" / f"{frame:010d}.png",
                tmp_path / "annotated" / part / drive / "proj_depth/groundtruth" / camera / f"{frame:010d}.png",
                value,
                units=256,
            )
        return tmp_path

    def test_splits(self, tree: Path) -> None:
        train = KittiDepth(tree / "raw", tree / "annotated", "train")
        drive = "2011_09_26/2011_09_26_drive_0001_sync"
        assert train.names == [f"{drive} 5 l", f"{drive} 10 l", f"{drive} 5 r"]
        assert values(train) == [(1, 2), (2, 3), (3, 4)]
        assert values(KittiDepth(tree / "raw", tree / "annotated", "train", sides=("r",))) == [(3, 4)]
        assert values(KittiDepth(tree / "raw", tree / "annotated", "val")) == [(4, 5)]
        lines = ["2011_10_03/2011_10_03_drive_0047_sync 7 l", f"{drive} 10 l"]
        assert values(KittiDepth(tree / "raw", tree / "annotated", lines)) == [(4, 5), (2, 3)]
        (tree / "split.txt").write_text("\n".join(lines))
        assert values(KittiDepth(tree / "raw", tree / "annotated", tree / "split.txt")) == [(4, 5), (2, 3)]

    def test_every_layout_of_the_annotation(self, tree: Path, tmp_path: Path) -> None:
        drive = "2011_09_26_drive_0001_sync"
        line = [f"2011_09_26/{drive} 5 l"]
        official = KittiDepth(tree / "raw", tree / "annotated", line)
        merged, inside = tmp_path / "merged", tmp_path / "inside"
        shutil.copytree(tree / "annotated" / "train" / drive, merged / drive)
        shutil.copytree(tree / "annotated" / "train" / drive, inside / "2011_09_26" / drive)
        for root in (tree / "annotated" / "train", merged, inside):
            assert values(KittiDepth(tree / "raw", root, line)) == values(official)
        assert len(KittiDepth(tree / "raw", tree / "annotated" / "val", "val")) == 1
        (merged / drive / "proj_depth/groundtruth/image_03/0000000005.png").unlink()
        looked = "train/.* or .*val/.* or .*merged/2011_09_26_drive.* or .*merged/2011_09_26/2011"
        with pytest.raises(DataError, match=looked):
            KittiDepth(tree / "raw", merged, [f"2011_09_26/{drive} 5 r"])

    def test_jpeg(self, tree: Path) -> None:
        path = tree / "raw/2011_10_03/2011_10_03_drive_0047_sync/image_02/data/0000000007.png"
        Image.fromarray(np.full((6, 9, 3), 200, np.uint8)).save(path.with_suffix(".jpg"))
        path.unlink()
        assert values(KittiDepth(tree / "raw", tree / "annotated", "val")) == [(200, 5)]

    def test_missing_and_wrong(self, tree: Path) -> None:
        image = tree / "raw/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000010.png"
        image.unlink()
        with pytest.raises(DataError, match=f"drive_0001_sync 10 l' needs {re.escape(str(image))}"):
            KittiDepth(tree / "raw", tree / "annotated")
        with pytest.warns(UserWarning, match=r"left out 1 frames of missing files, first .*0000000010\.png"):
            dataset = KittiDepth(tree / "raw", tree / "annotated", skip_missing=True)
        assert dataset.missing == 1 and values(dataset) == [(1, 2), (3, 4)]
        with pytest.raises(DataError, match=r"split, line 1: .* needs .*image_02/data/0000000006\.png"):
            KittiDepth(tree / "raw", tree / "annotated", ["2011_09_26/2011_09_26_drive_0001_sync 6 l"])
        with pytest.raises(DataError, match=r"split, line 2: expected 'date/drive index l\|r'"):
            line = "2011_09_26/2011_09_26_drive_0001_sync 5 l"
            KittiDepth(tree / "raw", tree / "annotated", [line, "2011_09_26 5"])
        with pytest.raises(DataError, match="annotated_root: no such folder"):
            KittiDepth(tree / "raw", tree / "none")
        with pytest.raises(DataError, match="raw/train: no such folder"):
            KittiDepth(tree / "raw", tree / "raw")
        with pytest.raises(ValueError, match="sides: expected some of"):
            KittiDepth(tree / "raw", tree / "annotated", sides=("left",))
        depth = tree / "annotated/val/2011_10_03_drive_0047_sync/proj_depth/groundtruth/image_02/0000000007.png"
        dataset = KittiDepth(tree / "raw", tree / "annotated", "val")
        depth.write_bytes(depth.read_bytes()[:40])
        with pytest.raises(DataError, match=f"^{re.escape(str(depth))}: cannot be read"):
            dataset[0]


class TestRgbdFolder:
    def test_natural_order_and_patterns(self, tmp_path: Path) -> None:
        for number in (10, 9, 60):
            write_pair(tmp_path / f"scene/rgb_{number}.png", tmp_path / f"scene/sync_depth_{number:05d}.png", number)
        dataset = RgbdFolder(tmp_path / "scene/rgb_*.png", tmp_path / "scene/sync_depth_*")
        assert values(dataset) == [(9, 10), (10, 11), (60, 61)]
        assert dataset.names == ["scene/rgb_9.png", "scene/rgb_10.png", "scene/rgb_60.png"]

    def test_what_does_not_belong_together(self, tmp_path: Path) -> None:
        for number in range(3):
            write_pair(tmp_path / f"i/{number}.png", tmp_path / f"d/{number}.png")
        (tmp_path / "d/2.png").rename(tmp_path / "d/3.png")
        with pytest.raises(DataError, match=r"d/3\.png: expected the depth of 2\.png, whose numbers are \[2\]"):
            RgbdFolder(tmp_path / "i", tmp_path / "d")
        (tmp_path / "d/3.png").unlink()
        with pytest.raises(DataError, match=r"d: expected a depth map for each of the 3 images of .*i, got 2"):
            RgbdFolder(tmp_path / "i", tmp_path / "d")
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"empty: expected image or \.npy files, got none"):
            RgbdFolder(tmp_path / "empty", tmp_path / "d")
        with pytest.raises(DataError, match="none: no such folder"):
            RgbdFolder(tmp_path / "none", tmp_path / "d")


class TestRealFrames:
    def test_nyu_sync_millimetres(self, real_data: Path, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text(
            "".join(f"rgb_{n:05d}.jpg sync_depth_{n:05d}.png 518.8579\n" for n in (0, 50, 100))
        )
        listed = DepthList(tmp_path / "list.txt", real_data / "nyu/basement_0001a")
        folder = RgbdFolder(real_data / "nyu/basement_0001a/rgb_*", real_data / "nyu/basement_0001a/sync_depth_*")
        for one, other in zip(listed, folder, strict=True):
            assert torch.equal(one["target"], other["target"]) and torch.equal(one["depth"], other["depth"])
        sample = listed[0]
        assert sample["target"].shape == (3, 480, 640) and sample["depth"].shape == (1, 480, 640)
        assert float(sample["depth"].max()) == pytest.approx(6.625)
        assert float((sample["depth"] > 0).float().mean()) == pytest.approx(1 - 0.26718, abs=1e-5)
        # The border of the frame is white.
        assert sample["target"][:, :5].float().mean() > 250 > sample["target"][:, 60:400].float().mean()

    def test_millimetres_of_other_sources(self, real_data: Path) -> None:
        demo = RgbdFolder(real_data / "nyu/unidepth_demo/rgb*", real_data / "nyu/unidepth_demo/depth*")
        assert len(demo) == 1 and float(demo[0]["depth"].max()) == 10
        assert float((demo[0]["depth"] == 0).float().mean()) == pytest.approx(0.3187, abs=1e-4)
        indoor = RgbdFolder(real_data / "indoor_rgbd/images", real_data / "indoor_rgbd/depth")
        assert indoor.names == [f"images/{n:05d}.png" for n in range(3, 15)]
        assert float(indoor[0]["depth"].max()) == pytest.approx(6.509) and indoor[0]["target"].shape == (3, 360, 540)

    def test_kitti_256ths(self, real_data: Path) -> None:
        kitti = RgbdFolder(
            real_data / "kitti_depth/rgb", real_data / "kitti_depth/depth", units_per_metre=256, crop="kb"
        )
        assert len(kitti) == 3 and kitti[2]["target"].shape == (3, 352, 1216)
        whole = RgbdFolder(real_data / "kitti_depth/rgb", real_data / "kitti_depth/depth", units_per_metre=256)
        measured = torch.cat([sample["depth"][sample["depth"] > 0] for sample in whole])
        assert 5 < float(measured.min()) < 5.2 and 84 < float(measured.max()) < 85
        assert float((whole[0]["depth"] > 0).float().mean()) == pytest.approx(0.19504, abs=1e-5)
        assert torch.equal(kitti[0]["depth"], whole[0]["depth"][:, 23:, 13:1229])

    def test_npy_metres(self, real_data: Path, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("rgb.npy depth.npy")
        sample = DepthList(tmp_path / "list.txt", real_data / "nyu/fastdepth_224")[0]
        assert sample["target"].shape == (3, 224, 224) and sample["depth"].shape == (1, 224, 224)
        assert float(sample["depth"].min()) == pytest.approx(0.7201452) and (sample["depth"] > 0).all()
        assert float(sample["depth"].max()) == pytest.approx(5.8749824)
        rgb = np.load(real_data / "nyu/fastdepth_224/rgb.npy")
        assert np.abs(sample["target"].numpy().transpose(1, 2, 0) / 255 - rgb).max() <= 0.5 / 255 + 1e-9

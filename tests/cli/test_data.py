"""`mdepth-fast data ground-truth`, and `eval` of what published scripts write."""

import io
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TinyDepth

from mdepth_fast.cli import eval as eval_command
from mdepth_fast.cli import main
from mdepth_fast.data import DataError
from mdepth_fast.data.kitti import read_ground_truth
from mdepth_fast.evaluation import Evaluator, get_protocol
from mdepth_fast.models import create_model
from mdepth_fast.weights import write_converted

DATE, DRIVES = "2011_09_26", [f"2011_09_26/2011_09_26_drive_{number:04d}_sync" for number in range(4)]
CAMERAS = """R_rect_00: 1 0 0 0 1 0 0 0 1
S_rect_02: 4.8e+01 3.0e+01
P_rect_02: 40 0 23 0 0 40 15 0 0 0 1 0
S_rect_03: 4.8e+01 3.0e+01
P_rect_03: 40 0 23 -20 0 40 15 0 0 0 1 0
"""
VELODYNE = "R: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 -0.3\n"  # x forward to z forward, 0.3 m behind


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans and annotated depth, but no image, of 697 and 652 frames of four drives; the files of a drive are links."""
    root = tmp_path_factory.mktemp("kitti")
    (root / DATE).mkdir()
    (root / DATE / "calib_cam_to_cam.txt").write_text(CAMERAS)
    (root / DATE / "calib_velo_to_cam.txt").write_text(VELODYNE)
    np.array([[10.3, 0, 0, 0.5], [5.3, 1, -1, 0.5]], "<f4").tofile(root / "scan.bin")
    Image.fromarray(np.full((30, 48), 512, np.uint16)).save(root / "depth.png")
    lines = [f"{DRIVES[index % 4]} {index:010d} l" for index in range(697)]
    for drive in DRIVES:
        (root / drive / "velodyne_points" / "data").mkdir(parents=True)
        (root / drive / "proj_depth" / "groundtruth" / "image_02").mkdir(parents=True)
    for index in range(697):
        drive = root / DRIVES[index % 4]
        (drive / "velodyne_points" / "data" / f"{index:010d}.bin").hardlink_to(root / "scan.bin")
        if index < 652:
            (drive / "proj_depth" / "groundtruth" / "image_02" / f"{index:010d}.png").hardlink_to(root / "depth.png")
    (root / "eigen.txt").write_text("\n".join(lines))
    (root / "eigen_benchmark.txt").write_text("\n".join(lines[:652]))
    return root


def exported(tree: Path, output: Path, *words: str) -> np.ndarray:
    assert main(["data", "ground-truth", "--root", str(tree), "--output", str(output), *words]) == 0
    # As published scripts read it.
    values = np.load(output, fix_imports=True, encoding="latin1", allow_pickle=True)["data"]
    assert values.dtype == object and values.ndim == 1
    assert all(np.array_equal(*pair) for pair in zip(values, read_ground_truth(output), strict=True))
    return values


def test_ground_truth_of_the_published_splits(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "gt_depths.npz"
    eigen = exported(tree, output, "--split", str(tree / "eigen.txt"))
    assert len(eigen) == 697 and capsys.readouterr().out == (
        f"{output}: 697 depth maps, lidar_x of {tree / 'eigen.txt'}\n"
    )
    # The LiDAR's forward coordinate at pixels rounded minus one; camera z, 0.3 less, at pixels rounded.
    expected = np.zeros((30, 48), np.float32)
    expected[14, 22], expected[22, 14] = 10.3, 5.3
    assert np.array_equal(eigen[-1], expected)
    z = exported(tree, output, "--split", str(tree / "eigen.txt"), "--depth", "z")
    assert np.allclose(z[0], np.roll(np.where(expected > 0, expected - 0.3, 0), (1, 1), (0, 1)))
    benchmark = exported(tree, output, "--split", str(tree / "eigen_benchmark.txt"), "--depth", "annotated")
    assert len(benchmark) == 652 and (benchmark[0] == 2).all()
    assert [path.name for path in output.parent.iterdir()] == ["gt_depths.npz"]


def test_real_ground_truth(real_data: Path, tmp_path: Path) -> None:
    split, output = tmp_path / "split.txt", tmp_path / "gt.npz"
    split.write_text("2011_09_26/2011_09_26_drive_0052_sync 4 l\n")
    (depth,) = exported(real_data / "kitti_raw", output, "--split", str(split))
    assert depth.shape == (375, 1242)
    assert (depth > 0).sum() == pytest.approx(15_469, rel=0.01)  # points inside the image, see test_kitti.py
    assert depth[depth > 0].min() > 3 and depth.max() < 80


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("mdepth-fast: error: ")


def test_bad_input_is_one_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "ground-truth", "--root", str(tree), "--split", str(tree / "eigen.txt")]
    assert "--output: expected a file named *.npz" in fails(capsys, *words, "--output", str(tmp_path / "gt.npy"))
    assert "--annotated-root: goes with" in fails(capsys, *words, "--annotated-root", str(tree))
    assert "--root: no such folder: /nowhere" in fails(capsys, *words[:2], "--root", "/nowhere", *words[4:])
    missing = [*words, "--depth", "annotated", "--output", str(tmp_path / "gt.npz")]
    assert "0000000652.png, which does not exist" in fails(capsys, *missing)
    assert not list(tmp_path.iterdir())
    for verbs in (["data"], ["data", "nothing"]):
        with pytest.raises(SystemExit):
            main(verbs)


@pytest.mark.parametrize("bad", [b"text", None])
def test_a_file_that_is_no_ground_truth_is_named(tmp_path: Path, bad: bytes | None) -> None:
    path = tmp_path / "gt.npz"
    if bad:
        path.write_bytes(bad)
    else:
        np.savez(path, data=np.zeros(3))
    with pytest.raises(DataError, match=r"gt\.npz: (cannot be read as ground truth|expected depth maps \(h, w\))"):
        read_ground_truth(path)


def test_damaged_ground_truth_is_one_short_line(tmp_path: Path) -> None:
    path = tmp_path / "gt.npz"
    np.savez(path, data=np.ones((2, 3, 4), np.float32))
    with zipfile.ZipFile(path) as archive:
        member = archive.read("data.npy")
    whole = path.read_bytes()
    contents = []
    for header in (b"(2, 3, ", b"((((((4)", b"(9**99, ", b"(99999999999999, 3, 4)", b"\xff\xfe\xfd"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("data.npy", member.replace(b"(2, 3, 4)", header))
        contents.append(buffer.getvalue())
    unknown = bytearray(whole)
    unknown[8] = unknown[whole.index(b"PK\x01\x02") + 10] = 97  # a compression that nobody has
    buffer = io.BytesIO()
    np.savez(buffer, data=np.float32(1))
    for content in (*contents, bytes(unknown), buffer.getvalue(), whole[:-40], b""):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"gt\.npz: ") as error:
            read_ground_truth(path)
        assert len(str(error.value)) < 200 + len(str(path)) + 100 and "\n" not in str(error.value)
    np.savez(path, data=np.array([[[1, -2, np.nan, np.inf]]]))
    assert read_ground_truth(path)[0].tolist() == [[1, 0, 0, 0]]


def test_disparities_of_others_are_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the size of their network, in units of 5.4 m, against maps of several sizes."""
    rng = np.random.default_rng(0)
    truths = np.empty(3, dtype=object)
    for index, size in enumerate(((40, 60), (40, 60), (44, 61))):
        truths[index] = (2 + 10 * rng.random(size) * (rng.random(size) < 0.4)).astype(np.float32)
    np.savez_compressed(tmp_path / "gt.npz", data=truths)
    disparities = (0.1 + rng.random((3, 20, 32))).astype(np.float32)
    np.save(tmp_path / "disparities.npy", disparities)
    words = ["eval", str(tmp_path / "disparities.npy"), "--ground-truth", str(tmp_path / "gt.npz")]
    for protocol, scale in (("kitti_eigen", 1.0), ("kitti_eigen_stereo", 5.4)):
        assert main([*words, "--protocol", protocol, *(["--scale", "5.4"] if scale != 1 else [])]) == 0
        lines = capsys.readouterr().out.splitlines()
        evaluator = Evaluator(protocol)
        for disparity, truth in zip(disparities, truths, strict=True):
            evaluator.update(disparity / scale, truth, inverse=True)
        evaluator.ground_truth = str(tmp_path / "gt.npz")
        assert lines[2:] == evaluator.table().splitlines()[2:]
        assert ("prediction times 5.4" in lines[0]) == (scale != 1)
    np.save(tmp_path / "two.npy", disparities[:2])
    two = ["eval", str(tmp_path / "two.npy"), *words[2:]]
    assert "two.npy: expected a map for each of the 3 of the ground truth, got 2" in fails(capsys, *two)
    assert "--flip" in fails(capsys, *words, "--flip")
    assert "expected gt_depths.npz or --data" in fails(capsys, *words[:2])
    np.save(tmp_path / "bytes.npy", np.zeros((3, 4, 4), np.uint8))
    assert "expected floating point (N,h,w), got uint8" in fails(
        capsys, "eval", str(tmp_path / "bytes.npy"), *words[2:]
    )


def test_saved_disparities_give_the_same_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = create_model("tiny_depth")
    write_converted(tmp_path / "net.safetensors", "tiny_depth", {}, net.state_dict(), source="test")
    data = ["--data", "synthetic", "--data.length=2", "--data.height=32", "--data.width=64", "--data.workers=0"]
    saved = ["--save-disparities", str(tmp_path / "out.npy")]
    assert main(["eval", str(tmp_path / "net.safetensors"), *data, *saved]) == 0
    first = capsys.readouterr().out
    assert np.load(tmp_path / "out.npy").shape == (2, 32, 64)
    assert main(["eval", str(tmp_path / "out.npy"), *data]) == 0
    assert capsys.readouterr().out == first


def test_a_submission_holds_metres_times_256_at_the_servers_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for index, size in enumerate(((352, 1216), (40, 60))):
        pixels = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{index:010d}.png")
    net = TinyDepth(0.54, 540.0, None, (32, 64)).eval()
    options = {"min_depth": 0.54, "max_depth": 540.0, "unit": None, "input_size": (32, 64)}
    weights = tmp_path / "net.safetensors"
    write_converted(weights, "tiny_depth", options, net.state_dict(), source="test")
    words = ["eval", str(weights), "--images", str(images), "--submission", str(out)]
    assert "--scale: expected the metres" in fails(capsys, *words)
    assert not out.exists()
    image = torch.from_numpy(np.array(Image.open(images / "0000000000.png"))).permute(2, 0, 1)[None] / 255
    depth = net.predict(image, flip=True).depth[0, 0]
    scale = 80 / float(depth.median())
    assert main([*words, "--scale", str(scale), "--flip"]) == 0
    assert "2 depth maps" in capsys.readouterr().out
    for index in range(2):
        stored = np.array(Image.open(out / f"{index:010d}.png"))
        assert stored.dtype == np.uint16 and stored.shape == (352, 1216)
    metres = (scale * depth).clamp(max=80).numpy()
    assert 0.3 < (metres == 80).mean() < 0.7
    np.testing.assert_allclose(np.array(Image.open(out / "0000000000.png")) / 256, metres, atol=1 / 512 + 1e-4)
    assert "--submission: takes neither" in fails(capsys, *words, "--save-disparities", str(tmp_path / "x.npy"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert "--submission: expected a new or empty folder" in fails(capsys, *words, "--scale", "50")
    assert "--submission: goes with --images" in fails(capsys, *words[:4])
    # Two images of one name, and one that cannot be read: nothing is left.
    new = [*words[:-1], str(tmp_path / "new"), "--scale=50"]
    twin = images / "0000000000.jpg"
    Image.new("RGB", (60, 40)).save(twin)
    assert "got 0000000000.jpg and 0000000000.png" in fails(capsys, *new)
    twin.rename(images / "9.jpg").write_bytes(b"no image")
    assert "9.jpg" in fails(capsys, *new)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "net.safetensors", "out"]


def test_disparities_that_are_none_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = np.ones((2, 40, 60), np.float32)
    np.savez(tmp_path / "gt.npz", data=truth)
    np.savez(tmp_path / "none.npz", data=0 * truth)
    path, good = tmp_path / "x.npy", np.random.default_rng(0).random((2, 20, 30)) + 0.1
    words = ["eval", str(path), "--protocol=nyu", "--ground-truth", str(tmp_path / "gt.npz")]
    tables = []
    for order in ("<", ">"):
        np.save(path, good.astype(f"{order}f4"))
        assert main(words) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert "none.npz: expected ground truth" in fails(capsys, *words[:-1], str(tmp_path / "none.npz"))
    for option in ("--device=cpu", "--checkpoint=best", "--flip", f"--save-disparities={tmp_path / 'y.npy'}"):
        assert fails(capsys, *words, option).startswith(f"{option.partition('=')[0]}: goes with a network")
    submission = [f"--submission={tmp_path / 'out'}", f"--images={tmp_path}"]
    assert fails(capsys, *words[:2], *submission).startswith("--submission: goes with a network")
    assert "--data: expected data with depth" in fails(capsys, *words[:2], "--data=flow_synthetic")
    whole = path.read_bytes()
    wrong = [
        whole.replace(b"(2, 20, 30)", shape)
        for shape in (b"(1<<9,2,3)", b"(2, -20, 3)", b"(9**9, 2, 2", b"(10000000000000000000000, 2, 3)")
    ]
    for content in [(tmp_path / "gt.npz").read_bytes(), whole[:50], whole[:300], b"", *wrong]:
        path.write_bytes(content)
        assert fails(capsys, *words).startswith(f"{path}: ")
    for bad in (good.astype(np.longdouble), good[:, :0], good.astype(complex)):
        np.save(path, bad)
        assert fails(capsys, *words).startswith(f"{path}: ")


def test_what_goes_with_depth_is_refused_for_flow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, options = tmp_path / "flow.safetensors", {"width": 4}
    write_converted(weights, "flownet_s", options, create_model("flownet_s", **options).state_dict(), source="test")
    words = ["eval", str(weights), "--data=flow_synthetic"]
    assert fails(capsys, *words, "--scale=2").startswith("--scale: goes with depth")
    assert fails(capsys, *words, f"--save-disparities={tmp_path / 'x.npy'}").startswith("--save-disparities: expected")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    submission = [f"--submission={tmp_path / 'out'}", f"--images={tmp_path}"]
    assert fails(capsys, *words[:2], *submission).startswith("--submission: expected a network that predicts depth")


def test_ground_truth_is_named_and_a_benchmark_on_raw_lidar_warns() -> None:
    def told(kind: str, protocol: str) -> str:
        config = SimpleNamespace(run="a run", data=SimpleNamespace(name="kitti", ground_truth=kind))
        return eval_command._ground_truth(config, SimpleNamespace(missing=3), get_protocol(protocol))

    assert told("lidar_x", "kitti_eigen") == (
        "raw LiDAR, its forward coordinate, as published for kitti_eigen (lidar_x), 3 frames of missing files left out"
    )
    with pytest.warns(UserWarning, match="kitti_eigen_benchmark is for annotated depth, the ground truth is raw LiDAR"):
        told("lidar", "kitti_eigen_benchmark")
    assert "annotated depth" in told("annotated", "kitti_eigen_benchmark")

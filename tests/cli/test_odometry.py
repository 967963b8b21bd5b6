"""`mdepth-fast odometry`: files, plot and metrics, of a network's poses and of two files."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_run  # noqa: F401  (registers the tiny networks)
from PIL import Image
from scipy.spatial.transform import Rotation

from mdepth_fast.cli import main
from mdepth_fast.data import Trajectory

TINY = ["--model.name=tiny_depth", "--pose.name=tiny_pose", "--data.height=64", "--data.width=96"]


def curve(count: int) -> np.ndarray:
    """Camera-to-world poses on a circle."""
    angles = 0.05 * np.arange(count)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(angles[:, None] * [0, 1, 0]).as_matrix()
    poses[:, 0, 3], poses[:, 2, 3] = 40 * (1 - np.cos(angles)), 40 * np.sin(angles)
    return poses


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    folder = tmp_path / "frames"
    folder.mkdir()
    for index in range(6):
        pixels = np.random.default_rng(index).integers(0, 255, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"frame{index}.png")
    (folder / "K.txt").write_text("60 0 34.5\n0 60 24.5\n0 0 1\n")
    return folder


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["odometry", *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("mdepth-fast: error: ")


def test_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, small = curve(80), curve(80)
    small[:, :3, 3] *= 0.1
    Trajectory(np.arange(80), truth).write_kitti(tmp_path / "truth.txt")
    Trajectory(np.arange(80) / 10, small, timed=True).write_tum(tmp_path / "prediction.txt")
    words = [f"--poses={tmp_path / 'prediction.txt'}", f"--ground-truth={tmp_path / 'truth.txt'}"]
    output = tmp_path / "out"
    assert main(["odometry", *words, f"--output={output}"]) == 0
    out = capsys.readouterr().out
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["scale"] == pytest.approx(10) and metrics["ate_rmse"]["sim3"] < 1e-6 < metrics["ate_rmse"]["se3"]
    assert metrics["t_rel_percent"] < 1e-6 and metrics["kitti_segments"] > 0
    assert "historic" in out and "after alignment sim3 (scale 10)" in out
    np.testing.assert_allclose(Trajectory.read(output / "poses_kitti.txt").poses, small, atol=1e-9)
    assert Trajectory.read(output / "poses_tum.txt").timed
    assert {path.name for path in output.iterdir()} == {
        "metrics.json",
        "poses_kitti.txt",
        "poses_tum.txt",
        "trajectory.png",
    }
    assert Image.open(output / "trajectory.png").size[0] > 500
    assert main(["odometry", *words, f"--output={output}", "--alignment=se3"]) == 0
    assert json.loads((output / "metrics.json").read_text())["t_rel_percent"] > 50


def test_a_trained_system_on_frames(tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "folder", f"--data.root={frames}", *TINY, f"--output={tmp_path / 'runs'}", "--data.workers=0"]
    assert main([*words, "--trainer.max_epochs=1"]) == 0
    capsys.readouterr()
    run = str(tmp_path / "runs" / "folder" / "001")
    output = f"--output={tmp_path / 'out'}"
    # Without ground truth: the frames of the run, files and a plot.
    assert main(["odometry", run, output]) == 0
    out = capsys.readouterr().out
    assert out.startswith("6 poses: ") and "no ground truth, so no metrics" in out
    assert not (tmp_path / "out" / "metrics.json").exists() and (tmp_path / "out" / "trajectory.png").exists()
    poses = Trajectory.read(tmp_path / "out" / "poses_kitti.txt")
    assert len(poses) == 6 and poses.length > 0
    # With it, by rows and by time.
    Trajectory(np.arange(6), curve(6)).write_kitti(tmp_path / "truth.txt")
    words = ["odometry", run, f"--frames={frames}", output]
    assert main([*words, f"--ground-truth={tmp_path / 'truth.txt'}"]) == 0
    by_rows = json.loads((tmp_path / "out" / "metrics.json").read_text())
    seconds = np.arange(600) / 100
    Trajectory(seconds, curve(600), timed=True).write_tum(tmp_path / "dense.txt")
    (tmp_path / "times.txt").write_text("\n".join(str(time) for time in seconds[:6]))
    timed = [f"--ground-truth={tmp_path / 'dense.txt'}", f"--times={tmp_path / 'times.txt'}"]
    assert main([*words, *timed]) == 0
    by_time = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert by_time["ate_rmse"] == pytest.approx(by_rows["ate_rmse"]) and by_time["poses"] == 6
    assert Trajectory.read(tmp_path / "out" / "poses_tum.txt").timestamps.tolist() == seconds[:6].tolist()
    capsys.readouterr()
    Trajectory(np.arange(7), curve(7)).write_kitti(tmp_path / "truth.txt")
    message = fails(capsys, *words[1:], f"--ground-truth={tmp_path / 'truth.txt'}")
    assert message.endswith("expected a pose for each of the 6 frames, got 7")
    # Without ground truth again: nothing of the earlier evaluation stays beside the new poses.
    assert main(words) == 0 and not (tmp_path / "out" / "metrics.json").exists()


def test_wrong_usage(tmp_path: Path, frames: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Trajectory(np.arange(5), curve(5)).write_kitti(tmp_path / "five.txt")
    five = f"--poses={tmp_path / 'five.txt'}"
    assert fails(capsys).startswith("weights: expected a trained system, or --poses FILE")
    assert fails(capsys, "runs/x", five).startswith("weights: expected a trained system, or --poses FILE")
    assert fails(capsys, five).startswith("--ground-truth: expected a file of true poses")
    truth = f"--ground-truth={tmp_path / 'five.txt'}"
    assert fails(capsys, five, truth, f"--frames={frames}").startswith("--frames: goes with a trained system")
    assert fails(capsys, five, truth, "--snippet=1").startswith("--snippet, --batch: expected at least 2")
    Trajectory(np.arange(4), curve(4)).write_kitti(tmp_path / "four.txt")
    message = fails(capsys, five, f"--ground-truth={tmp_path / 'four.txt'}", f"--output={tmp_path / 'out'}")
    assert message.startswith("ground_truth: expected a pose for each of the 5 of the prediction")
    assert "no such checkpoint" in fails(capsys, str(tmp_path / "none"))


def test_what_is_refused_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    Trajectory(np.arange(9), curve(9)).write_kitti(output / "poses_kitti.txt")
    before = (output / "poses_kitti.txt").read_bytes()
    truth = tmp_path / "truth.txt"
    Trajectory(np.arange(9), curve(9)).write_kitti(truth)
    huge = curve(9)
    huge[:, :3, 3] *= 1e250
    Trajectory(np.arange(9), huge).write_kitti(tmp_path / "huge.txt")
    own = ["--poses", str(truth), "--ground-truth", str(output / ".." / "out" / "poses_kitti.txt")]
    assert "takes the place of --ground-truth" in fails(capsys, *own, f"--output={output}")
    two = ["--poses", str(truth), "--ground-truth", str(truth), f"--output={output}"]
    assert "as there are 9 poses, got 100" in fails(capsys, *two, "--snippet=100")
    for option in ("--device=cpu", "--batch=2", "--workers=1"):
        assert f"{option.partition('=')[0]}: goes with a trained system" in fails(capsys, *two, option)
    assert "finite" in fails(capsys, "--poses", str(tmp_path / "huge.txt"), *two[2:])
    assert [path.name for path in output.iterdir()] == ["poses_kitti.txt"]
    assert (output / "poses_kitti.txt").read_bytes() == before

"""Trajectories in every file format: what is read, what is written, what is refused."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mdepth_fast.data import DataError, Trajectory


def wander(count: int, seed: int = 0) -> np.ndarray:
    """Camera-to-world poses (count,4,4) of a camera that turns and moves."""
    numbers = np.random.default_rng(seed)
    poses = [np.eye(4)]
    for _ in range(count - 1):
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(numbers.normal(0, 0.2, 3)).as_matrix()
        step[:3, 3] = numbers.normal([0, 0, 1], 0.1)
        poses.append(poses[-1] @ step)
    return np.array(poses)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    seconds = 1.4e9 + 0.1 * np.arange(20) ** 1.1  # of a clock: 17 digits
    given = Trajectory(seconds, wander(20), timed=True)
    given.write_kitti(tmp_path / "kitti.txt")
    given.write_tum(tmp_path / "new" / "tum.txt")
    np.savetxt(tmp_path / "matrix.txt", given.poses.reshape(20, 16), header="4x4, row by row")
    for name in ("kitti.txt", "new/tum.txt", "matrix.txt"):
        found = Trajectory.read(tmp_path / name)
        np.testing.assert_allclose(found.poses, given.poses, atol=1e-9)
        assert found.timed == ("tum" in name)
        assert np.array_equal(found.timestamps, seconds if found.timed else np.arange(20))
    assert {path.name for path in tmp_path.rglob("*")} == {"kitti.txt", "new", "tum.txt", "matrix.txt"}


def test_the_formats_mean_the_same_motion(tmp_path: Path) -> None:
    """A quarter turn about y, camera at (1, 2, 3): the camera's forward axis is the world's x."""
    (tmp_path / "kitti.txt").write_text("0 0 1 1 0 1 0 2 -1 0 0 3\n")
    (tmp_path / "tum.txt").write_text("# t tx ty tz qx qy qz qw\n5 1 2 3 0 0.70710678 0 0.70710678\n")
    kitti, tum = (Trajectory.read(tmp_path / name) for name in ("kitti.txt", "tum.txt"))
    np.testing.assert_allclose(kitti.poses, tum.poses, atol=1e-8)
    np.testing.assert_allclose(kitti.poses[0] @ [0, 0, 1, 1], [2, 2, 3, 1], atol=1e-8)


def test_few_digits_pass_and_become_a_rotation(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "rough.txt", wander(10)[:, :3].reshape(10, 12), "%.3f")
    R = Trajectory.read(tmp_path / "rough.txt").poses[:, :3, :3]
    np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.broadcast_to(np.eye(3), R.shape), atol=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty file"),
        ("1 2 3\n", "line 1: expected 12 or 16 or 8 numbers, got 3"),
        ("0 0 0 0 0 0 0 1\n\n1 0 0 0 0 0 0 0.9\n", r"line 3: pose 2 has a quaternion of norm 0\.9, expected 1"),
        ("0 0 0 0 0 0 0 0\n", "line 1: pose 1 has a quaternion of norm 0"),
        ("# t x\n2 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 1\n", "line 3: pose 2 has timestamp 2, not after 2"),
        ("1 0 0 0 0 1 0 0 0 0 -1 0\n", "line 1: pose 1 is not a rotation.* determinant is -1, a reflection"),
        ("1 0 0 0 0 1 0 0 0 0 1 0\n1.1 0 0 0 0 1 0 0 0 0 1 0\n", r"line 2: pose 2 is not a rot.*I\| is 0\.21"),
        ("1 0 0 0 0 1 0 0 0 0 1 inf\n", "line 1: expected finite numbers"),
        ("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 2\n", r"line 1: pose 1 ends in the row \[0.0, 0.0, 0.0, 2.0\]"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "poses.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as error:
        Trajectory.read(path)
    assert str(path) in str(error.value)


def test_arrays_are_checked_too() -> None:
    poses = wander(3)
    for timestamps, wrong, message in (
        (np.arange(2), poses, r"timestamps: expected \(3,\)"),
        (np.arange(3), poses[:, :3], r"poses: expected \(N, 4, 4\)"),
        (np.arange(0), poses[:0], r"N of at least 1"),
        (np.zeros(3), poses, "pose 2 has timestamp 0, not after 0"),
        (np.arange(3), np.where(poses == poses[2, 0, 3], np.nan, poses), "pose 3 is not finite"),
        (np.arange(3), 2 * poses, "pose 1 ends in the row"),
    ):
        with pytest.raises(ValueError, match=message):
            Trajectory(timestamps, wrong)


def test_a_part_and_the_first_camera() -> None:
    whole = Trajectory(np.arange(9) / 10, wander(9), timed=True)
    part = whole[2:7]
    assert len(part) == 5 and part.timed and part.timestamps[0] == 0.2
    start = part.from_start()
    np.testing.assert_allclose(start.poses[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(whole.poses[2] @ start.poses, part.poses, atol=1e-12)
    assert start.length == pytest.approx(part.length) and part.length < whole.length

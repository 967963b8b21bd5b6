"""Errors of trajectories on motions whose errors are known in closed form."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mdepth_fast.data import Trajectory
from mdepth_fast.evaluation.odometry import (
    align,
    associate,
    ate_rmse,
    chain_motions,
    evaluate_odometry,
    kitti_errors,
    relative_pose_errors,
    snippet_ate_historic,
    snippet_ate_rmse,
)


def straight(count: int, step: float = 1.0) -> np.ndarray:
    """A camera that moves forward by `step` per frame."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 2, 3] = step * np.arange(count)
    return poses


def bend(count: int, seed: int = 0) -> np.ndarray:
    """A path with turns in every direction."""
    numbers = np.random.default_rng(seed)
    steps = np.tile(np.eye(4), (count - 1, 1, 1))
    steps[:, :3, :3] = Rotation.from_rotvec(numbers.normal(0, 0.1, (count - 1, 3))).as_matrix()
    steps[:, :3, 3] = numbers.normal([0, 0, 1], 0.1, (count - 1, 3))
    return chain_motions(np.linalg.inv(steps))


def similar(poses: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The same path seen from another world of another scale."""
    world = np.eye(4)
    world[:3, :3] = Rotation.from_rotvec([0.4, -1.0, 2.0]).as_matrix()
    world[:3, 3] = (3, -7, 20)
    moved = world @ poses
    moved[:, :3, 3] *= scale
    return moved


def test_motions_chain_to_the_poses_they_come_from() -> None:
    poses = bend(12)
    motions = np.linalg.inv(poses[1:]) @ poses[:-1]  # points of camera i to camera i + 1
    np.testing.assert_allclose(chain_motions(motions), poses, atol=1e-12)
    assert len(chain_motions(np.empty((0, 4, 4)))) == 1


def test_alignments_undo_what_they_may_and_nothing_else() -> None:
    truth = bend(40)
    for scale in (1.0, 0.5, 2.0):
        prediction = similar(truth, scale)
        found = align(prediction, truth, "sim3")
        assert found.scale == pytest.approx(1 / scale)
        np.testing.assert_allclose(found.apply(prediction), truth, atol=1e-9)
        assert align(prediction, truth, "scale").scale == pytest.approx(1 / scale)
        for method in ("sim3", "scale"):
            assert ate_rmse(prediction, truth, method) == pytest.approx(0, abs=1e-9)
    assert ate_rmse(similar(truth), truth, "se3") == pytest.approx(0, abs=1e-9)
    assert ate_rmse(similar(truth), truth, "origin") == pytest.approx(0, abs=1e-9)
    # Twice as long: what is left without a scale is the distance to the start, or to the centre of gravity.
    double = truth.copy()
    double[:, :3, 3] *= 2
    centres = truth[:, :3, 3]
    assert ate_rmse(double, truth, "origin") == pytest.approx(math.sqrt((centres**2).sum(1).mean()))
    spread = math.sqrt(((centres - centres.mean(0)) ** 2).sum(1).mean())
    assert ate_rmse(double, truth, "se3") == pytest.approx(spread)


def test_a_reflection_is_no_rotation() -> None:
    truth = bend(30)
    mirrored = truth * np.array([-1.0, 1, 1, 1])[:, None] * np.array([-1.0, 1, 1, 1])
    found = align(mirrored, truth, "sim3")
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    assert ate_rmse(mirrored, truth) > 0.01
    # Brute force finds nothing better than Umeyama's rotation.
    p, g = mirrored[:, :3, 3] - mirrored[:, :3, 3].mean(0), truth[:, :3, 3] - truth[:, :3, 3].mean(0)
    others = Rotation.random(2000, rng=np.random.default_rng(0)).as_matrix()
    gains = np.einsum("nij,kj,ki->n", others, p, g)
    assert gains.max() <= np.einsum("ij,kj,ki->", found.rotation, p, g)


def test_straight_lines_and_standing_still() -> None:
    assert ate_rmse(straight(10, 0.3), straight(10), "sim3") == pytest.approx(0, abs=1e-9)
    still = np.tile(np.eye(4), (10, 1, 1))
    for method in ("scale", "sim3"):
        with pytest.raises(ValueError, match="prediction: expected a camera that moves"):
            align(still, straight(10), method)
    # Without motion a snippet's error is the length of the truth's: 1^2 + 2^2 + 3^2 + 4^2 = 30.
    assert snippet_ate_historic(still, straight(10))[0] == pytest.approx(math.sqrt(30) / 5)
    with pytest.raises(ValueError, match="finite poses, got 1 numbers"):
        ate_rmse(np.where(straight(4) == 3, np.nan, straight(4)), straight(4))
    with pytest.raises(ValueError, match=r"expected two of \(N, 4, 4\)"):
        ate_rmse(straight(4), straight(5))


def test_both_forms_of_the_snippet_error() -> None:
    truth = bend(30)
    scaled = similar(truth, 0.01)
    assert snippet_ate_historic(scaled, truth).max() == pytest.approx(0, abs=1e-12)
    wrong, right = straight(2), straight(2)
    wrong[1, :3, 3] = (1, 0, 1)  # 45 degrees off: the best scale is 1/2, and what is left is (1/2, 0, -1/2)
    assert snippet_ate_historic(wrong, right) == pytest.approx([math.sqrt(0.5) / 2])
    assert snippet_ate_rmse(wrong, right) == pytest.approx([math.sqrt(0.5 / 2)])
    # Every frame but the last starts a snippet; those at the end have 4, 3 and 2 frames.
    noisy = similar(bend(30, seed=1))
    historic, rmse = snippet_ate_historic(noisy, truth), snippet_ate_rmse(noisy, truth)
    lengths = np.array([5] * 26 + [4, 3, 2])
    assert len(historic) == 29
    np.testing.assert_allclose(rmse / historic, np.sqrt(lengths))
    assert len(snippet_ate_historic(noisy, truth, frames=3)) == 29


def test_kitti_errors_of_a_constant_drift() -> None:
    truth = straight(1200)
    # 2 % too long: every segment ends 2 % too far.
    long = straight(1200, 1.02)
    found = kitti_errors(long, truth)
    # The end is the first frame farther than the length: 101 m for 100 m.
    lengths = np.arange(100, 900, 100)
    starts = [sum(1 for first in range(0, 1200, 10) if first + n + 1 < 1200) for n in lengths]
    expected = 2 * np.average((lengths + 1) / lengths, weights=starts)
    assert found.t_rel == pytest.approx(expected) and found.r_rel == pytest.approx(0, abs=1e-9)
    assert found.segments == sum(starts)
    # The world's coordinates do not matter, and after the alignment of the scale nothing is left.
    assert kitti_errors(similar(long), truth).t_rel == pytest.approx(expected)
    assert evaluate_odometry(trajectory(long), trajectory(truth)).t_rel_percent == pytest.approx(0, abs=1e-6)
    assert evaluate_odometry(trajectory(long), trajectory(truth), alignment="se3").t_rel_percent == pytest.approx(
        expected
    )


def test_kitti_errors_of_a_constant_turn() -> None:
    """0.01 degrees per metre too much: 1 degree per 100 m."""
    turn = np.tile(np.eye(4), (500, 1, 1))
    turn[:, :3, :3] = Rotation.from_rotvec(np.outer(np.arange(500), [0, math.radians(0.01), 0])).as_matrix()
    truth = straight(500)
    found = kitti_errors(truth @ turn, truth, lengths=(100,), step=499)
    assert found.segments == 1
    assert found.r_rel == pytest.approx(1.01)  # the segment is 101 m long
    assert found.t_rel == pytest.approx(0, abs=1e-9)  # the camera turns on the spot: its centres are right
    shift, degrees = relative_pose_errors(truth @ turn, truth)
    np.testing.assert_allclose(degrees, 0.01)
    np.testing.assert_allclose(shift, np.linalg.norm(_chord(turn), axis=1), atol=1e-9)


def _chord(turn: np.ndarray) -> np.ndarray:
    """How far the turned camera's step of 1 m is off the step of the straight one."""
    forward = np.array([0.0, 0, 1])
    return np.array([R[:3, :3].T @ forward - forward for R in turn[:-1]])


def test_small_angles_are_exact() -> None:
    turn = straight(2)
    turn[1, :3, :3] = Rotation.from_rotvec([0, 1e-9, 0]).as_matrix()
    assert relative_pose_errors(turn, straight(2))[1] == pytest.approx([math.degrees(1e-9)], rel=1e-6)
    turn[1, :3, :3] = Rotation.from_rotvec([0, math.pi, 0]).as_matrix()
    assert relative_pose_errors(turn, straight(2))[1] == pytest.approx([180])


def trajectory(poses: np.ndarray, seconds: np.ndarray | None = None) -> Trajectory:
    return Trajectory(np.arange(len(poses)) if seconds is None else seconds, poses, timed=seconds is not None)


def test_all_errors_at_once() -> None:
    truth = bend(60)
    found = evaluate_odometry(trajectory(similar(truth, 0.1)), trajectory(truth))
    assert found.scale == pytest.approx(10)
    assert found.rpe_translation_rmse == pytest.approx(0, abs=1e-9)
    assert found.ate_rmse["sim3"] == pytest.approx(0, abs=1e-9) and found.ate_rmse["se3"] > 1
    values = found.to_dict()
    assert found.kitti_segments == 0 and values["t_rel_percent"] is None  # 60 m
    assert "shorter than 100 m" in found.table() and "historic" in found.table()


def test_poses_are_paired_by_time() -> None:
    truth = trajectory(bend(100), np.arange(100) / 100)
    prediction = trajectory(bend(10), np.array([0.101, 0.2, 0.309, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.5]))
    p, g = associate(prediction, truth)
    assert len(p) == 9
    np.testing.assert_allclose(g.timestamps, [0.1, 0.2, 0.31, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
    # Two predictions near one pose of the ground truth: the closer one keeps it.
    p, g = associate(trajectory(bend(3), np.array([0.496, 0.499, 0.9])), truth[[50, 90]])
    assert p.timestamps.tolist() == [0.499, 0.9] and len(g) == 2
    with pytest.raises(ValueError, match="got 0 partners for 100 poses"):
        associate(trajectory(bend(100), 5 + np.arange(100.0)), truth)
    rows = trajectory(bend(100))
    assert associate(rows, truth) == (rows, truth)
    with pytest.raises(ValueError, match=r"a pose for each of the 99 of the prediction.* got 100"):
        associate(rows[:99], truth)

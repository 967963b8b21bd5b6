"""Odometry: the errors of a trajectory against ground truth, each definition under its own name.

Poses are camera-to-world, (N,4,4), pose i of the prediction at the same moment as pose i of the ground truth. Lengths
are in the unit of the ground truth.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdepth_fast.data import Trajectory

__all__ = [
    "ALIGNMENTS",
    "KITTI_LENGTHS",
    "Alignment",
    "KittiErrors",
    "OdometryMetrics",
    "align",
    "associate",
    "ate_rmse",
    "chain_motions",
    "evaluate_odometry",
    "kitti_errors",
    "relative_pose_errors",
    "snippet_ate_historic",
    "snippet_ate_rmse",
]

Array = NDArray[np.float64]

ALIGNMENTS = {
    "origin": "the first poses coincide",
    "scale": "the first poses coincide, one scale",
    "se3": "rotation and translation (Umeyama)",
    "sim3": "rotation, translation and scale (Umeyama)",
}
KITTI_LENGTHS = (100, 200, 300, 400, 500, 600, 700, 800)


def chain_motions(motions: Array) -> Array:
    """Motions (N-1,4,4) to camera-to-world poses (N,4,4), the first of which is the identity.

    Motion i maps points of camera i to camera i + 1, as `T` does everywhere in the package.
    """
    poses = [np.eye(4)]
    for motion in motions:
        poses.append(poses[-1] @ np.linalg.inv(motion))
    return np.array(poses)


def associate(
    prediction: Trajectory, ground_truth: Trajectory, *, tolerance: float = 0.02
) -> tuple[Trajectory, Trajectory]:
    """The poses of both that belong together: one pair for each predicted pose that has a partner.

    If both have timestamps, a pose's partner is the nearest in time, at most `tolerance` seconds away. Otherwise row i
    belongs to row i. ValueError if the numbers of rows then differ, or if less than half of the prediction, or less
    than two poses, have a partner.
    """
    if not (prediction.timed and ground_truth.timed):
        if len(prediction) != len(ground_truth):
            raise ValueError(
                f"ground_truth: expected a pose for each of the {len(prediction)} of the prediction, as not both have "
                f"timestamps, got {len(ground_truth)}"
            )
        return prediction, ground_truth
    times = ground_truth.timestamps
    after = np.searchsorted(times, prediction.timestamps).clip(1, max(len(times) - 1, 1))
    before = after - 1
    after = after.clip(max=len(times) - 1)
    nearest = np.where(prediction.timestamps - times[before] <= times[after] - prediction.timestamps, before, after)
    gap = np.abs(times[nearest] - prediction.timestamps)
    kept = np.flatnonzero(gap <= tolerance)
    # A pose of the ground truth is nobody's partner twice: of two predictions the closer one keeps it.
    closest = kept[np.lexsort((gap[kept], nearest[kept]))]
    _, first = np.unique(nearest[closest], return_index=True)
    kept = np.sort(closest[first])
    if len(kept) < max(2, len(prediction) / 2):
        raise ValueError(
            f"ground_truth: expected timestamps within {tolerance:g} s of the prediction's, got {len(kept)} partners "
            f"for {len(prediction)} poses; the prediction spans {prediction.timestamps[0]:.6f} to "
            f"{prediction.timestamps[-1]:.6f} s, the ground truth {times[0]:.6f} to {times[-1]:.6f} s"
        )
    return prediction[kept], ground_truth[nearest[kept]]


class Alignment(NamedTuple):
    """x_ground_truth ~ scale * rotation @ x_prediction + translation."""

    rotation: Array
    """(3,3)"""
    translation: Array
    """(3,)"""
    scale: float

    def apply(self, poses: Array) -> Array:
        """Poses (N,4,4) in the coordinates and the scale of the ground truth."""
        moved = poses.copy()
        moved[:, :3, :3] = self.rotation @ poses[:, :3, :3]
        moved[:, :3, 3] = self.scale * poses[:, :3, 3] @ self.rotation.T + self.translation
        return moved


def align(prediction: Array, ground_truth: Array, method: str) -> Alignment:
    """How `prediction` (N,4,4) comes closest to `ground_truth` (N,4,4) under one of `ALIGNMENTS`.

    "se3" and "sim3": least squares over the camera centres (Umeyama, PAMI 1991, equations 40-43). "scale": least
    squares over the centres relative to the first. ValueError if the scale is asked for and the prediction stands
    still, as no scale fits then.
    """
    if method not in ALIGNMENTS:
        raise ValueError(f"method: expected one of {', '.join(ALIGNMENTS)}, got {method!r}")
    prediction, ground_truth = _pair(prediction, ground_truth)
    p, g = prediction[:, :3, 3], ground_truth[:, :3, 3]
    if method in ("scale", "sim3") and not np.ptp(p, axis=0).any():
        raise ValueError("prediction: expected a camera that moves, got one that stands still: no scale fits")
    if method in ("origin", "scale"):
        rotation = ground_truth[0, :3, :3] @ prediction[0, :3, :3].T
        moved, target = (p - p[0]) @ rotation.T, g - g[0]
        scale = float((moved * target).sum() / (moved**2).sum()) if method == "scale" else 1.0
        return Alignment(rotation, g[0] - scale * rotation @ p[0], scale)
    centred_p, centred_g = p - p.mean(0), g - g.mean(0)
    u, d, v = np.linalg.svd(centred_g.T @ centred_p / len(p))
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = u * signs @ v
    scale = float((d * signs).sum() / (centred_p**2).sum(1).mean()) if method == "sim3" else 1.0
    return Alignment(rotation, g.mean(0) - scale * rotation @ p.mean(0), scale)


def ate_rmse(prediction: Array, ground_truth: Array, method: str = "sim3") -> float:
    """Absolute trajectory error of the whole trajectory: sqrt(mean |e|^2) over the camera centres after `align`.

    Source: Sturm et al., IROS 2012, section V.
    """
    prediction, ground_truth = _pair(prediction, ground_truth)
    moved = align(prediction, ground_truth, method).apply(prediction)
    return math.sqrt(((moved - ground_truth)[:, :3, 3] ** 2).sum(1).mean())


def snippet_ate_historic(prediction: Array, ground_truth: Array, frames: int = 5) -> Array:
    """What SfMLearner's line of work prints as ATE, one number per snippet: sqrt(sum |e|^2) / n.

    It is NOT a root of the mean: it is smaller by sqrt(n). Use it to compare with published tables, and
    `snippet_ate_rmse` otherwise. A snippet starts at every frame but the last; the ones at the end have fewer than
    `frames` frames, n >= 2, and count like the others. The centres are in the coordinates of the snippet's first
    camera; each snippet has its own scale, sum(g p) / sum(p^2).
    """
    errors = _snippet_errors(prediction, ground_truth, frames)
    return np.array([math.sqrt((error**2).sum()) / len(error) for error in errors])


def snippet_ate_rmse(prediction: Array, ground_truth: Array, frames: int = 5) -> Array:
    """The root of the mean of |e|^2 of every snippet, of those that `snippet_ate_historic` uses."""
    errors = _snippet_errors(prediction, ground_truth, frames)
    return np.array([math.sqrt((error**2).sum() / len(error)) for error in errors])


def _snippet_errors(prediction: Array, ground_truth: Array, frames: int) -> list[Array]:
    prediction, ground_truth = _pair(prediction, ground_truth)
    if frames < 2:
        raise ValueError(f"frames: expected at least 2, got {frames}")
    errors = []
    for start in range(len(prediction) - 1):
        p, g = (_centres_from_first(poses[start : start + frames]) for poses in (prediction, ground_truth))
        square = (p**2).sum()
        scale = (g * p).sum() / square if square > 0 else 1.0  # without motion every scale gives the same error
        errors.append(scale * p - g)
    return errors


def _centres_from_first(poses: Array) -> Array:
    return (poses[:, :3, 3] - poses[0, :3, 3]) @ poses[0, :3, :3]


class KittiErrors(NamedTuple):
    """Means over all segments; NaN where the ground truth is shorter than the shortest length."""

    t_rel: float
    """percent of the length"""
    r_rel: float
    """degrees per 100 m"""
    segments: int
    """how many there are"""


def kitti_errors(
    prediction: Array, ground_truth: Array, *, lengths: tuple[float, ...] = KITTI_LENGTHS, step: int = 10
) -> KittiErrors:
    """The errors of KITTI's odometry benchmark (Geiger et al., CVPR 2012): drift over segments of 100 to 800 m.

    A segment starts at every `step`-th frame and ends at the first frame that is more than its length away along the
    ground truth. Prediction and ground truth are in metres: align the scale of monocular predictions first.
    """
    prediction, ground_truth = _pair(prediction, ground_truth)
    steps = np.linalg.norm(np.diff(ground_truth[:, :3, 3], axis=0), axis=1)
    distance = np.concatenate([[0.0], np.cumsum(steps)])
    shifts, turns = [], []
    for first in range(0, len(distance), step):
        for length in lengths:
            last = int(np.searchsorted(distance, distance[first] + length, side="right"))
            if last == len(distance):
                continue
            error = _drift(prediction[[first, last]], ground_truth[[first, last]])
            shifts.append(float(np.linalg.norm(error[:3, 3])) / length)
            turns.append(float(_angle(error[None])[0]) / length)
    if not shifts:
        return KittiErrors(math.nan, math.nan, 0)
    return KittiErrors(100 * float(np.mean(shifts)), 100 * math.degrees(float(np.mean(turns))), len(shifts))


def relative_pose_errors(prediction: Array, ground_truth: Array, delta: int = 1) -> tuple[Array, Array]:
    """Relative pose errors over `delta` frames, (N-delta,): translation, and rotation in degrees.

    Source: Sturm et al., IROS 2012, section V. Align the scale of monocular predictions first.
    """
    prediction, ground_truth = _pair(prediction, ground_truth)
    if not 1 <= delta < len(prediction):
        raise ValueError(f"delta: expected 1..{len(prediction) - 1} frames, got {delta}")
    pairs = [[i, i + delta] for i in range(len(prediction) - delta)]
    errors = np.array([_drift(prediction[pair], ground_truth[pair]) for pair in pairs])
    return np.linalg.norm(errors[:, :3, 3], axis=1), np.degrees(_angle(errors))


def _drift(prediction: Array, ground_truth: Array) -> Array:
    """The motion (4,4) between two poses that the prediction lacks, inv(dP) dG."""
    p, g = (np.linalg.inv(poses[0]) @ poses[1] for poses in (prediction, ground_truth))
    drift: Array = np.linalg.inv(p) @ g
    return drift


def _angle(T: Array) -> Array:
    """Rotation angles (n,) of (n,4,4) in radians, from |R - I|, exact for small ones, where the trace is not."""
    chord = np.linalg.norm(T[:, :3, :3] - np.eye(3), axis=(1, 2)) / math.sqrt(8)
    angle: Array = 2 * np.arcsin(chord.clip(max=1.0))
    return angle


def _pair(prediction: Array, ground_truth: Array) -> tuple[Array, Array]:
    p, g = (np.asarray(poses, dtype=np.float64) for poses in (prediction, ground_truth))
    if p.shape != g.shape or p.shape[1:] != (4, 4) or len(p) < 2:
        raise ValueError(
            f"prediction, ground_truth: expected two of (N, 4, 4) with N of at least 2, got {p.shape} and {g.shape}"
        )
    for name, poses in (("prediction", p), ("ground_truth", g)):
        if not np.isfinite(poses).all():
            raise ValueError(
                f"{name}: expected finite poses, got {int((~np.isfinite(poses)).sum())} numbers that are not"
            )
    return p, g


@dataclass(frozen=True)
class OdometryMetrics:
    """All errors of one trajectory; `evaluate_odometry` says how they are made. Lengths in the ground truth's unit."""

    poses: int
    length: float
    alignment: str
    scale: float
    snippet_frames: int
    snippet_ate_historic_mean: float
    snippet_ate_historic_std: float
    snippet_ate_rmse_mean: float
    snippet_ate_rmse_std: float
    ate_rmse: dict[str, float]
    t_rel_percent: float
    r_rel_deg_per_100m: float
    kitti_segments: int
    rpe_translation_rmse: float
    rpe_rotation_rmse_deg: float

    @property
    def finite(self) -> bool:
        """Whether all errors are finite, those of KITTI where there are segments."""
        values = {key: value for key, value in asdict(self).items() if isinstance(value, float)}
        if not self.kitti_segments:
            del values["t_rel_percent"], values["r_rel_deg_per_100m"]
        return all(map(math.isfinite, [*values.values(), *self.ate_rmse.values()]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; None for what is not defined."""
        return {key: None if value != value else value for key, value in asdict(self).items()}

    def table(self) -> str:
        """One error per line, each with its definition."""
        n = self.snippet_frames
        drift = (
            f"{self.t_rel_percent:.3f} %, {self.r_rel_deg_per_100m:.3f} deg/100 m over {self.kitti_segments} segments"
            if self.kitti_segments
            else f"none: the path is shorter than {KITTI_LENGTHS[0]} m"
        )
        rows = [
            (f"ATE of {n}-frame snippets, historic", f"{self._spread('historic')}  sqrt(sum e^2) / n, as published"),
            (f"ATE of {n}-frame snippets, RMSE", f"{self._spread('rmse')}  sqrt(sum e^2 / n)"),
            *((f"ATE RMSE, {name}", f"{value:.4f}  {ALIGNMENTS[name]}") for name, value in self.ate_rmse.items()),
            ("KITTI t_rel, r_rel", drift),
            ("RPE RMSE, frame to frame", f"{self.rpe_translation_rmse:.4f}, {self.rpe_rotation_rmse_deg:.4f} deg"),
        ]
        title = (
            f"{self.poses} poses, path of {self.length:.2f} m; t_rel, r_rel and RPE after alignment {self.alignment} "
            f"(scale {self.scale:.4g})"
        )
        return "\n".join([title, *(f"{name:<33} {text}" for name, text in rows)])

    def _spread(self, form: str) -> str:
        mean, std = (getattr(self, f"snippet_ate_{form}_{what}") for what in ("mean", "std"))
        return f"{mean:.4f} +- {std:.4f}"


def evaluate_odometry(
    prediction: Trajectory, ground_truth: Trajectory, *, alignment: str = "sim3", snippet: int = 5
) -> OdometryMetrics:
    """All errors of a prediction. Pose i of both is of the same moment, see `associate`.

    alignment: of `ALIGNMENTS`, before t_rel, r_rel and RPE, which depend on its scale alone; "se3" for a prediction in
    metres, "sim3" or "scale" for one of unknown scale. snippet: frames of a snippet. The full-trajectory error is
    given for every alignment.

    Raises:
        ValueError: there are fewer poses than a snippet has, or the errors are not finite, as of poses too large.
    """
    p, g = _pair(prediction.poses, ground_truth.poses)
    if not 2 <= snippet <= len(p):
        raise ValueError(f"snippet: expected 2 to {len(p)} frames, as there are {len(p)} poses, got {snippet}")
    try:
        with np.errstate(all="ignore"):  # what overflows is found below
            metrics = _evaluate(p, g, ground_truth.length, alignment, snippet)
    except np.linalg.LinAlgError:
        metrics = None
    if metrics is None or not metrics.finite:
        largest = max(float(np.abs(poses[:, :3, 3]).max()) for poses in (p, g))
        raise ValueError(
            f"prediction, ground_truth: expected positions whose errors are finite numbers, got ones of up to "
            f"{largest:.3g}"
        )
    return metrics


def _evaluate(p: Array, g: Array, length: float, alignment: str, snippet: int) -> OdometryMetrics:
    found = align(p, g, alignment)
    moved = found.apply(p)
    kitti = kitti_errors(moved, g)
    historic, rmse = (form(p, g, snippet) for form in (snippet_ate_historic, snippet_ate_rmse))
    shift, turn = relative_pose_errors(moved, g)
    moves = bool(np.ptp(p[:, :3, 3], axis=0).any())
    return OdometryMetrics(
        poses=len(p),
        length=length,
        alignment=alignment,
        scale=found.scale,
        snippet_frames=snippet,
        snippet_ate_historic_mean=float(historic.mean()),
        snippet_ate_historic_std=float(historic.std()),
        snippet_ate_rmse_mean=float(rmse.mean()),
        snippet_ate_rmse_std=float(rmse.std()),
        ate_rmse={name: ate_rmse(p, g, name) for name in ALIGNMENTS if moves or name in ("origin", "se3")},
        t_rel_percent=kitti.t_rel,
        r_rel_deg_per_100m=kitti.r_rel,
        kitti_segments=kitti.segments,
        rpe_translation_rmse=math.sqrt((shift**2).mean()),
        rpe_rotation_rmse_deg=math.sqrt((turn**2).mean()),
    )

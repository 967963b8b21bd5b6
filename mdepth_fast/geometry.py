"""Intrinsics and poses: small differentiable functions under the losses and the data sets.

Conventions, everywhere in the package: pixel centres lie on integers 0..W-1, `K` is in pixels of the image at hand,
`T` maps points of the target camera to the source camera, depth is z along the optical axis in the unit of `T`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "RectifiedPair",
    "backproject",
    "depth_from_disparity",
    "disparity_from_depth",
    "euler_from_rotation",
    "flip_geometry",
    "invert_pose",
    "pose_matrix",
    "pose_matrix_from_vector",
    "pose_vector",
    "project",
    "projection_matrix",
    "rectified_pair",
    "rotation_from_axis_angle",
    "rotation_from_euler",
    "scale_intrinsics",
]


def rotation_from_axis_angle(axis_angle: Tensor) -> Tensor:
    """(..., 3) axis times angle in radians to (..., 3, 3) rotation matrices (Rodrigues), smooth at zero."""
    angle_sq = axis_angle.square().sum(-1)[..., None, None]
    # Taylor below 1e-4 rad^2: there sin(a)/a and (1-cos(a))/a^2 lose their digits, and sqrt has no gradient at 0.
    small = angle_sq < 1e-4
    safe = torch.where(small, torch.ones_like(angle_sq), angle_sq)
    angle = safe.sqrt()
    first = torch.where(small, 1 - angle_sq / 6 + angle_sq.square() / 120, angle.sin() / angle)
    second = torch.where(small, 0.5 - angle_sq / 24 + angle_sq.square() / 720, (1 - angle.cos()) / safe)
    x, y, z = axis_angle.unbind(-1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    return eye + first * skew + second * (skew @ skew)


def rotation_from_euler(angles: Tensor) -> Tensor:
    """(..., 3) angles (rx, ry, rz) in radians to (..., 3, 3) rotation matrices `Rx Ry Rz`.

    SfMLearner (arXiv 1704.07813) and vid2depth (arXiv 1802.05522); as there, angles are clipped to [-pi, pi], beyond
    which they have no gradient.
    """
    angles = angles.clamp(-math.pi, math.pi)
    (sx, sy, sz), (cx, cy, cz) = angles.sin().unbind(-1), angles.cos().unbind(-1)
    rows = [
        *(cy * cz, -cy * sz, sy),
        *(cx * sz + sx * sy * cz, cx * cz - sx * sy * sz, -sx * cy),
        *(sx * sz - cx * sy * cz, sx * cz + cx * sy * sz, cx * cy),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def euler_from_rotation(rotation: Tensor) -> Tensor:
    """(..., 3, 3) rotation matrices to the angles (..., 3) of `rotation_from_euler`, ry in [-pi/2, pi/2].

    Where ry is +-pi/2 only rx + rz or rx - rz is defined, and the gradient is not finite.
    """
    R = rotation
    cosine = torch.hypot(R[..., 0, 0], R[..., 0, 1])
    return torch.stack(
        [
            torch.atan2(-R[..., 1, 2], R[..., 2, 2]),
            torch.atan2(R[..., 0, 2], cosine),
            torch.atan2(-R[..., 0, 1], R[..., 0, 0]),
        ],
        -1,
    )


def pose_matrix(axis_angle: Tensor, translation: Tensor, invert: bool = False) -> Tensor:
    """(..., 3) axis-angle and (..., 3) translation to (..., 4, 4): `Trans(t) Rot(r)`, or its inverse.

    The inverse is `Rot(r)^T Trans(-t)`: Monodepth2 predicts every motion in temporal order and inverts it for
    the source before the target.
    """
    rotation = rotation_from_axis_angle(axis_angle)
    column = translation.unsqueeze(-1)
    if invert:
        rotation = rotation.transpose(-1, -2)
        column = -(rotation @ column)
    return _rigid(rotation, column)


def pose_matrix_from_vector(vector: Tensor) -> Tensor:
    """(..., 6) vectors (tx, ty, tz, rx, ry, rz) to (..., 4, 4): `Trans(t) Rx Ry Rz`, see `rotation_from_euler`.

    The order of SfMLearner and vid2depth.
    """
    return _rigid(rotation_from_euler(vector[..., 3:]), vector[..., :3].unsqueeze(-1))


def pose_vector(T: Tensor) -> Tensor:
    """Rigid (..., 4, 4) transforms to the vectors (..., 6) of `pose_matrix_from_vector`."""
    return torch.cat([T[..., :3, 3], euler_from_rotation(T[..., :3, :3])], -1)


def _rigid(rotation: Tensor, column: Tensor) -> Tensor:
    top = torch.cat([rotation, column], -1)
    bottom = torch.eye(4, dtype=top.dtype, device=top.device)[3:].expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def invert_pose(T: Tensor) -> Tensor:
    """Inverse of rigid (..., 4, 4) transforms, by transposition."""
    rotation = T[..., :3, :3].transpose(-1, -2)
    top = torch.cat([rotation, -(rotation @ T[..., :3, 3:])], -1)
    return torch.cat([top, T[..., 3:, :]], -2)


def scale_intrinsics(K: Tensor, scale_x: float, scale_y: float) -> Tensor:
    """`K` (..., 3, 3) of an image resized by `scale_x`, `scale_y`; pixel centres stay on integers.

    A pixel covers [i - 0.5, i + 0.5], so the edge, not the centre of pixel 0, stays in place:
    `cx' = (cx + 0.5) * scale_x - 0.5`.
    """
    fx, fy = K[..., 0, 0] * scale_x, K[..., 1, 1] * scale_y
    cx, cy = (K[..., 0, 2] + 0.5) * scale_x - 0.5, (K[..., 1, 2] + 0.5) * scale_y - 0.5
    skew, zero, one = K[..., 0, 1] * scale_x, torch.zeros_like(fx), torch.ones_like(fx)
    return torch.stack([fx, skew, cx, zero, fy, cy, zero, zero, one], -1).unflatten(-1, (3, 3))


def flip_geometry(K: Tensor, T: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """`K` (..., 3, 3) and `T` (..., 4, 4) after all images were mirrored left to right.

    The principal point moves to `width - 1 - cx` and the motion is mirrored, `F T F` with `F = diag(-1, 1, 1, 1)`.
    """
    K = K.clone()
    K[..., 0, 2] = width - 1 - K[..., 0, 2]
    K[..., 0, 1] = -K[..., 0, 1]
    mirror = T.new_tensor([-1.0, 1.0, 1.0, 1.0])
    return K, T * mirror[:, None] * mirror


def backproject(depth: Tensor, K: Tensor) -> Tensor:
    """Depth (B,1,H,W) and K (B,3,3) to camera points (B,3,H,W), in the unit of depth."""
    height, width = depth.shape[-2:]
    v, u = torch.meshgrid(
        torch.arange(height, dtype=depth.dtype, device=depth.device),
        torch.arange(width, dtype=depth.dtype, device=depth.device),
        indexing="ij",
    )
    rays = _inverse(K.to(depth.dtype)) @ torch.stack([u, v, torch.ones_like(u)]).flatten(1)
    return depth * rays.unflatten(-1, (height, width))


def project(points: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """Camera points (B,3,...) and K (B,3,3) to pixel coordinates (B,2,...) and depth z (B,1,...)."""
    uvw = (K.to(points.dtype) @ points.flatten(2)).view_as(points)
    z = points[:, 2:]
    return uvw[:, :2] / z, z


def projection_matrix(K: Tensor, T: Tensor, source_K: Tensor | None = None) -> Tensor:
    """`[K_source R K^-1 | K_source t]`, (..., 3, 4), in float64: pixel times depth in, source pixel times z out.

    K (B,3,3); T (B,4,4) or (B,S,4,4); source_K like K or (B,S,3,3), `K` where None. Differentiable in all three.
    The matrix is tiny, so double costs nothing and keeps `K^-1` exact to the last bit of the images' float32.
    """
    K, T = K.double(), T.double()
    source_K = K if source_K is None else source_K.double()
    inverse = _inverse(K)
    if T.dim() == 4:
        inverse = inverse.unsqueeze(1)
        if source_K.dim() == 3:
            source_K = source_K.unsqueeze(1)
    return torch.cat([source_K @ T[..., :3, :3] @ inverse, source_K @ T[..., :3, 3:]], -1)


def _inverse(K: Tensor) -> Tensor:
    """Of (..., 3, 3), by cofactors: few small kernels on a GPU, which a CUDA graph can hold.

    A singular or infinite K gives a matrix that is not finite.
    """
    cofactors = torch.linalg.cross(K.roll(-1, -2), K.roll(-2, -2))
    return cofactors.transpose(-1, -2) / (K[..., :1, :] * cofactors[..., :1, :]).sum(-1, keepdim=True)


def depth_from_disparity(
    disparity: Tensor, focal: float | Tensor, baseline: float | Tensor, offset: float | Tensor = 0.0
) -> Tensor:
    """Depth `focal * baseline / (disparity + offset)` of a rectified pair, in the unit of `baseline`.

    Args:
        disparity: x in the left image minus x in the right image, any shape; in pixels, or in shares of the width.
        focal: focal length in the unit of `disparity`; a number, or a tensor that broadcasts against it.
        baseline: distance between the cameras, positive.
        offset: cx of the right camera minus cx of the left one, in the unit of `disparity`; 0 if they agree
            (Middlebury's `doffs`).

    Where `disparity + offset` is 0 or less, the rays meet nowhere in front of the cameras: the depth is infinite. NaN
    stays NaN. ValueError for a focal length or baseline that is a number and not positive.
    """
    _check_pair(focal, baseline)
    parallax = disparity + offset
    behind = parallax <= 0
    # The division is harmless on both sides of the choice, or its gradient would be NaN.
    return torch.where(behind, torch.inf, focal * baseline / torch.where(behind, 1, parallax))


def disparity_from_depth(
    depth: Tensor, focal: float | Tensor, baseline: float | Tensor, offset: float | Tensor = 0.0
) -> Tensor:
    """The inverse of `depth_from_disparity`: `focal * baseline / depth - offset`, in the unit of `focal`.

    Infinite depth gives `-offset`, depth 0 infinity. ValueError as there.
    """
    _check_pair(focal, baseline)
    return focal * baseline / depth - offset


def _check_pair(focal: float | Tensor, baseline: float | Tensor) -> None:
    for name, value in (("focal", focal), ("baseline", baseline)):
        if not isinstance(value, Tensor) and not value > 0:
            raise ValueError(f"{name}: expected a positive number, got {value!r}")


class RectifiedPair(NamedTuple):
    """Calibration of two cameras whose images are rectified."""

    focal: float
    """pixels"""
    baseline: float
    """distance from the left to the right camera"""
    offset: float
    """cx of the right camera minus cx of the left one, pixels"""


def rectified_pair(K: Tensor, source_K: Tensor, T: Tensor) -> RectifiedPair:
    """The rectified pair that a target and a source camera form, whichever of them stands on the left.

    Args:
        K, source_K: (3, 3), in pixels of images of one size.
        T: (4, 4), target camera to source camera.

    Raises:
        ValueError: the pair is not rectified: the cameras are turned against each other by more than 1 mrad, one
            stands above or before the other by more than 2 % of the baseline (KITTI's do by 0.5 %), or focal lengths
            or rows differ.
    """
    K, source_K, T = K.double(), source_K.double(), T.double()
    shift, turn = T[:3, 3], (T[:3, :3] - torch.eye(3, dtype=T.dtype, device=T.device)).abs().max()
    baseline = -float(shift[0])
    if baseline == 0 or turn > 1e-3 or shift[1:].abs().max() > 0.02 * abs(baseline):
        raise ValueError(
            f"T: expected a shift along x between the cameras of a rectified pair, got a translation {shift.tolist()} "
            f"and a rotation matrix that differs from the identity by {turn:.2g}"
        )
    difference = (source_K - K).abs()
    difference[0, 2] = 0
    if difference.max() > 1e-3 * K[0, 0]:
        raise ValueError(
            "source_K: expected the focal lengths and the row of the principal point of K, as in a rectified pair, "
            f"got {source_K.tolist()} and {K.tolist()}"
        )
    offset = float(source_K[0, 2] - K[0, 2])
    return RectifiedPair(float(K[0, 0]), abs(baseline), offset if baseline > 0 else -offset)

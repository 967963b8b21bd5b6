"""The scale of a prediction, and the shift of inverse depth, from what is known of the scene or the camera.

Maps are (B, 1, H, W), `K` is (3, 3) or (B, 3, 3) in pixels of the map; every image gets its own scale. An image that
does not determine it is a ValueError, never a guess.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mdepth_fast.geometry import backproject

__all__ = ["affine_from_reference", "camera_matrices", "fit_line", "scale_from_ground", "scale_from_reference"]

Array = NDArray[np.float64]


def fit_line(x: NDArray[Any], y: NDArray[Any]) -> tuple[float, float]:
    """Scale and shift of the least-squares line y = scale * x + shift; a constant x gives its mean offset."""
    centred = x - x.mean()
    square = float((centred**2).sum())
    scale = float((centred * (y - y.mean())).sum()) / square if square > 0 else 1.0
    return scale, float(y.mean() - scale * x.mean())


def scale_from_reference(depth: Tensor, reference: Tensor) -> Tensor:
    """The median of reference / depth, float64 (B,), in the unit of `reference` per unit of `depth`.

    A reference point is a pixel where `reference` (B, 1, H, W) is finite and positive. ValueError for an image without
    one where the depth is finite and positive too.
    """
    found = []
    for index, (values, truth) in enumerate(_at_reference(depth, reference)):
        counted = values > 0
        if not counted.any():
            raise ValueError(f"reference: expected a point where depth is predicted in image {index}, got none")
        found.append(float(np.median(truth[counted] / values[counted])))
    return torch.tensor(found, dtype=torch.float64)


def affine_from_reference(inverse: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift, float64 (B,) each, with 1 / reference ~ scale * inverse + shift, by least squares.

    Source: MiDaS, arXiv 1907.01341, eq. 4, which aligns in inverse depth. ValueError for an image with fewer than three
    reference points or without two different values at them, and where the fitted scale is not positive: then the
    reference says that larger is farther.
    """
    found = []
    for index, (values, truth) in enumerate(_at_reference(inverse, reference)):
        if len(values) < 3 or np.ptp(values) <= 1e-6 * np.abs(values).max():
            raise ValueError(
                f"reference: expected at least 3 points of different depth in image {index}, which scale and shift "
                f"need, got {len(values)}"
            )
        scale, shift = fit_line(values, 1 / truth)
        if not scale > 0:
            raise ValueError(
                f"reference: expected depth that falls where the inverse depth of image {index} rises, got a fitted "
                f"scale of {scale:.3g}"
            )
        found.append((scale, shift))
    scales, shifts = torch.tensor(found, dtype=torch.float64).reshape(-1, 2).unbind(1)
    return scales, shifts


def _at_reference(values: Tensor, reference: Tensor) -> list[tuple[Array, Array]]:
    """Of each image the finite values at its reference points, and the reference there."""
    if not isinstance(reference, Tensor):
        raise TypeError(f"reference: expected a torch.Tensor, got {type(reference).__name__}")
    if reference.shape != values.shape:
        expected = tuple(values.shape)
        raise ValueError(f"reference: expected the shape of the prediction, {expected}, got {tuple(reference.shape)}")
    found = []
    for one, truth in zip(values.detach(), reference.detach().to(values.device)):
        counted = truth.isfinite() & (truth > 0) & one.isfinite()
        found.append((one[counted].cpu().double().numpy(), truth[counted].cpu().double().numpy()))
    return found


def camera_matrices(K: Tensor, batch: int) -> Tensor:
    """`K` (3, 3) or (B, 3, 3) as (B, 3, 3); TypeError or ValueError unless each can be a camera's."""
    if not isinstance(K, Tensor):
        raise TypeError(f"K: expected a torch.Tensor, got {type(K).__name__}")
    if tuple(K.shape) not in ((3, 3), (batch, 3, 3)):
        raise ValueError(f"K: expected shape (3, 3) or ({batch}, 3, 3), got {tuple(K.shape)}")
    bad = ~K.isfinite().all() | (K[..., 0, 0] <= 0).any() | (K[..., 1, 1] <= 0).any()
    if bad or (K[..., 1, 0] != 0).any() or (K[..., 2, :] != K.new_tensor([0, 0, 1])).any():
        raise ValueError(f"K: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0, got {K.tolist()}")
    return K.expand(batch, 3, 3)


_GROUND = (0.65, 0.2, 0.8)  # the ground is sought below this share of the height, between these of the width
_TILT = 0.8  # least cosine of the angle between the ground's normal and the image's vertical: 37 degrees
_TOLERANCE = 0.05  # relative distance in inverse depth within which a point lies on the plane
_SUPPORT = 0.5  # least share of the points that must lie on it
_LEAST_POINTS = 50
_SAMPLED, _TRIALS = 2000, 200


def scale_from_ground(depth: Tensor, K: Tensor, camera_height: float) -> Tensor:
    """The scale, float64 (B,), that puts the camera at `camera_height` above the ground.

    The plane is fitted to the lower middle of each image. A plane is linear in inverse depth, 1 / z = n . ray / height,
    so RANSAC draws three points a time, keeps the plane with the most points on it, and least squares refines it on
    these. Source: the region and the plane of Song and Chandraker, CVPR 2014; RANSAC as Zhou, Dai, Li,
    arXiv 1903.00912; scaling of learned depth as DNet, arXiv 2004.05560.

    ValueError for an image in which no plane below the camera, tilted by less than 37 degrees, holds half of the
    points: a wall, a crowd, a camera on its side.
    """
    if not 0 < camera_height < np.inf:
        raise ValueError(f"camera_height: expected a positive number of metres, got {camera_height}")
    height, width = depth.shape[-2:]
    top, left, right = int(_GROUND[0] * height), int(_GROUND[1] * width), int(np.ceil(_GROUND[2] * width))
    rays = backproject(torch.ones(len(depth), 1, height, width, dtype=torch.float64), K.cpu().double())
    rays = rays[..., top:, left:right].flatten(2).transpose(1, 2)
    region = depth.detach()[:, 0, top:, left:right].flatten(1).cpu().double()
    found = []
    for index, (z, ray) in enumerate(zip(region.numpy(), rays.numpy())):
        counted = np.isfinite(z) & (z > 0)
        normal = _ground(ray[counted], 1 / z[counted]) if counted.sum() >= _LEAST_POINTS else None
        if normal is None:
            raise ValueError(
                f"camera_height: expected a plane below the camera in the lower middle of image {index}, found none"
            )
        found.append(camera_height * float(np.linalg.norm(normal)))
    return torch.tensor(found, dtype=torch.float64)


def _ground(rays: Array, inverse: Array) -> Array | None:
    """The plane n, (3,), with n . ray = 1 / z for most points: its unit normal over the height of the camera above."""
    numbers = np.random.default_rng(0)  # the same prediction gives the same scale
    chosen = numbers.permutation(len(rays))[:_SAMPLED]
    sample, values = rays[chosen], inverse[chosen]
    trios = numbers.integers(0, len(sample), (_TRIALS, 3))
    flat = np.abs(np.linalg.det(sample[trios])) < 1e-9  # three points of one line of the image
    trios = trios[~flat]
    planes = np.linalg.solve(sample[trios], values[trios][..., None])[..., 0]
    planes = planes[planes[:, 1] >= _TILT * np.linalg.norm(planes, axis=1)]
    if not len(planes):
        return None
    near = np.abs(planes @ sample.T - values) < _TOLERANCE * values
    plane: Array = planes[near.sum(1).argmax()]
    for _ in range(5):
        near = np.abs(rays @ plane - inverse) < _TOLERANCE * inverse
        if near.sum() < 3:
            return None
        plane = np.linalg.lstsq(rays[near], inverse[near], rcond=None)[0]
    near = np.abs(rays @ plane - inverse) < _TOLERANCE * inverse
    upright = plane[1] >= _TILT * np.linalg.norm(plane)
    return plane if upright and near.mean() >= _SUPPORT else None

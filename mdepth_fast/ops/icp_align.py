"""Rigid alignment of point clouds by iterative closest points, with the gradient of vid2depth."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast._op import Backward, Op, T, array
from mdepth_fast.ops import _checks
from mdepth_fast.ops.inverse_warp import MIN_Z

REACH = 3  # of the window on organised clouds, in pixels to each side
GAP = 1e-9  # where the best rotations differ by less, relative to the spread of the pairs, these lie on a line
NOISE = 1e-14  # the same relative to the squared coordinates, for pairs in one point
CHUNK = 1 << 22  # distances that the reference computes together


class IcpResult(NamedTuple):
    """Result of `icp_align`: the rigid transform T (B, 4, 4), and per source point a residual and whether it counts."""

    T: Tensor
    residual: Tensor
    valid: Tensor


def icp_align(
    source_points: Tensor,
    target_points: Tensor,
    init: Tensor,
    *,
    iterations: int = 10,
    backend: str | None = None,
) -> IcpResult:
    """The rigid transform T with `T * source ~ target`, by point-to-point ICP that starts at `init`.

    Besl and McKay, TPAMI 14(2), 1992. Each iteration matches every source point, moved by the current T, with its
    nearest target point. The rotation and translation that minimise the sum of squared distances of the matched pairs
    (Horn, JOSA A 4(4), 1987; the solution of Kabsch and Arun, always a proper rotation) are then composed onto T. An
    iteration with fewer than 3 pairs changes nothing; one whose pairs lie on a line only shifts.

    Organised clouds (B, H, W, 3) are projected: the target cloud is in the frame of its own pinhole camera, and the
    focal lengths and the centre are read off it (least squares of the column over x/z, of the row over y/z). A moved
    source point is matched with the nearest target point in the 7x7 pixels around its projection. Points with z <= 1e-6
    do not count, nor do source points whose window lies outside the target image. For unorganised clouds (B, N, 3) the
    nearest neighbour is exact, over the whole target. Non-finite points never count. Among equally near target points
    the first wins.

    The gradient is that of the 3D loss of vid2depth (arXiv 1802.05522, section 3.3). Matches and iterations are
    constants, and so is T. For `init` this is exact: between the same pairs, the least-squares T does not depend on
    where the iterations began. For the source it is the paper's approximation, which ignores how depth changes the
    motion. Therefore

    - `residual = match - T * source` gives the source `-R^T dL/dresidual`, R being the rotation of T. The paper has
      `-dL/dresidual`; it leaves out the change of axes between the two cameras.
    - T itself carries no gradient. The paper penalises the correction that ICP finds beyond the predicted motion,
      `T @ invert_pose(init)`. Autograd takes that through `init`, with a negative sign: to first order the paper's
      `dL/dinit = -dL/dcorrection`, so descent moves the predicted motion towards T.
    - The target gets no gradient.

    Args:
        source_points: (B, H, W, 3) or (B, N, 3); gets the gradient.
        target_points: (B, H', W', 3) or (B, M, 3), of the same kind as the source, in the same unit.
        init: (B, 4, 4), rigid, from the source's frame to the target's.
        iterations: 0 or more; 0 keeps `init` and only computes matches and residuals.
        backend: "cpu", "cuda", "nvrtc" or "reference"; None chooses.

    Returns:
        T (B, 4, 4), `init` included; residual, shaped like the source: match minus T * source for the nearest neighbour
        under the final T, 0 where not valid; valid (B, H, W) or (B, N) bool: the point counts and has a match. T and
        residual are computed in float64 and returned in the working dtype (float32 for half and bfloat16).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    organised = isinstance(source_points, Tensor) and source_points.dim() == 4
    kind = (None, None, 3) if organised else (None, 3)
    symbols = "(B, H, W, 3)" if organised else "(B, N, 3)"
    expected = symbols if organised else "(B, H, W, 3) or (B, N, 3)"
    shape = _checks.tensor(source_points, "source_points", (None, *kind), expected).shape
    batch = shape[0]
    _checks.tensor(target_points, "target_points", (batch, *kind), f"{symbols}, as source_points has it,")
    _checks.tensor(init, "init", (batch, 4, 4), "(B, 4, 4)")
    _checks.same_device(source_points, "source_points", target_points=target_points, init=init)
    for name, cloud in (("source_points", source_points), ("target_points", target_points)):
        if 0 in cloud.shape[1:]:
            raise ValueError(f"{name}: expected at least one point, got shape {tuple(cloud.shape)}")
    _checks.count(iterations, "iterations")
    dtype = _checks.working_dtype(source_points, target_points)
    source, target = _checks.cast(dtype, source_points, target_points.detach())
    residual, transform, valid = _OP(
        backend,
        source=source.flatten(1, -2),
        target=target if organised else target.unsqueeze(1),
        init=init.detach().double(),
        iterations=iterations,
        organised=organised,
    )
    return IcpResult(transform.to(dtype), residual.reshape(shape), valid.reshape(shape[:-1]))


def reference(
    source: Tensor, target: Tensor, init: Tensor, iterations: int, organised: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The reference in plain PyTorch, which every backend is tested against.

    source (B, N, 3); target (B, H, W, 3), where an unorganised cloud is a row; init (B, 4, 4) float64. Returns
    residual, transform and valid.
    """
    with torch.no_grad():
        cloud, points = source.detach().double(), target.detach().double()
        counts = points.isfinite().all(-1, keepdim=True)
        usable = cloud.isfinite().all(-1)
        if organised:
            counts = counts & (points[..., 2:] > MIN_Z)
            usable = usable & (cloud[..., 2] > MIN_Z)
        points = points.masked_fill(~counts, torch.inf)  # infinitely far: never the nearest
        cloud = cloud.masked_fill(~usable[..., None], torch.nan)
        nearest = _in_windows(points, counts) if organised else _anywhere(points)
        transform = init.detach()
        for _ in range(iterations):
            moved = _moved(transform, cloud)
            match, valid = _matched(nearest, moved)
            transform = _step(moved, match, valid) @ transform
        match, valid = _matched(nearest, _moved(transform, cloud))
    residual = match - _moved(transform, torch.where(valid[..., None], source.double(), 0.0))
    return torch.where(valid[..., None], residual, 0.0).to(source.dtype), transform, valid


def _moved(transform: Tensor, cloud: Tensor) -> Tensor:
    return cloud @ transform[:, :3, :3].mT + transform[:, None, :3, 3]


# Candidates of n moved points: their coordinates (B, n, candidates, 3), infinite where there is none.
Nearest = Callable[[Tensor], Tensor]


def _in_windows(points: Tensor, counts: Tensor) -> tuple[Nearest, int]:
    batch, height, width, _ = points.shape
    columns = torch.arange(width, dtype=points.dtype, device=points.device).expand(batch, height, width)
    rows = torch.arange(height, dtype=points.dtype, device=points.device)[:, None].expand(batch, height, width)
    counts = counts[..., 0]
    z = torch.where(counts, points[..., 2], 1.0)
    lines = [
        _line(torch.where(counts, points[..., axis] / z, 0.0).flatten(1), pixels.flatten(1), counts.flatten(1))
        for axis, pixels in ((0, columns), (1, rows))
    ]
    flat = points.flatten(1, 2)
    offset = torch.arange(-REACH, REACH + 1, device=points.device)

    def candidates(moved: Tensor) -> Tensor:
        z = moved[..., 2]
        seen = z > MIN_Z  # not where it is NaN
        places, inside = [], []
        for axis, (slope, intercept), size in ((0, lines[0], width), (1, lines[1], height)):
            at = (slope * (moved[..., axis] / torch.where(seen, z, 1.0)) + intercept + 0.5).floor()
            near = seen & (at >= -REACH) & (at <= size - 1 + REACH)
            places.append(torch.where(near, at, 0.0).long()[..., None] + offset)
            inside.append(near[..., None] & (places[-1] >= 0) & (places[-1] < size))
        (u, v), (in_u, in_v) = places, inside
        index = v.clamp(0, height - 1)[..., :, None] * width + u.clamp(0, width - 1)[..., None, :]
        found = _take(flat, index.flatten(2))
        return found.masked_fill(~(in_v[..., :, None] & in_u[..., None, :]).flatten(2)[..., None], torch.inf)

    return candidates, (2 * REACH + 1) ** 2


def _line(x: Tensor, y: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Slope and intercept of y over x by least squares, (B, 1) each; x that does not vary has slope 0."""
    total = counts.sum(1, keepdim=True).clamp_min(1)
    x_mean, y_mean = (torch.where(counts, value, 0.0).sum(1, keepdim=True) / total for value in (x, y))
    x, y = (torch.where(counts, value - mean, 0.0) for value, mean in ((x, x_mean), (y, y_mean)))
    variance = (x * x).sum(1, keepdim=True)
    slope = torch.where(variance > 0, (x * y).sum(1, keepdim=True) / torch.where(variance > 0, variance, 1.0), 0.0)
    return slope, y_mean - slope * x_mean


def _anywhere(points: Tensor) -> tuple[Nearest, int]:
    flat = points.flatten(1, 2)
    return lambda moved: flat[:, None], flat.shape[1]


def _take(flat: Tensor, index: Tensor) -> Tensor:
    """flat (B, M, 3) at index (B, n, k): (B, n, k, 3)."""
    found = flat.gather(1, index.flatten(1)[..., None].expand(-1, -1, 3))
    return found.unflatten(1, index.shape[1:])


def _matched(nearest: tuple[Nearest, int], moved: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest candidate of each point, 0 where there is none, and where there is one."""
    candidates, count = nearest
    matches, valid = [], []
    for part in moved.split(max(1, CHUNK // count), 1):
        found = candidates(part)
        x, y, z = (part[:, :, None] - found).unbind(-1)
        distance = x * x + y * y + z * z
        distance = torch.where(distance < torch.inf, distance, torch.inf)  # NaN would count as the least
        index = distance.argmin(-1, keepdim=True)
        near = distance.gather(-1, index)[..., 0] < torch.inf
        found = found.expand(*distance.shape, 3).gather(2, index[..., None].expand(-1, -1, -1, 3))[:, :, 0]
        matches.append(torch.where(near[..., None], found, 0.0))
        valid.append(near)
    return torch.cat(matches, 1), torch.cat(valid, 1)


def _step(moved: Tensor, match: Tensor, valid: Tensor) -> Tensor:
    """The rigid transform (B, 4, 4) that takes `moved` closest to `match`; the identity for fewer than 3 pairs."""
    total = valid.sum(1)[:, None]
    mask = valid[..., None]
    means = [torch.where(mask, cloud, 0.0).sum(1) / total.clamp_min(1) for cloud in (moved, match)]
    p, q = (torch.where(mask, cloud - mean[:, None], 0.0) for cloud, mean in zip((moved, match), means))
    rotation, gap = _rotation(p.mT @ q)
    spread, moment = (
        torch.stack([(cloud * cloud).sum((1, 2)) for cloud in clouds]).prod(0).sqrt()
        for clouds in ((p, q), [torch.where(mask, cloud, 0.0) for cloud in (moved, match)])
    )
    known = (total >= 3) & (gap > GAP * spread + NOISE * moment)[:, None]
    rotation = torch.where(known[..., None], rotation, torch.eye(3, dtype=p.dtype, device=p.device))
    shift = torch.where(total < 3, 0.0, means[1] - (rotation @ means[0][..., None])[..., 0])
    bottom = torch.eye(4, dtype=p.dtype, device=p.device)[3:].expand(len(p), 1, 4)
    return torch.cat([torch.cat([rotation, shift[..., None]], -1), bottom], 1)


def _rotation(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The rotation that maximises the trace of rotation @ sum(p q^T) (B, 3, 3), by Horn's quaternion; by how much (B,)
    its eigenvalue is larger than the next."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (row.unbind(-1) for row in covariance.unbind(-2))
    entries = [
        *(xx + yy + zz, yz - zy, zx - xz, xy - yx),
        *(yz - zy, xx - yy - zz, xy + yx, zx + xz),
        *(zx - xz, xy + yx, yy - xx - zz, yz + zy),
        *(xy - yx, zx + xz, yz + zy, zz - xx - yy),
    ]
    values, vectors = torch.linalg.eigh(torch.stack(entries, -1).unflatten(-1, (4, 4)))
    w, x, y, z = vectors[..., 3].unbind(-1)
    rotation = [
        *(w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z),
    ]
    return torch.stack(rotation, -1).unflatten(-1, (3, 3)), values[..., 3] - values[..., 2]


def _turned_back(grad: Tensor, source: Tensor, transform: Tensor, valid: Tensor) -> Tensor:
    """The gradient by the source: match and transform are constants."""
    turned = -(grad.double() @ transform[:, :3, :3])
    return torch.where(valid[..., None], turned, 0.0).to(source.dtype)


_OP = Op(
    "icp_align",
    reference,
    inputs={
        "source": T("batch", "points", 3),
        "target": T("batch", "height", "width", 3),
        "init": array(torch.float64, "batch", 4, 4),
    },
    options={"iterations": int, "organised": bool},
    outputs={
        "residual": T("batch", "points", 3),
        "transform": array(torch.float64, "batch", 4, 4),
        "valid": array(torch.bool, "batch", "points"),
    },
    backward=Backward(takes=("transform", "valid"), gradients=("source",), function=_turned_back),
)

_dispatch.never(
    "icp_align",
    "triton",
    "icp_align has no triton kernel: each point skips what is too far from it, which the threads of a Triton program "
    "cannot do one by one; cuda and nvrtc have kernels",
)

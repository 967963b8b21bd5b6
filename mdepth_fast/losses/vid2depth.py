"""The vid2depth objective (Mahjourian, Wicke, Angelova, arXiv 1802.05522) and its 3D term."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
from torch import Tensor, nn

from mdepth_fast.geometry import backproject, invert_pose, pose_matrix_from_vector, pose_vector, scale_intrinsics
from mdepth_fast.losses.monodepth import image_pyramid
from mdepth_fast.ops import _checks, disparity_to_depth, edge_aware_smoothness, icp_align, view_synthesis_loss

from ._inputs import look_once

__all__ = ["Icp3DLoss", "Vid2DepthLoss", "Vid2DepthParts", "adjacent_pairs", "pair_transforms"]


def adjacent_pairs(frames: int) -> list[tuple[int, int]]:
    """The ordered pairs (target, source) of neighbours among `frames` frames: (1, 0), (0, 1), (2, 1), (1, 2), ..."""
    return [pair for k in range(frames - 1) for pair in ((k + 1, k), (k, k + 1))]


def pair_transforms(vectors: Tensor) -> Tensor:
    """Motion vectors (B, N-1, 6) to transforms (B, 2(N-1), 4, 4), target to source, in the order of `adjacent_pairs`.

    Vector k is the motion of the camera from frame k to k + 1, (tx, ty, tz, rx, ry, rz): as a matrix it takes points of
    frame k + 1 to frame k. For the reverse the paper's code negates the vector, the inverse to first order.
    """
    both = torch.stack([vectors, -vectors], 2).flatten(1, 2)
    return pose_matrix_from_vector(both)


class Icp3DLoss(nn.Module):
    """The 3D loss of vid2depth: what ICP would still change, `mean |t| + mean |r|` (section 3.3).

    `ops.icp_align` aligns the cloud of one frame, moved by the predicted motion T, with the cloud of another. t (B, 6)
    is the correction that it finds beyond T, translation and Euler angles; r are the distances that remain between the
    matched points, 0 where there is no match. The gradients are the paper's, see `ops.icp_align`: t goes to T, r to
    `points`, and the second cloud gets none.

    Args:
        iterations: of ICP, at most.
    """

    def __init__(self, iterations: int = 10) -> None:
        super().__init__()
        _checks.count(iterations, "iterations")
        self.iterations = iterations

    def extra_repr(self) -> str:
        return f"iterations={self.iterations}"

    def forward(self, points: Tensor, other_points: Tensor, T: Tensor) -> Tensor:
        """Returns a scalar, NaN if a point is not finite.

        Clouds (B, H, W, 3) or (B, N, 3), T (B, 4, 4) with T * points ~ other_points.
        """
        result = icp_align(points, other_points, T, iterations=self.iterations)
        correction = pose_vector(result.T.to(T.dtype) @ invert_pose(T))
        # ICP leaves out points that are not finite: clouds of such points alone would cost nothing.
        poison = (0 * points.detach()).sum() + (0 * other_points.detach()).sum()
        return (correction.abs().mean() + result.residual.abs().mean()) * (1 + poison).to(correction.dtype)


class Vid2DepthParts(NamedTuple):
    """The terms of `Vid2DepthLoss`, detached scalars, summed over pairs and scales, before weighting."""

    reconstruction: Tensor
    ssim: Tensor
    smoothness: Tensor
    icp: Tensor


class Vid2DepthLoss(nn.Module):
    """The whole objective, from the sigmoid maps of every frame of a sequence to a scalar.

    The sum over scales s of the sums over all ordered pairs of neighbouring frames (`adjacent_pairs`) and over frames:

        reconstruction * L1 + ssim * (1 - SSIM) / 2      per pair, of `ops.view_synthesis_loss` ("masked")
        + icp / 2^s * `Icp3DLoss`                        per pair
        + smoothness / 2^s * edge-aware smoothness       per frame, of the disparity as it is, not divided by its mean

    Every scale has the size of its maps: images are averaged over areas, and intrinsics keep pixel centres on integers
    (`geometry.scale_intrinsics`), where the paper's code divides them by 2^s.

    Args:
        min_depth, max_depth: depth range that a sigmoid map covers; published: 1 / 10.01 and 100.
        reconstruction, ssim, smoothness, icp: weights of the terms. The default of `icp` is the paper's 0.1; the
            published program trains with 0 unless it is told otherwise.
        icp_iterations: of ICP, at most.
    """

    def __init__(
        self,
        min_depth: float = 1 / 10.01,
        max_depth: float = 100.0,
        *,
        reconstruction: float = 0.85,
        ssim: float = 0.15,
        smoothness: float = 0.05,
        icp: float = 0.1,
        icp_iterations: int = 10,
    ) -> None:
        super().__init__()
        _checks.depth_range(min_depth, max_depth)
        _checks.count(icp_iterations, "icp_iterations")
        self.min_depth, self.max_depth = min_depth, max_depth
        self.weights = {"reconstruction": reconstruction, "ssim": ssim, "smoothness": smoothness, "icp": icp}
        for name, weight in self.weights.items():
            _checks.weight(weight, name)
        self.icp_loss = Icp3DLoss(icp_iterations)

    def extra_repr(self) -> str:
        weights = ", ".join(f"{name}={weight}" for name, weight in self.weights.items())
        return f"min_depth={self.min_depth}, max_depth={self.max_depth}, {weights}"

    @overload
    def forward(
        self,
        disparities: Sequence[Tensor],
        images: Tensor,
        K: Tensor,
        T: Tensor,
        *,
        return_parts: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def forward(
        self, disparities: Sequence[Tensor], images: Tensor, K: Tensor, T: Tensor, *, return_parts: Literal[True]
    ) -> tuple[Tensor, Vid2DepthParts]: ...
    def forward(
        self, disparities: Sequence[Tensor], images: Tensor, K: Tensor, T: Tensor, *, return_parts: bool = False
    ) -> Tensor | tuple[Tensor, Vid2DepthParts]:
        """Returns the loss, or with `return_parts` the pair (loss, Vid2DepthParts).

        Args:
            disparities: sigmoid maps (B, N, 1, h_s, w_s) in [0, 1] of all N frames, finest first.
            images: (B, N, 3, H, W) in [0, 1], in temporal order; get no gradient.
            K: (B, 3, 3), or (B, N, 3, 3) if it differs between the frames, in pixels of the images.
            T: (B, 2(N-1), 4, 4), target camera to source camera of each of `adjacent_pairs(N)`; see `pair_transforms`.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        """
        _checks.maps(disparities, "disparities", "(B, N, 1, h, w)")
        _checks.floating(images, "images", "(B, N, 3, H, W)")
        _checks.floating(K, "K", "(B, 3, 3) or (B, N, 3, 3)")
        _checks.floating(T, "T", "(B, 2(N-1), 4, 4)")
        if images.dim() != 5 or images.shape[1] < 2 or images.shape[2] != 3:
            raise ValueError(f"images: expected (B, N, 3, H, W) with N of at least 2, got {tuple(images.shape)}")
        batch, frames, _, height, width = images.shape
        pairs = adjacent_pairs(frames)
        if T.shape != (batch, len(pairs), 4, 4):
            raise ValueError(f"T: expected shape {(batch, len(pairs), 4, 4)}, got {tuple(T.shape)}")
        if K.shape not in ((batch, 3, 3), (batch, frames, 3, 3)):
            raise ValueError(f"K: expected shape {(batch, 3, 3)} or {(batch, frames, 3, 3)}, got {tuple(K.shape)}")
        for s, one in enumerate(disparities):
            if one.dim() != 5 or one.shape[:3] != (batch, frames, 1):
                raise ValueError(f"disparities[{s}]: expected ({batch}, {frames}, 1, h, w), got {tuple(one.shape)}")
        look_once(self, K, images=images)
        K = (K[:, None] if K.dim() == 3 else K).expand(batch, frames, 3, 3)
        # As `adjacent_pairs` has them, made on the device: a list would be copied to it in every step.
        k = torch.arange(frames - 1, device=images.device)
        targets, sources = (torch.stack(side, 1).flatten() for side in ((k + 1, k), (k, k + 1)))
        T = T.flatten(0, 1)
        terms: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        with torch.autocast(images.device.type, enabled=False):
            maps = [(one if one.dtype == torch.float64 else one.float()).flatten(0, 1) for one in disparities]
            pyramid = image_pyramid(images.flatten(0, 1), maps)
            for s, (one, image) in enumerate(zip(maps, pyramid)):
                depth = disparity_to_depth(one, min_depth=self.min_depth, max_depth=self.max_depth)
                K_s = scale_intrinsics(K, one.shape[3] / width, one.shape[2] / height)
                by_frame = [part.unflatten(0, (batch, frames)) for part in (image, depth)]
                image_of, depth_of = (part.index_select(1, targets).flatten(0, 1) for part in by_frame)
                l1, ssim = view_synthesis_loss(
                    image_of,
                    by_frame[0].index_select(1, sources).flatten(0, 1),
                    depth_of,
                    K_s[:, targets].flatten(0, 1),
                    T,
                    source_K=K_s[:, sources].flatten(0, 1),
                    ssim=bool(self.weights["ssim"]),
                )
                # Means over a batch of pairs or frames: times their number they are sums of means.
                terms["reconstruction"].append(len(pairs) * l1)
                terms["ssim"].append(len(pairs) * ssim)
                # The disparity is this multiple of the sigmoid, plus a constant.
                span = (1 / self.min_depth - 1 / self.max_depth) * frames / 2**s
                terms["smoothness"].append(span * edge_aware_smoothness(one, image, normalize=False))
                if self.weights["icp"]:
                    clouds = backproject(depth, K_s.flatten(0, 1)).permute(0, 2, 3, 1).unflatten(0, (batch, frames))
                    left = self.icp_loss(
                        *(clouds.index_select(1, side).flatten(0, 1) for side in (targets, sources)), T
                    )
                    terms["icp"].append(len(pairs) / 2**s * left)
            sums = {name: torch.stack(term).sum() if term else T.new_zeros(()) for name, term in terms.items()}
            loss = torch.stack([self.weights[name] * term for name, term in sums.items()]).sum()
        return (loss, Vid2DepthParts(**{name: term.detach() for name, term in sums.items()})) if return_parts else loss

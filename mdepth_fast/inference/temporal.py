"""Predictions that do not flicker: each frame of a clip aligned to the frames before it, and a measure of flicker."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mdepth_fast.kinds import Kind, check_kind, is_inverse

__all__ = ["TemporalAlignment", "flicker"]

_GRID = (96, 128)  # at most, of the maps that are compared


class TemporalAlignment:
    """Aligns each map of a clip to a running reference, where a network knows depth up to a scale only.

    Depth up to one factor is multiplied by a factor per frame, the median ratio of the reference to it. Inverse depth
    up to scale and shift gets a scale and a shift: a robust least-squares fit of the reference (Huber's weights), by
    the regression that is symmetric in both maps, because ordinary regression shrinks the map a little in each frame.
    The reference, at most 96 x 128 pixels, is an exponential mean of the aligned maps (of their logarithm, for depth).
    At a cut the clip begins anew: where the logarithms differ by over 0.5 in the median, or the correlation of inverse
    depth is below 0.5.

    Args:
        kind: "relative" or "affine_inverse". ValueError for others, whose scale is known.
        decay: weight of the frames so far in the mean.
        trust: how much of each correction is kept. Below 1 the clip follows the network's own scale in the long run,
            so that it cannot drift away.
    """

    def __init__(self, kind: Kind, *, decay: float = 0.9, trust: float = 0.98) -> None:
        check_kind(kind, "m" if kind == "metric" else "px" if kind == "disparity" else None)
        if kind not in ("relative", "affine_inverse"):
            raise ValueError(f"--temporal: expected a network of depth up to scale, got one of kind {kind}")
        self.kind, self.decay, self.trust = kind, decay, trust
        self.reference: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """The aligned map, of the shape of `values` (1, H, W), which is the next frame's."""
        grid = self._grid(values)
        if self.reference is None or self.reference.shape != grid.shape:
            self.reference = grid
            return values
        scale, shift = self._fit(grid, self.reference)
        if scale is None:
            self.reference = grid
            return values
        aligned = grid * scale + shift
        mean = self.decay * self.reference + (1 - self.decay) * aligned
        if is_inverse(self.kind):
            # A mean of maps that differ has less contrast than each.
            center, spread = _moments(mean)
            to_center, to_spread = _moments(aligned)
            mean = (mean - center) * (to_spread / spread.clamp_min(1e-12)) + to_center
        self.reference = mean
        return values * scale + shift if is_inverse(self.kind) else values * torch.exp(shift)

    def state(self) -> dict[str, Any]:
        """What the next frame is aligned to, as an array to store."""
        return {} if self.reference is None else {"reference": self.reference.cpu().numpy()}

    def restore(self, state: dict[str, Any], device: torch.device | str = "cpu") -> None:
        """Goes on from a stored `state`."""
        self.reference = torch.from_numpy(state["reference"]).to(device) if "reference" in state else None

    def _grid(self, values: Tensor) -> Tensor:
        height, width = values.shape[-2:]
        values = values.float()
        if not is_inverse(self.kind):
            values = values.clamp_min(1e-12).log()
        size = (min(height, _GRID[0]), min(width, _GRID[1]))
        return F.interpolate(values[None], size, mode="area")[0, 0]

    def _fit(self, grid: Tensor, reference: Tensor) -> tuple[Tensor | None, Tensor]:
        """Scale and shift that bring a map close to the reference; no scale at a cut."""
        one, zero = grid.new_ones(()), grid.new_zeros(())
        valid = grid.isfinite() & reference.isfinite()
        if valid.sum() < 16:
            return None, zero
        x, r = grid[valid], reference[valid]
        if not is_inverse(self.kind):
            shift = (r - x).median()
            return (None, zero) if (r - x - shift).abs().median() > 0.5 else (one, shift * self.trust)
        weights = torch.ones_like(x)
        scale, shift = one, zero
        for _ in range(5):
            total = weights.sum()
            mx, mr = (weights * x).sum() / total, (weights * r).sum() / total
            vx, vr = (weights * (x - mx) ** 2).sum(), (weights * (r - mr) ** 2).sum()
            product = (weights * (x - mx) * (r - mr)).sum()
            if vx <= 0 or vr <= 0 or product < 0.5 * (vx * vr).sqrt():
                return None, zero
            scale = (vr / vx).sqrt()
            shift = mr - scale * mx
            residual = (scale * x + shift - r).abs()
            weights = (1.345 * 1.4826 * residual.median().clamp_min(1e-12) / residual.clamp_min(1e-12)).clamp_max(1)
        return scale**self.trust, shift * self.trust


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    finite = values[values.isfinite()]
    return finite.mean(), finite.std()


def flicker(maps: Iterable[NDArray[Any]], images: Iterable[NDArray[np.uint8]], *, change: int = 5) -> float:
    """How much a clip's depth changes where its images do not.

    For each two neighbouring frames: the median of |log d_t - log d_(t-1)| over the pixels whose three colours all
    change by at most `change` of 255 and whose values are positive in both. The result is the mean over the pairs; 0.01
    is about one per cent of the depth from frame to frame. It is the same for depth and its inverse.

    Args:
        maps: depth or inverse depth (H, W), in the order of time.
        images: uint8 (H, W, 3), as many.

    Raises:
        ValueError: there are fewer than two frames, or a pair without such a pixel.
    """
    medians: list[float] = []
    before: Sequence[NDArray[Any]] = ()
    for number, (values, image) in enumerate(zip(maps, images, strict=True)):
        values = np.asarray(values, np.float64)
        if before:
            still = (np.abs(image.astype(np.int16) - before[1].astype(np.int16)) <= change).all(-1)
            still &= (values > 0) & (before[0] > 0) & np.isfinite(values) & np.isfinite(before[0])
            if not still.any():
                raise ValueError(f"images: expected pixels that change little, found none from frame {number - 1}")
            medians.append(float(np.median(np.abs(np.log(values[still] / before[0][still])))))
        before = (values, image)
    if not medians:
        raise ValueError("maps: expected at least two frames")
    return float(np.mean(medians))

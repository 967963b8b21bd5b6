"""The SfMLearner objective (Zhou, Brown, Snavely, Lowe, arXiv 1704.07813)."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.geometry import scale_intrinsics
from mdepth_fast.losses.monodepth import image_pyramid
from mdepth_fast.ops import _checks, disparity_to_depth, view_synthesis_loss

from ._inputs import look_once

__all__ = ["SfMLearnerLoss", "SfMLearnerParts", "second_order_smoothness"]


def second_order_smoothness(values: Tensor) -> Tensor:
    """Mean of |dxx| + |dxy| + |dyx| + |dyy| of a map (B, 1, H, W), H and W at least 3, each a mean of its own."""
    if min(values.shape[-2:]) < 3:
        raise ValueError(f"values: expected H and W of at least 3, got {values.shape[-2]}x{values.shape[-1]}")
    along_x, along_y = values.diff(dim=-1), values.diff(dim=-2)
    mixed = along_x.diff(dim=-2).abs().mean()  # in either order the same numbers
    return along_x.diff(dim=-1).abs().mean() + 2 * mixed + along_y.diff(dim=-2).abs().mean()


class SfMLearnerParts(NamedTuple):
    """The terms of `SfMLearnerLoss`, detached scalars, summed over sources and scales, before weighting."""

    photometric: Tensor
    smoothness: Tensor
    explainability: Tensor


class SfMLearnerLoss(nn.Module):
    """The whole objective, from the decoder's sigmoid maps to a scalar. The sum over scales s of

        mean |warped - target| * E                  per source, on colours in [-1, 1]: `ops.view_synthesis_loss`
        + smoothness / smoothness_decay^s * second-order smoothness of the disparity
        + explainability * cross-entropy(E, 1)      per source, E in (0, 1) the explainability mask, if there is one

    Every scale has the size of its maps: images are averaged over areas, and intrinsics keep pixel centres on integers
    (`geometry.scale_intrinsics`), where the paper's code divides them by 2^s.

    The defaults are those of the released program, which trains without masks. The paper has explainability 0.2.
    SfmLearner-Pytorch has `SfMLearnerLoss(padding="masked", smooth="depth", smoothness=0.1, smoothness_decay=2.3)`; it
    averages the cross-entropy over the sources, so its weight 0.2 is 0.1 here for two of them.

    Args:
        min_depth, max_depth: depth range that a sigmoid map covers; published: 1 / 10.01 and 100.
        smoothness: weight of the smoothness term at scale 0. smoothness_decay: by which it is divided per scale.
        explainability: weight of the cross-entropy.
        padding: of points that fall outside a source: "grey" reads the middle of the range and counts, "masked" does
            not count.
        smooth: what is smooth, "disparity" or "depth".
    """

    def __init__(
        self,
        min_depth: float = 1 / 10.01,
        max_depth: float = 100.0,
        *,
        smoothness: float = 0.5,
        explainability: float = 0.0,
        padding: str = "grey",
        smooth: str = "disparity",
        smoothness_decay: float = 2.0,
    ) -> None:
        super().__init__()
        _checks.depth_range(min_depth, max_depth)
        _checks.weight(smoothness, "smoothness")
        _checks.weight(explainability, "explainability")
        if padding not in ("grey", "masked"):
            raise ValueError(f'padding: expected "grey" or "masked", got {padding!r}')
        if smooth not in ("disparity", "depth"):
            raise ValueError(f'smooth: expected "disparity" or "depth", got {smooth!r}')
        _checks.number(smoothness_decay, "smoothness_decay", "a positive number")
        if not 0 < smoothness_decay < math.inf:
            raise ValueError(f"smoothness_decay: expected a positive number, got {smoothness_decay}")
        self.min_depth, self.max_depth, self.padding, self.smooth = min_depth, max_depth, padding, smooth
        self.smoothness, self.smoothness_decay, self.explainability = smoothness, smoothness_decay, explainability

    def extra_repr(self) -> str:
        names = "min_depth max_depth smoothness smoothness_decay explainability padding smooth"
        return ", ".join(f"{name}={getattr(self, name)}" for name in names.split())

    @overload
    def forward(
        self,
        disparities: Sequence[Tensor],
        target: Tensor,
        sources: Tensor,
        K: Tensor,
        T: Tensor,
        explainability: Sequence[Tensor] | None = None,
        *,
        source_K: Tensor | None = None,
        return_parts: Literal[False] = False,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        disparities: Sequence[Tensor],
        target: Tensor,
        sources: Tensor,
        K: Tensor,
        T: Tensor,
        explainability: Sequence[Tensor] | None = None,
        *,
        source_K: Tensor | None = None,
        return_parts: Literal[True],
    ) -> tuple[Tensor, SfMLearnerParts]: ...
    def forward(
        self,
        disparities: Sequence[Tensor],
        target: Tensor,
        sources: Tensor,
        K: Tensor,
        T: Tensor,
        explainability: Sequence[Tensor] | None = None,
        *,
        source_K: Tensor | None = None,
        return_parts: bool = False,
    ) -> Tensor | tuple[Tensor, SfMLearnerParts]:
        """Returns the loss, or with `return_parts` the pair (loss, SfMLearnerParts).

        Args:
            disparities: sigmoid maps (B, 1, h_s, w_s) in [0, 1], finest first.
            target: (B, 3, H, W) in [0, 1]. sources: (B, S, 3, H, W). Neither gets a gradient.
            K: (B, 3, 3) in pixels of the target.
            T: (B, S, 4, 4), target camera to source camera.
            explainability: logits of the masks (B, S, h_s, w_s), one for each map; None, or empty, for no masks.
            source_K: (B, S, 3, 3); None for `K`.

        Raises:
            TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
        """
        _checks.maps(disparities, "disparities", "(B, 1, h, w)")
        _checks.tensor(target, "target", (None, 3, None, None), "(B, 3, H, W)")
        _checks.floating(sources, "sources", "(B, S, 3, H, W)")
        _checks.tensor(K, "K", (target.shape[0], 3, 3), "(B, 3, 3)")
        _checks.floating(T, "T", "(B, S, 4, 4)")
        if source_K is not None:
            _checks.floating(source_K, "source_K", "(B, S, 3, 3)")
        if self.explainability and not (isinstance(explainability, Tensor) or explainability):
            raise ValueError(
                f"explainability: expected logits of masks for the weight {self.explainability} of their "
                "cross-entropy, got none"
            )
        if isinstance(explainability, Tensor) or explainability:
            _checks.maps(explainability, "explainability", "(B, S, h, w)")
        if sources.dim() != 5 or sources.shape[1] < 1 or sources.shape[:1] + sources.shape[2:] != target.shape:
            raise ValueError(
                f"sources: expected (B, S, 3, H, W) of images like the target's {tuple(target.shape)}, "
                f"got {tuple(sources.shape)}"
            )
        batch, count = sources.shape[:2]
        if T.shape != (batch, count, 4, 4):
            raise ValueError(f"T: expected shape {(batch, count, 4, 4)}, got {tuple(T.shape)}")
        if source_K is not None and source_K.shape != (batch, count, 3, 3):
            raise ValueError(f"source_K: expected shape {(batch, count, 3, 3)}, got {tuple(source_K.shape)}")
        for s, one in enumerate(disparities):
            if one.dim() != 4 or one.shape[:2] != (batch, 1):
                raise ValueError(f"disparities[{s}]: expected ({batch}, 1, h, w), got {tuple(one.shape)}")
        if explainability:
            expected = [(batch, count, *one.shape[2:]) for one in disparities]
            if (shapes := [tuple(one.shape) for one in explainability]) != expected:
                raise ValueError(f"explainability: expected logits of shapes {expected}, got {shapes}")

        look_once(self, K, target=target, sources=sources)

        def each(part: Tensor) -> Tensor:
            """(B, ...) to (B * S, ...), once for every source."""
            return part[:, None].expand(-1, count, *part.shape[1:]).flatten(0, 1)

        photometric, smoothness, entropy = [], [], []
        span = 1 / self.min_depth - 1 / self.max_depth
        height, width = target.shape[2:]
        with torch.autocast(target.device.type, enabled=False):
            maps = [one if one.dtype == torch.float64 else one.float() for one in disparities]
            targets, others = image_pyramid(target, maps), image_pyramid(sources.flatten(0, 1), maps)
            for s, (one, image, other) in enumerate(zip(maps, targets, others)):
                depth = disparity_to_depth(one, min_depth=self.min_depth, max_depth=self.max_depth)
                scale = one.shape[3] / width, one.shape[2] / height
                weight = None
                if explainability:
                    logits = explainability[s].to(one.dtype)
                    weight = logits.sigmoid().flatten(0, 1)[:, None]
                    entropy.append(count * F.softplus(-logits).mean())
                l1, _ = view_synthesis_loss(
                    each(image),
                    other,
                    each(depth),
                    each(scale_intrinsics(K, *scale)),
                    T.flatten(0, 1),
                    source_K=None if source_K is None else scale_intrinsics(source_K, *scale).flatten(0, 1),
                    weight=weight,
                    padding=self.padding,
                    ssim=False,
                )
                # Twice, for colours in [-1, 1]; a mean over a batch of sources is the sum of means over their number.
                photometric.append(2 * count * l1)
                # The disparity is that multiple of the sigmoid, plus a constant.
                smooth = second_order_smoothness(span * one if self.smooth == "disparity" else depth)
                smoothness.append(smooth / self.smoothness_decay**s)
            sums = [torch.stack(term).sum() if term else T.new_zeros(()) for term in (photometric, smoothness, entropy)]
            loss = sums[0] + self.smoothness * sums[1] + self.explainability * sums[2]
        return (loss, SfMLearnerParts(*(term.detach() for term in sums))) if return_parts else loss

"""The objective of unsupervised optical flow (Yu, Harley, Derpanis, ECCV workshops 2016, arXiv 1608.05842)."""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mdepth_fast.ops import _checks, flow_photometric_loss, flow_smoothness_loss
from mdepth_fast.ops.flow_smoothness_loss import Form

from ._inputs import look_once

__all__ = ["FlowLoss", "FlowLossParts", "local_response_norm"]


class FlowLossParts(NamedTuple):
    """`FlowLoss` and its terms before weighting, scalars."""

    loss: Tensor
    photometric: Tensor
    smoothness: Tensor


def local_response_norm(images: Tensor, mean: Sequence[float] = (0.0, 0.0, 0.0)) -> Tensor:
    """Images (B,3,H,W) less their mean, divided by `(1 + sum_c x_c^2)^0.7`: local response normalisation over RGB.

    Radius 2 (all channels), bias 1, alpha 1 and beta 0.7 are those of the released code of Back to Basics.
    Half and bfloat16 are computed and returned as float32.
    """
    _checks.tensor(images, "images", (None, 3, None, None), "(B, 3, H, W)")
    images = images.to(_checks.working_dtype(images))
    centred = images - images.new_tensor(mean).view(1, 3, 1, 1)
    return centred / (1 + centred.square().sum(1, keepdim=True)) ** 0.7


class FlowLoss(nn.Module):
    """`flow_photometric_loss + smoothness * flow_smoothness_loss` of a flow and its two images.

    Both are means over all pixels of a generalised Charbonnier penalty `((scale x)^2 + epsilon^2)^alpha`. Pixels that
    the flow leads out of the second image do not count in the photometric term.

    Args:
        smoothness: weight of the smoothness term.
        alpha, scale: exponent and scale of the photometric penalty.
        smooth_alpha, smooth_scale: those of the smoothness penalty.
        form: "separate" penalties of each difference, as in the paper, or one "joint" penalty, as in the released code.
        outside_alpha, outside_scale: where the flow leads out of the image, the smoothness of the released code has
            another exponent and scale, and its gradient goes from the inside to the outside only. None: no difference.
        epsilon: of both penalties.
        border: share of height and width at each side that does not count.
        normalize: compare images after `local_response_norm`.
        mean: RGB that is subtracted before that.
    """

    def __init__(
        self,
        smoothness: float = 1.0,
        *,
        alpha: float = 0.25,
        scale: float = 1.0,
        smooth_alpha: float = 0.37,
        smooth_scale: float = 1.0,
        form: Form = "separate",
        outside_alpha: float | None = None,
        outside_scale: float = 1.0,
        epsilon: float = 1e-3,
        border: float = 0.0,
        normalize: bool = False,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        _checks.weight(smoothness, "smoothness")
        _checks.charbonnier(alpha, scale, epsilon)
        _checks.charbonnier(smooth_alpha, smooth_scale, epsilon, "smooth_")
        if form not in get_args(Form):
            raise ValueError(f"form: expected one of {', '.join(get_args(Form))}, got {form!r}")
        if outside_alpha is not None:
            _checks.charbonnier(outside_alpha, outside_scale, epsilon, "outside_")
        _checks.number(border, "border", "a share in [0, 0.5)")
        _checks.flag(normalize, "normalize")
        if len(mean) != 3:
            raise ValueError(f"mean: expected 3 numbers, got {mean}")
        if not 0 <= border < 0.5:
            raise ValueError(f"border: expected a share in [0, 0.5), got {border}")
        self.smoothness, self.border, self.normalize, self.mean = smoothness, border, normalize, tuple(mean)
        self.photometric: dict[str, Any] = {"alpha": alpha, "scale": scale, "epsilon": epsilon}
        self.smooth: dict[str, Any] = {"alpha": smooth_alpha, "scale": smooth_scale, "epsilon": epsilon}
        self.outside: dict[str, Any] | None = None
        if outside_alpha is not None:
            self.outside = {"alpha": outside_alpha, "scale": outside_scale, "epsilon": epsilon}
        self.form: Form = form

    def extra_repr(self) -> str:
        return (
            f"smoothness={self.smoothness}, photometric={self.photometric}, smooth={self.smooth}, form={self.form}, "
            f"outside={self.outside}, border={self.border}, normalize={self.normalize}"
        )

    def forward(self, flow: Tensor, first: Tensor, second: Tensor) -> FlowLossParts:
        """Flow (B,2,H,W) in pixels from `first` to `second`, images (B,3,H,W) in [0, 1]."""
        channels = 3 if self.normalize else None
        _checks.tensor(first, "first", (None, channels, None, None), "(B, 3, H, W)")
        _checks.tensor(second, "second", tuple(first.shape), "(B, 3, H, W)")
        batch, _, height, width = first.shape
        _checks.tensor(flow, "flow", (batch, 2, height, width), "(B, 2, H, W)")
        look_once(self, first=first, second=second)
        if self.normalize:
            first, second = (local_response_norm(images, self.mean) for images in (first, second))
        mask = border_mask(flow, self.border) if self.border else None
        photometric = flow_photometric_loss(first, second, flow, mask=mask, **self.photometric)
        if self.outside is None:
            smoothness = flow_smoothness_loss(flow, mask=mask, form=self.form, **self.smooth)
        else:
            inside = _stays_inside(flow.detach())
            both = inside if mask is None else inside & mask
            routed = torch.where(inside, flow.detach(), flow)
            smoothness = flow_smoothness_loss(flow, mask=both, form=self.form, **self.smooth)
            smoothness = smoothness + flow_smoothness_loss(routed, mask=mask, form=self.form, **self.outside)
        return FlowLossParts(photometric + self.smoothness * smoothness, photometric.detach(), smoothness.detach())


def border_mask(flow: Tensor, share: float) -> Tensor:
    """Bool (B,1,H,W) like flow (B,2,H,W): all but the given share of height and width at each side."""
    height, width = flow.shape[-2:]
    mask = torch.zeros(len(flow), 1, height, width, dtype=torch.bool, device=flow.device)
    top, left = int(share * height + 0.5), int(share * width + 0.5)
    if 2 * top >= height or 2 * left >= width:
        raise ValueError(f"border: expected a share that leaves pixels of {height}x{width}, got {share}")
    mask[..., top : height - top, left : width - left] = True
    return mask


def _stays_inside(flow: Tensor) -> Tensor:
    """Bool (B,1,H,W): where flow (B,2,H,W) leads into the image."""
    height, width = flow.shape[-2:]
    flow = flow.to(_checks.working_dtype(flow))
    x = torch.arange(width, device=flow.device) + flow[:, :1]
    y = torch.arange(height, device=flow.device).view(-1, 1) + flow[:, 1:]
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)

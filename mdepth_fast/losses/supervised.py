"""Losses against ground-truth depth. Call each as `loss(output, depth, valid=None)`; it returns a scalar.

`depth` is (B, 1, H, W), usually in metres and sparse; `valid`, bool (B, 1, H, W), selects the pixels that count, and
None selects those whose depth is finite and above 0. Both maps may hold anything elsewhere. An image without a valid
pixel contributes nothing; a batch without one gives 0. Half and bfloat16 are computed in float32.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mdepth_fast.ops import _checks
from mdepth_fast.ops.berhu_loss import berhu_loss
from mdepth_fast.ops.ordinal_loss import ordinal_loss
from mdepth_fast.ops.silog_loss import Form, silog_loss

__all__ = [
    "BerHuLoss",
    "DepthL1Loss",
    "DepthL2Loss",
    "LogDepthL1Loss",
    "OrdinalLoss",
    "SILogLoss",
    "ScaleShiftInvariantLoss",
]


class SILogLoss(nn.Module):
    """Scale-invariant logarithmic loss, `ops.silog_loss`; the default form is Eigen et al., arXiv 1406.2283, eq. 4.

    Args:
        variance_focus: lambda, from 0 (squared log error) to 1 (invariant to scale).
        form: "eigen" (images weighted with the square of their number of pixels, as released), "image_mean", "sqrt" or
            "sqrt_unbiased".
        scale: factor on the loss.
        log_prediction: the output is log(depth), as for Eigen's networks, instead of depth.
    """

    def __init__(
        self, variance_focus: float = 0.5, form: Form = "eigen", scale: float = 1.0, log_prediction: bool = False
    ) -> None:
        super().__init__()
        self.variance_focus, self.scale, self.log_prediction = variance_focus, scale, log_prediction
        self.form: Form = form

    @classmethod
    def bts(cls) -> "SILogLoss":
        """10 sqrt(mean e^2 - 0.85 (mean e)^2) over the batch (Lee et al., arXiv 1907.10326)."""
        return cls(0.85, "sqrt", 10.0)

    @classmethod
    def adabins(cls, scale: float = 1.0) -> "SILogLoss":
        """scale * sqrt(var e + 0.15 (mean e)^2), var unbiased, over the batch (Bhat et al., arXiv 2011.14141)."""
        return cls(0.85, "sqrt_unbiased", scale)

    def extra_repr(self) -> str:
        return f"{self.variance_focus}, {self.form!r}, scale={self.scale}, log_prediction={self.log_prediction}"

    def forward(self, output: Tensor, depth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Output (B, 1, H, W), above 0 where a pixel counts unless it is log(depth)."""
        return silog_loss(
            output,
            depth,
            valid=_or_measured(valid),
            form=self.form,
            variance_focus=self.variance_focus,
            scale=self.scale,
            log_prediction=self.log_prediction,
        )


class BerHuLoss(nn.Module):
    """Reverse Huber loss of Laina et al. (arXiv 1606.00373, eq. 2), `ops.berhu_loss`."""

    def __init__(self, threshold: float = 0.2) -> None:
        super().__init__()
        self.threshold = threshold

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}"

    def forward(self, output: Tensor, depth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Output (B, 1, H, W) in the unit of `depth`."""
        return berhu_loss(output, depth, valid=_or_measured(valid), threshold=self.threshold)


class OrdinalLoss(nn.Module):
    """Ordinal regression loss of DORN (Fu et al., arXiv 1806.02446, eq. 2), `ops.ordinal_loss`.

    Args:
        thresholds: K + 1 increasing depths, the bounds of the K bins.
    """

    thresholds: Tensor

    def __init__(self, thresholds: Sequence[float] | Tensor) -> None:
        super().__init__()
        values = torch.as_tensor(thresholds, dtype=torch.float64)
        if values.dim() != 1 or len(values) < 2:
            raise ValueError(f"thresholds: expected at least 2 numbers, got a tensor of shape {tuple(values.shape)}")
        _checks.increasing(values, "thresholds")
        # Configuration, not state: a checkpoint of a network has its own.
        self.register_buffer("thresholds", values.to(torch.get_default_dtype()), persistent=False)

    def extra_repr(self) -> str:
        return f"{len(self.thresholds) - 1} bins"

    def forward(self, output: Tensor, depth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Output (B, 2K, H, W), logits in pairs: "not beyond t_k", "beyond t_k"."""
        return ordinal_loss(output, depth, self.thresholds, valid=valid)


class DepthL1Loss(nn.Module):
    """Mean of |output - depth| over the valid pixels of the batch."""

    def forward(self, output: Tensor, depth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Output (B, 1, H, W) in the unit of `depth`."""
        output, depth, valid = _maps(output, depth, valid)
        return _mean(torch.where(valid, output - depth, 0).abs(), valid)


class DepthL2Loss(nn.Module):
    """Mean of (output - depth)^2 over the valid pixels of the batch."""

    def forward(self, output: Tensor, depth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Output (B, 1, H, W) in the unit of `depth`."""
        output, depth, valid = _maps(output, depth, valid)
        return _mean(torch.where(valid, output - depth, 0).square(), valid)


class LogDepthL1Loss(nn.Module):
    """Mean of |log(output) - log(depth)| over the valid pixels of the batch.

    Args:
        log_prediction: the output is log(depth) instead of depth.
    """

    def __init__(self, log_prediction: bool = False) -> None:
        super().__init__()
        self.log_prediction = log_prediction

    def extra_repr(self) -> str:
        return f"log_prediction={self.log_prediction}"

    def forward(self, output: Tensor, depth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Output (B, 1, H, W), above 0 where a pixel counts unless it is log(depth)."""
        output, depth, valid = _maps(output, depth, valid)
        output = torch.where(valid, output, 0 if self.log_prediction else 1)
        error = (output if self.log_prediction else output.log()) - torch.where(valid, depth, 1).log()
        return _mean(error.abs(), valid)


class ScaleShiftInvariantLoss(nn.Module):
    """The loss of MiDaS and DPT on inverse depth, invariant to the scale and shift of each image (Ranftl et al., arXiv
    1907.01341, eq. 5-11), mean over the images that have a valid pixel:

        1 / (2 M) sum rho(R) + gradient_weight / M sum_k sum (|dx R_k| + |dy R_k|)

    M is the number of an image's valid pixels, R = aligned output - aligned ground truth, R_k its every 2^k-th row and
    column; a difference counts if both its pixels are valid.

    Args:
        ground_truth: content of `depth`: "depth", which is inverted (infinite depth in `valid` becomes 0), or
            "inverse_depth".
        alignment: "median": each map minus its median, divided by its mean absolute deviation, rho(x) = |x|;
            "least_squares": the output, scaled and shifted to fit the ground truth best, which is first normalised to
            [0, 1], rho(x) = x^2.
        trim: share of an image's largest residuals that the first sum leaves out; None: 0.2, as published for
            "median", and 0 for "least_squares".
        gradient_weight: alpha.
        gradient_scales: number of scales k = 0, 1, ...
    """

    def __init__(
        self,
        ground_truth: Literal["depth", "inverse_depth"] = "depth",
        *,
        alignment: Literal["median", "least_squares"] = "median",
        trim: float | None = None,
        gradient_weight: float = 0.5,
        gradient_scales: int = 4,
    ) -> None:
        super().__init__()
        if ground_truth not in ("depth", "inverse_depth"):
            raise ValueError(f'ground_truth: expected "depth" or "inverse_depth", got {ground_truth!r}')
        if alignment not in ("median", "least_squares"):
            raise ValueError(f'alignment: expected "median" or "least_squares", got {alignment!r}')
        if trim is None:
            trim = 0.2 if alignment == "median" else 0.0
        if not 0 <= trim < 1:
            raise ValueError(f"trim: expected a number from 0 to below 1, got {trim}")
        self.ground_truth, self.alignment, self.trim = ground_truth, alignment, trim
        _checks.weight(gradient_weight, "gradient_weight")
        _checks.count(gradient_scales, "gradient_scales")
        self.gradient_weight, self.gradient_scales = gradient_weight, gradient_scales

    def extra_repr(self) -> str:
        return (
            f"{self.ground_truth!r}, alignment={self.alignment!r}, trim={self.trim}, "
            f"gradient_weight={self.gradient_weight}, gradient_scales={self.gradient_scales}"
        )

    def forward(self, output: Tensor, depth: Tensor, valid: Tensor | None = None) -> Tensor:
        """Output (B, 1, H, W): inverse depth, up to scale and shift."""
        output, depth, valid = _maps(output, depth, valid)
        if output.numel() == 0:
            return output.sum()
        truth = torch.where(valid, depth, 1)
        if self.ground_truth == "depth":
            truth = truth.reciprocal()
        shape, on = output.shape, valid.flatten(1)
        output, truth = torch.where(valid, output, 0).flatten(1), torch.where(valid, truth, 0).flatten(1)
        count = on.sum(1, keepdim=True)
        n = count.clamp(min=1)
        if self.alignment == "median":
            residual = torch.where(on, _standardised(output, on, n) - _standardised(truth, on, n), 0)
            cost = residual.abs()
        else:
            residual = _least_squares_residual(output, _to_unit_range(truth, on), on, n)
            cost = residual.square()
        ranked = torch.where(on, cost, torch.inf).sort(1).values
        kept = torch.arange(ranked.shape[1], device=ranked.device) < ((1 - self.trim) * count.double()).floor()
        loss = torch.where(kept, ranked, 0).sum(1) / 2
        if self.gradient_weight:
            maps = residual.view(shape), on.view(shape)
            loss = loss + self.gradient_weight * _multi_scale_gradient(*maps, self.gradient_scales)
        return (loss / n[:, 0]).sum() / (count > 0).sum().clamp(min=1)


def _or_measured(valid: Tensor | None) -> Tensor | Literal["measured"]:
    return "measured" if valid is None else valid


def _maps(output: Tensor, depth: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Output and depth in the dtype to compute in, and the mask."""
    shape = _checks.depth_map(output, "output")
    _checks.tensor(depth, "depth", shape, "(B, 1, H, W)")
    _checks.mask(valid, "valid", shape, "(B, 1, H, W)")
    _checks.same_device(output, "output", depth=depth, valid=valid)
    dtype = _checks.working_dtype(output)
    depth = depth.detach().to(dtype)
    return output.to(dtype), depth, depth.isfinite() & (depth > 0) if valid is None else valid


def _mean(cost: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid pixels of the batch; `cost` is 0 elsewhere."""
    return cost.sum() / valid.sum().clamp(min=1)


def _median(values: Tensor, on: Tensor, n: Tensor) -> Tensor:
    """Of each row of (B, N) where `on`, (B, 1); between the two in the middle where their number is even."""
    ranked = torch.where(on, values, torch.inf).sort(1).values
    middle = (ranked.gather(1, (n - 1) // 2) + ranked.gather(1, n // 2)) / 2
    return torch.where(on.any(1, keepdim=True), middle, 0)


def _standardised(values: Tensor, on: Tensor, n: Tensor) -> Tensor:
    """Minus the median, over the mean absolute deviation."""
    centred = torch.where(on, values - _median(values, on, n), 0)
    spread = centred.abs().sum(1, keepdim=True) / n
    spread = spread + (spread - spread).detach()  # or an infinity would make everything else 0, and be trimmed itself
    return centred / torch.where(spread == 0, 1, spread)


def _to_unit_range(values: Tensor, on: Tensor) -> Tensor:
    least = torch.where(on, values, torch.inf).amin(1, keepdim=True)
    extent = torch.where(on, values, -torch.inf).amax(1, keepdim=True) - least
    return torch.where(on, (values - least) / torch.where(extent == 0, 1, extent), 0)


def _least_squares_residual(output: Tensor, truth: Tensor, on: Tensor, n: Tensor) -> Tensor:
    """scale * output + shift - truth for the scale and shift that make its square sum least, 0 where not `on`."""
    x = torch.where(on, output - output.sum(1, keepdim=True) / n, 0)
    y = torch.where(on, truth - truth.sum(1, keepdim=True) / n, 0)
    variance = x.square().sum(1, keepdim=True)
    return (x * y).sum(1, keepdim=True) / torch.where(variance == 0, 1, variance) * x - y


def _multi_scale_gradient(residual: Tensor, valid: Tensor, scales: int) -> Tensor:
    """(B,): the sum of absolute differences of neighbours that are both valid, of every 2^k-th row and column."""
    total = residual.new_zeros(residual.shape[0])
    for k in range(scales):
        r, on = residual[..., :: 2**k, :: 2**k], valid[..., :: 2**k, :: 2**k]
        along_x = torch.where(on[..., 1:] & on[..., :-1], (r[..., 1:] - r[..., :-1]).abs(), 0)
        along_y = torch.where(on[..., 1:, :] & on[..., :-1, :], (r[..., 1:, :] - r[..., :-1, :]).abs(), 0)
        total = total + along_x.sum((1, 2, 3)) + along_y.sum((1, 2, 3))
    return total

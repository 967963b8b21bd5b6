"""Per-pixel photometric distance: weighted SSIM and L1 between two images."""

import torch.nn.functional as F
from torch import Tensor

from mdepth_fast._op import Backward, Op, T
from mdepth_fast.ops import _checks

C1, C2 = 1e-4, 9e-4


def photometric_loss(
    prediction: Tensor, target: Tensor, *, ssim_weight: float = 0.85, backend: str | None = None
) -> Tensor:
    """The weighted SSIM and L1 distance between two images at every pixel.

    `ssim_weight * mean_c clamp((1 - SSIM) / 2, 0, 1) + (1 - ssim_weight) * mean_c |prediction - target|`, with SSIM
    over 3x3 boxes, reflection padding, C1 = 0.01^2, C2 = 0.03^2 (Godard et al., arXiv 1806.01260, eq. 2-3).

    Args:
        prediction, target: (B, C, H, W), H and W at least 2, range [0, 1]. Gradients go to both.
        ssim_weight: share of SSIM, 0 to 1.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, 1, H, W) in the inputs' dtype (half and bfloat16 are computed and returned as float32).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    _checks.tensor(prediction, "prediction", (None, None, None, None), "(B, C, H, W)")
    _checks.tensor(target, "target", tuple(prediction.shape), "(B, C, H, W)")
    _checks.same_device(prediction, "prediction", target=target)
    _checks.window_fits(prediction, "prediction")
    if prediction.shape[1] == 0:
        raise ValueError(f"prediction: expected at least 1 channel, got shape {tuple(prediction.shape)}")
    _checks.fraction(ssim_weight, "ssim_weight")
    dtype = _checks.working_dtype(prediction, target)
    prediction, target = prediction.to(dtype), target.to(dtype)
    loss: Tensor = _OP(backend, prediction=prediction, target=target, ssim_weight=ssim_weight)
    return loss


def reference(prediction: Tensor, target: Tensor, ssim_weight: float = 0.85) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""

    x, y = (F.pad(image, (1, 1, 1, 1), mode="reflect") for image in (prediction, target))
    distance = ssim_distance(x, y).mean(1, keepdim=True)
    absolute = (prediction - target).abs().mean(1, keepdim=True)
    return ssim_weight * distance + (1 - ssim_weight) * absolute


def ssim_distance(x: Tensor, y: Tensor) -> Tensor:
    """`clamp((1 - SSIM) / 2, 0, 1)` of every 3x3 window inside images (B, C, H, W): (B, C, H - 2, W - 2)."""

    def mean(image: Tensor) -> Tensor:
        return F.avg_pool2d(image, 3, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    variance_x = mean(x * x) - mean_x * mean_x
    variance_y = mean(y * y) - mean_y * mean_y
    covariance = mean(x * y) - mean_x * mean_y
    ssim = ((2 * mean_x * mean_y + C1) * (2 * covariance + C2)) / (
        (mean_x * mean_x + mean_y * mean_y + C1) * (variance_x + variance_y + C2)
    )
    return ((1 - ssim) / 2).clamp(0, 1)


_OP = Op(
    "photometric_loss",
    reference,
    inputs={
        "prediction": T("batch", "channels", "height", "width"),
        "target": T("batch", "channels", "height", "width"),
    },
    options={"ssim_weight": float},
    outputs={"loss": T("batch", 1, "height", "width")},
    sane=_checks.windows,
    backward=Backward(takes=("prediction", "target", "ssim_weight"), gradients=("prediction", "target")),
)

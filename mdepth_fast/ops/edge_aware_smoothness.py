"""Edge-aware first-order smoothness of the disparity, mean-normalised or as it is."""

import torch
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, total
from mdepth_fast.ops import _checks

MEAN_EPSILON = 1e-7


def edge_aware_smoothness(
    disparity: Tensor, image: Tensor, *, normalize: bool = True, backend: str | None = None
) -> Tensor:
    """Mean of `|dx d*| exp(-mean_c |dx I|)` plus the same along y, `d* = d / (mean_HW d + 1e-7)`.

    Godard et al., arXiv 1806.01260, eq. 3; the normalisation follows Wang et al., arXiv 1712.00175. Without it
    `d* = d`, as in Monodepth (Godard et al., arXiv 1609.03677, eq. 3) and vid2depth (Mahjourian et al., arXiv
    1802.05522, section 3.4).

    Args:
        disparity: (B, 1, H, W), H and W at least 2; gets the gradient.
        image: (B, C, H, W), range [0, 1]; gets no gradient.
        normalize: whether the disparity is divided by its mean over the image.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar in the inputs' dtype (half and bfloat16 are computed and returned as float32).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or device.
    """
    _checks.tensor(disparity, "disparity", (None, 1, None, None), "(B, 1, H, W)")
    batch, _, height, width = disparity.shape
    _checks.tensor(image, "image", (batch, None, height, width), "(B, C, H, W)")
    _checks.same_device(disparity, "disparity", image=image)
    _checks.flag(normalize, "normalize")
    if height < 2 or width < 2:
        raise ValueError(f"disparity: expected H and W of at least 2, got {height}x{width}")
    if image.shape[1] == 0:
        raise ValueError(f"image: expected at least 1 channel, got shape {tuple(image.shape)}")
    dtype = _checks.working_dtype(disparity, image)
    disparity, image = disparity.to(dtype), image.detach().to(dtype)
    loss: Tensor = _OP(backend, disparity=disparity, image=image, normalize=normalize)
    return loss


def reference(disparity: Tensor, image: Tensor, normalize: bool = True) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""
    image = image.detach()
    d = disparity / (disparity.mean((2, 3), keepdim=True) + MEAN_EPSILON) if normalize else disparity
    along_x = (d[..., :-1] - d[..., 1:]).abs()
    along_y = (d[..., :-1, :] - d[..., 1:, :]).abs()
    weight_x = torch.exp(-(image[..., :-1] - image[..., 1:]).abs().mean(1, keepdim=True))
    weight_y = torch.exp(-(image[..., :-1, :] - image[..., 1:, :]).abs().mean(1, keepdim=True))
    return (along_x * weight_x).mean() + (along_y * weight_y).mean()


def _scaled(grad: Tensor, grad_disparity: Tensor, disparity: Tensor) -> Tensor:
    """The forward has computed the gradient of the loss."""
    return grad * grad_disparity


_OP = Op(
    "edge_aware_smoothness",
    reference,
    inputs={
        "disparity": T("batch", 1, "height", "width"),
        "image": T("batch", "channels", "height", "width"),
    },
    options={"normalize": bool},
    outputs={"loss": total()},
    kept={"grad_disparity": T("batch", 1, "height", "width", only_if="need_grad")},
    sane=_checks.windows,
    backward=Backward(takes=("grad_disparity",), gradients=("disparity",), function=_scaled),
    of_nothing=float("nan"),  # the mean over nothing, as PyTorch has it
)

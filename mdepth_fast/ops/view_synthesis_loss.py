"""The photometric loss of view synthesis: warp, L1, SSIM and the mask of vid2depth and SfMLearner, fused."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, array, total
from mdepth_fast.geometry import projection_matrix
from mdepth_fast.ops import _checks
from mdepth_fast.ops.inverse_warp import sample_reference
from mdepth_fast.ops.photometric_loss import ssim_distance

GREY = 0.5  # the middle of the image range


class ViewSynthesisLoss(NamedTuple):
    """Result of `view_synthesis_loss`: two scalars."""

    l1: Tensor
    ssim: Tensor


def view_synthesis_loss(
    target: Tensor,
    source: Tensor,
    depth: Tensor,
    K: Tensor,
    T: Tensor,
    *,
    source_K: Tensor | None = None,
    weight: Tensor | None = None,
    padding: str = "masked",
    ssim: bool = True,
    backend: str | None = None,
) -> ViewSynthesisLoss:
    """L1 and SSIM between the target and a source warped into its view, both weighted by a mask.

    The source is sampled at the projections of the target's pixels, as in `inverse_warp`. The mask M is 1 where all
    four neighbours of the sampled position lie inside the source (0 <= u < W-1, 0 <= v < H-1) and z > 1e-6; it gets no
    gradient. With C = 3 channels:

    - `l1` = sum of `m |warped - target|` / (B C H W),
    - `ssim` = sum of `mean_3x3(m) clamp((1 - SSIM) / 2, 0, 1)` / (B C (H-2) (W-2)), over the 3x3 windows that lie in
      the image, with C1 = 0.01^2 and C2 = 0.03^2.

    "masked" is vid2depth (Mahjourian et al., arXiv 1802.05522, sections 3.2 and 3.4, and its code): m = M * weight, and
    positions outside read the nearest pixel of the border, which windows at the edge of the mask still see. "grey" is
    SfMLearner (Zhou et al., arXiv 1704.07813, eq. 1 and 3, and its code): m = weight, the explainability, and
    where M is 0 the source reads 0.5. That is the 0 of their images in [-1, 1], on which the same l1 is twice as large.

    Both papers' code lets points behind the camera pass as if they were in front. Here they have M = 0 and read 0 (or
    0.5), as in `inverse_warp`. A position exactly on the first column or row is inside, but has no gradient across it.

    The fused backends compute the gradients of both terms in the forward pass and save, beside the inputs, nothing else
    for the backward.

    Args:
        target, source: (B, 3, H, W), range [0, 1], H and W at least 3, without `ssim` 2; get no gradient.
        depth: (B, 1, H, W), z along the optical axis, in the unit of `T`.
        K: (B, 3, 3) in pixels. T: (B, 4, 4), target camera to source camera.
        source_K: (B, 3, 3); None for `K`.
        weight: (B, 1, H, W), what each pixel counts; None for 1.
        padding: "masked" or "grey".
        ssim: False leaves out that term, and returns 0 for it.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (l1, ssim), scalars in the inputs' dtype (half and bfloat16 are computed in float32), with gradients to depth,
        K, source_K, T and weight.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    _checks.tensor(target, "target", (None, 3, None, None), "(B, 3, H, W)")
    batch, _, height, width = target.shape
    _checks.tensor(source, "source", (batch, 3, height, width), "(B, 3, H, W)")
    _checks.tensor(depth, "depth", (batch, 1, height, width), "(B, 1, H, W)")
    _checks.tensor(K, "K", (batch, 3, 3), "(B, 3, 3)")
    _checks.tensor(T, "T", (batch, 4, 4), "(B, 4, 4)")
    if source_K is not None:
        _checks.tensor(source_K, "source_K", (batch, 3, 3), "(B, 3, 3)")
    if weight is not None:
        _checks.tensor(weight, "weight", (batch, 1, height, width), "(B, 1, H, W)")
    _checks.same_device(target, "target", source=source, depth=depth, K=K, T=T, source_K=source_K, weight=weight)
    _checks.flag(ssim, "ssim")
    least = 3 if ssim else 2
    if height < least or width < least:
        why = " (3x3 windows)" if ssim else ""
        raise ValueError(f"target: expected H and W of at least {least}{why}, got {height}x{width}")
    if padding not in ("masked", "grey"):
        raise ValueError(f'padding: expected "masked" or "grey", got {padding!r}')

    dtype = _checks.working_dtype(target, source, depth, weight)
    target, source, depth = _checks.cast(dtype, target.detach(), source.detach(), depth)
    losses = _OP(
        backend,
        target=target,
        source=source,
        depth=depth,
        projection=projection_matrix(K, T, source_K),
        weight=None if weight is None else weight.to(dtype),
        padding=padding,
        terms=2 if ssim else 1,
    )
    return ViewSynthesisLoss(losses[0], losses[1] if ssim else torch.zeros_like(losses[0]))


def reference(
    target: Tensor,
    source: Tensor,
    depth: Tensor,
    projection: Tensor,
    weight: Tensor | None = None,
    padding: str = "masked",
    terms: int = 2,
) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against.

    `projection` (B, 3, 4) is `geometry.projection_matrix(K, T, source_K)`. Returns (terms,): l1, then ssim.
    """
    warped, _, _, inside = sample_reference(source, depth, projection, "border")
    if padding == "grey":
        warped = torch.where(inside, warped, GREY + 0 * warped.detach())
        counts = torch.ones_like(depth)
    else:
        counts = inside.to(depth.dtype)
    counts = counts if weight is None else counts * weight
    losses = [((warped - target).abs() * counts).mean()]
    if terms > 1:
        losses.append((ssim_distance(warped, target) * F.avg_pool2d(counts, 3, stride=1)).mean())
    return torch.stack(losses)


def _scaled(
    grad: Tensor,
    grad_depth: Tensor,
    grad_projection: Tensor,
    grad_weight: Tensor | None,
    need_weight: bool,
    **_: Tensor | bool | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The forward has computed the gradients of each term."""

    def combined(maps: Tensor) -> Tensor:
        first = grad[0].to(maps.dtype) * maps[0]
        return first if len(maps) == 1 else torch.addcmul(first, grad[1].to(maps.dtype), maps[1])

    by_weight = combined(grad_weight) if need_weight and grad_weight is not None else None
    return combined(grad_depth), combined(grad_projection), by_weight


_OP = Op(
    "view_synthesis_loss",
    reference,
    inputs={
        "target": T("batch", 3, "height", "width"),
        "source": T("batch", 3, "height", "width"),
        "depth": T("batch", 1, "height", "width"),
        "projection": array(torch.float64, "batch", 3, 4),
        "weight": T("batch", 1, "height", "width", optional=True),
    },
    options={"padding": ("masked", "grey"), "terms": int},
    sane=lambda sizes: (
        None
        if 1 <= sizes["terms"] <= 2 and min(sizes["height"], sizes["width"]) > sizes["terms"]
        else "1 or 2 terms, and H and W of at least 2 or 3"
    ),
    outputs={"loss": total("terms")},
    kept={
        "grad_depth": T("terms", "batch", 1, "height", "width", only_if="need_grad"),
        "grad_projection": array(torch.float64, "terms", "batch", 3, 4, only_if="need_grad"),
        "grad_weight": T("terms", "batch", 1, "height", "width", only_if="need_grad", of="weight"),
    },
    backward=Backward(
        takes=("grad_depth", "grad_projection", "grad_weight"),
        gradients=("depth", "projection", "weight"),
        function=_scaled,
    ),
    of_nothing=float("nan"),  # the mean over nothing, as PyTorch has it
)

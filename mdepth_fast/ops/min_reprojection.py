"""Per-pixel minimum reprojection with auto-masking: the photometric objective of self-supervised depth, fused."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mdepth_fast._op import Backward, Op, T, array, total
from mdepth_fast.geometry import projection_matrix
from mdepth_fast.ops import _checks
from mdepth_fast.ops.inverse_warp import sample_reference
from mdepth_fast.ops.photometric_loss import reference as photometric_reference


class MinReprojection(NamedTuple):
    """Result of `min_reprojection`: (loss, selection) for one depth map, one entry per map for a sequence."""

    loss: Tensor
    selection: Tensor | list[Tensor]


def min_reprojection(
    target: Tensor,
    sources: Tensor,
    depth: Tensor | Sequence[Tensor],
    K: Tensor,
    T: Tensor,
    *,
    source_K: Tensor | None = None,
    ssim_weight: float = 0.85,
    auto_mask: bool = True,
    identity_noise: Tensor | None = None,
    padding: str = "border",
    backend: str | None = None,
) -> MinReprojection:
    """Mean over pixels of the least photometric error over the warped sources and, with `auto_mask`, the unwarped ones.

    Godard et al., arXiv 1806.01260, eq. 4-5. At every pixel `photometric_loss` compares the target with each source
    warped by depth and pose (`inverse_warp`) and, with `auto_mask`, with each source as it is (the identity term); the
    least of these errors counts. Where an identity term wins, the pixel is static: it gives no gradient but stays in
    the mean. Ties go to the identity term, then to the lower source index. A point behind the camera (z <= 1e-6) never
    wins; a pixel with no candidate left counts as 0.

    The fused backends compute the gradients in the forward pass and save, beside the inputs, nothing else for the
    backward.

    Args:
        target: (B, 3, H, W), range [0, 1], H and W at least 2; gets no gradient.
        sources: (B, S, 3, H, W), S from 1 to 127; get no gradient.
        depth: (B, 1, H, W), or a sequence of them: the scales, at full resolution; they share the identity term.
        K: (B, 3, 3) in pixels. T: (B, S, 4, 4), target camera to source camera.
        source_K: (B, S, 3, 3); None for `K`.
        ssim_weight: share of SSIM in the photometric error, 0 to 1.
        auto_mask: whether the identity term takes part in the minimum.
        identity_noise: (B, S, H, W), added to the identity errors (Monodepth2 adds 1e-5 N(0, 1) to break ties).
        padding: "border" or "zeros", as in `inverse_warp`.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        loss: a scalar, or (n,) for a sequence, in the inputs' dtype (half and bfloat16 are computed in float32), with
        gradients to depth, K, source_K and T. selection: int8 (B, 1, H, W), or a list of them: -1 where an identity
        term won (or nothing could), else the index of the winning source.

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape, device or range.
    """
    _checks.tensor(target, "target", (None, 3, None, None), "(B, 3, H, W)")
    batch, _, height, width = target.shape
    _checks.tensor(sources, "sources", (batch, None, 3, height, width), "(B, S, 3, H, W)")
    count = sources.shape[1]
    if not 1 <= count <= 127:  # of which `selection` says one in 8 bits
        raise ValueError(f"sources: expected 1 to 127 sources (S), got shape {tuple(sources.shape)}")
    depths = [depth] if isinstance(depth, Tensor) else depth
    if not isinstance(depths, Sequence) or len(depths) == 0:
        raise TypeError(f"depth: expected a tensor or a non-empty sequence of tensors, got {type(depth).__name__}")
    for index, one in enumerate(depths):
        name = "depth" if isinstance(depth, Tensor) else f"depth[{index}]"
        _checks.tensor(one, name, (batch, 1, height, width), "(B, 1, H, W)")
        _checks.same_device(target, "target", **{name: one})
    _checks.tensor(K, "K", (batch, 3, 3), "(B, 3, 3)")
    _checks.tensor(T, "T", (batch, count, 4, 4), "(B, S, 4, 4)")
    if source_K is not None:
        _checks.tensor(source_K, "source_K", (batch, count, 3, 3), "(B, S, 3, 3)")
    if identity_noise is not None:
        _checks.tensor(identity_noise, "identity_noise", (batch, count, height, width), "(B, S, H, W)")
    _checks.same_device(target, "target", sources=sources, K=K, T=T, source_K=source_K, identity_noise=identity_noise)
    _checks.window_fits(target, "target")
    _checks.fraction(ssim_weight, "ssim_weight")
    _checks.padding_mode(padding)
    _checks.flag(auto_mask, "auto_mask")

    dtype = _checks.working_dtype(target, sources, *depths)
    target, sources = target.detach().to(dtype), sources.detach().to(dtype)
    depths = [one.to(dtype) for one in depths]
    noise = None if identity_noise is None else identity_noise.detach().to(dtype)
    projection = projection_matrix(K, T, source_K)
    loss, selection = _OP(
        backend,
        target=target,
        source=sources,
        depth=depths,
        projection=projection,
        identity_noise=noise,
        ssim_weight=ssim_weight,
        auto_mask=auto_mask,
        padding=padding,
    )
    if isinstance(depth, Tensor):
        return MinReprojection(loss[0], selection[0])
    return MinReprojection(loss, list(selection.unbind(0)))


def reference(
    target: Tensor,
    source: Tensor,
    depth: Sequence[Tensor],
    projection: Tensor,
    identity_noise: Tensor | None = None,
    ssim_weight: float = 0.85,
    auto_mask: bool = True,
    padding: str = "border",
) -> tuple[Tensor, Tensor]:
    """The reference in plain PyTorch, which every backend is tested against.

    `source` (B, S, 3, H, W), `depth` a list; `projection` (B, S, 3, 4) is `geometry.projection_matrix(K, T, source_K)`.
    Returns loss (n,) and selection (n, B, 1, H, W).
    """
    count = source.shape[1]
    identity = []
    if auto_mask:
        identity = [photometric_reference(source[:, s], target, ssim_weight) for s in range(count)]
        if identity_noise is not None:
            identity = [error + identity_noise[:, s : s + 1] for s, error in enumerate(identity)]
    losses, selections = [], []
    for one in depth:
        candidates = list(identity)
        for s in range(count):
            sampled = sample_reference(source[:, s], one, projection[:, s], padding)
            error = photometric_reference(sampled.warped, target, ssim_weight)
            candidates.append(torch.where(sampled.seen | error.isnan(), error, torch.full_like(error, torch.inf)))
        least, index = torch.cat(candidates, 1).min(1, keepdim=True)
        nothing = least == torch.inf
        losses.append(torch.where(nothing, torch.zeros_like(least), least).mean())
        selections.append((index - len(identity)).clamp_min(-1).masked_fill(nothing, -1).to(torch.int8))
    return torch.stack(losses), torch.stack(selections)


def _scaled(
    grad: Tensor, grad_depth: Tensor, grad_projection: Tensor, depth: list[Tensor], projection: Tensor, **_: bool
) -> tuple[Tensor, Tensor]:
    """The forward has computed the gradients of each scale's loss."""
    by_projection = (grad.to(grad_projection.dtype).view(-1, 1, 1, 1, 1) * grad_projection).sum(0)
    return grad.view(-1, 1, 1, 1, 1) * grad_depth, by_projection


_OP = Op(
    "min_reprojection",
    reference,
    inputs={
        "target": T("batch", 3, "height", "width"),
        "source": T("batch", "sources", 3, "height", "width"),
        "depth": T("batch", 1, "height", "width", many="scales"),
        "projection": array(torch.float64, "batch", "sources", 3, 4),
        "identity_noise": T("batch", "sources", "height", "width", optional=True),
    },
    options={"ssim_weight": float, "auto_mask": bool, "padding": ("border", "zeros")},
    sane=lambda sizes: _checks.windows(sizes) or (None if 1 <= sizes["sources"] <= 127 else "1 to 127 sources"),
    outputs={
        "loss": total("scales"),
        "selection": array(torch.int8, "scales", "batch", 1, "height", "width"),
    },
    kept={
        "grad_depth": T("scales", "batch", 1, "height", "width", only_if="need_grad"),
        "grad_projection": array(torch.float64, "scales", "batch", "sources", 3, 4, only_if="need_grad"),
    },
    backward=Backward(takes=("grad_depth", "grad_projection"), gradients=("depth", "projection"), function=_scaled),
    of_nothing=float("nan"),  # the mean over nothing, as PyTorch has it
)

"""Depth from a sigmoid disparity map, at the size of the images."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mdepth_fast._op import Backward, Op, T
from mdepth_fast.ops import _checks


def disparity_to_depth(
    disparity: Tensor,
    size: Sequence[int] | None = None,
    *,
    min_depth: float = 0.1,
    max_depth: float = 100.0,
    backend: str | None = None,
) -> Tensor:
    """`1 / (1/max_depth + (1/min_depth - 1/max_depth) * d)`, where d is the sigmoid disparity map resized bilinearly.

    Monodepth2, arXiv 1806.01260, section 3. Resizing matches `F.interpolate(mode="bilinear", align_corners=False)`, up
    or down by any ratio, without antialiasing.

    Args:
        disparity: (B, 1, h, w) in [0, 1]: 0 is `max_depth`, 1 is `min_depth`; gets the gradient.
        size: (H, W) of the depth; None: the size of the disparity map.
        min_depth, max_depth: 0 < `min_depth` < `max_depth`.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        Depth (B, 1, H, W) in the dtype of the disparity map (float32 for half and bfloat16).

    Raises:
        TypeError, ValueError: an argument has the wrong type, dtype, shape or range.
    """
    _, _, *own = _checks.depth_map(disparity, "disparity")
    if min(own) < 1:
        raise ValueError(f"disparity: expected H and W of at least 1, got shape {tuple(disparity.shape)}")
    height, width = _checks.image_size(own if size is None else size, "size")
    _checks.depth_range(min_depth, max_depth)
    (disparity,) = _checks.cast(_checks.working_dtype(disparity), disparity)
    depth: Tensor = _OP(
        backend, disparity=disparity, height=height, width=width, min_depth=min_depth, max_depth=max_depth
    )
    return depth


def reference(disparity: Tensor, height: int, width: int, min_depth: float, max_depth: float) -> Tensor:
    """The reference in plain PyTorch, which every backend is tested against."""
    if disparity.shape[2:] != (height, width):
        disparity = F.interpolate(disparity, size=(height, width), mode="bilinear", align_corners=False)
    far = 1.0 / max_depth
    return (far + (1.0 / min_depth - far) * disparity).reciprocal()


_OP = Op(
    "disparity_to_depth",
    reference,
    inputs={"disparity": T("batch", 1, "map_height", "map_width")},
    options={"height": int, "width": int, "min_depth": float, "max_depth": float},
    sane=lambda sizes: None if _checks.some(sizes) else "sizes of at least 1",
    outputs={"depth": T("batch", 1, "height", "width")},
    backward=Backward(
        takes=("disparity", "depth", "min_depth", "max_depth"),
        gradients=("disparity",),
    ),
)

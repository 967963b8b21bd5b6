"""Lanczos resizing as Pillow does it, with which the images of the self-supervised systems are resized."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize_lanczos"]

_LOBES = 3
_HAS_KERNEL = hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")


def resize_lanczos(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, C, h, w) in [0, 1] to `size` (H, W), antialiased; what Pillow gives, but for its rounding to bytes.

    By PyTorch's kernel where it has one, which newer versions do for the CPU. Else two products of matrices, which
    exporters take for any size.
    """
    if torch.is_autocast_enabled(images.device.type):
        with torch.autocast(images.device.type, enabled=False):
            return resize_lanczos(images, size)
    # Bytes end at 0 and 255 between the two directions, too.
    if images.device.type == "cpu" and _HAS_KERNEL and not torch.compiler.is_compiling():
        for between in ((images.shape[-2], size[1]), size):
            images = F.interpolate(images, between, mode="lanczos", antialias=True).clamp(0, 1)
        return images
    columns, rows = (_weights(images.shape[dim], size[dim], images) for dim in (-1, -2))
    return (rows @ (images @ columns.T).clamp(0, 1)).clamp(0, 1)


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """Matrix (new, old) that makes a line of `new` pixels out of one of `old`."""
    options: dict[str, Any] = {
        "dtype": torch.float32 if like.device.type == "mps" else torch.float64,
        "device": like.device,
    }
    pixels = torch.arange(old, **options)
    scale = (pixels[-1] + 1) / new  # a tensor, as exporters leave the length open
    centres = (torch.arange(new, **options)[:, None] + 0.5) * scale
    x = (pixels + 0.5 - centres) / scale.clamp(min=1)
    weights = torch.where(x.abs() < _LOBES, _sinc(x) * _sinc(x / _LOBES), torch.zeros_like(x))
    return (weights / weights.sum(1, keepdim=True)).to(like.dtype)


def _sinc(x: Tensor) -> Tensor:
    return torch.where(x == 0, torch.ones_like(x), torch.sin(math.pi * x) / (math.pi * x))

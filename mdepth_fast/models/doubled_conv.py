"""Bilinear x2 (align_corners=True) followed by a 3x3 convolution, computed on the small map.

Resizing and the taps of a convolution are linear and act on rows, columns and channels separately, so the channels go
first, where there is a quarter of the pixels: out = sum over dy, dx of A_dy (W_dydx x) B_dx, A_dy and B_dx being the
matrices of resizing, shifted by a row or a column. These have two entries per row, so they are applied in blocks, to
strips of the map that stay in the cache; the large map is never written.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["doubled_conv"]

_BLOCK = 32  # rows and columns of the output per block: narrower wastes overlap, wider multiplies by more zeros


def doubled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv`, 3x3 with padding 1, of x (B, C, h, w) resized to 2h x 2w, as channels_last."""
    # Matrix products on strips beat one convolution on a CPU only, and autograd would keep every strip.
    training = torch.is_grad_enabled() and (x.requires_grad or conv.weight.requires_grad)
    slow = x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64)
    if training or slow or torch.compiler.is_compiling():
        return conv(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True))
    (batch, channels, h, w), outputs = x.shape, conv.out_channels
    kernel = conv.weight.permute(2, 1, 3, 0).reshape(3, channels, 3 * outputs)  # dy, C, (dx, output)
    rows, columns = _shifted(h).to(x), _shifted(w).to(x)
    out = x.new_empty(batch, 2 * h, 2 * w, outputs)
    for image, result in zip(x.permute(0, 2, 3, 1), out):
        for top in range(0, 2 * h, _BLOCK):
            y0, y1 = _read(top, h)
            taps = torch.matmul(image[y0:y1].reshape(1, -1, channels), kernel)  # dy, (y, x), (dx, output)
            vertical = rows[top : top + _BLOCK, :, y0:y1].flatten(1)
            strip = (vertical @ taps.view(-1, w * 3 * outputs)).view(-1, w, 3 * outputs)
            for left in range(0, 2 * w, _BLOCK):
                x0, x1 = _read(left, w)
                horizontal = columns[left : left + _BLOCK, :, x0:x1].transpose(1, 2).flatten(1)
                block = horizontal @ strip[:, x0:x1].unflatten(2, (3, outputs)).flatten(1, 2)
                if conv.bias is not None:
                    block += conv.bias
                result[top : top + _BLOCK, left : left + _BLOCK] = block
    return out.permute(0, 3, 1, 2)


def _step(length: int) -> float:
    return (length - 1) / (2 * length - 1)


def _read(start: int, length: int) -> tuple[int, int]:
    """Range of the input that the taps of the outputs start, ..., start + _BLOCK - 1 read."""
    first, last = (math.floor(place * _step(length)) for place in (start - 1, start + _BLOCK))
    return max(first, 0), min(last + 2, length)


def _shifted(length: int) -> Tensor:
    """(2 * length, 3, length), float64: row i, tap d gives pixel i + d - 1 of the doubled line, 0 outside of it."""
    place = torch.arange(2 * length, dtype=torch.float64) * _step(length)
    low = place.long().clamp(max=max(length - 2, 0))
    high = (low + 1).clamp(max=length - 1)
    line = torch.arange(length)
    # At length 1 low and high coincide and the shares add up to 1.
    resize = (low[:, None] == line) * (1 - place + low)[:, None] + (high[:, None] == line) * (place - low)[:, None]
    padded = F.pad(resize, (0, 0, 1, 1))
    return torch.stack([padded[:-2], padded[1:-1], padded[2:]], 1)

"""3x3 convolutions on a CPU by minimal filtering (Winograd; Lavin and Gray, arXiv 1509.09308): F(4x4, 3x3).

36 multiplications per 4x4 outputs and channel in place of 144, in matrix products. The polynomials are evaluated at 0,
+-sqrt(1/2), +-sqrt(2) and infinity: the rounding error is half as large as with the usual 0, +-1, +-2, and about eight
times as large as in a direct convolution.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["WinogradConv2d"]

_OUTPUTS, _TAPS = 4, 3
_TILE = _OUTPUTS + _TAPS - 1
_POINTS = np.array([0.0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5)])  # and infinity
_STRIP = 144  # tiles transformed at once: few enough for the cache, enough for a matrix product


def _transforms() -> tuple[Tensor, Tensor, Tensor]:
    """Of the input (36, 36), the filter (36, 9) and the output (16, 36): along rows and columns at once, float64."""
    inputs, filters, outputs = np.zeros((_TILE, _TILE)), np.zeros((_TILE, _TAPS)), np.zeros((_OUTPUTS, _TILE))
    for n, point in enumerate(_POINTS):
        others = np.delete(_POINTS, n)
        inputs[n, :-1] = np.poly(others)[::-1]
        filters[n] = point ** np.arange(_TAPS) / np.prod(point - others)
        outputs[:, n] = point ** np.arange(_OUTPUTS)
    inputs[-1], filters[-1, -1], outputs[-1, -1] = np.poly(_POINTS)[::-1], 1, 1
    one, two, three = (torch.from_numpy(np.kron(matrix, matrix)) for matrix in (inputs, filters, outputs))
    return one, two, three


class WinogradConv2d(nn.Conv2d):
    """`conv`, 3x3, stride 1, padding 1, sharing its parameters; for float32 and float64 on a CPU without gradients.

    Elsewhere it runs the original convolution. ValueError for any other kind of convolution.
    """

    spectrum: Tensor
    to_tiles: Tensor
    from_tiles: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        if not fits(conv):
            raise ValueError(f"conv: expected 3x3, stride 1, padding 1, one group, got {conv}")
        super().__init__(conv.in_channels, conv.out_channels, 3, padding=1, bias=conv.bias is not None, device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        for name in ("spectrum", "to_tiles", "from_tiles"):
            self.register_buffer(name, None, persistent=False)
        _transform(self)
        self.register_load_state_dict_post_hook(_transform)

    def forward(self, x: Tensor) -> Tensor:
        training = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        slow = x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.dtype != self.spectrum.dtype
        if training or slow or torch.compiler.is_compiling():
            return super().forward(x)
        (batch, channels, height, width), outputs = x.shape, self.out_channels
        rows, columns = -(-height // _OUTPUTS), -(-width // _OUTPUTS)
        depth = max(1, _STRIP // columns)
        margins = (1, _OUTPUTS * columns - width + 1, 1, _OUTPUTS * rows - height + 1)
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, *margins))
        out = x.new_empty(batch, rows, _OUTPUTS, columns, _OUTPUTS, outputs)
        for image, result in zip(padded, out):
            tiles = image.unfold(0, _TILE, _OUTPUTS).unfold(1, _TILE, _OUTPUTS).permute(3, 4, 0, 1, 2)
            for top in range(0, rows, depth):
                bottom = top + depth
                values = (self.to_tiles @ tiles[:, :, top:bottom].reshape(_TILE**2, -1)).view(_TILE**2, -1, channels)
                products = torch.bmm(values, self.spectrum).view(_TILE**2, -1)
                pixels = (self.from_tiles @ products).view(_OUTPUTS, _OUTPUTS, -1, columns, outputs)
                if self.bias is not None:
                    pixels += self.bias
                result[top:bottom] = pixels.permute(2, 0, 3, 1, 4)
        out = out.view(batch, rows * _OUTPUTS, columns * _OUTPUTS, outputs)
        return out[:, :height, :width].permute(0, 3, 1, 2)


@torch.no_grad()
def _transform(conv: WinogradConv2d, _: Any = None) -> None:
    """The filters anew; also the hook of a module whose state dict was loaded."""
    inputs, filters, outputs = _transforms()
    taps = conv.weight.permute(2, 3, 1, 0).reshape(9, -1)
    spectrum = filters.to(taps.device) @ taps.double()
    conv.spectrum = spectrum.view(-1, conv.in_channels, conv.out_channels).to(taps)
    conv.to_tiles, conv.from_tiles = inputs.to(taps), outputs.to(taps)


def fits(conv: Any) -> bool:
    """Whether `conv` is a convolution that `WinogradConv2d` can replace."""
    geometry = ((3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros")
    return isinstance(conv, nn.Conv2d) and geometry == (
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        conv.padding_mode,
    )

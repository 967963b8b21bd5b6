"""The ResNetV2 trunk of hybrid vision transformers (Big Transfer, arXiv 1912.11370) under timm's state-dict names.

Bottlenecks that normalise after each convolution, not before; weights standardised (arXiv 1903.10520), GroupNorm with
32 groups, padding as TensorFlow's SAME.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ResNetV2", "StandardisedConv2d"]

GROUPS = 32


class StandardisedConv2d(nn.Conv2d):
    """Convolution without bias whose filters have mean 0 and deviation 1: (w - mean) / (std + eps) per output."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, *, eps: float) -> None:
        super().__init__(inputs, outputs, kernel, stride, bias=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # A norm rather than torch.std_mean, which takes five times as long here.
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        std = torch.linalg.vector_norm(weight, dim=(1, 2, 3), keepdim=True) * weight[0].numel() ** -0.5
        weight = weight / (std + self.eps)
        (top, bottom), (left, right) = (_margins(n, self.kernel_size[0], self.stride[0]) for n in x.shape[-2:])
        if top == bottom and left == right:
            return F.conv2d(x, weight, None, self.stride, (top, left))
        return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, None, self.stride)


def _margins(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after so that ceil(length / stride) windows fit; the odd one comes after."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


class _Shortcut(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, eps: float) -> None:
        super().__init__()
        self.conv = StandardisedConv2d(inputs, outputs, 1, stride, eps=eps)
        self.norm = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, eps: float) -> None:
        super().__init__()
        width = outputs // 4
        self.downsample = _Shortcut(inputs, outputs, stride, eps) if inputs != outputs else None
        self.conv1 = StandardisedConv2d(inputs, width, 1, eps=eps)
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv2 = StandardisedConv2d(width, width, 3, stride, eps=eps)
        self.norm2 = nn.GroupNorm(GROUPS, width)
        self.conv3 = StandardisedConv2d(width, outputs, 1, eps=eps)
        self.norm3 = nn.GroupNorm(GROUPS, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu_()
        y = self.norm2(self.conv2(y)).relu_()
        y = self.norm3(self.conv3(y))
        return y.add_(x if self.downsample is None else self.downsample(x)).relu_()


class _Stem(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.conv = StandardisedConv2d(3, width, 7, 2, eps=eps)
        self.norm = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        # ceil_mode is SAME on even sides; the ReLU commutes with the maximum and acts on a quarter of the pixels.
        return F.max_pool2d(self.norm(self.conv(x)), 3, 2, ceil_mode=True).relu_()


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, depth: int, stride: int, eps: float) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(_Bottleneck(outputs if n else inputs, outputs, 1 if n else stride, eps) for n in range(depth))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


class ResNetV2(nn.Module):
    """Stem and three stages, to strides 4, 8 and 16, with `layers` bottlenecks and 4, 8 and 16 times `width` channels.

    eps belongs to the weight standardisation: 1e-5 in the published networks.
    """

    def __init__(self, layers: tuple[int, int, int] = (3, 4, 9), width: int = 64, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.channels = (4 * width, 8 * width, 16 * width)
        self.stem = _Stem(width, eps)
        inputs = (width, *self.channels)
        self.stages = nn.ModuleList(
            _Stage(inputs[n], self.channels[n], depth, 2 if n else 1, eps) for n, depth in enumerate(layers)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) with even sides at every stride to the map after each stage."""
        x, maps = self.stem(images), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

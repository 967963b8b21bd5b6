"""ResNet encoder (He et al., arXiv 1512.03385) under torchvision's state-dict names, without torchvision.

Activations and weights are channels_last: oneDNN and cuDNN convolve fastest there, and one conversion of the image
replaces one per layer. Operations after a batch norm work in place: its backward needs its input, not its output.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["VARIANTS", "Bottleneck", "ResNetEncoder", "stage"]


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y))
        return y.add_(x if self.downsample is None else self.downsample(x)).relu_()


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, dilation: int = 1, *, stride_first: bool = False) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, stride if stride_first else 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        # The stride sits here in torchvision, on the first convolution in the paper.
        self.conv2 = nn.Conv2d(width, width, 3, 1 if stride_first else stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(y)).relu_()
        y = self.bn3(self.conv3(y))
        return y.add_(x if self.downsample is None else self.downsample(x)).relu_()


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, width: int, count: int, stride: int, **options: Any
) -> nn.Sequential:
    """`count` blocks from `inputs` channels to `width * block.expansion`, the first of them with the stride."""
    rest = (block(width * block.expansion, width, 1, **options) for _ in range(count - 1))
    return nn.Sequential(block(inputs, width, stride, **options), *rest)


VARIANTS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNetEncoder(nn.Module):
    """ResNet 18, 34, 50, 101 or 152 without its classifier, for images in [0, 1].

    One scalar pair normalises the image, (x - mean) / std, by default as in Monodepth2 (arXiv 1806.01260). `channels`
    are the widths of the five feature maps. ValueError for another number of `layers`.

    Args:
        caffe: the layout of the authors' Caffe release: a bias in conv1, a max-pool that pads only at the bottom and
            the right, and in bottlenecks the stride on the first 1x1 convolution; with torchvision's names. "same": the
            same, but the max-pool pads as TensorFlow's, which differs where the length is odd
    """

    def __init__(
        self,
        layers: int = 18,
        in_channels: int = 3,
        *,
        caffe: bool | Literal["same"] = False,
        mean: float = 0.45,
        std: float = 0.225,
    ) -> None:
        super().__init__()
        if layers not in VARIANTS:
            raise ValueError(f"layers: expected one of {sorted(VARIANTS)}, got {layers!r}")
        block, counts = VARIANTS[layers]
        self.channels = (64, *(64 * 2**n * block.expansion for n in range(4)))
        self.caffe, self.mean, self.std = caffe, mean, std
        options = {"stride_first": True} if caffe and block is Bottleneck else {}
        self.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=bool(caffe))
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            stage(block, self.channels[n], 64 * 2**n, count, stride=2 if n else 1, **options)
            for n, count in enumerate(counts)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) to five maps at strides 2, 4, 8, 16, 32: after the first ReLU and after each stage."""
        stem = self._stem(images).relu_()
        return [stem, *self._stages(self._pool(stem))]

    def last(self, images: Tensor) -> Tensor:
        """Only the map at stride 32. ReLU and maximum commute: the ReLU acts on the pooled map, a quarter as large."""
        return self._stages(self._pool(self._stem(images)).relu_())[-1]

    def _stem(self, images: Tensor) -> Tensor:
        x = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        return self.bn1(self.conv1(x))

    def _pool(self, x: Tensor) -> Tensor:
        if self.caffe == "same":
            # An odd length is padded at both ends, an even one behind only.
            x = F.pad(x, (x.shape[-1] % 2, 1, x.shape[-2] % 2, 1), value=float("-inf"))
            return F.max_pool2d(x, 3, 2)
        return F.max_pool2d(x, 3, 2, padding=0 if self.caffe else 1, ceil_mode=bool(self.caffe))

    def _stages(self, x: Tensor) -> list[Tensor]:
        features = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            features.append(x)
        return features

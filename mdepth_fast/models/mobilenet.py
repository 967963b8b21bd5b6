"""MobileNet V1 (Howard et al., arXiv 1704.04861) under the state-dict names of its published ImageNet file."""

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["CHANNELS", "MobileNet", "mobilenet_units"]

CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)  # outputs of the units
_STRIDES = (2, 1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def mobilenet_units(channels: Sequence[int] = CHANNELS) -> nn.Sequential:
    """The 14 units: a 3x3 convolution, then 13 times depthwise 3x3 and pointwise; batch norm and ReLU6 after each.

    (B, 3, H, W) to (B, channels[13], H / 32, W / 32). Modules are numbered as published: of a unit, 0 and 3 are the
    convolutions. ValueError unless there are 14 `channels`, the outputs of the units.
    """
    if len(channels) != len(_STRIDES) or min(channels) < 1:
        raise ValueError(f"channels: expected {len(_STRIDES)} numbers of channels, got {tuple(channels)}")
    units = [_normalised(nn.Conv2d(3, channels[0], 3, _STRIDES[0], 1, bias=False))]
    for inputs, outputs, stride in zip(channels[:-1], channels[1:], _STRIDES[1:], strict=True):
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        units.append(_normalised(depthwise) + _normalised(nn.Conv2d(inputs, outputs, 1, bias=False)))
    return nn.Sequential(*(nn.Sequential(*unit) for unit in units))


def _normalised(conv: nn.Conv2d) -> list[nn.Module]:
    return [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6(inplace=True)]


class MobileNet(nn.Module):
    """The classifier: images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, classes: int = 1000, *, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        self.model = mobilenet_units(channels)
        self.fc = nn.Linear(channels[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.model(images).mean((2, 3)))
        return logits

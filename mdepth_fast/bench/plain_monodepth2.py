"""Monodepth2 written the plain way: NCHW, ReflectionPad2d, nearest interpolation, torch.cat; nothing is fused.

The oracle of the models' tests and the baseline of the benches. Submodules carry the names of the published files:
`state_dict()` of `encoder` and `decoder` is the content of `encoder.pth` and `depth.pth`, or `pose_encoder.pth` and
`pose.pth`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PlainBlock(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        shapes = (
            [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
            if bottleneck
            else [(inputs, width, 3, stride), (width, width, 3, 1)]
        )
        for n, (channels, out, kernel, step) in enumerate(shapes, 1):
            self.add_module(f"conv{n}", nn.Conv2d(channels, out, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{n}", nn.BatchNorm2d(out))
        self.depth = len(shapes)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for n in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{n}")(self.get_submodule(f"conv{n}")(y))
            if n < self.depth:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class PlainResNet(nn.Module):
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, layers: int, images: int) -> None:
        super().__init__()
        counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}[layers]
        bottleneck = layers >= 50
        self.conv1 = nn.Conv2d(3 * images, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for n, count in enumerate(counts):
            blocks = []
            for b in range(count):
                blocks.append(PlainBlock(inputs, 64 * 2**n, 2 if n and not b else 1, bottleneck))
                inputs = 64 * 2**n * (4 if bottleneck else 1)
            self.add_module(f"layer{n + 1}", nn.Sequential(*blocks))


class PlainEncoder(nn.Module):
    def __init__(self, layers: int = 18, images: int = 1) -> None:
        super().__init__()
        self.encoder = PlainResNet(layers, images)

    def forward(self, images: Tensor) -> list[Tensor]:
        net = self.encoder
        features = [F.relu(net.bn1(net.conv1((images - 0.45) / 0.225)))]
        x = net.layer1(F.max_pool2d(features[0], 3, 2, 1))
        features.append(x)
        for layer in (net.layer2, net.layer3, net.layer4):
            features.append(layer(features[-1]))
        return features


class PlainConv(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pad = nn.ReflectionPad2d(1)
        self.conv = nn.Conv2d(inputs, outputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class PlainConvElu(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = PlainConv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(self.conv(x))


class PlainDecoder(nn.Module):
    def __init__(self, channels: tuple[int, ...], scales: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.scales = scales
        widths = (16, 32, 64, 128, 256)
        self.decoder = nn.ModuleList()
        inputs = channels[4]
        for level in (4, 3, 2, 1, 0):
            self.decoder.append(PlainConvElu(inputs, widths[level]))
            skip = channels[level - 1] if level else 0
            self.decoder.append(PlainConvElu(widths[level] + skip, widths[level]))
            inputs = widths[level]
        for scale in scales:
            self.decoder.append(PlainConv(widths[scale], 1))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = {}
        x = features[4]
        for n, level in enumerate((4, 3, 2, 1, 0)):
            x = F.interpolate(self.decoder[2 * n](x), scale_factor=2, mode="nearest")
            if level:
                x = torch.cat([x, features[level - 1]], 1)
            x = self.decoder[2 * n + 1](x)
            if level in self.scales:
                maps[level] = torch.sigmoid(self.decoder[10 + self.scales.index(level)](x))
        return [maps[scale] for scale in self.scales]


class PlainDepthNet(nn.Module):
    def __init__(self, layers: int = 18, scales: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.encoder = PlainEncoder(layers)
        self.decoder = PlainDecoder((64, 256, 512, 1024, 2048) if layers >= 50 else (64, 64, 128, 256, 512), scales)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.decoder(self.encoder(images))


class PlainPoseDecoder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [
                nn.Conv2d(channels, 256, 1),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.Conv2d(256, 12, 1),
            ]
        )

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.net[:3]:
            feature = F.relu(conv(feature))
        numbers = 0.01 * self.net[3](feature).mean((2, 3))
        return numbers[:, :3], numbers[:, 3:6]


class PlainPoseNet(nn.Module):
    def __init__(self, layers: int = 18) -> None:
        super().__init__()
        self.encoder = PlainEncoder(layers, images=2)
        self.decoder = PlainPoseDecoder(2048 if layers >= 50 else 512)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(self.encoder(torch.cat([first, second], 1))[-1])


def copy_weights(target: nn.Module, source: nn.Module) -> None:
    """Copy parameters and buffers between a plain net and its counterpart of the package: same order, other names."""
    pairs = list(zip(target.state_dict().values(), source.state_dict().values(), strict=True))
    with torch.no_grad():
        for to, origin in pairs:
            if to.shape != origin.shape:
                raise ValueError(f"expected a tensor of shape {tuple(to.shape)}, got {tuple(origin.shape)}")
            to.copy_(origin)

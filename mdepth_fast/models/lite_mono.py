"""Lite-Mono (Zhang, Nex, Vosselman, Kerle, CVPR 2023, arXiv 2211.13202): a light depth network for training on video.

Three stages of consecutive dilated convolutions (section 3.2), each closed by attention between channels (section 3.3).
The images, averaged down, join the features before each stage.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import DisparityModel, check_images, in_float32
from .registry import register_model

__all__ = ["LiteMono"]

_VARIANTS = {  # channels and blocks of the three stages: table 1 of the paper; 8m as published later
    "lite_mono": ((48, 80, 128), (4, 4, 10)),
    "lite_mono_small": ((48, 80, 128), (4, 4, 7)),
    "lite_mono_tiny": ((32, 64, 128), (4, 4, 7)),
    "lite_mono_8m": ((64, 128, 224), (4, 4, 10)),
}
_COUNTERS = ("total_ops", "total_params")  # what a profiler left in published files


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3x3 convolution, batch norm, GELU."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.GELU())


class _Bottleneck(nn.Module):
    """The end of both kinds of block: pointwise to six times the channels, GELU, back; scaled, and dropped at random.

    Takes and returns channels last, (B, H, W, C).
    """

    def __init__(self, width: int, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.expand, self.project = nn.Linear(width, 6 * width), nn.Linear(6 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        x = self.gamma * self.project(F.gelu(self.expand(x)))
        if self.training and self.drop_path:
            kept = torch.rand(x.shape[0], 1, 1, 1, device=x.device) >= self.drop_path
            x = x * kept / (1 - self.drop_path)
        return x


class _Dilated(nn.Module):
    """Dilated depthwise 3x3 convolution, batch norm and bottleneck, added to the input (equation 1)."""

    def __init__(self, width: int, dilation: int, drop_path: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)
        # Published files hold a layer norm in it, which no computation reads.
        self.bottleneck = _Bottleneck(width, drop_path)
        self.bottleneck.norm.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bottleneck(self.bn(self.conv(x)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Position(nn.Module):
    """Sines and cosines of the position, projected to the channels."""

    def __init__(self, width: int, frequencies: int = 32) -> None:
        super().__init__()
        self.projection = nn.Conv2d(2 * frequencies, width, 1)
        self.frequencies = frequencies

    def forward(self, height: int, width: int) -> Tensor:
        """(1, C, height, width)"""
        device, dtype = self.projection.weight.device, self.projection.weight.dtype
        steps = torch.arange(self.frequencies // 2, device=device, dtype=torch.float32)
        rates = 10000.0 ** (-2 * steps / self.frequencies)
        waves = []
        for length in (height, width):
            place = torch.arange(1, length + 1, device=device, dtype=torch.float32) * (2 * math.pi / (length + 1e-6))
            angle = place[:, None] * rates
            waves.append(torch.stack([angle.sin(), angle.cos()], 2).flatten(1).T.to(dtype))
        y = waves[0][:, :, None].expand(-1, -1, width)
        x = waves[1][:, None, :].expand(-1, height, -1)
        position: Tensor = self.projection(torch.cat([y, x])[None])
        return position


class _Attention(nn.Module):
    """Cross-covariance attention (XCiT, arXiv 2106.09681): eight heads in which channels look at each other."""

    def __init__(self, width: int, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)"""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 4, 1)  # each (B, heads, C / heads, N)
        weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature).softmax(-1)
        attended: Tensor = self.proj((weights @ v).flatten(1, 2).transpose(1, 2))
        return attended


class _Global(nn.Module):
    """Attention and bottleneck, added to the input (equations 2 to 5)."""

    def __init__(self, width: int, drop_path: float, position: bool) -> None:
        super().__init__()
        self.position = _Position(width) if position else None
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = _Attention(width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))
        self.bottleneck = _Bottleneck(width, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = x if self.position is None else x + self.position(height, width)
        tokens = tokens.flatten(2).transpose(1, 2)
        tokens = tokens + self.gamma * self.attention(self.norm(tokens))
        seen = self.bottleneck.norm(tokens).unflatten(1, (height, width))
        return x + self.bottleneck(seen).permute(0, 3, 1, 2)


class _Encoder(nn.Module):
    """Features at strides 4, 8 and 16."""

    def __init__(self, widths: Sequence[int], depths: Sequence[int], dilation: int, drop_path: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *(_convolution(3 if n == 0 else widths[0], widths[0], 2 if n == 0 else 1) for n in range(3))
        )
        inputs = (widths[0] + 3, *(2 * width + 3 for width in widths[:2]))
        self.down = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1, bias=False) for i, o in zip(inputs, widths))
        rates = (drop_path * block / (sum(depths) - 1) for block in range(sum(depths)))
        self.stages = nn.ModuleList()
        for number, (width, depth) in enumerate(zip(widths, depths)):
            cycle = (1, 2, dilation)
            last = (2, 4, 2 * dilation) if depth > 4 else ()
            dilations = [*cycle * ((depth - 1 - len(last)) // 3), *last]
            blocks: list[nn.Module] = [_Dilated(width, step, next(rates)) for step in dilations]
            self.stages.append(nn.Sequential(*blocks, _Global(width, next(rates), position=number == 0)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        small = (images - 0.45) / 0.225
        x = self.stem(small)
        joined, features = [x], []
        for down, stage in zip(self.down, self.stages):
            small = F.avg_pool2d(small, 3, 2, 1)
            x = down(torch.cat([*joined, small], 1))
            joined = [x, stage(x)]
            features.append(joined[1])
        return features


class _Decoder(nn.Module):
    """At each level: 3x3, bilinear x2, the features of that size, 3x3; a head's map is doubled before its sigmoid."""

    def __init__(self, widths: Sequence[int], scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.reduce, self.merge = nn.ModuleList(), nn.ModuleList()
        inputs = widths[-1]
        for level in (2, 1, 0):
            width = widths[level] // 2
            self.reduce.append(nn.Conv2d(inputs, width, 3))
            self.merge.append(nn.Conv2d(width + (widths[level - 1] if level else 0), width, 3))
            inputs = width
        self.heads = nn.ModuleList(nn.Conv2d(widths[scale] // 2, 1, 3) for scale in self.scales)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps: dict[int, Tensor] = {}
        x = features[-1]
        for level, reduce, merge in zip((2, 1, 0), self.reduce, self.merge):
            x = _double(F.elu(reduce(_reflect(x))))
            x = F.elu(merge(_reflect(torch.cat([x, features[level - 1]], 1) if level else x)))
            if level in self.scales:
                maps[level] = _double(in_float32(self.heads[self.scales.index(level)], _reflect(x))).sigmoid()
        return [maps[scale] for scale in self.scales]


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def _reflect(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


class LiteMono(DisparityModel):
    """Lite-Mono's depth network, which needs a fraction of Monodepth2's weights.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W multiples of 32 and at least 64. It returns a list of
    disparity maps (B, 1, H / 2^s, W / 2^s), one per s of `scales`, as `Monodepth2` does. TypeError or ValueError for
    images of another type or shape.

    Args:
        widths, depths: channels and blocks of the three stages; of each stage the last block is attention
        dilation: the third of the dilations 1, 2, 3 that a stage repeats: 3 as published for images of 640x192, 5 for
            1024x320 (but 3 for `lite_mono_8m`). Weights of one mean little to the other
        drop_path: largest share of the samples for which a block is left out in training; it grows with the depth
        min_depth, max_depth: depth where the sigmoid is 1 and 0
        scales: some of 0, 1, 2
        unit: "m" if the network is trained for metric depth, None if its scale is arbitrary
        input_size: (H, W) to which `predict` resizes; None: the multiple of 32 nearest to the image
    """

    def __init__(
        self,
        widths: Sequence[int] = (48, 80, 128),
        depths: Sequence[int] = (4, 4, 10),
        *,
        dilation: int = 3,
        drop_path: float = 0.2,
        min_depth: float = 0.1,
        max_depth: float = 100.0,
        scales: Sequence[int] = (0, 1, 2),
        unit: str | None = None,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(min_depth=min_depth, max_depth=max_depth, scales=scales, unit=unit, input_size=input_size)
        if not set(scales) <= {0, 1, 2}:
            raise ValueError(f"scales: expected distinct numbers out of 0, 1, 2, got {scales!r}")
        if len(widths) != 3 or any(width < 8 or width % 8 for width in widths):
            raise ValueError(f"widths: expected three multiples of 8, got {widths!r}")
        if len(depths) != 3 or any(depth < 4 or depth % 3 != 1 for depth in depths):
            raise ValueError(f"depths: expected three numbers out of 4, 7, 10, ..., got {depths!r}")
        if dilation < 1 or not 0 <= drop_path < 1:
            raise ValueError(f"dilation, drop_path: expected >= 1 and in [0, 1), got {dilation} and {drop_path}")
        self.encoder = _Encoder(widths, depths, dilation, drop_path)
        self.decoder = _Decoder(widths, self.scales)

    def forward(self, images: Tensor) -> list[Tensor]:
        check_images(images, "images")
        height, width = images.shape[-2:]
        if height % 32 or width % 32 or min(height, width) < 64:
            raise ValueError(f"images: expected height and width multiples of 32, at least 64, got {height}x{width}")
        return self.decoder(self.encoder(images))

    def published_files(self) -> dict[str, dict[str, str]]:
        encoder = {_published(key.removeprefix("encoder.")): key for key in self.state_dict() if key[:8] == "encoder."}
        depth = {}
        for part in ("weight", "bias"):
            for number in range(6):
                layer = f"decoder.{'merge' if number % 2 else 'reduce'}.{number // 2}"
                depth[f"decoder.{number}.conv.conv.{part}"] = f"{layer}.{part}"
            for number in range(len(self.scales)):
                depth[f"decoder.{6 + number}.conv.{part}"] = f"decoder.heads.{number}.{part}"
        return {"encoder.pth": encoder, "depth.pth": depth}

    def translate_file(self, name: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
        return {key: value for key, value in content.items() if key.rpartition(".")[2] not in _COUNTERS}


def _published(key: str) -> str:
    """The key in encoder.pth of a key of the encoder."""
    parts = key.split(".")
    if parts[0] == "stem":
        layer = {"0": "conv", "1": "bn_gelu.bn"}[parts[2]]
        return f"downsample_layers.0.{parts[1]}.{layer}.{parts[3]}"
    if parts[0] == "down":
        return "stem2.0.conv.weight" if parts[1] == "0" else f"downsample_layers.{parts[1]}.0.conv.weight"
    names = {
        "conv": "ddwconv.conv",
        "bn": "bn1",
        "bottleneck.norm": "norm",
        "bottleneck.expand": "pwconv1",
        "bottleneck.project": "pwconv2",
        "bottleneck.gamma": "gamma",
        "position.projection": "pos_embd.token_projection",
        "norm": "norm_xca",
        "attention": "xca",
        "gamma": "gamma_xca",
    }
    block = ".".join(parts[3:])
    own = next(name for name in names if block == name or block.startswith(f"{name}."))
    return f"stages.{parts[1]}.{parts[2]}.{names[own]}{block.removeprefix(own)}"


for _name, (_widths, _depths) in _VARIANTS.items():
    register_model(_name, partial(LiteMono, _widths, _depths))

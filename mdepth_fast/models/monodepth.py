"""Monodepth (Godard, Mac Aodha, Brostow, CVPR 2017, arXiv 1609.03677): the disparities of both cameras from one image.

No batch norm, ELU throughout, convolutions padded with zeros. The paper leaves the initial weights open: Xavier's
(Glorot and Bengio, AISTATS 2010) here, biases 0.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.geometry import depth_from_disparity

from .base import DepthModel, DepthPrediction, check_images, in_float32
from .registry import register_model

__all__ = ["Monodepth", "MonodepthResNet50", "MonodepthVGG"]

_SCALES = 4
# Of the image's width: below it a point is so far away that depth stays at the largest one, which is finite.
_LEAST_PARALLAX = 1e-6


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)


class _VGGEncoder(nn.Module):
    """Seven pairs of convolutions, the second of stride 2."""

    def __init__(self, base: int) -> None:
        super().__init__()
        self.channels = tuple(base * factor for factor in (1, 2, 4, 8, 16, 16, 16))
        self.pairs = nn.ModuleList()
        inputs = 3
        for outputs, kernel in zip(self.channels, (7, 5, 3, 3, 3, 3, 3), strict=True):
            self.pairs.append(
                nn.Sequential(_conv(inputs, outputs, kernel), nn.ELU(), _conv(outputs, outputs, kernel, 2), nn.ELU())
            )
            inputs = outputs

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for pair in self.pairs:
            x = pair(x)
            features.append(x)
        return features


class _Bottleneck(nn.Module):
    """ResNet's bottleneck without norms; even where the shape stays, its shortcut is a convolution, as published."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.reduce = _conv(inputs, width, 1)
        self.conv = _conv(width, width, 3, stride)
        self.expand = _conv(width, 4 * width, 1)
        self.shortcut = _conv(inputs, 4 * width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.elu(self.conv(F.elu(self.reduce(x), inplace=True)), inplace=True)
        return F.elu(self.expand(y).add_(self.shortcut(x)), inplace=True)


class _ResNetEncoder(nn.Module):
    """ResNet-50 with the stride in the last block of each stage, and so one stage of stride 2 more than the usual."""

    def __init__(self, base: int) -> None:
        super().__init__()
        widths = tuple(base * factor for factor in (1, 2, 4, 8))
        self.channels = (base, base, *(4 * width for width in widths))
        self.conv = _conv(3, base, 7, 2)
        self.stages = nn.ModuleList()
        inputs = base
        for width, count in zip(widths, (3, 4, 6, 3), strict=True):
            blocks = []
            for index in range(count):
                blocks.append(_Bottleneck(inputs, width, 2 if index == count - 1 else 1))
                inputs = 4 * width
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.elu(self.conv(x), inplace=True)
        features = [x, F.max_pool2d(x, 3, 2, 1)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features


class _Level(nn.Module):
    """Nearest x2, convolution, concatenation with the skip and the doubled disparity, convolution, and the head."""

    def __init__(self, inputs: int, skip: int, outputs: int, coarser: int, maps: int) -> None:
        super().__init__()
        self.up = _conv(inputs, outputs, 3)
        self.merge = _conv(outputs + skip + coarser, outputs, 3)
        self.head = _conv(outputs, maps, 3) if maps else None

    def forward(self, x: Tensor, skip: Tensor | None, disparity: Tensor | None, scale: float) -> tuple[Tensor, Any]:
        x = F.elu(self.up(F.interpolate(x, scale_factor=2.0, mode="nearest")), inplace=True)
        if disparity is not None:
            disparity = F.interpolate(disparity.to(x.dtype), scale_factor=2.0, mode="nearest")
        parts = [x, skip, disparity]
        x = F.elu(self.merge(torch.cat([part for part in parts if part is not None], 1)), inplace=True)
        return x, None if self.head is None else scale * in_float32(self.head, x).sigmoid()


class Monodepth(DepthModel):
    """Base of Monodepth's networks: an encoder, a decoder with skips, and disparity maps at four scales.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W multiples of `multiple`. It returns four maps
    (B, maps, H / 2^s, W / 2^s), finest first: disparities as a share of the image's width, in (0, max_disparity). Map 0
    is the disparity x_left - x_right at the pixels of the image, which is taken for the left one of a pair, map 1 the
    same at those of the right image, which the network does not see. TypeError or ValueError for images of another type
    or shape.

    `predict` gives depth by `geometry.depth_from_disparity`: metric if focal length and baseline are known, else up to
    one factor, as 1 / (disparity + offset). Disparities at the image's left border, which the right camera does not
    see, are better with `flip=True`, the paper's post-processing.

    Args:
        max_disparity: largest disparity, as a share of the image's width
        maps: 2: disparities of both images; 1: of the left image only (Garg et al., arXiv 1603.04992)
        focal: focal length over the image's width, or None
        baseline: distance of the cameras that the network was trained with, in metres, or None
        offset: cx of the right camera minus cx of the left one over the image's width
        input_size: (H, W) to which `predict` resizes; None: the multiple of `multiple` nearest to the image
    """

    takes_views = True
    takes_intrinsics = True

    def __init__(
        self,
        encoder: Any,
        widths: Sequence[int],
        *,
        max_disparity: float = 0.3,
        maps: int = 2,
        focal: float | None = None,
        baseline: float | None = None,
        offset: float = 0.0,
        input_size: tuple[int, int] | None = None,
    ) -> None:
        if (focal is None) != (baseline is None):
            raise ValueError(f"focal, baseline: expected both or neither, got {focal} and {baseline}")
        for name, value in (("focal", focal), ("baseline", baseline), ("max_disparity", max_disparity)):
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected a positive number, got {value}")
        if maps not in (1, 2):
            raise ValueError(f"maps: expected 1 or 2, got {maps}")
        super().__init__(unit=None if baseline is None else "m", input_size=input_size)
        self.max_disparity, self.maps = max_disparity, maps
        self.focal, self.baseline, self.offset = focal, baseline, offset
        self.encoder = encoder
        self.levels = nn.ModuleList()
        inputs = encoder.channels[-1]
        for index, (outputs, skip) in enumerate(zip(widths, (*encoder.channels[-2::-1], 0), strict=True)):
            scale = len(widths) - 1 - index
            coarser, own = (maps if level < _SCALES else 0 for level in (scale + 1, scale))
            self.levels.append(_Level(inputs, skip, outputs, coarser, own))
            inputs = outputs
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        check_images(images, "images")
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple or min(height, width) < self.multiple:
            raise ValueError(f"images: expected height and width multiples of {self.multiple}, got {height}x{width}")
        features = self.encoder(images.contiguous(memory_format=torch.channels_last))
        x, disparity, found = features[-1], None, []
        for level, skip in zip(self.levels, (*features[-2::-1], None), strict=True):
            x, disparity = level(x, skip, disparity, self.max_disparity)
            if disparity is not None:
                found.append(disparity)
        return found[::-1]

    def infer(self, images: Tensor) -> Tensor:
        return self(images)[0][:, :1]

    def to_depth(self, values: Tensor) -> Tensor:
        """Depth of disparities that are shares of the width, in metres or up to a factor."""
        parallax = (values + self.offset).clamp_min(_LEAST_PARALLAX)
        focal, baseline = (1.0, 1.0) if self.focal is None or self.baseline is None else (self.focal, self.baseline)
        return depth_from_disparity(parallax, focal, baseline)

    def predict(
        self,
        images: Tensor,
        *,
        size: tuple[int, int] | None = None,
        flip: bool = False,
        K: Tensor | None = None,
    ) -> DepthPrediction:
        """See `DepthModel.predict`.

        K (3, 3) or (B, 3, 3), in pixels of `images`, replaces the focal length of the training data: KITTI's drives
        differ by 2 %. It makes no difference to a network that knows no baseline.
        """
        prediction = super().predict(images, size=size, flip=flip)
        if K is None or self.focal is None:
            return prediction
        return replace(prediction, depth=self.at_focal_length(prediction.depth, K, images.shape[-1]))

    def at_focal_length(self, depth: Tensor, K: Tensor, width: int) -> Tensor:
        """Depth (B, 1, H, W) as of a camera with the focal length in K (3, 3) or (B, 3, 3), in pixels of `width`."""
        assert self.focal is not None
        return depth * (K[..., 0, 0].to(depth) / (self.focal * width)).view(-1, 1, 1, 1)


class MonodepthVGG(Monodepth):
    """Monodepth with its VGG-like encoder, the paper's default. See `Monodepth`.

    `load_checkpoint` also takes an `.npz` of the published variables under their TensorFlow names
    (`model/encoder/Conv/weights`, ...).

    Args:
        base: channels of the first convolution; the others are multiples of it
    """

    multiple: ClassVar[int] = 128

    def __init__(self, *, base: int = 32, **options: Any) -> None:
        super().__init__(_VGGEncoder(base), [base * n // 2 for n in (32, 32, 16, 8, 4, 2, 1)], **options)

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """TensorFlow's variables, numbered in the order in which the network creates its convolutions.

        Adam's moments and step counts are left out. Kernels come as (height, width, in, out).
        """
        if "model/encoder/Conv/weights" not in content:
            return content
        names = {f"model/{part}/{name}": key for part, keys in self._created().items() for name, key in keys.items()}
        translated: dict[str, Any] = {}
        for key, value in content.items():
            layer, _, kind = key.rpartition("/")
            if layer in names and kind in ("weights", "biases") and isinstance(value, Tensor):
                is_kernel = kind == "weights" and value.dim() == 4
                translated[f"{names[layer]}.{kind[:-1] if kind == 'weights' else 'bias'}"] = (
                    value.permute(3, 2, 0, 1) if is_kernel else value
                )
            elif not re.search(r"/Adam(_\d+)?$|(^|/)(beta\d_power|global_step)$", key):
                translated[key] = value
        return translated

    def _created(self) -> dict[str, dict[str, str]]:
        """Of encoder and decoder: TensorFlow's name of a layer to ours, in the order of creation."""
        encoder = [f"encoder.pairs.{n}.{m}" for n in range(7) for m in (0, 2)]
        decoder = []
        for n, level in enumerate(self.levels):
            parts = ("up", "merge") if getattr(level, "head", None) is None else ("up", "merge", "head")
            decoder += [f"levels.{n}.{part}" for part in parts]
        return {
            part: {f"Conv_{n}" if n else "Conv": key for n, key in enumerate(keys)}
            for part, keys in (("encoder", encoder), ("decoder", decoder))
        }


class MonodepthResNet50(Monodepth):
    """Monodepth with its ResNet-50 encoder. See `Monodepth`.

    The order of the published variables within a block is not documented, so their files are not read.

    Args:
        base: channels of the first convolution; the others are multiples of it
    """

    multiple: ClassVar[int] = 64

    def __init__(self, *, base: int = 64, **options: Any) -> None:
        super().__init__(_ResNetEncoder(base), [base * n // 4 for n in (32, 16, 8, 4, 2, 1)], **options)


register_model("monodepth_vgg", MonodepthVGG)
register_model("monodepth_resnet50", MonodepthResNet50)

"""Depth Anything V2 (Yang et al., NeurIPS 2024, arXiv 2406.09414): DINOv2 with the decoder of DPT.

State-dict keys match the published files. The paper leaves the sizes of the decoders open; they are those of the
released networks.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.weights.encoder import load_encoder_weights

from .base import Kind, check_images, in_float32
from .doubled_conv import doubled_conv
from .dpt import (
    DPTGeometry,
    FusionDecoder,
    TokenDepthModel,
    checked_geometry,
    decoder_modules,
    resample_layer,
    resampled,
    transformers_names,
)
from .registry import register_model
from .vit import DINOv2, as_published, renamed

__all__ = ["DepthAnythingV2"]

GEOMETRIES = {
    "small": DPTGeometry(384, 12, 6, (2, 5, 8, 11), (48, 96, 192, 384), features=64),
    "base": DPTGeometry(768, 12, 12, (2, 5, 8, 11), (96, 192, 384, 768), features=128),
    "large": DPTGeometry(1024, 24, 16, (4, 11, 17, 23), (256, 512, 1024, 1024), features=256),
}
# Of the released metric networks: the farthest depth in metres.
MAX_DEPTH = {"indoor": 20.0, "outdoor": 80.0}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class _Decoder(FusionDecoder):
    """Four maps, finest first, to one of the size of the image; named `depth_head.scratch` in the published files."""

    def __init__(self, geometry: DPTGeometry) -> None:
        super().__init__(geometry)
        features = geometry.features
        self.output_conv1 = nn.Conv2d(features, features // 2, 3, padding=1)
        self.output_conv2 = nn.Sequential(
            nn.Conv2d(features // 2, 32, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(32, 1, 1)
        )

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        x = doubled_conv(self.fused(maps), self.output_conv1)
        first, relu, last = self.output_conv2
        return in_float32(last, relu(first(F.interpolate(x, size, mode="bilinear", align_corners=True))))


class _Head(nn.Module):
    """Tokens of four blocks to a map of the size of the image, before the last activation."""

    def __init__(self, geometry: DPTGeometry) -> None:
        super().__init__()
        self.projects = nn.ModuleList(nn.Conv2d(geometry.dim, width, 1) for width in geometry.widths)
        self.resize_layers = nn.ModuleList(map(resample_layer, geometry.widths, (4, 2, 1, 0.5)))
        self.scratch = _Decoder(geometry)

    def forward(self, tokens: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Four of (B, 1 + h * w, dim), `size` = (h, w), to (B, 1, 14 h, 14 w)."""
        maps = []
        for x, project, layer in zip(tokens, self.projects, self.resize_layers, strict=True):
            linear: Any = project
            maps.append(resampled(F.linear(x[:, 1:], linear.weight.flatten(1), linear.bias), layer, size))
        return self.scratch(maps, (size[0] * DINOv2.PATCH, size[1] * DINOv2.PATCH))


class DepthAnythingV2(TokenDepthModel):
    """Depth Anything V2 Small, Base or Large, relative or metric.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W multiples of 14, and returns (B, 1, H, W): inverse depth up
    to a scale and a shift per image, not negative, larger is closer; or, with `max_depth`, depth in metres, `max_depth`
    times a sigmoid. TypeError or ValueError for images of another type or shape.

    Args:
        geometry: "small", "base", "large" or the sizes of another network
        max_depth: the farthest depth in metres, None: relative. Published: 20 indoors (Hypersim), 80 outdoors (Virtual
            KITTI 2)
        target_size: (H, W) of which `predict` makes neither side shorter: it scales both sides by one factor, the least
            that does this, then rounds each side to the nearest multiple of 14. Published: 518x518
        input_size: (H, W) to which `predict` resizes instead of following this rule
        encoder_weights: path of weights for the encoder alone: of DINOv2, or of the relative Depth Anything V2, from
            which the published metric networks were trained; None: random initialisation
        position_offset: of the resized positions, see `DINOv2`: 0.1 as published, None as transformers computes them;
            they are the same for square images of 518x518

    `pretrained.mask_token` and `depth_head.scratch.refinenet4.resConfUnit1` are in the published files, but nothing
    reads them. They get no gradient, and distributed training must know this (find_unused_parameters).
    """

    mean: Tensor
    std: Tensor
    multiple: ClassVar[int] = DINOv2.PATCH
    align_corners: ClassVar[bool] = True
    least_filtered: ClassVar[int] = 128

    def __init__(
        self,
        geometry: str | DPTGeometry = "small",
        *,
        max_depth: float | None = None,
        target_size: tuple[int, int] = (518, 518),
        input_size: tuple[int, int] | None = None,
        encoder_weights: str | os.PathLike[str] | None = None,
        position_offset: float | None = 0.1,
    ) -> None:
        super().__init__(unit=None if max_depth is None else "m", input_size=input_size)
        self.geometry = geometry = checked_geometry(geometry, GEOMETRIES)
        if geometry.trunk is not None:
            raise ValueError("geometry.trunk: expected none, as DINOv2 has its own patch embedding")
        if max_depth is not None and not 0 < max_depth < float("inf"):
            raise ValueError(f"max_depth: expected a positive number of metres, got {max_depth}")
        self.max_depth, self.target_size = max_depth, target_size
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.pretrained = DINOv2(geometry.dim, geometry.depth, geometry.heads, position_offset=position_offset)
        self.depth_head = _Head(geometry)
        if max_depth is None:
            # Training from scratch must not start where the last ReLU is zero everywhere, and with it every gradient.
            nn.init.ones_(self.get_parameter("depth_head.scratch.output_conv2.2.bias"))
        if encoder_weights is not None:
            load_encoder_weights(self.pretrained, encoder_weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def kind(self) -> Kind:
        return "metric" if self.unit else "affine_inverse"

    @property
    def encoder(self) -> DINOv2:
        return self.pretrained

    @property
    def decoder(self) -> FusionDecoder:
        return self.depth_head.scratch

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, "images")
        height, width = images.shape[-2:]
        patch = self.multiple
        if height % patch or width % patch or not height or not width:
            raise ValueError(f"images: expected height and width multiples of {patch}, got {height}x{width}")
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        _, tokens = self.pretrained(images, self.geometry.taps)
        x = self.depth_head(tokens, (height // patch, width // patch))
        if self.max_depth is None:
            return x.relu()
        # Half precision has too few digits for metres.
        return self.max_depth * x.to(torch.promote_types(x.dtype, torch.float32)).sigmoid()

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        if self.input_size:
            return self.input_size
        lengths = (height, width)
        factor = max(target / length for target, length in zip(self.target_size, lengths))
        sides = []
        for length, target in zip(lengths, self.target_size):
            # round() is to even, as NumPy's, which the published code calls.
            patches = round(factor * length / self.multiple)
            sides.append(self.multiple * max(patches, -(-target // self.multiple)))
        return sides[0], sides[1]

    def _native_copy(self) -> "DepthAnythingV2":
        """As `TokenDepthModel`'s; besides, LayerScale becomes part of the linear layers before it."""
        net = cast(DepthAnythingV2, super()._native_copy())
        blocks: Any = net.pretrained.blocks
        for block in blocks:
            block.fold_layer_scale()
        return net

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translates the state dict of transformers' DepthAnythingForDepthEstimation, of files or in memory."""
        return renamed(as_published(content), self.transformers_keys())

    def transformers_keys(self) -> dict[str, tuple[str, ...]]:
        encoder = self.pretrained.transformers_keys()
        keys = {f"pretrained.{key}": tuple(f"backbone.{name}" for name in names) for key, names in encoder.items()}
        scratch, stage = "depth_head.scratch.", "neck.reassemble_stage"
        modules = decoder_modules(scratch) | {
            f"{scratch}output_conv1": "head.conv1",
            f"{scratch}output_conv2.0": "head.conv2",
            f"{scratch}output_conv2.2": "head.conv3",
        }
        for n in range(4):
            modules[f"depth_head.projects.{n}"] = f"{stage}.layers.{n}.projection"
            modules[f"depth_head.resize_layers.{n}"] = f"{stage}.layers.{n}.resize"
        return keys | transformers_names((key for key in self.state_dict() if key not in keys), modules)


for _name in GEOMETRIES:
    register_model(f"depth_anything_v2_{_name}", partial(DepthAnythingV2, _name))
    for _scene, _depth in MAX_DEPTH.items():
        register_model(f"depth_anything_v2_{_name}_{_scene}", partial(DepthAnythingV2, _name, max_depth=_depth))

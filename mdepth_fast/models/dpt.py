"""DPT (Ranftl, Bochkovskiy, Koltun, ICCV 2021, arXiv 2103.13413): depth from the tokens of a vision transformer.

State-dict keys match the published files. The code computes the same numbers with less work than the published one:
bilinear resizing and a 1x1 convolution commute, so the convolution runs before the map is four times as large; the
class token's half of a readout is computed once instead of once per token; a transposed convolution whose stride is
its kernel is a matrix product; the residual unit that the first fusion block never uses is not run.
"""

import copy
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.weights.encoder import load_encoder_weights

from .base import DepthModel, Kind, check_images, in_float32
from .doubled_conv import doubled_conv
from .registry import register_model
from .resnetv2 import ResNetV2
from .vit import PATCH, PatchEmbed, VisionTransformer, gelu, renamed
from .winograd import WinogradConv2d, fits

__all__ = ["DPT", "DPTGeometry", "FusionDecoder", "TokenDepthModel"]


@dataclass(frozen=True)
class DPTGeometry:
    """The sizes of a DPT.

    Args:
        dim, depth, heads: of the transformer
        taps: blocks, counted from 0, after which tokens are read: four, or two behind a trunk
        widths: channels of the maps at strides 4, 8, 16 and 32 that the tokens (and the trunk) are turned into
        features: channels of the decoder
        trunk, trunk_width: None, or the depths of the stages of a ResNetV2 in place of the patch embedding, and its
            width; its first two stages are the maps at strides 4 and 8
    """

    dim: int
    depth: int
    heads: int
    taps: tuple[int, ...]
    widths: tuple[int, int, int, int]
    features: int = 256
    trunk: tuple[int, int, int] | None = None
    trunk_width: int = 64


GEOMETRIES = {
    "large": DPTGeometry(1024, 24, 16, (5, 11, 17, 23), (256, 512, 1024, 1024)),
    "base": DPTGeometry(768, 12, 12, (2, 5, 8, 11), (96, 192, 384, 768)),
    "hybrid": DPTGeometry(768, 12, 12, (8, 11), (256, 512, 768, 768), trunk=(3, 4, 9)),
}


def checked_geometry(geometry: str | DPTGeometry, known: Mapping[str, DPTGeometry]) -> DPTGeometry:
    """The geometry itself, or that of this name in `known`; ValueError for another name, or for wrong taps."""
    if isinstance(geometry, str):
        if geometry not in known:
            raise ValueError(f"geometry: expected one of {', '.join(known)} or a DPTGeometry, got {geometry!r}")
        geometry = known[geometry]
    count, taps, last = 4 if geometry.trunk is None else 2, list(geometry.taps), geometry.depth - 1
    if len(taps) != count or taps != sorted({*taps} & {*range(last + 1)}):
        raise ValueError(f"geometry.taps: expected {count} ascending blocks out of 0..{last}, got {geometry.taps}")
    return geometry


class _HybridEmbed(nn.Module):
    """Images to tokens of stride 16 through a ResNetV2; its stages at strides 4 and 8 are returned too."""

    def __init__(self, dim: int, backbone: ResNetV2) -> None:
        super().__init__()
        self.backbone = backbone
        self.proj = nn.Conv2d(backbone.channels[-1], dim, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        *maps, last = self.backbone(images)
        return self.proj(last), maps


class _Readout(nn.Module):
    """The class token into every other token: GELU(Linear([token, class token]))."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, 1 + N, dim) to (B, N, dim)."""
        linear: Any = self.project[0]
        own, of_class = linear.weight.t().chunk(2)
        shared = torch.addmm(linear.bias, tokens[:, 0], of_class).unsqueeze(1)
        return gelu(torch.baddbmm(shared, tokens[:, 1:], own.expand(tokens.shape[0], -1, -1)))


class _Reassemble(nn.Module):
    """Tokens to a map of `width` channels at `scale` times the resolution of the patches; layers 1 and 2 have no
    parameters in the published files."""

    def __init__(self, dim: int, width: int, scale: float) -> None:
        super().__init__()
        self.add_module("0", _Readout(dim))
        self.add_module("3", nn.Conv2d(dim, width, 1))
        self.add_module("4", resample_layer(width, scale))

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, 1 + h * w, dim) to (B, width, scale * h, scale * w), channels_last."""
        readout, project, resample = cast(list[Any], list(self.children()))
        return resampled(F.linear(readout(tokens), project.weight.flatten(1), project.bias), resample, size)


def resample_layer(width: int, scale: float) -> nn.Module:
    """The layer that resizes a map of `width` channels by `scale`: 4, 2, 1 or 0.5."""
    layers: dict[float, Callable[[], nn.Module]] = {
        4: lambda: nn.ConvTranspose2d(width, width, 4, 4),
        2: lambda: nn.ConvTranspose2d(width, width, 2, 2),
        1: nn.Identity,
        0.5: lambda: nn.Conv2d(width, width, 3, 2, 1),
    }
    return layers[scale]()


def resampled(x: Tensor, layer: Any, size: tuple[int, int]) -> Tensor:
    """Tokens (B, h * w, width), `size` = (h, w), through a `resample_layer`, to (B, width, H, W) as channels_last."""
    if isinstance(layer, nn.Identity):
        return x.transpose(1, 2).unflatten(2, size)
    # Few pixels and many channels, or windows that do not overlap: matrix products do it fastest.
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    x = x.unflatten(1, size)
    enlarges = isinstance(layer, nn.ConvTranspose2d)
    if enlarges:
        k = layer.stride[0]
        x = F.linear(x, weight.t(), layer.bias.repeat(k * k)).unflatten(3, (k, k, len(layer.bias)))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    else:
        bottom, right = (length % 2 for length in size)
        windows = F.pad(x, (0, 0, 1, right, 1, bottom)).unfold(1, 3, 2).unfold(2, 3, 2)  # (B, h/2, w/2, width, 3, 3)
        x = F.linear(windows.permute(0, 1, 2, 4, 5, 3).flatten(3), weight, layer.bias)
    return x.permute(0, 3, 1, 2)


class _ResidualConvUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x.relu()).relu_()).add_(x)


class _Fusion(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = _ResidualConvUnit(features)
        self.resConfUnit2 = _ResidualConvUnit(features)

    def forward(self, lateral: Tensor, path: Tensor | None = None) -> Tensor:
        """Map of the backbone (B, features, h, w) and the last block's result (B, features, h/2, w/2) to one like the
        first; the published block returns it resized to the next."""
        if path is not None:
            path = F.interpolate(path, lateral.shape[-2:], mode="bilinear", align_corners=True)
            lateral = self.resConfUnit1(lateral).add_(path)
        return self.out_conv(self.resConfUnit2(lateral))


class _Encoder(nn.Module):
    """Images in [-1, 1] to four maps at strides 4, 8, 16 and 32; named `pretrained` in the published files."""

    def __init__(self, geometry: DPTGeometry, layer_norm_eps: float, weight_eps: float) -> None:
        super().__init__()
        self.taps = geometry.taps
        embed: nn.Module = PatchEmbed(geometry.dim)
        if geometry.trunk is not None:
            embed = _HybridEmbed(geometry.dim, ResNetV2(geometry.trunk, geometry.trunk_width, eps=weight_eps))
        self.model = VisionTransformer(geometry.dim, geometry.depth, geometry.heads, embed, eps=layer_norm_eps)
        for n in range(5 - len(self.taps), 5):
            block = _Reassemble(geometry.dim, geometry.widths[n - 1], (4, 2, 1, 0.5)[n - 1])
            self.add_module(f"act_postprocess{n}", block)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, tokens = self.model(images, self.taps)
        size = (images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        for n, x in enumerate(tokens, 5 - len(tokens)):
            maps.append(self.get_submodule(f"act_postprocess{n}")(x, size))
        return maps


class FusionDecoder(nn.Module):
    """Four maps, finest first, to one of the size of the finest; the published decoders return it doubled."""

    def __init__(self, geometry: DPTGeometry) -> None:
        super().__init__()
        for n, width in enumerate(geometry.widths, 1):
            self.add_module(f"layer{n}_rn", nn.Conv2d(width, geometry.features, 3, padding=1, bias=False))
        for n in range(1, 5):
            self.add_module(f"refinenet{n}", _Fusion(geometry.features))

    def fused(self, maps: list[Tensor]) -> Tensor:
        laterals = [self.get_submodule(f"layer{n}_rn")(x) for n, x in enumerate(maps, 1)]
        x: Tensor = self.get_submodule("refinenet4")(laterals[3])
        for n in (3, 2, 1):
            x = self.get_submodule(f"refinenet{n}")(laterals[n - 1], x)
        return x


class _Decoder(FusionDecoder):
    """Four maps, finest first, to inverse depth; named `scratch` in the published files."""

    def __init__(self, geometry: DPTGeometry) -> None:
        super().__init__(geometry)
        features = geometry.features
        self.output_conv = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(features // 2, 32, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 1, 1),
            nn.ReLU(inplace=True),
        )
        # Training from scratch must not start where the last ReLU is zero everywhere, and with it every gradient.
        nn.init.ones_(self.get_parameter("output_conv.4.bias"))

    def forward(self, maps: list[Tensor]) -> Tensor:
        head: Any = self.output_conv
        features = head[3](doubled_conv(doubled_conv(self.fused(maps), head[0]), head[2]))
        return head[5](in_float32(head[4], features))  # type: ignore[no-any-return]


class TokenDepthModel(DepthModel):
    """What DPT and its descendants share: an encoder of tokens, a `FusionDecoder`, weights that travel to transformers.

    A subclass says which of its modules are encoder and decoder, and what its tensors are called in transformers.
    """

    engine_method = "forward"
    target_size: tuple[int, int]  # (H, W) that `network_size` aims at
    least_filtered: ClassVar[int] = 1  # channels of a convolution that minimal filtering makes faster

    @property
    def encoder(self) -> nn.Module:
        """The pretrained part, which learns at a tenth of the rate."""
        raise NotImplementedError

    @property
    def decoder(self) -> FusionDecoder:
        raise NotImplementedError

    def transformers_keys(self) -> dict[str, tuple[str, ...]]:
        """Key of `state_dict()` to that in published files of transformers; to three where query, key and value are
        apart there: the rows of ours, in that order."""
        raise NotImplementedError

    def transformers_state_dict(self) -> dict[str, Tensor]:
        """The weights as transformers' published files hold them: views of the parameters, no copies."""
        state = self.state_dict()
        return {
            name: part
            for key, names in self.transformers_keys().items()
            for name, part in zip(names, state[key].chunk(len(names)), strict=True)
        }

    def resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(images, size, mode="bicubic", align_corners=False)

    def infer(self, images: Tensor) -> Tensor:
        return self(images)  # type: ignore[no-any-return]

    def _native_copy(self) -> "TokenDepthModel":
        """3x3 convolutions by minimal filtering, faster on a CPU only.

        The transformed filters of these convolutions take an eighth more memory (DPT-Large).
        """
        net = copy.deepcopy(self).eval().requires_grad_(False)
        for name, module in list(net.decoder.named_modules()):
            # On the coarsest maps there are too few tiles to win anything.
            if not fits(module) or name.startswith(("layer4", "refinenet4", "output_conv")):
                continue
            if min(module.in_channels, module.out_channels) >= self.least_filtered:
                parent, _, child = name.rpartition(".")
                setattr(net.decoder.get_submodule(parent), child, WinogradConv2d(module))
        return net

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups: `lr` for the decoder, a tenth of it for the encoder, as published."""
        encoder = list(self.encoder.parameters())
        known = set(encoder)
        decoder = [parameter for parameter in self.parameters() if parameter not in known]
        return [{"params": encoder, "lr": lr / 10}, {"params": decoder, "lr": lr}]


class DPT(TokenDepthModel):
    """DPT-Large, -Base or -Hybrid, relative or metric.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W multiples of 32, and returns (B, 1, H, W): inverse depth up
    to a scale and a shift per image, not negative, larger is closer; or, with `scale` and `shift`, depth in metres,
    1 / max(scale * inverse depth + shift, 1e-8). TypeError or ValueError for images of another type or shape.

    Args:
        geometry: "large", "base", "hybrid" or the sizes of another DPT
        scale, shift: constants that make the output metric: 6.016e-5 and 0.00579 in the published network for KITTI,
            3.05e-4 and 0.1378 in the one for NYU, both hybrid; none are published for large and base
        target_size: (H, W) that `predict` approaches: it scales both sides by one factor, the one that changes the
            image less, then rounds each side to the nearest multiple of 32. Published: 384x384, KITTI 352x1216 (of
            images cropped to that size), NYU 480x640
        input_size: (H, W) to which `predict` resizes instead of following this rule
        encoder_weights: path of an ImageNet ViT's state dict under timm's names, None: random initialisation
        layer_norm_eps: 1e-6 in the published networks, 1e-12 in transformers' configuration of them
        weight_eps: eps of the hybrid's weight standardisation, (w - mean) / (std + eps)

    `pretrained.model.norm` and `scratch.refinenet4.resConfUnit1` are in the published files, but nothing reads them.
    They get no gradient, and distributed training must know this (find_unused_parameters).
    """

    interpolation: ClassVar[str] = "bicubic"

    def __init__(
        self,
        geometry: str | DPTGeometry = "large",
        *,
        scale: float | None = None,
        shift: float | None = None,
        target_size: tuple[int, int] = (384, 384),
        input_size: tuple[int, int] | None = None,
        encoder_weights: str | os.PathLike[str] | None = None,
        layer_norm_eps: float = 1e-6,
        weight_eps: float = 1e-5,
    ) -> None:
        super().__init__(unit=None if scale is None else "m", input_size=input_size)
        geometry = checked_geometry(geometry, GEOMETRIES)
        if (scale is None) != (shift is None):
            raise ValueError(f"scale, shift: expected both or neither, got {scale} and {shift}")
        of_trunk = (4 * geometry.trunk_width, 8 * geometry.trunk_width)
        if geometry.trunk is not None and tuple(geometry.widths[:2]) != of_trunk:
            raise ValueError(f"geometry.widths: expected {of_trunk}, as the trunk has, first, got {geometry.widths}")
        self.geometry, self.scale, self.shift, self.target_size = geometry, scale, shift, target_size
        self.pretrained = _Encoder(geometry, layer_norm_eps, weight_eps)
        self.scratch = _Decoder(geometry)
        if encoder_weights is not None:
            load_encoder_weights(self.pretrained.model, encoder_weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def kind(self) -> Kind:
        return "metric" if self.unit else "affine_inverse"

    @property
    def encoder(self) -> nn.Module:
        return self.pretrained.model

    @property
    def decoder(self) -> FusionDecoder:
        return self.scratch

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, "images")
        height, width = images.shape[-2:]
        if height % 32 or width % 32 or not height or not width:
            raise ValueError(f"images: expected height and width multiples of 32, got {height}x{width}")
        inverse = self.scratch(self.pretrained((2 * images - 1).contiguous(memory_format=torch.channels_last)))
        if self.scale is None:
            return inverse
        inverse = inverse.to(torch.promote_types(inverse.dtype, torch.float32))  # 1e-8 is 0 in half precision
        return 1 / (self.scale * inverse + self.shift).clamp(min=1e-8)

    def to_depth(self, values: Tensor) -> Tensor:
        """Clamps values that bicubic resizing pushes below zero at an edge, at 1 mm for depth."""
        return values.clamp(min=0 if self.scale is None else 1e-3)

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        if self.input_size:
            return self.input_size
        factors = (self.target_size[0] / height, self.target_size[1] / width)
        factor = min(factors, key=lambda f: abs(1 - f))
        # round() is to even, as NumPy's, which the published code calls.
        rows, columns = (max(32, 32 * round(factor * length / 32)) for length in (height, width))
        return rows, columns

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translates a published file ({"model": ...} or a state dict) or transformers' DPTForDepthEstimation."""
        if isinstance(content.get("model"), Mapping):
            content = content["model"]
        # The ImageNet classifier is in the files, but not in the net.
        content = {key: value for key, value in content.items() if not key.startswith("pretrained.model.head.")}
        return renamed(content, self.transformers_keys())

    def transformers_keys(self) -> dict[str, tuple[str, ...]]:
        return transformers_names(self.state_dict(), _transformers_modules(self.geometry))


def transformers_names(keys: Iterable[str], modules: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Key to those that transformers has for it, by the names of modules; ".qkv" becomes query, key and value."""
    names = {}
    for key in keys:
        module = key
        while module not in modules:
            module = module.rpartition(".")[0]
        rest = key.removeprefix(module)
        parts = (".query", ".key", ".value") if module.endswith(".qkv") else ("",)
        names[key] = tuple(f"{modules[module]}{part}{rest}" for part in parts)
    return names


def decoder_modules(prefix: str) -> dict[str, str]:
    """The modules of a `FusionDecoder` behind `prefix`, and what they are called in transformers."""
    modules: dict[str, str] = {}
    for n in range(4):  # lists count from 0 there, and the fusion blocks from the coarsest
        refinenet, fusion = f"{prefix}refinenet{n + 1}", f"neck.fusion_stage.layers.{3 - n}"
        modules |= {f"{prefix}layer{n + 1}_rn": f"neck.convs.{n}", f"{refinenet}.out_conv": f"{fusion}.projection"}
        for unit in (1, 2):
            for conv in (1, 2):
                modules[f"{refinenet}.resConfUnit{unit}.conv{conv}"] = (
                    f"{fusion}.residual_layer{unit}.convolution{conv}"
                )
    return modules


def _transformers_modules(geometry: DPTGeometry) -> dict[str, str]:
    """Module to module of transformers' DPTForDepthEstimation, or to that which holds its query, key and value."""
    vit, embeddings = "pretrained.model", "dpt.embeddings"
    backbone, bit = f"{vit}.patch_embed.backbone", f"{embeddings}.backbone.bit"
    modules = {
        f"{vit}.cls_token": f"{embeddings}.cls_token",
        f"{vit}.pos_embed": f"{embeddings}.position_embeddings",
        f"{vit}.patch_embed.proj": f"{embeddings}.{'projection' if geometry.trunk else 'patch_embeddings.projection'}",
        f"{backbone}.stem.conv": f"{bit}.embedder.convolution",
        f"{backbone}.stem.norm": f"{bit}.embedder.norm",
        f"{vit}.norm": "dpt.layernorm",
        "scratch.output_conv": "head.head",
    }
    for n in range(3):
        modules[f"{backbone}.stages.{n}.blocks"] = f"{bit}.encoder.stages.{n}.layers"
    for n in range(geometry.depth):
        block, layer = f"{vit}.blocks.{n}", f"dpt.encoder.layer.{n}"
        modules |= {
            f"{block}.norm1": f"{layer}.layernorm_before",
            f"{block}.norm2": f"{layer}.layernorm_after",
            f"{block}.attn.qkv": f"{layer}.attention.attention",
            f"{block}.attn.proj": f"{layer}.attention.output.dense",
            f"{block}.mlp.fc1": f"{layer}.intermediate.dense",
            f"{block}.mlp.fc2": f"{layer}.output.dense",
        }
    for n in range(4):
        reassemble, stage = f"pretrained.act_postprocess{n + 1}", "neck.reassemble_stage"
        modules |= {
            f"{reassemble}.0.project.0": f"{stage}.readout_projects.{n}.0",
            f"{reassemble}.3": f"{stage}.layers.{n}.projection",
            f"{reassemble}.4": f"{stage}.layers.{n}.resize",
        }
    return modules | decoder_modules("scratch.")


for _name in GEOMETRIES:
    register_model(f"dpt_{_name}", partial(DPT, _name))
    # The published constants and sizes of the hybrid; for the others nothing is published.
    register_model(f"dpt_{_name}_kitti", partial(DPT, _name, scale=6.016e-5, shift=0.00579, target_size=(352, 1216)))
    register_model(f"dpt_{_name}_nyu", partial(DPT, _name, scale=3.05e-4, shift=0.1378, target_size=(480, 640)))

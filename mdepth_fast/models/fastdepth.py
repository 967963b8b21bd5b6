"""FastDepth (Wofk, Ma, Yang, Karaman, Sze, ICRA 2019, arXiv 1903.03273): MobileNet encoder and a light decoder."""

import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.weights.encoder import load_encoder_weights

from ..ops import ConvBlock, conv_stack
from .base import DepthModel, Model, check_images
from .mobilenet import CHANNELS, mobilenet_units
from .registry import register_model

__all__ = ["PRUNED_DECODER", "PRUNED_ENCODER", "FastDepth"]

# What NetAdapt (arXiv 1804.03230) left of the channels.
PRUNED_ENCODER = (16, 56, 88, 120, 144, 256, 408, 376, 272, 288, 296, 328, 480, 512)
PRUNED_DECODER = (200, 256, 120, 56, 16)

_WIDTHS = (512, 256, 128, 64, 32)  # outputs of the decoder's stages
_SKIPS = {1: 5, 2: 3, 3: 1}  # decoder stage: the encoder unit of the same size, both from 0
_DECODER = re.compile(r"(nnconv|blconv|deconv|shuffle)([3579])(dw)?|upconv|upproj")


def _convolution(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _transposed(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, kernel // 2, 1, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class _Unpool(nn.Module):
    """Every pixel to the top left of a 2x2 square, the others 0."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[..., None, :, None], (0, 1, 0, 0, 0, 1)).flatten(4, 5).flatten(2, 3)


class _UpProjection(nn.Module):
    """The up-projection of Laina et al., arXiv 1606.00373, section 3.2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.unpool = _Unpool()
        second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.long = nn.Sequential(_convolution(inputs, outputs, 5), second)
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 5, 1, 2, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.unpool(x)
        return F.relu(self.long(x) + self.short(x))


class _Stage(nn.Sequential):
    """A stage of the decoder: (B, C, H, W) to (B, O, 2H, 2W), and the skip of that size, added or concatenated."""

    def __init__(self, *layers: nn.Module, concatenate: bool = False) -> None:
        super().__init__(*layers)
        self.concatenate = concatenate

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        for layer in self:
            x = layer(x)
        if skip is None:
            return x
        return torch.cat([x, skip], 1) if self.concatenate else x + skip


def _stage(decoder: str, inputs: int, outputs: int, concatenate: bool) -> _Stage:
    if decoder == "upproj":
        return _Stage(_UpProjection(inputs, outputs), concatenate=concatenate)
    if decoder == "upconv":
        return _Stage(_Unpool(), *_convolution(inputs, outputs, 5), concatenate=concatenate)
    kind, kernel, depthwise = re.fullmatch(_DECODER, decoder).groups()  # type: ignore[union-attr]
    spatial = _transposed if kind == "deconv" else _convolution
    layers: list[nn.Module]
    if depthwise:
        layers = [spatial(inputs, inputs, int(kernel), inputs), _convolution(inputs, outputs, 1)]
    else:
        layers = list(spatial(inputs, outputs, int(kernel)))
    if kind == "nnconv":
        layers.append(nn.Upsample(scale_factor=2, mode="nearest"))
    if kind == "blconv":
        layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    if kind == "shuffle":
        layers.insert(0, nn.PixelShuffle(2))
    return _Stage(*layers, concatenate=concatenate)


def _check(images: Tensor) -> None:
    check_images(images, "images")
    height, width = images.shape[-2:]
    if height % 32 or width % 32 or not height or not width:
        raise ValueError(f"images: expected H and W that are multiples of 32, got {height}x{width}")


class FastDepth(DepthModel):
    """MobileNet V1, five stages that double the resolution, a pointwise convolution; batch norm and ReLU after each.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W multiples of 32, and returns depth (B, 1, H, W) in metres,
    after a ReLU, so 0 is possible. The images are not normalised further, as published. `predict` resizes them
    bilinearly; the published evaluation took the nearest pixel and, for NYU, the central 228 x 304 of the half-size
    frame. The graph has no control flow, for `torch.fx`. TypeError or ValueError for images of another type or shape.

    Args:
        decoder: kind of a stage, where K is 3, 5, 7 or 9:
            "nnconvKdw", depthwise K x K and pointwise convolution, then nearest x2;
            "blconvKdw", the same with bilinear x2;
            "deconvKdw", depthwise K x K transposed and pointwise convolution;
            "shuffleKdw", pixel shuffle, then both convolutions (no channel numbers, no skips); each of these without
            "dw", one dense K x K convolution in place of both;
            "upconv", zeros between the pixels, then a dense 5x5; "upproj", FCRN's projection in its place
        skip: how outputs of units 5, 3 and 1 join after stages 2, 3 and 4: "add", "concat", "none"
        encoder_channels: outputs of the encoder's 14 units
        decoder_channels: outputs of the decoder's 5 stages
        unit, input_size: see `DepthModel`
        encoder_weights: path of the state dict of a MobileNet (ImageNet), None: random initialisation
    """

    engine_method = "forward"

    def __init__(
        self,
        *,
        decoder: str = "nnconv5dw",
        skip: str = "add",
        encoder_channels: Sequence[int] = CHANNELS,
        decoder_channels: Sequence[int] | None = None,
        unit: str | None = "m",
        input_size: tuple[int, int] | None = (224, 224),
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(unit=unit, input_size=input_size)
        if not re.fullmatch(_DECODER, decoder):
            raise ValueError(
                f"decoder: expected nnconvK, blconvK, deconvK or shuffleK with K 3, 5, 7 or 9 and perhaps dw behind, "
                f"upconv or upproj, got {decoder!r}"
            )
        if skip not in ("add", "concat", "none"):
            raise ValueError(f'skip: expected "add", "concat" or "none", got {skip!r}')
        self.decoder_name, self.skip = decoder, skip
        self.encoder = mobilenet_units(encoder_channels)
        inputs = encoder_channels[-1]
        if decoder.startswith("shuffle"):
            stages = _shuffle_stages(decoder, skip, inputs, decoder_channels)
        else:
            widths = tuple(_WIDTHS if decoder_channels is None else decoder_channels)
            if len(widths) != 5 or min(widths) < 1:
                raise ValueError(f"decoder_channels: expected 5 numbers of channels, got {widths}")
            stages = []
            for k, width in enumerate(widths):
                stages.append(_stage(decoder, inputs, width, skip == "concat"))
                inputs, joined = width, encoder_channels[_SKIPS[k]] if k in _SKIPS else 0
                if joined and skip == "add" and joined != width:
                    raise ValueError(
                        f"decoder_channels: expected stage {k + 1} to have the {joined} channels of encoder unit "
                        f"{_SKIPS[k]}, which are added to it, got {width}"
                    )
                if skip == "concat":
                    inputs += joined
            stages.append(_convolution(inputs, 1, 1))
        self.decoder = nn.Sequential(OrderedDict((f"conv{k}", stage) for k, stage in enumerate(stages, 1)))
        for layer in self.modules():
            if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
                # As published: the fan of a transposed convolution is that of its inputs.
                channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.in_channels
                fan = layer.kernel_size[0] * layer.kernel_size[1] * channels
                nn.init.normal_(layer.weight, 0.0, (2 / fan) ** 0.5)
        if encoder_weights is not None:
            load_encoder_weights(self.encoder, encoder_weights, "model.")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(images, torch.fx.Proxy):
            _check(images)
        x, features = images, []
        for layer in self.encoder:
            x = layer(x)
            features.append(x)
        for k, stage in enumerate(self.decoder):
            x = stage(x, features[_SKIPS[k]]) if k in _SKIPS and self.skip != "none" else stage(x)
        return x

    def infer(self, images: Tensor) -> Tensor:
        depth: Tensor = self(images)
        return depth

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """From the names of the published networks: with skips `conv{i}`, `decode_conv{k}`, without `mobilenet.{i}`
        and those of each decoder."""
        if not _published(content) or ("mobilenet.0.0.weight" in content) != (self.skip == "none"):
            return content
        return _renamed(content)

    @classmethod
    def options_of(cls, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """Decoder, skips and channels. "blconv" has the shapes of "nnconv", which is taken."""
        if not _published(content):
            return None
        state = {key: tuple(getattr(value, "shape", ())) for key, value in _renamed(content).items()}

        def shape(*names: str) -> tuple[int, ...]:
            return next((state[f"{name}.weight"] for name in names if len(state.get(f"{name}.weight", ())) == 4), ())

        first = "decoder.conv1"
        transposed = any(key.startswith("decoder.convt") for key in content)
        try:
            encoder = tuple(shape(f"encoder.{k}.{3 if k else 0}")[0] for k in range(len(CHANNELS)))
            widths: tuple[int, ...] | None
            if shape(f"{first}.0.long.0.0"):
                decoder, widths = "upproj", tuple(shape(f"decoder.conv{k}.0.short.0")[0] for k in range(1, 6))
            elif "decoder.conv6.0.weight" not in state:
                dense = shape(f"{first}.1")
                decoder, widths = f"shuffle{dense[-1]}" if dense else f"shuffle{shape(f'{first}.1.0')[-1]}dw", None
            elif shape(f"{first}.1"):
                decoder, widths = "upconv", tuple(shape(f"decoder.conv{k}.1")[0] for k in range(1, 6))
            elif dense := shape(f"{first}.0"):
                decoder = f"{'deconv' if transposed else 'nnconv'}{dense[-1]}"
                widths = tuple(shape(f"decoder.conv{k}.0")[int(transposed)] for k in range(1, 6))
            else:
                decoder = f"{'deconv' if transposed else 'nnconv'}{shape(f'{first}.0.0')[-1]}dw"
                widths = tuple(shape(f"decoder.conv{k}.1.0")[0] for k in range(1, 6))
            skip = "none"
            if "mobilenet.0.0.weight" not in content and widths is not None:
                skip = "concat" if shape("decoder.conv3.0.0")[0] > widths[1] else "add"
        except IndexError:
            return None
        found = {"decoder": decoder, "skip": skip, "encoder_channels": encoder, "decoder_channels": widths}
        usual = {"decoder": "nnconv5dw", "skip": "add", "encoder_channels": CHANNELS, "decoder_channels": _WIDTHS}
        if (skip, encoder, widths) == ("add", PRUNED_ENCODER, PRUNED_DECODER):
            return None  # a model of its own
        different = {name: value for name, value in found.items() if value is not None and value != usual[name]}
        return different or None

    def _native_copy(self) -> Model:
        """With the decoders nnconv3dw and nnconv5dw, and without concatenated skips, one call of `ops.conv_stack`."""
        model = super()._native_copy()
        if self.decoder_name not in ("nnconv3dw", "nnconv5dw") or self.skip == "concat":
            return model
        assert isinstance(model, FastDepth)
        return _Fused(model)


class _Fused(DepthModel):
    """A `FastDepth` whose batch norms are folded, as a stack of blocks."""

    float32_only = True

    def __init__(self, model: FastDepth) -> None:
        super().__init__(unit=model.unit, input_size=model.input_size)
        self.convolutions = nn.ModuleList()  # their parameters are those of the blocks
        units, stages = len(model.encoder), len(model.decoder)
        blocks = []
        for k, part in enumerate((*model.encoder, *model.decoder)):
            convolutions = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)]
            self.convolutions.extend(convolutions)
            depthwise, last = convolutions[0], convolutions[-1]
            assert last.bias is not None
            stage = k - units
            block = ConvBlock(last.weight, last.bias, stride=depthwise.stride[0], cap=6.0 if stage < 0 else None)
            if len(convolutions) == 2:
                block = block._replace(dw_weight=depthwise.weight, dw_bias=depthwise.bias)
            if stage in _SKIPS and model.skip == "add":
                block = block._replace(skip=_SKIPS[stage])
            # The last doubling comes behind the last pointwise convolution, with which it commutes.
            blocks.append(block._replace(doubled=0 <= stage < stages - 2 or stage == stages - 1))
        self.blocks = tuple(blocks)
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # as the op reads the weights
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        _check(images)
        return conv_stack(images, self.blocks)

    def infer(self, images: Tensor) -> Tensor:
        depth: Tensor = self(images)
        return depth


def _published(content: Mapping[str, Any]) -> bool:
    return "mobilenet.0.0.weight" in content or "conv0.0.weight" in content


_NAMES = (
    (r"mobilenet\.(\d+)\.", r"encoder.\1."),
    (r"conv(\d+)\.", r"encoder.\1."),
    (r"decode_conv(\d)\.", r"decoder.conv\1."),
    (r"decoder\.(?:convt|upconv)(\d)\.", r"decoder.conv\1."),
    (r"decoder\.convf\.", "decoder.conv6."),
    (r"decoder\.upproj(\d)\.branch1\.([01])\.", r"decoder.conv\1.0.long.0.\2."),
    (r"decoder\.upproj(\d)\.branch1\.3\.", r"decoder.conv\1.0.long.1.0."),
    (r"decoder\.upproj(\d)\.branch1\.4\.", r"decoder.conv\1.0.long.1.1."),
    (r"decoder\.upproj(\d)\.branch2\.", r"decoder.conv\1.0.short."),
)


def _renamed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A published state dict under the names of ours."""
    # The published decoders that shuffle call a function for it, ours has a layer before the convolutions.
    shuffled = "mobilenet.0.0.weight" in content and not any(
        key.startswith(("decoder.conv6.", "decoder.convf.")) for key in content
    )
    renamed = {}
    for key, value in content.items():
        for pattern, replacement in _NAMES:
            key, changed = re.subn("^" + pattern, replacement, key)
            if changed:
                break
        if shuffled:
            key = re.sub(r"^(decoder\.conv\d)\.(\d)\.", lambda found: f"{found[1]}.{int(found[2]) + 1}.", key)
        renamed[key] = value
    return renamed


def _shuffle_stages(decoder: str, skip: str, inputs: int, decoder_channels: Sequence[int] | None) -> list[nn.Module]:
    """Four stages and, in place of the fifth, the last shuffle alone: a quarter of the channels with each."""
    if skip != "none":
        raise ValueError(f'skip: expected "none" with the decoder {decoder}, got {skip!r}')
    if decoder_channels is not None:
        raise ValueError(f"decoder_channels: expected None with the decoder {decoder}, got {tuple(decoder_channels)}")
    if inputs != 4**5:
        raise ValueError(f"encoder_channels: expected the last to be {4**5} with the decoder {decoder}, got {inputs}")
    stages: list[nn.Module] = [_stage(decoder, 4**k, 4**k, False) for k in (4, 3, 2, 1)]
    return [*stages, nn.PixelShuffle(2)]


register_model("fastdepth", FastDepth)
register_model("fastdepth_pruned", partial(FastDepth, encoder_channels=PRUNED_ENCODER, decoder_channels=PRUNED_DECODER))

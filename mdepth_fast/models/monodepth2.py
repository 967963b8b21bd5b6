"""Monodepth2 (Godard, Mac Aodha, Firman, Brostow, ICCV 2019, arXiv 1806.01260): depth, pose and mask networks.

The published decoder upsamples, concatenates, pads and convolves at the high resolution. This one computes the same
numbers with less work. Nearest x2 followed by a 3x3 convolution is one 4x4 transposed convolution of stride 2 on the
small map (16 multiplications in place of 36 per small pixel), reflection of the large map is replication of the small
one, and a convolution of a concatenation is a sum of two convolutions.
"""

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.weights.encoder import load_encoder_weights

from .base import DisparityModel, Model, PoseModel, check_images, in_float32, stack_pair
from .registry import register_model
from .resnet import ResNetEncoder

__all__ = ["Monodepth2", "PoseCNN", "PoseNet", "PredictiveMask", "SharedPoseNet"]

PUBLISHED_RANGE = (0.1, 100.0)  # of depth, in units of the stereo baseline's 0.1
STEREO_UNIT = 5.4  # metres: KITTI's baseline of 0.54 m stands for 0.1
_WIDTHS = (256, 128, 64, 32, 16)  # of the decoder's levels, coarsest first


def _reflect(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect")


def _replicate(x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        # The compiler's model of replication_pad2d's backward knows no channels_last (seen in PyTorch 2.13).
        x = torch.cat([x[..., :1], x, x[..., -1:]], -1)
        return torch.cat([x[..., :1, :], x, x[..., -1:, :]], -2)
    return F.pad(x, (1, 1, 1, 1), mode="replicate")


class _Level(nn.Module):
    """One level: 3x3 `reduce`, nearest x2, concatenation with the skip, 3x3 `merge`; ELU and reflection at both."""

    doubled: Tensor

    def __init__(self, inputs: int, skip: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.reduce = nn.Conv2d(inputs, width, 3)
        self.merge = nn.Conv2d(width + skip, width, 3)
        # Row (y, x) of a 4x4 kernel = sum of the 3x3 taps that fall on the small pixel once each pixel is doubled.
        doubled = torch.zeros(4, 4, 3, 3)
        for y in range(3):
            for x in range(3):
                doubled[2 - y : 4 - y, 2 - x : 4 - x, y, x] = 1
        self.register_buffer("doubled", doubled.view(16, 9), persistent=False)

    def forward(self, padded: Tensor, skip: Tensor | None) -> Tensor:
        """Reflection-padded map (B, inputs, h+2, w+2) and skip (B, skip, 2h, 2w) to a padded (B, width, 2h+2, 2w+2)."""
        x = _replicate(F.elu(self.reduce(padded), inplace=True))
        weight, bias = self.merge.weight, self.merge.bias
        taps = weight[:, : self.width].permute(0, 2, 3, 1).flatten(1, 2)  # (out, 9, in), as channels_last stores it
        kernel = (self.doubled @ taps).unflatten(1, (4, 4)).permute(3, 0, 1, 2)  # (in, out, 4, 4)
        y = F.conv_transpose2d(x, kernel, stride=2, padding=3)
        if skip is not None:
            y = y.add_(F.conv2d(_reflect(skip), weight[:, self.width :], bias))
        elif bias is not None:
            y = y.add_(bias[:, None, None])
        return _reflect(F.elu(y, inplace=True))


class _DepthDecoder(nn.Module):
    """`outputs` sigmoid maps at each of `scales`."""

    def __init__(self, channels: Sequence[int], scales: Sequence[int], outputs: int = 1) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.levels = nn.ModuleList()
        inputs = channels[-1]
        for width, skip in zip(_WIDTHS, (*channels[-2::-1], 0), strict=True):
            self.levels.append(_Level(inputs, skip, width))
            inputs = width
        self.heads = nn.ModuleList(nn.Conv2d(_WIDTHS[4 - scale], outputs, 3) for scale in self.scales)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps: dict[int, Tensor] = {}
        x = _reflect(features[-1])
        for scale, level, skip in zip((4, 3, 2, 1, 0), self.levels, (*features[-2::-1], None), strict=True):
            x = level(x, skip)
            if scale in self.scales:
                maps[scale] = in_float32(self.heads[self.scales.index(scale)], x).sigmoid()
        return [maps[scale] for scale in self.scales]

    def published_keys(self) -> dict[str, str]:
        """Key in depth.pth to key in the `state_dict()` of a network whose `decoder` this is."""
        keys: dict[str, str] = {}
        for n in range(10):
            layer = f"decoder.levels.{n // 2}.{'merge' if n % 2 else 'reduce'}"
            keys |= {f"decoder.{n}.conv.conv.{part}": f"{layer}.{part}" for part in ("weight", "bias")}
        for n in range(len(self.heads)):
            keys |= {f"decoder.{10 + n}.conv.{part}": f"decoder.heads.{n}.{part}" for part in ("weight", "bias")}
        return keys


class Monodepth2(DisparityModel):
    """Monodepth2's depth network: ResNet encoder, U-Net decoder, one sigmoid disparity map per scale.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W multiples of 32 and at least 64. It returns a list of
    disparity maps (B, 1, H / 2^s, W / 2^s), one per s of `scales`, in that order; depth = `ops.disparity_to_depth(map,
    size, min_depth=, max_depth=)`. TypeError or ValueError for images of another type or shape.

    Args:
        layers: 18, 34, 50, 101 or 152
        min_depth, max_depth: depth where the sigmoid is 1 and 0
        unit: "m" if the network is trained for metric depth, None if its scale is arbitrary
        input_size: (H, W) to which `predict` resizes; None: the multiple of 32 nearest to the image
        encoder_weights: path of a ResNet state dict in torchvision's format (ImageNet), None: random initialisation
    """

    def __init__(
        self,
        layers: int = 18,
        *,
        min_depth: float = 0.1,
        max_depth: float = 100.0,
        scales: Sequence[int] = (0, 1, 2, 3),
        unit: str | None = None,
        input_size: tuple[int, int] | None = None,
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(min_depth=min_depth, max_depth=max_depth, scales=scales, unit=unit, input_size=input_size)
        self.encoder = ResNetEncoder(layers)
        self.decoder = _DepthDecoder(self.encoder.channels, self.scales)
        if encoder_weights is not None:
            load_encoder_weights(self.encoder, encoder_weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def encode(self, images: Tensor) -> list[Tensor]:
        """The encoder's five feature maps, at strides 2 to 32, which shared pose and mask networks read too."""
        check_images(images, "images")
        height, width = images.shape[-2:]
        if height % 32 or width % 32 or min(height, width) < 64:
            raise ValueError(f"images: expected height and width multiples of 32, at least 64, got {height}x{width}")
        features: list[Tensor] = self.encoder(images)
        return features

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.decoder(self.encode(images))

    def published_files(self) -> dict[str, dict[str, str]]:
        return {"encoder.pth": _encoder_keys(self.encoder), "depth.pth": self.decoder.published_keys()}

    def publish(self) -> dict[str, dict[str, Any]]:
        """Raises ValueError for a depth range other than that of published models, which the files do not hold."""
        stereo = self.unit == "m"
        unit = STEREO_UNIT if stereo else 1.0
        low, high = PUBLISHED_RANGE
        if not (math.isclose(self.min_depth, low * unit) and math.isclose(self.max_depth, high * unit)):
            raise ValueError(
                f"min_depth, max_depth: published files stand for {low * unit:g} to {high * unit:g}"
                f"{' m' if stereo else ''}, got {self.min_depth:g} to {self.max_depth:g}"
            )
        files = super().publish()
        height, width = self.input_size or (192, 640)
        files["encoder.pth"] |= _unused_classifier(self.encoder)
        files["encoder.pth"] |= {"height": height, "width": width, "use_stereo": stereo}
        return files


def _encoder_keys(encoder: ResNetEncoder) -> dict[str, str]:
    return {f"encoder.{key}": f"encoder.{key}" for key in encoder.state_dict()}


def _unused_classifier(encoder: ResNetEncoder) -> dict[str, Tensor]:
    """ImageNet's last layer, which no depth or pose needs, but without which the published scripts load no encoder."""
    return {"encoder.fc.weight": torch.zeros(1000, encoder.channels[-1]), "encoder.fc.bias": torch.zeros(1000)}


class _PoseNet(PoseModel):
    """A pose network of `frames` frames, given as pairs or all at once."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        if frames < 2:
            raise ValueError(f"frames: expected at least 2, got {frames}")
        self.frames = frames

    def numbers(self, frames: Tensor) -> Tensor:
        """Frames stacked along the channels, (B, frames * C, H, W), to (B, 6 * n, h, w), n at least frames - 1."""
        raise NotImplementedError

    def check(self, frame: Tensor, name: str) -> None:
        check_images(frame, name)

    @property
    def last(self) -> nn.Conv2d:
        """The layer that gives the numbers."""
        raise NotImplementedError

    @torch.no_grad()
    def scale_translation(self, factor: float) -> None:
        """Changes the unit of the translation: the network then predicts `factor` times as many."""
        for part in (self.last.weight, self.last.bias):
            assert part is not None
            part.unflatten(0, (-1, 6))[:, 3:].mul_(factor)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        axis_angle, translation = self._motions(stack_pair(first, second, self.check), 2)
        return axis_angle[:, 0], translation[:, 0]

    def all_poses(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, frames, C, H, W), the target first, to axis-angle and translation (B, frames - 1, 3), target to
        source."""
        self.check(frames[:, 0] if frames.dim() == 5 else frames, "frames")
        return self._motions(frames.flatten(1, 2), frames.shape[1])

    def _motions(self, stacked: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        if frames != self.frames:
            raise ValueError(f"frames: expected {self.frames}, for which the network was made, got {frames}")
        numbers = 0.01 * self.numbers(stacked).mean((2, 3)).unflatten(1, (-1, 6))[:, : frames - 1]
        return numbers[..., :3], numbers[..., 3:]


class PoseNet(_PoseNet):
    """Monodepth2's separate pose network: ResNet on the images stacked along the channels, four convolutions.

    `forward(first, second)` takes images (B, 3, H, W) in [0, 1] in temporal order and returns axis-angle (B, 3) in
    radians and translation (B, 3) of the motion from first to second, both already multiplied by 0.01. The last layer
    has the published 12 outputs, of which pairs use the first 6. TypeError or ValueError for images of another type or
    shape. `all_poses` takes all frames at once.

    Args:
        layers: 18, 34, 50, 101 or 152; 18 and 50 are published
        frames: frames that the network sees at once: 2 for pairs
        encoder_weights: path of a ResNet state dict in torchvision's format; conv1 is repeated for every image and
            divided by their number
    """

    def __init__(
        self, layers: int = 18, *, frames: int = 2, encoder_weights: str | os.PathLike[str] | None = None
    ) -> None:
        super().__init__(frames)
        self.encoder = ResNetEncoder(layers, in_channels=3 * frames)
        self.decoder = nn.ModuleList(
            [
                nn.Conv2d(self.encoder.channels[-1], 256, 1),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.Conv2d(256, 6 * max(2, frames - 1), 1),
            ]
        )
        if encoder_weights is not None:
            load_encoder_weights(self.encoder, encoder_weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def numbers(self, frames: Tensor) -> Tensor:
        x = self.encoder.last(frames)
        for conv in self.decoder[:3]:
            x = conv(x).relu_()
        return in_float32(self.last, x)

    @property
    def last(self) -> nn.Conv2d:
        return self.decoder[3]  # type: ignore[return-value]

    def published_files(self) -> dict[str, dict[str, str]]:
        decoder = {f"net.{key}": f"decoder.{key}" for key in self.decoder.state_dict()}
        return {"pose_encoder.pth": _encoder_keys(self.encoder), "pose.pth": decoder}

    def publish(self) -> dict[str, dict[str, Any]]:
        files = super().publish()
        files["pose_encoder.pth"] |= _unused_classifier(self.encoder)
        return files


class SharedPoseNet(_PoseNet):
    """Monodepth2's `shared` pose network: convolutions on the depth network's own features, no encoder of its own.

    The same interface as `PoseNet`, with the last feature maps (B, channels, h, w) of the depth encoder in place of
    images. Each is squeezed to 256 channels; the maps of all frames are concatenated.
    """

    reads_features = True

    def __init__(self, channels: int = 512, *, frames: int = 2) -> None:
        super().__init__(frames)
        self.channels = channels
        self.decoder = nn.ModuleList(
            [
                nn.Conv2d(channels, 256, 1),
                nn.Conv2d(256 * frames, 256, 3, padding=1),
                nn.Conv2d(256, 256, 3, padding=1),
                nn.Conv2d(256, 6 * (frames - 1), 1),
            ]
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def check(self, frame: Tensor, name: str) -> None:
        if frame.dim() != 4 or frame.shape[1] != self.channels:
            raise ValueError(f"{name}: expected features (B, {self.channels}, h, w), got {tuple(frame.shape)}")

    def numbers(self, frames: Tensor) -> Tensor:
        each = frames.unflatten(1, (self.frames, self.channels)).flatten(0, 1)
        x = self.decoder[0](each.contiguous(memory_format=torch.channels_last)).relu_()
        x = x.unflatten(0, (-1, self.frames)).flatten(1, 2)
        for conv in self.decoder[1:3]:
            x = conv(x).relu_()
        return in_float32(self.last, x)

    @property
    def last(self) -> nn.Conv2d:
        return self.decoder[3]  # type: ignore[return-value]

    def published_files(self) -> dict[str, dict[str, str]]:
        return {"pose.pth": {f"net.{key}": f"decoder.{key}" for key in self.decoder.state_dict()}}


class PoseCNN(_PoseNet):
    """Monodepth2's light pose network (`posecnn`, after SfMLearner, arXiv 1704.07813): seven strided convolutions.

    Same interface as `PoseNet`, on images that are not normalised. The published system multiplies the translation by
    the mean over the image of 1 / depth before it builds the pose matrix; `scale_by_inverse_depth` tells the trainer.
    """

    scale_by_inverse_depth = True

    def __init__(self, *, frames: int = 2) -> None:
        super().__init__(frames)
        self.net = nn.ModuleList()
        inputs = 3 * frames
        for outputs, kernel in ((16, 7), (32, 5), (64, 3), (128, 3), (256, 3), (256, 3), (256, 3)):
            self.net.append(nn.Conv2d(inputs, outputs, kernel, 2, kernel // 2))
            inputs = outputs
        self.pose_conv = nn.Conv2d(inputs, 6 * (frames - 1), 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def numbers(self, frames: Tensor) -> Tensor:
        x = frames.contiguous(memory_format=torch.channels_last)
        for conv in self.net:
            x = conv(x).relu_()
        return in_float32(self.last, x)

    @property
    def last(self) -> nn.Conv2d:
        return self.pose_conv

    @torch.no_grad()
    def scale_translation(self, factor: float) -> None:
        super().scale_translation(factor**2)  # 1 / depth, which multiplies it, has another unit too

    def published_files(self) -> dict[str, dict[str, str]]:
        return {"pose.pth": {key: key for key in self.state_dict()}}


class PredictiveMask(Model):
    """Monodepth2's ablation of a learned mask: a second depth decoder with a sigmoid map for each source.

    `forward` takes the depth encoder's features (`Monodepth2.encode`) and returns a list of maps (B, S, h, w), one per
    s of `scales`, which multiply the sources' photometric errors (`MonodepthLoss(predictive_mask=True)`).
    """

    checkpoint_prefix = "mask_net."

    def __init__(self, channels: Sequence[int], sources: int, scales: Sequence[int] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.decoder = _DepthDecoder(channels, scales, sources)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return self.decoder(features)

    def published_files(self) -> dict[str, dict[str, str]]:
        return {"predictive_mask.pth": self.decoder.published_keys()}


for _layers in (18, 34, 50, 101, 152):
    register_model(f"monodepth2_resnet{_layers}", partial(Monodepth2, layers=_layers))
for _layers in (18, 50):
    register_model(f"posenet_resnet{_layers}", partial(PoseNet, layers=_layers))
register_model("posenet_shared", SharedPoseNet)
register_model("posecnn", PoseCNN)

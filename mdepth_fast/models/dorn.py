"""DORN (Fu, Gong, Wang, Batmanghelich, Tao, CVPR 2018, arXiv 1806.02446): depth as ordinal regression.

The network follows the released prototxts: a dilated ResNet-101 of output stride 8 with three convolutions in its
stem, a scene understanding module without normalisation, and two logits per threshold. Its fully connected layer fixes
the size of its window; overlapping windows cover KITTI frames.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.weights.encoder import load_encoder_weights

from ..ops.ordinal_decode import ordinal_decode
from .base import DepthModel, check_images
from .registry import register_model
from .resnet import VARIANTS, Bottleneck, stage

__all__ = ["DORN", "sid_thresholds", "ud_thresholds"]

_MEAN_BGR = (103.0626, 115.9029, 123.1516)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB in [0, 1]
_ZOOM = 8  # output stride, undone by a bilinear zoom that maps corners to corners
_SLAB = 4  # rows of small logits that are zoomed and decoded at a time: some MB instead of hundreds

Spacing = Literal["sid", "ud"]
Decode = Literal["midpoint", "released"]


def sid_thresholds(alpha: float, beta: float, K: int, xi: float = 0.0) -> Tensor:
    """Spacing-increasing thresholds t_0 = alpha to t_K = beta, (K + 1,), float64, in the unit of alpha and beta.

    `t_i + xi = exp(log(alpha + xi) + i / K * log((beta + xi) / (alpha + xi)))` (section 3.2; the paper shifts by
    xi = 1 - alpha). The shift is subtracted again, so the thresholds are depths and labels decode to depths.
    ValueError unless 0 <= alpha < beta, alpha + xi > 0 and K >= 1.
    """
    _check_range(alpha, beta, K)
    if not alpha + xi > 0:
        raise ValueError(f"xi: expected alpha + xi above 0, got alpha {alpha} and xi {xi}")
    return (
        torch.linspace(math.log(alpha + xi), math.log(beta + xi), K + 1, dtype=torch.float64, device="cpu").exp() - xi
    )


def ud_thresholds(alpha: float, beta: float, K: int) -> Tensor:
    """Uniform thresholds alpha to beta, (K + 1,), float64. ValueError unless 0 <= alpha < beta and K >= 1."""
    _check_range(alpha, beta, K)
    return torch.linspace(alpha, beta, K + 1, dtype=torch.float64, device="cpu")


def _check_range(alpha: float, beta: float, K: int) -> None:
    if not 0 <= alpha < beta < math.inf:
        raise ValueError(f"alpha, beta: expected 0 <= alpha < beta, got {alpha} and {beta}")
    if not isinstance(K, int) or K < 1:
        raise ValueError(f"K: expected a whole number of bins, at least 1, got {K!r}")


class _Trunk(nn.Module):
    """Dilated ResNet under the names of the MIT scene-parsing weights: conv1 to conv3, layer1 to layer4."""

    mean: Tensor

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        if layers not in VARIANTS or VARIANTS[layers][0] is not Bottleneck:
            raise ValueError(f"layers: expected 50 or 101, got {layers!r}")
        counts = VARIANTS[layers][1]
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False), nn.BatchNorm2d(2 * width)
        self.layer1 = stage(Bottleneck, 2 * width, width, counts[0], 1)
        self.layer2 = stage(Bottleneck, 4 * width, 2 * width, counts[1], 2)
        self.layer3 = stage(Bottleneck, 8 * width, 4 * width, counts[2], 1, dilation=2)
        self.layer4 = stage(Bottleneck, 16 * width, 8 * width, counts[3], 1, dilation=4)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.register_buffer("mean", torch.tensor(_MEAN_BGR).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 1] to (B, 32 width, (H - 1) / 8 + 1, (W - 1) / 8 + 1)."""
        x = (images.flip(1) * 255 - self.mean).contiguous(memory_format=torch.channels_last)
        x = self.bn1(self.conv1(x)).relu_()
        x = self.bn2(self.conv2(x)).relu_()
        x = F.max_pool2d(self.bn3(self.conv3(x)), 3, 2, 1).relu_()  # ReLU and maximum commute
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def load_imagenet(self, path: str | os.PathLike[str], pixels: Literal["rgb", "bgr255"]) -> None:
        load_encoder_weights(self, path)
        if pixels == "rgb":
            # What was (rgb - mean) / std now sees BGR 0..255 less another mean: conv1 takes the scale, its batch norm
            # the offset.
            mean, std = (
                self.mean.new_tensor(values).flip(0).view(3, 1, 1) for values in (_IMAGENET_MEAN, _IMAGENET_STD)
            )
            weight = self.conv1.weight.detach().flip(1)
            with torch.no_grad():
                self.bn1.get_buffer("running_mean").sub_((weight * ((self.mean / 255 - mean) / std)).sum((1, 2, 3)))
                self.conv1.weight.copy_(weight / (255 * std))


class _Scene(nn.Module):
    """Scene understanding module: full-image encoder, ASPP and the two merging convolutions, to 2K small logits."""

    def __init__(
        self, inputs: int, width: int, outputs: int, size: tuple[int, int], pool: int, rates: Sequence[int]
    ) -> None:
        super().__init__()
        # Caffe's ceil mode: windows at the border are clipped, and so is the area they are divided by.
        self.pool = nn.AvgPool2d(pool, pool, ceil_mode=True)
        self.pooled = (-(-size[0] // pool), -(-size[1] // pool))
        self.fc = nn.Linear(inputs * self.pooled[0] * self.pooled[1], width)
        self.conv = nn.Conv2d(width, width, 1)
        self.aspp = nn.ModuleList()
        for rate in (0, *rates):
            first = nn.Conv2d(inputs, width, 3, 1, rate, rate) if rate else nn.Conv2d(inputs, width, 1)
            self.aspp.append(nn.Sequential(first, nn.ReLU(True), nn.Conv2d(width, width, 1), nn.ReLU(True)))
        self.merge = nn.Conv2d((len(rates) + 2) * width, 4 * width, 1)
        self.classify = nn.Conv2d(4 * width, outputs, 1)
        self.dropout = nn.Dropout(0.5)  # of single elements, as Caffe's
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")  # Caffe's "xavier"
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        whole = self.fc(self.dropout(self.pool(x)).flatten(1)).relu_()
        whole = self.conv(whole[:, :, None, None]).relu_().expand(-1, -1, *x.shape[-2:])
        whole = whole.contiguous(memory_format=torch.channels_last)  # or the concatenation would lose it
        y = self.dropout(torch.cat([whole, *(branch(x) for branch in self.aspp)], 1))
        return self.classify(self.dropout(self.merge(y).relu_()))


class DORN(DepthModel):
    """DORN: ordinal logits for a window of the image, decoded to metres.

    `forward` takes images (B, 3, H, W) in [0, 1] of the size `window` and returns logits (B, 2K, H, W): channel 2k
    "not beyond threshold k", channel 2k + 1 "beyond". `thresholds` (K + 1,), float64 on the CPU, are depths in metres.
    `predict` resizes an image to the window, or (`sliding`) to its height, and averages the labels of windows that
    overlap before it turns them into metres. TypeError or ValueError for images of another type or shape.

    Args:
        layers: 50 or 101
        window: (height, width) of the network input, both 8 n + 1
        sliding: `predict` keeps the width of images: windows half a window apart, the last flush with the border
        K, alpha, beta: number of bins, first and last threshold in metres
        xi: shift of the thresholds, see `sid_thresholds`
        spacing: "sid" or "ud"
        thresholds: replaces K, alpha, beta, xi and spacing: increasing numbers in metres
        rates: dilations of the 3x3 branches of ASPP
        pool: kernel and stride of the pooling before the fully connected layer
        decode: "midpoint": the centre of bin l, l the number of thresholds passed (the paper). "released": the
            threshold l - 1, which suits the released weights, whose labels count from 1
        freeze_norm: batch norms keep their statistics and weights, also in `train()`, as published
        freeze_stem: the stem and the first stage are not trained, as published. Without pretrained weights, set both to
            False
        fc_lr: learning-rate multiplier of the fully connected layer, see `parameter_groups`
        encoder_weights: path of the ImageNet state dict of the MIT scene-parsing project (resnet101-imagenet.pth)
        encoder_pixels: what these weights were trained on: "rgb", normalised as torchvision does (the file since August
            2019), or "bgr255", minus the mean (the earlier file)
        width: channels of the stem; 64 as published, fewer for a small network
    """

    engine_method = "_logits"
    published_options: ClassVar[Mapping[str, Any]] = {"decode": "released"}

    def __init__(
        self,
        layers: int = 101,
        *,
        window: tuple[int, int] = (385, 513),
        sliding: bool = True,
        K: int = 71,
        alpha: float = math.exp(1.6),
        beta: float = math.exp(4.44),
        xi: float = 0.0,
        spacing: Spacing = "sid",
        thresholds: Sequence[float] | Tensor | None = None,
        rates: Sequence[int] = (6, 12, 18),
        pool: int = 16,
        decode: Decode = "midpoint",
        freeze_norm: bool = True,
        freeze_stem: bool = True,
        fc_lr: float = 10.0,
        encoder_weights: str | os.PathLike[str] | None = None,
        encoder_pixels: Literal["rgb", "bgr255"] = "rgb",
        width: int = 64,
    ) -> None:
        super().__init__(unit="m", input_size=(window[0], window[1]))
        if any(length % _ZOOM != 1 or length < 2 * _ZOOM for length in window):
            raise ValueError(f"window: expected height and width of the form 8 n + 1, from 17 on, got {window}")
        _check_choice(spacing, "spacing", ("sid", "ud"))
        _check_choice(decode, "decode", ("midpoint", "released"))
        _check_choice(encoder_pixels, "encoder_pixels", ("rgb", "bgr255"))
        if thresholds is None:
            thresholds = sid_thresholds(alpha, beta, K, xi) if spacing == "sid" else ud_thresholds(alpha, beta, K)
        self.thresholds = torch.as_tensor(thresholds, dtype=torch.float64, device="cpu")
        if self.thresholds.dim() != 1 or len(self.thresholds) < 2 or not bool((self.thresholds.diff() > 0).all()):
            raise ValueError(f"thresholds: expected at least two increasing numbers, got {self.thresholds.tolist()}")
        if not self.thresholds[0] >= 0:
            raise ValueError(f"thresholds: expected depths from 0 on, got {self.thresholds[0].item()} first")
        self.window, self.sliding, self.decode = (window[0], window[1]), sliding, decode
        self.freeze_norm, self.freeze_stem, self.fc_lr = freeze_norm, freeze_stem, fc_lr
        self.encoder = _Trunk(layers, width)
        size = ((window[0] - 1) // _ZOOM + 1, (window[1] - 1) // _ZOOM + 1)
        self.scene = _Scene(32 * width, 8 * width, 2 * self.K, size, pool, rates)
        if encoder_weights is not None:
            self.encoder.load_imagenet(encoder_weights, encoder_pixels)
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def K(self) -> int:
        return len(self.thresholds) - 1

    def _frozen(self) -> list[nn.Module]:
        stem = [self.encoder.get_submodule(name) for name in ("conv1", "conv2", "conv3", "layer1")]
        norms = [module for module in self.encoder.modules() if isinstance(module, nn.BatchNorm2d)]
        return (stem if self.freeze_stem else []) + (norms if self.freeze_norm else [])

    def train(self, mode: bool = True) -> "DORN":
        super().train(mode)
        for module in self._frozen():
            module.train(False)
        return self

    def forward(self, images: Tensor) -> Tensor:
        return _zoom(self._logits(images))

    def _logits(self, images: Tensor) -> Tensor:
        check_images(images, "images")
        if images.shape[-2:] != self.window:
            expected, got = ("x".join(map(str, size)) for size in (self.window, images.shape[-2:]))
            raise ValueError(f"images: expected the window's height and width, {expected}, got {got}")
        return self.scene(self.encoder(images))

    def infer(self, images: Tensor) -> Tensor:
        """Depth in metres (B, 1, H, W) of images (B, 3, H, W) as high as the window and at least as wide."""
        check_images(images, "images")
        (height, width), length = self.window, images.shape[-1]
        if images.shape[-2] != height or length < width or (length > width and not self.sliding):
            expected = f"{height}x{width}" + (" or wider" if self.sliding else "")
            raise ValueError(f"images: expected height and width {expected}, got {images.shape[-2]}x{length}")
        starts = [*range(0, length - width, (width - 1) // 2), length - width]
        counts = self._counts(self._logits(torch.cat([images[..., x : x + width] for x in starts])))
        if len(starts) > 1:
            total = counts.new_zeros(images.shape[0], 1, height, length)
            windows = counts.new_zeros(length)
            for x, window in zip(starts, counts.unflatten(0, (len(starts), images.shape[0]))):
                total[..., x : x + width] += window
                windows[x : x + width] += 1
            counts = total / windows
        return self._to_metres(counts)

    def _counts(self, logits: Tensor) -> Tensor:
        """How many thresholds every pixel of the window is beyond, from the small logits; NaN where these are."""
        logits = logits.detach().contiguous()
        thresholds = self.thresholds.to(logits.device, torch.float32)
        last, counts = logits.shape[-2] - 1, []
        # The zoom maps row r to row 8 r exactly, so it can be done in slabs that share a row.
        for top in range(0, last, _SLAB):
            bottom = min(top + _SLAB, last)
            depth, label = ordinal_decode(_zoom(logits[:, :, top : bottom + 1]), thresholds)
            count = label.to(depth.dtype).masked_fill_(depth.isnan(), torch.nan)
            counts.append(count if bottom == last else count[:, :, :-1])
        return torch.cat(counts, 2)

    def _to_metres(self, counts: Tensor) -> Tensor:
        """Depth of labels 0..K; between whole labels, where windows disagree, the geometric interpolation."""
        t = self.thresholds
        if self.decode == "midpoint":
            values = (t[:-1] + t[1:]) / 2
            values = torch.cat([values, values[-1:]])
        else:
            values = torch.cat([t[:1] ** 2 / t[1:2], t[:-1]])
        logs = values.clamp(min=torch.finfo(torch.float32).tiny).log().to(counts)
        lower = counts.nan_to_num().clamp(0, self.K - 1).long()
        return torch.lerp(logs[lower], logs[lower + 1], counts - lower).exp()

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        return self.window[0], max(width, self.window[1]) if self.sliding else self.window[1]

    def resize(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """Bilinear without a low-pass filter, as in the released demonstration."""
        return F.interpolate(images, size, mode="bilinear", align_corners=False)

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """The trained parameters, in optimiser groups with the published multipliers of `lr`.

        The trunk has 1, the weights of the head 10, its biases 20 without weight decay; the fully connected layer has
        `fc_lr` for weights and twice that for biases.
        """
        groups: dict[tuple[str, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = 1.0 if name.startswith("encoder.") else self.fc_lr if name.startswith("scene.fc.") else 10.0
                bias = name.startswith("scene.") and name.endswith(".bias")
                groups.setdefault(("bias", 2 * rate) if bias else ("weight", rate), []).append(parameter)
        return [
            {"params": parameters, "lr": rate * lr} | ({"weight_decay": 0.0} if kind == "bias" else {})
            for (kind, rate), parameters in groups.items()
        ]

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Translates blobs of the released caffemodels, `<layer>/<index>` -> array, to this network's keys.

        A convolution or inner product has blobs 0 weight and 1 bias, a BN layer 0 slope, 1 bias, 2 mean and 3 variance,
        (1, C, 1, 1); the layers are named as in the prototxts of KITTI (`depth/conv6_2`) or NYU (`conv6_2/soft`).
        """
        if "conv1_1_3x3_s2/0" not in content:
            return content
        result = {}
        for blob, value in content.items():
            layer, _, index = blob.rpartition("/")
            norm = layer.endswith("/bn")
            name, parts = _own_layer(layer.removesuffix("/bn"), norm), _NORM_BLOBS if norm else _BLOBS
            known = name is not None and index.isdecimal() and int(index) < len(parts)
            key = f"{name}.{parts[int(index)]}" if known else blob
            result[key] = value.flatten() if norm and isinstance(value, Tensor) else value
        return result


_BLOBS, _NORM_BLOBS = ("weight", "bias"), ("weight", "bias", "running_mean", "running_var")
_HEAD = {"global_fc": "fc", "ip1": "fc", "conv6_1": "conv", "conv7": "merge", "conv8": "classify"}
_UNITS = {"1x1_reduce": 1, "3x3": 2, "1x1_increase": 3}


def _own_layer(layer: str, norm: bool) -> str | None:
    """The module that a convolution, inner product or (`norm`) batch norm of the released prototxts is here."""
    part = "bn" if norm else "conv"
    if match := re.fullmatch(r"conv1_([123])_3x3(?:_s2)?", layer):
        return f"encoder.{part}{match[1]}"
    if match := re.fullmatch(r"conv([2345])_(\d+)_(1x1_reduce|3x3|1x1_increase|1x1_proj)", layer):
        block = f"encoder.layer{int(match[1]) - 1}.{int(match[2]) - 1}"
        return f"{block}.downsample.{int(norm)}" if match[3] == "1x1_proj" else f"{block}.{part}{_UNITS[match[3]]}"
    layer = layer.removeprefix("depth/").removesuffix("/soft").removesuffix("/depth")
    if layer in _HEAD:
        return f"scene.{_HEAD[layer]}"
    if match := re.fullmatch(r"aspp_(\d+)|conv6_(\d+)", layer):
        return f"scene.aspp.{int(match[1]) - 1}.0" if match[1] else f"scene.aspp.{int(match[2]) - 2}.2"
    return None


def _check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def _zoom(x: Tensor) -> Tensor:
    size = [(length - 1) * _ZOOM + 1 for length in x.shape[-2:]]
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


_NYU: dict[str, Any] = {
    "window": (257, 353),
    "sliding": False,
    "K": 68,
    "alpha": math.exp(-0.36),
    "beta": math.exp(2.36),
    "rates": (4, 8, 12),
    "pool": 8,
    "fc_lr": 1.0,
}
register_model("dorn_resnet101_kitti", DORN)
register_model("dorn_resnet101_nyu", partial(DORN, **_NYU))

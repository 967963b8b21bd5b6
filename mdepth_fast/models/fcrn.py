"""FCRN (Laina, Rupprecht, Belagiannis, Tombari, Navab, 3DV 2016, arXiv 1606.00373): ResNet and up-projections.

Un-pooling fills three of four pixels with zeros, and a 5x5 convolution then multiplies mostly by these. The paper's
fast form has four small convolutions on the small map instead, whose results are interleaved: their 9 + 6 + 6 + 4 taps
make up the 5x5 kernel, one parity of rows and columns each. Here the four are one transposed 5x5 convolution of
stride 2, which is the same sum over the same numbers in one call, with four biases per channel.
"""

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.weights.encoder import load_encoder_weights

from .base import DepthModel, check_images, in_float32
from .registry import register_model
from .resnet import ResNetEncoder

__all__ = ["FCRN", "UpConvolution"]

Upsampling = Literal["upproj", "upconv", "deconv"]
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # that torchvision's weights expect


@torch.fx.wrap  # one node of a traced graph: what is inside depends on device and layout
def _up_convolution(x: Tensor, weight: Tensor, bias: Tensor, released_padding: bool) -> Tensor:
    batch, _, height, width = x.shape
    # One row and column more at the top and left for the released padding, whose odd phases sit there.
    padding, size = (1, (2 * height + 1, 2 * width + 1)) if released_padding else (2, (2 * height, 2 * width))
    if x.device.type == "cpu" and weight.is_contiguous():
        # One matrix product: on a map of a few pixels oneDNN would spend its time on repacking the weights.
        columns = weight.flatten(1).T @ x.transpose(0, 1).flatten(1)
        columns = columns.unflatten(1, (batch, height * width)).transpose(0, 1)
        y = F.fold(columns, size, 5, stride=2, padding=padding).contiguous(memory_format=torch.channels_last)
    else:
        y = F.conv_transpose2d(x, weight, stride=2, padding=padding, output_padding=0 if released_padding else 1)
    bias = bias.to(y.dtype)[:, None, :, None, :]
    if released_padding:
        phases = y[..., :-1, :-1].unflatten(3, (width, 2)).unflatten(2, (height, 2)).flip(3, 5) + bias
        return phases.flatten(4).flatten(2, 3).contiguous(memory_format=torch.channels_last)
    y.unflatten(3, (width, 2)).unflatten(2, (height, 2)).add_(bias)
    return y


class UpConvolution(nn.Module):
    """Un-pooling x2 and a 5x5 convolution as in the fast form of FCRN: (B, C, h, w) to (B, O, 2h, 2w).

    Attributes:
        weight: (C, O, 5, 5), kernel of the transposed convolution: tap [4 - i, 4 - j] multiplies what tap [i, j] of the
            5x5 convolution does
        bias: (O, 2, 2), for even and odd rows and columns

    By default the four convolutions are padded at the bottom and the right, and all is equal to un-pooling (the value
    at the top left of its 2x2) and a 5x5 convolution. In the released network they are padded at the top and the left,
    so that odd rows and columns look at the neighbour before instead of the one behind; `released_padding` does that.
    Initialised as stated in the paper, from a normal distribution of variance 0.01, biases zero.
    """

    def __init__(self, inputs: int, outputs: int, *, released_padding: bool = False) -> None:
        super().__init__()
        self.released_padding = released_padding
        self.weight = nn.Parameter(torch.empty(inputs, outputs, 5, 5))
        self.bias = nn.Parameter(torch.zeros(outputs, 2, 2))
        nn.init.normal_(self.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return _up_convolution(x, self.weight, self.bias, self.released_padding)

    def extra_repr(self) -> str:
        inputs, outputs = self.weight.shape[:2]
        return f"{inputs}, {outputs}, released_padding={self.released_padding}"


_PHASES = {"A": (0, 0), "B": (1, 0), "C": (0, 1), "D": (1, 1)}  # parities of the output's row and column


def _assemble(weights: Mapping[str, Tensor], biases: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Weight and bias of `UpConvolution` from those of the convolutions A to D: (O, C, 3 or 2, 3 or 2) and (O,)."""
    outputs, inputs = weights["A"].shape[:2]
    kernel, bias = weights["A"].new_empty(outputs, inputs, 5, 5), biases["A"].new_empty(outputs, 2, 2)
    for phase, (row, column) in _PHASES.items():
        kernel[:, :, row::2, column::2] = weights[phase]
        bias[:, row, column] = biases[phase]
    return kernel.flip(2, 3).transpose(0, 1), bias


class _UpProjection(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, released_padding: bool) -> None:
        super().__init__()
        self.up1 = UpConvolution(inputs, outputs, released_padding=released_padding)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm = nn.BatchNorm2d(outputs)
        self.up2 = UpConvolution(inputs, outputs, released_padding=released_padding)
        self.norm2 = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.up1(x)).relu_()
        y = self.norm(self.conv(y))
        return y.add_(self.norm2(self.up2(x))).relu_()


class _Up(nn.Module):
    """One convolution that doubles the size, batch norm, ReLU."""

    def __init__(self, up: nn.Module, outputs: int) -> None:
        super().__init__()
        self.up = up
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.up(x)).relu_()


@torch.fx.wrap
def _check(images: Tensor) -> None:
    check_images(images, "images")
    if min(images.shape[-2:]) < 32:
        raise ValueError(f"images: expected height and width of at least 32, got {images.shape[-2]}x{images.shape[-1]}")


class FCRN(DepthModel):
    """FCRN: ResNet in its Caffe layout, four levels that double the size, a ReLU'd 3x3 convolution.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W at least 32, and returns depth (B, 1, h, w) in metres, not
    negative, h and w half of H and W where those are multiples of 32, else a little more: (128, 160) for the published
    (228, 304). The network sees colours times 255, without mean subtraction, as released. TypeError or ValueError for
    images of another type or shape.

    Args:
        upsampling: "upproj": up-projection, the published one; "upconv": one 5x5 up-convolution per level; "deconv": a
            transposed convolution of kernel 2 and stride 2; each with batch norm and ReLU
        layers: 18, 34 or 50 of the encoder
        released_padding: False: the fast up-convolutions equal un-pooling and a 5x5 convolution, as in the paper. True:
            as in the released network, which its weights need. Weights remember which kind they were made with, and
            `load_checkpoint` raises ValueError for the other.
        dropout: rate for the features before the last convolution, in training. The release has the layer but not its
            rate; 0.5 is the default of MatConvNet, in which it was trained
        bn_momentum: of the running statistics; 0.001 is the decay 0.999 of the release, which a short run never fills
        input_size: (H, W) to which `predict` resizes
        encoder_weights: path of a ResNet state dict in torchvision's format (ImageNet), None: random initialisation.
            Its normalisation of colours is folded into conv1, which is exact but for the zero padding at the border.
            Its 3x3 convolutions of stride 2 see here what the 1x1 before them has left, neighbours twice as far apart
            as those that they were trained on: a start, not a trained encoder.

    All layers after the encoder start as `UpConvolution` does.
    """

    engine_method = "forward"
    published_options: ClassVar[Mapping[str, Any]] = {"released_padding": True}
    released: Tensor

    def __init__(
        self,
        upsampling: Upsampling = "upproj",
        *,
        layers: int = 50,
        released_padding: bool = False,
        dropout: float = 0.0,
        bn_momentum: float = 0.001,
        input_size: tuple[int, int] | None = (228, 304),
        encoder_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(unit="m", input_size=input_size)
        if upsampling not in get_args(Upsampling):
            raise ValueError(f"upsampling: expected one of {get_args(Upsampling)}, got {upsampling!r}")
        if released_padding and upsampling == "deconv":
            raise ValueError('released_padding: expected False for upsampling="deconv", which has no such convolution')
        self.upsampling, self.released_padding = upsampling, released_padding
        self.encoder = ResNetEncoder(layers, caffe="same" if released_padding else True, mean=0.0, std=1 / 255)
        width = self.encoder.channels[-1] // 2
        self.transit = nn.Conv2d(2 * width, width, 1)
        self.transit_norm = nn.BatchNorm2d(width)
        self.levels = nn.Sequential()
        for _ in range(4):
            self.levels.append(self._level(width, width // 2))
            width //= 2
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        for module in (self.transit, self.head, *self.levels.modules()):
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=0.1)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = 1e-4, bn_momentum
        # Kept with the weights, which mean nothing under the other padding.
        self.register_buffer("released", torch.tensor(released_padding))
        if encoder_weights is not None:
            self._initialise_encoder(layers, encoder_weights)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for module in self.levels[0].modules():
            if isinstance(module, UpConvolution):
                module.weight.data = module.weight.data.contiguous()  # `_up_convolution` goes by the layout

    def _level(self, inputs: int, outputs: int) -> nn.Module:
        if self.upsampling == "upproj":
            return _UpProjection(inputs, outputs, released_padding=self.released_padding)
        if self.upsampling == "upconv":
            return _Up(UpConvolution(inputs, outputs, released_padding=self.released_padding), outputs)
        return _Up(nn.ConvTranspose2d(inputs, outputs, 2, stride=2), outputs)

    def _initialise_encoder(self, layers: int, path: str | os.PathLike[str]) -> None:
        with torch.device("meta"):
            source = ResNetEncoder(layers)
        load_encoder_weights(source.to_empty(device="cpu"), path)
        state = source.state_dict()
        mean, std = (torch.tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
        weight = state["conv1.weight"] / std
        state |= {"conv1.weight": weight / 255, "conv1.bias": -(weight * mean).sum((1, 2, 3))}
        self.encoder.load_state_dict(state)

    def forward(self, images: Tensor) -> Tensor:
        _check(images)
        x = self.transit_norm(self.transit(self.encoder.last(images)))
        return in_float32(self.head, self.dropout(self.levels(x))).relu_()

    def infer(self, images: Tensor) -> Tensor:
        return self(images)

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The released TensorFlow weights, {layer: {variable: array}}, kernels (H, W, I, O); else `content` as it is.

        ValueError if this network is not the one that they are for: "upproj" with `released_padding`.
        """
        if "ConvPred" not in content:
            return content
        if self.upsampling != "upproj" or not self.released_padding:
            raise ValueError(
                'the released weights are for upsampling="upproj" with released_padding=True, '
                f'got "{self.upsampling}" with {self.released_padding}: create the model with these options'
            )
        entries: dict[str, Any] = {}
        for layer, part in content.items():
            named = isinstance(part, Mapping)
            entries |= {f"{layer}.{name}": v for name, v in part.items()} if named else {layer: part}
        for key, value in entries.items():
            if isinstance(value, Tensor) and value.dim() == 4:
                entries[key] = value.permute(3, 2, 0, 1)
        state: dict[str, Any] = {}
        layers = self._released_layers()
        for own, module in self.named_modules():
            if isinstance(module, UpConvolution):
                names = {phase: f"{layers[own]}{phase}" for phase in _PHASES}
                weights = {phase: entries.get(f"{name}.weights") for phase, name in names.items()}
                biases = {phase: entries.get(f"{name}.biases") for phase, name in names.items()}
                if _fit(module, weights, biases):  # else they stay under their names, which no state dict has
                    state[f"{own}.weight"], state[f"{own}.bias"] = _assemble(weights, biases)  # type: ignore[arg-type]
                    for name in names.values():
                        del entries[f"{name}.weights"], entries[f"{name}.biases"]
            elif isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                for name, variable in _VARIABLES[type(module)].items():
                    if f"{layers[own]}.{variable}" in entries:
                        state[f"{own}.{name}"] = entries.pop(f"{layers[own]}.{variable}")
        return {"released": torch.tensor(self.released_padding)} | state | entries

    def _released_layers(self) -> dict[str, str]:
        """Names of modules to names of layers in the release; of an `UpConvolution` without its letter."""
        layers = {"encoder.conv1": "conv1", "encoder.bn1": "bn_conv1", "transit": "layer1", "transit_norm": "layer1_BN"}
        for stage in range(1, 5):
            for n in range(len(self.encoder.get_submodule(f"layer{stage}"))):  # type: ignore[arg-type]
                own, block = f"encoder.layer{stage}.{n}", f"{stage + 1}{'abcdef'[n]}"
                layers |= {f"{own}.downsample.0": f"res{block}_branch1", f"{own}.downsample.1": f"bn{block}_branch1"}
                for k, letter in enumerate("abc", 1):
                    layers[f"{own}.conv{k}"] = f"res{block}_branch2{letter}"
                    layers[f"{own}.bn{k}"] = f"bn{block}_branch2{letter}"
        for n, scale in enumerate(("2x", "4x", "8x", "16x")):
            own, name = f"levels.{n}", f"layer{scale}"
            layers |= {f"{own}.conv": f"{name}_Conv", f"{own}.norm": f"{name}_BN"}
            for branch in (1, 2):
                layers[f"{own}.up{branch}"] = f"{name}_br{branch}_Conv"
                layers[f"{own}.norm{branch}"] = f"{name}_br{branch}_BN"
        return layers | {"head": "ConvPred"}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        made_with = state_dict.get(f"{prefix}released")
        if made_with is not None and bool(made_with) != self.released_padding:
            raise ValueError(
                f"released_padding: the weights were made with {bool(made_with)}, the network has "
                f"{self.released_padding}; create it with released_padding={bool(made_with)}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args)


_VARIABLES: dict[type[nn.Module], dict[str, str]] = {
    nn.Conv2d: {"weight": "weights", "bias": "biases"},
    nn.BatchNorm2d: {"weight": "scale", "bias": "offset", "running_mean": "mean", "running_var": "variance"},
}


def _fit(module: UpConvolution, weights: Mapping[str, Any], biases: Mapping[str, Any]) -> bool:
    inputs, outputs = module.weight.shape[:2]
    return all(
        isinstance(weights[phase], Tensor)
        and isinstance(biases[phase], Tensor)
        and weights[phase].shape == (outputs, inputs, 3 - row, 3 - column)
        and biases[phase].shape == (outputs,)
        for phase, (row, column) in _PHASES.items()
    )


for _upsampling in get_args(Upsampling):
    register_model(f"fcrn_resnet50_{_upsampling}", partial(FCRN, upsampling=_upsampling))

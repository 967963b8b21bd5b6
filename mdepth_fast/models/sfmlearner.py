"""SfMLearner (Zhou, Brown, Snavely, Lowe, CVPR 2017, arXiv 1704.07813) and vid2depth (Mahjourian, Wicke, Angelova, CVPR
2018, arXiv 1802.05522): depth network, and pose network with explainability masks.

The papers leave padding and resizing open. `padding="same"` is that of the released TensorFlow networks: a convolution
of stride 2 pads one pixel less before than behind, and maps are doubled with the top left corner in place.
`padding="symmetric"` is that of the common PyTorch port, SfmLearner-Pytorch. Weights of one mean little to the other.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import DisparityModel, PoseModel, check_images, in_float32
from .registry import register_model

__all__ = ["DispNet", "PoseExpNet", "Vid2DepthDispNet", "Vid2DepthPoseNet"]

Padding = Literal["same", "symmetric"]

# Name, kernel, channels; the second convolution of each level keeps size and channels.
_ENCODER = ((7, 32), (5, 64), (3, 128), (3, 256), (3, 512), (3, 512), (3, 512))
_DECODER = {7: 512, 6: 512, 5: 256, 4: 128, 3: 64, 2: 32, 1: 16}
_POSE = ((7, 16), (5, 32), (3, 64), (3, 128), (3, 256), (3, 256), (3, 256))
_MASK = {5: (256, 3), 4: (128, 3), 3: (64, 3), 2: (32, 5), 1: (16, 7)}


class _Block(nn.Module):
    """Convolution, batch norm if asked for, bias, ReLU. A batch norm has no factor, as slim's: the bias comes after it.

    up: a transposed convolution that doubles the size. batch_statistics: normalise by the batch in eval mode, too.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        *,
        up: bool = False,
        same: bool = True,
        batch_norm: bool = False,
        batch_statistics: bool = False,
        bn_momentum: float = 0.001,
    ) -> None:
        super().__init__()
        self.crop = up and same
        self.pad = kernel if stride == 2 and same else 0
        self.batch_statistics = batch_statistics
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        if not up:
            padding = 0 if self.pad else kernel // 2
            self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=not batch_norm)
        elif same:
            self.conv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, (kernel - 3) // 2, bias=not batch_norm)
        else:
            # An even kernel doubles the size by itself, an odd one lacks a row and a column.
            self.conv = nn.ConvTranspose2d(inputs, outputs, kernel, 2, 1, kernel % 2, bias=not batch_norm)
        nn.init.xavier_uniform_(self.conv.weight)
        self.norm: nn.BatchNorm2d | None = None
        if batch_norm:
            self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=bn_momentum, affine=False)
            self.bias = nn.Parameter(torch.zeros(outputs))
        else:
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            # To ceil(n / 2): of an even length one less before than behind.
            (top, bottom), (left, right) = (
                (self.pad // 2 - 1 + n % 2, self.pad // 2) for n in (x.shape[-2], x.shape[-1])
            )
            x = F.pad(x, (left, right, top, bottom))
        x = self.conv(x)
        if self.crop:
            x = x[..., :-1, :-1]
        if self.norm is not None:
            if self.batch_statistics and not self.training:
                # Not F.batch_norm, which refuses a map of one value.
                x = torch.batch_norm(x, None, None, None, None, True, 0.0, self.norm.eps, False)
            else:
                x = self.norm(x)
            x = x + self.bias[:, None, None]
        return F.relu(x)


def _head(inputs: int, outputs: int, kernel: int, bias: float = 0.0) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    return conv


class DispNet(DisparityModel):
    """SfMLearner's depth network, after DispNet (Mayer et al., CVPR 2016): 14 + 14 convolutions, a map at four scales.

    `forward` takes images (B, 3, H, W) in [0, 1], H and W multiples of 32. It returns a list of sigmoid maps (B, 1,
    H / 2^s, W / 2^s), one per s of `scales`; depth = `ops.disparity_to_depth(map, min_depth=, max_depth=)`. TypeError
    or ValueError for images of another type or shape.

    Args:
        min_depth, max_depth: depth where the sigmoid is 1 and 0; published: disparity 10 * sigmoid + 0.01, that is 1 /
            10.01 and 100. The decoder sees the disparity of the scale below, so weights belong to a range
        scales, unit, input_size: as in `Monodepth2`
        padding: "same": released TensorFlow network; "symmetric": SfmLearner-Pytorch
        batch_norm: after every convolution but the heads; the paper has it, the released network has not
        batch_statistics: normalise by the statistics of the batch in eval mode, too: a prediction then depends on the
            other images of the batch
        bn_momentum: of the running statistics; 0.001 is the decay 0.999 of the release, which a short run never fills
        width_multiplier: factor on the numbers of channels, for small experiments
        head_bias: what the heads' biases start from; below 0 the first maps are far away, and depth has more room
            towards the camera than the factor 2 that a sigmoid of 0.5 leaves
    """

    centred: ClassVar[bool] = True  # the network sees colours in [-1, 1]

    def __init__(
        self,
        *,
        min_depth: float = 1 / 10.01,
        max_depth: float = 100.0,
        scales: Sequence[int] = (0, 1, 2, 3),
        unit: str | None = None,
        input_size: tuple[int, int] | None = None,
        padding: Padding = "same",
        batch_norm: bool = False,
        batch_statistics: bool = False,
        bn_momentum: float = 0.001,
        width_multiplier: float = 1.0,
        head_bias: float = 0.0,
    ) -> None:
        super().__init__(min_depth=min_depth, max_depth=max_depth, scales=scales, unit=unit, input_size=input_size)
        self.padding, self.batch_statistics = _check(padding, batch_norm, batch_statistics), batch_statistics
        block = _blocks(padding, batch_norm, batch_statistics, bn_momentum)
        wide = _widths(width_multiplier)
        inputs, skips = 3, []
        for level, (kernel, outputs) in enumerate(_ENCODER, 1):
            setattr(self, f"cnv{level}", block(inputs, wide(outputs), kernel, 2))
            setattr(self, f"cnv{level}b", block(wide(outputs), wide(outputs), kernel))
            inputs = wide(outputs)
            skips.append(inputs)
        for level, outputs in _DECODER.items():
            outputs = wide(outputs)
            skip = skips[level - 2] if level > 1 else 0
            setattr(self, f"upcnv{level}", block(inputs, outputs, 3, up=True))
            setattr(self, f"icnv{level}", block(outputs + skip + (level < 4), outputs, 3))
            if level <= 4:
                setattr(self, f"disp{level}", _head(outputs, 1, 3, head_bias))
            inputs = outputs
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        check_images(images, "images")
        height, width = images.shape[-2:]
        if height % 32 or width % 32 or min(height, width) < 32:
            raise ValueError(f"images: expected height and width multiples of 32, got {height}x{width}")
        x = _seen(images, self.centred)
        skips = []
        for level in range(1, 8):
            x = self.get_submodule(f"cnv{level}b")(self.get_submodule(f"cnv{level}")(x))
            skips.append(x)
        low = 1 / self.max_depth
        span = 1 / self.min_depth - low
        maps: dict[int, Tensor] = {}
        for level in range(7, 0, -1):
            parts = [self.get_submodule(f"upcnv{level}")(x)]
            if level > 1:
                parts = [_fitted(parts[0], skips[level - 2], self.padding), skips[level - 2]]
            if level < 4:
                parts.append((low + span * _doubled(maps[level], self.padding)).to(parts[0].dtype))
            x = self.get_submodule(f"icnv{level}")(torch.cat(parts, 1))
            if level <= 4:
                maps[level - 1] = in_float32(self.get_submodule(f"disp{level}"), x).sigmoid()
        return [maps[scale] for scale in self.scales]

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The depth network in a released TensorFlow checkpoint, or in one of SfmLearner-Pytorch, as `padding` says."""
        names = [name for name, module in self.named_children() if isinstance(module, _Block | nn.Conv2d)]
        if self.padding == "same":
            return _from_tensorflow(self, content, "depth_net/", {name: name for name in names})
        return _from_pytorch(self, content, "upconv7.0.weight", {name: _port_name(name) for name in names})


class PoseExpNet(PoseModel):
    """SfMLearner's pose network: seven strided convolutions on all frames stacked; masks from a second branch.

    `forward` takes frames (B, 1 + n, 3, H, W) in [0, 1], the target first, at least 32x32. It returns vectors (B, n, 6)
    and masks. A vector is the motion from the target to a source as (tx, ty, tz, rx, ry, rz), already multiplied by
    0.01, see `geometry.pose_matrix_from_vector`. The masks are logits of explainability, one per source: a list of
    (B, n, H / 2^s, W / 2^s), s = 0 to 3, empty without that branch. TypeError or ValueError for frames of another type,
    number or shape.

    Args:
        sources: n, the number of source frames
        explainability: build the branch of the masks, which needs H and W that are multiples of 32
        padding, batch_norm, batch_statistics, bn_momentum, width_multiplier: as in `DispNet`
    """

    centred: ClassVar[bool] = True
    stacks_frames: ClassVar[bool] = True

    def __init__(
        self,
        *,
        sources: int = 2,
        explainability: bool = False,
        padding: Padding = "same",
        batch_norm: bool = False,
        batch_statistics: bool = False,
        bn_momentum: float = 0.001,
        width_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        if sources < 1:
            raise ValueError(f"sources: expected at least 1, got {sources}")
        self.padding, self.batch_statistics = _check(padding, batch_norm, batch_statistics), batch_statistics
        self.sources, self.explainability = sources, explainability
        block = _blocks(padding, batch_norm, batch_statistics, bn_momentum)
        wide = _widths(width_multiplier)
        inputs = 3 * (1 + sources)
        for level, (kernel, outputs) in enumerate(_POSE, 1):
            setattr(self, f"cnv{level}", block(inputs, wide(outputs), kernel, 2))
            inputs = wide(outputs)
        self.pred = _head(inputs, 6 * sources, 1)
        if explainability:
            inputs = wide(_POSE[4][1])
            for level, (outputs, kernel) in _MASK.items():
                outputs = wide(outputs)
                # The port: kernels of 4 and a logit per source; the release: a pair of them, of which the second says
                # "explained" in a softmax.
                setattr(self, f"upcnv{level}", block(inputs, outputs, kernel if padding == "same" else 4, up=True))
                if level < 5:
                    channels = (2 * sources, kernel) if padding == "same" else (sources, 3)
                    setattr(self, f"mask{level}", _head(outputs, *channels))
                inputs = outputs
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Tensor) -> tuple[Tensor, list[Tensor]]:
        if not isinstance(frames, Tensor):
            raise TypeError(f"frames: expected a torch.Tensor, got {type(frames).__name__}")
        if not frames.is_floating_point():
            raise TypeError(f"frames: expected floating point in [0, 1], got {frames.dtype}")
        if frames.dim() != 5 or frames.shape[1:3] != (1 + self.sources, 3):
            raise ValueError(f"frames: expected (B, {1 + self.sources}, 3, H, W), got {tuple(frames.shape)}")
        height, width = frames.shape[-2:]
        if min(height, width) < 32 or (self.explainability and (height % 32 or width % 32)):
            kind = "multiples of 32" if self.explainability else "at least 32"
            raise ValueError(f"frames: expected height and width {kind}, got {height}x{width}")
        x = _seen(frames.flatten(1, 2), self.centred)
        for level in range(1, 6):
            x = self.get_submodule(f"cnv{level}")(x)
        motion = self.get_submodule("cnv7")(self.get_submodule("cnv6")(x))
        vectors = 0.01 * in_float32(self.pred, motion).mean((2, 3)).unflatten(1, (self.sources, 6))
        return vectors, self._masks(x) if self.explainability else []

    def _masks(self, x: Tensor) -> list[Tensor]:
        logits = []
        for level in _MASK:
            x = self.get_submodule(f"upcnv{level}")(x)
            if level < 5:
                values = in_float32(self.get_submodule(f"mask{level}"), x)
                if self.padding == "same":
                    pairs = values.unflatten(1, (self.sources, 2))
                    values = pairs[:, :, 1] - pairs[:, :, 0]
                logits.append(values)
        return logits[::-1]

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The pose network in a released TensorFlow checkpoint, or in one of SfmLearner-Pytorch, as `padding` says."""
        names = [name for name, module in self.named_children() if isinstance(module, _Block | nn.Conv2d)]
        if self.padding == "same":
            scopes = {name: name if name in _SHARED else f"pose/{name}" for name in names}
            scopes |= {name: f"exp/{name}" for name in names if name.startswith(("upcnv", "mask"))}
            return _from_tensorflow(self, content, "pose_exp_net/", scopes)
        return _from_pytorch(self, content, "pose_pred.weight", {name: _port_name(name) for name in names})


_SHARED = {f"cnv{level}" for level in range(1, 6)}


class Vid2DepthDispNet(DispNet):
    """vid2depth's depth network: `DispNet` with batch norm, on colours in [0, 1].

    The released checkpoint was trained with statistics that its authors say do not hold at inference, so it needs
    `batch_statistics=True` (published with batches of 4); networks trained here do not.
    """

    centred = False
    published_options: ClassVar[Mapping[str, Any]] = {"batch_statistics": True}

    def __init__(self, *, batch_norm: bool = True, **options: Any) -> None:
        super().__init__(batch_norm=batch_norm, **options)


class Vid2DepthPoseNet(PoseExpNet):
    """vid2depth's ego-motion network: `PoseExpNet` with batch norm, on colours in [0, 1], frames in temporal order.

    Vector k is the motion of the camera from frame k to k + 1: as a matrix it takes points of frame k + 1 to frame k.
    The reverse is the negated vector. The released checkpoint needs `batch_statistics=True`, see `Vid2DepthDispNet`.
    """

    centred = False
    published_options: ClassVar[Mapping[str, Any]] = {"batch_statistics": True}

    def __init__(self, *, batch_norm: bool = True, **options: Any) -> None:
        super().__init__(batch_norm=batch_norm, **options)


def _check(padding: Any, batch_norm: bool, batch_statistics: bool) -> Padding:
    if padding not in get_args(Padding):
        raise ValueError(f"padding: expected one of {get_args(Padding)}, got {padding!r}")
    if batch_statistics and not batch_norm:
        raise ValueError("batch_statistics: expected False without batch_norm, got True")
    return padding


def _blocks(padding: Padding, batch_norm: bool, batch_statistics: bool, bn_momentum: float) -> Callable[..., _Block]:
    options: dict[str, Any] = {"batch_norm": batch_norm, "batch_statistics": batch_statistics}
    return partial(_Block, same=padding == "same", bn_momentum=bn_momentum, **options)


def _widths(multiplier: float) -> Callable[[int], int]:
    if not multiplier > 0:
        raise ValueError(f"width_multiplier: expected a positive number, got {multiplier}")
    return lambda channels: max(1, round(channels * multiplier))


def _seen(images: Tensor, centred: bool) -> Tensor:
    """What the network sees of images in [0, 1]."""
    return (2 * images - 1 if centred else images).contiguous(memory_format=torch.channels_last)


def _fitted(x: Tensor, like: Tensor, padding: Padding) -> Tensor:
    """A doubled map at the size of a skip whose length was odd: resized in the release, cropped in the port."""
    size = like.shape[-2:]
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, size, mode="nearest") if padding == "same" else x[..., : size[0], : size[1]]


def _doubled(x: Tensor, padding: Padding) -> Tensor:
    """Bilinear x2. TensorFlow 1 reads output pixel i at i / 2: even ones are copies, odd ones means of two."""
    if padding == "symmetric":
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    height, width = x.shape[-2:]
    padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
    return F.interpolate(padded, (2 * height + 1, 2 * width + 1), mode="bilinear", align_corners=True)[..., :-1, :-1]


# Variables of TensorFlow's layers and their names in a block or a head.
_WITH_NORM = {
    "weights": "conv.weight",
    "BatchNorm/beta": "bias",
    "BatchNorm/moving_mean": "norm.running_mean",
    "BatchNorm/moving_variance": "norm.running_var",
}
_WITH_BIAS = {"weights": "conv.weight", "biases": "conv.bias"}
_HEAD = {"weights": "weight", "biases": "bias"}
_SLOTS = ("/Adam", "/Adam_1")  # of the optimiser


def _from_tensorflow(
    model: nn.Module, content: Mapping[str, Any], scope: str, layers: Mapping[str, str]
) -> Mapping[str, Any]:
    """Variables <anything><scope><layer>/<variable> as a state dict; `content` itself where none is in that scope.

    Other networks and the optimiser's slots are left out; an unknown variable of the scope keeps its name, which no
    state dict has. Kernels (H, W, I, O), of transposed convolutions (H, W, O, I), become (O, I, H, W), (I, O, H, W).
    """
    variables = {
        key.partition(scope)[2]: value
        for key, value in content.items()
        if scope in f"/{key}" and not key.endswith(_SLOTS)
    }
    if not variables:
        return content
    state = {}
    for name, layer in layers.items():
        module = model.get_submodule(name)
        table = _HEAD if not isinstance(module, _Block) else _WITH_BIAS if module.norm is None else _WITH_NORM
        for variable, own in table.items():
            if f"{layer}/{variable}" in variables:
                value = variables.pop(f"{layer}/{variable}")
                state[f"{name}.{own}"] = value.permute(3, 2, 0, 1) if getattr(value, "ndim", 0) == 4 else value
    return state | variables


def _port_name(name: str) -> str:
    """The name of a layer in SfmLearner-Pytorch."""
    if name == "pred":
        return "pose_pred"
    if name.startswith("mask"):
        return f"predict_{name}"
    if name.startswith("disp"):
        return f"predict_{name}.0"
    name = name.replace("cnv", "conv")
    return f"{name[:-1]}.2" if name.endswith("b") else f"{name}.0"


def _from_pytorch(
    model: nn.Module, content: Mapping[str, Any], mark: str, layers: Mapping[str, str]
) -> Mapping[str, Any]:
    """A state dict of SfmLearner-Pytorch under own names; `content` itself where it has no key `mark`."""
    if mark not in content:
        return content
    rest, state = dict(content), {}
    for name, layer in layers.items():
        own = f"{name}.conv" if isinstance(model.get_submodule(name), _Block) else name
        for part in ("weight", "bias"):
            if f"{layer}.{part}" in rest:
                state[f"{own}.{part}"] = rest.pop(f"{layer}.{part}")
    return state | rest


register_model("sfmlearner", DispNet)
register_model("sfmlearner_pose", PoseExpNet)
register_model("sfmlearner_pytorch", partial(DispNet, padding="symmetric"))
register_model("sfmlearner_pytorch_pose", partial(PoseExpNet, padding="symmetric"))
register_model("vid2depth", Vid2DepthDispNet)
register_model("vid2depth_pose", Vid2DepthPoseNet)

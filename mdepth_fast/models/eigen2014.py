"""Eigen, Puhrsch, Fergus, NIPS 2014 (arXiv 1406.2283): a coarse stack that sees the whole image, a fine one on top."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import DepthModel, check_images, in_float32
from .registry import register_model

__all__ = ["Eigen2014"]

Stage = Literal["coarse", "fine"]
_FINE_MEAN, _FINE_STD = 109.31410628, 76.18328376  # of the colours 0..255 that the fine stack sees
_COARSE_FILTERS = (96, 256, 384, 384, 256)
_FINE_FILTERS = 63  # 64 in the release, where the coarse map then takes the place of the first
_BORDER = 4  # of its input that the fine stack has no output for


def _padding(length: int, kernel: int, stride: int) -> int:
    """On both sides, so that the convolution reaches every pixel: as many outputs as "valid" would give, rounded up."""
    reached = -(-(length - kernel) // stride) * stride + kernel
    return -(-(reached - length) // 2)


def _convolved(length: int, kernel: int, stride: int) -> int:
    return (length + 2 * _padding(length, kernel, stride) - kernel) // stride + 1


def _pooled(length: int) -> int:
    return (length - 3) // 2 + 1


def _strided(inputs: int, outputs: int, kernel: int, stride: int, size: tuple[int, int]) -> nn.Conv2d:
    padding = (_padding(size[0], kernel, stride), _padding(size[1], kernel, stride))
    return nn.Conv2d(inputs, outputs, kernel, stride, padding)


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2).relu_()  # ReLU and maximum commute: the ReLU acts on the smaller map


class _Dropout(nn.Module):
    """Zero with probability 1/2 in training, times 1/2 otherwise: 2012's form, without 1 / (1 - p) in training."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.empty_like(x).bernoulli_(0.5) if self.training else 0.5 * x


class _Coarse(nn.Module):
    def __init__(self, size: tuple[int, int], output_size: tuple[int, int], hidden: int) -> None:
        super().__init__()
        self.output_size = output_size
        c1, c2, c3, c4, c5 = _COARSE_FILTERS
        self.conv1 = _strided(3, c1, 11, 4, size)
        self.conv2 = nn.Conv2d(c1, c2, 5, padding=2)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv4 = nn.Conv2d(c3, c4, 3, padding=1)
        self.conv5 = nn.Conv2d(c4, c5, 3, padding=1)
        # cuda-convnet's x (2 + 1e-4 sum x^2)^-0.75 over 5 channels: PyTorch divides alpha by their number.
        self.norm = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
        height, width = (_pooled(_pooled(_pooled(_convolved(length, 11, 4)))) for length in size)
        self.full1 = nn.Linear(c5 * height * width, hidden)
        self.dropout = _Dropout()
        self.full2 = nn.Linear(hidden, output_size[0] * output_size[1])

    def _normed(self, x: Tensor) -> Tensor:
        # bfloat16 has no such pooling on a CPU.
        return self.norm(x.to(torch.promote_types(x.dtype, torch.float32))).to(x.dtype)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Colours - 128 (B, 3, H, W) to standardised log depth (B, 1, h, w)."""
        x = self._normed(_pool(self.conv1(x)))
        x = self._normed(_pool(self.conv2(x)))
        x = self.conv3(x).relu_()
        x = self.conv4(x).relu_()
        x = 0.01 * _pool(self.conv5(x))
        x = self.dropout(self.full1(x.flatten(1)).relu_())
        return in_float32(self.full2, x).unflatten(1, (1, *self.output_size))


class _Fine(nn.Module):
    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv1 = _strided(3, _FINE_FILTERS, 9, 2, size)
        self.conv2 = nn.Conv2d(1 + _FINE_FILTERS, 64, 5, padding=2)
        self.conv3 = nn.Conv2d(64, 1, 5, padding=2)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        """Normalised colours (B, 3, H, W) and the coarse map (B, 1, h, w) to standardised log depth (B, 1, h, w)."""
        x = torch.cat([coarse, _pool(self.conv1(x))], 1)
        return in_float32(self.conv3, self.conv2(x).relu_())


class Eigen2014(DepthModel):
    """Multi-scale network of Eigen et al.: images to the logarithm of depth in metres, in two stages of training.

    `forward` takes images (B, 3, H, W) in [0, 1] of exactly `input_size` and returns natural log depth (B, 1, h, w),
    `output_size`: (55, 74) for the published (228, 304), (27, 142) for KITTI's (172, 576). Output (i, j) is the depth
    of one pixel, row 4i + 5 and column 4j + 5 of the fine stack's input, see `ground_truth`; `infer` puts the depth
    back in its place. TypeError or ValueError for images of another type or shape.

    Args:
        input_size: (H, W), multiples of 4, at least 64; it fixes the size of the full layers
        fine_rows: rows at the bottom of the image that the fine stack sees and the output covers; None: all
        stage: "coarse": `forward` runs and trains the coarse stack alone. "fine": it runs both stacks and trains the
            fine one; the coarse one is frozen, in eval mode, and gets no gradient. May be changed at any time;
            `parameter_groups` follows the stage, and only its parameters require gradients.
        hidden: width of the first full layer
        log_depth_mean, log_depth_std: statistics of the data, NYU's by default. The last layers of both stacks predict
            log depth divided by the standard deviation, and their biases start at the mean.

    Initialisation is as published, except for the coarse convolutions: the paper takes them from its own ImageNet
    classifier, here they start from He's distribution (arXiv 1502.01852).
    """

    engine_method = "forward"

    def __init__(
        self,
        *,
        input_size: tuple[int, int] = (228, 304),
        fine_rows: int | None = None,
        stage: Stage = "fine",
        hidden: int = 4096,
        log_depth_mean: float = 0.82473954,
        log_depth_std: float = 0.45723134,
    ) -> None:
        super().__init__(unit="m", input_size=input_size)
        height, width = input_size
        rows = height if fine_rows is None else fine_rows
        if height % 4 or width % 4 or min(height, width) < 64:
            raise ValueError(f"input_size: expected multiples of 4 from 64 on, got {height}x{width}")
        if rows % 4 or not 16 <= rows <= height:
            raise ValueError(f"fine_rows: expected a multiple of 4 from 16 to {height}, got {rows}")
        if not log_depth_std > 0:
            raise ValueError(f"log_depth_std: expected more than 0, got {log_depth_std}")
        self.fine_rows, self.log_depth_std = rows, log_depth_std
        self.output_size = (_pooled(_convolved(rows, 9, 2)), _pooled(_convolved(width, 9, 2)))
        self.coarse = _Coarse(input_size, self.output_size, hidden)
        self.fine = _Fine((rows, width))
        self._initialise(log_depth_mean / log_depth_std)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.stage = stage

    def _initialise(self, output_bias: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        coarse, fine = self.coarse, self.fine
        for conv in (coarse.conv1, coarse.conv2, coarse.conv3, coarse.conv4, coarse.conv5):
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.normal_(coarse.full1.weight, std=0.01)
        nn.init.uniform_(coarse.full2.weight, -0.005, 0.005)
        nn.init.normal_(fine.conv1.weight, std=0.001)
        nn.init.normal_(fine.conv2.weight, std=0.01)
        nn.init.normal_(fine.conv3.weight, std=0.01)
        for last in (coarse.full2, fine.conv3):
            nn.init.constant_(last.bias, output_bias)  # type: ignore[arg-type]

    @property
    def stage(self) -> Stage:
        return self._stage

    @stage.setter
    def stage(self, stage: Stage) -> None:
        if stage not in get_args(Stage):
            raise ValueError(f"stage: expected one of {get_args(Stage)}, got {stage!r}")
        self._stage = stage
        self.coarse.requires_grad_(stage == "coarse")
        self.fine.requires_grad_(stage == "fine")
        self.train(self.training)

    def train(self, mode: bool = True) -> "Eigen2014":
        super().train(mode)
        if self._stage == "fine":
            self.coarse.eval()
        return self

    def parameter_groups(self, lr: float = 0.001) -> list[dict[str, Any]]:
        """The parameters that the stage trains: dictionaries of name, params, lr and weight_decay for an optimiser.

        `lr`, with the default as published, times 1 for convolutions, 10 for the second of the fine stack and 100 for
        full layers: for SGD with momentum 0.9, 32 images a step and the loss of the release, whose logarithms are
        divided by `log_depth_std`. The paper calls the last convolution of the fine stack its layer 3.
        """
        coarse, fine = self.coarse, self.fine
        groups: list[tuple[str, list[nn.Module], float, float]]
        if self.stage == "coarse":
            convolutions: list[nn.Module] = [coarse.conv1, coarse.conv2, coarse.conv3, coarse.conv4, coarse.conv5]
            groups = [
                ("coarse.conv", convolutions, lr, 5e-4),
                ("coarse.full", [coarse.full1, coarse.full2], 100 * lr, 1e-4),
            ]
        else:
            groups = [("fine.conv1,3", [fine.conv1, fine.conv3], lr, 1e-4), ("fine.conv2", [fine.conv2], 10 * lr, 1e-4)]
        return [
            {"name": name, "params": [p for m in modules for p in m.parameters()], "lr": rate, "weight_decay": decay}
            for name, modules, rate, decay in groups
        ]

    def forward(self, images: Tensor) -> Tensor:
        check_images(images, "images")
        if images.shape[-2:] != self.input_size:
            (height, width), (h, w) = self.input_size, images.shape[-2:]  # type: ignore[misc]
            raise ValueError(f"images: expected {height}x{width}, the size of the full layers, got {h}x{w}")
        colours = (255 * images).contiguous(memory_format=torch.channels_last)
        if self.stage == "coarse":
            return self.log_depth_std * self.coarse(colours - 128)
        with torch.no_grad():
            coarse = self.coarse(colours - 128)
        bottom = colours[..., images.shape[-2] - self.fine_rows :, :]
        return self.log_depth_std * self.fine((bottom - _FINE_MEAN) / _FINE_STD, coarse)

    def infer(self, images: Tensor) -> Tensor:
        """Depth (B, 1, *input_size): the output in its place, bilinear in between, with its border replicated outwards.

        With `fine_rows` nothing is predicted above those rows: the rows there repeat the uppermost one.
        """
        depth = self(images).exp()
        height, width = self.input_size  # type: ignore[misc]
        top = height - self.fine_rows
        rows, columns = (
            (torch.arange(length, device=depth.device, dtype=depth.dtype) - first) / 4 * 2 / (count - 1) - 1
            for length, first, count in zip((height, width), (top + _BORDER + 1, _BORDER + 1), self.output_size)
        )
        grid = torch.stack(torch.broadcast_tensors(columns, rows[:, None]), -1)
        grid = grid.expand(depth.shape[0], -1, -1, -1)
        return F.grid_sample(depth, grid, "bilinear", "border", align_corners=True)

    def ground_truth(self, depth: Tensor, size: tuple[int, int]) -> Tensor:
        """Reduces depth (B, 1, *input_size) to the pixels to compare with an output of `output_size`.

        It drops a border of 4 pixels from the fine stack's view and takes every fourth pixel from the second on. There
        is no averaging, so missing values stay missing. For `size` = `input_size`, as in `infer`, depth is unchanged.
        ValueError for other sizes.
        """
        if tuple(depth.shape[-2:]) != self.input_size or tuple(size) not in (self.input_size, self.output_size):
            raise ValueError(
                f"depth, size: expected depth of {self.input_size} and size {self.output_size} or {self.input_size}, "
                f"got {tuple(depth.shape[-2:])} and {tuple(size)}"
            )
        if tuple(size) == self.input_size:
            return depth
        top = depth.shape[-2] - self.fine_rows + _BORDER
        return depth[..., top + 1 : -_BORDER : 4, _BORDER + 1 : -_BORDER : 4]

    def published_files(self) -> dict[str, dict[str, str]]:
        units = {f"imnet_conv{n}": f"coarse.conv{n}" for n in range(1, 6)}
        units |= {f"full{n}": f"coarse.full{n}" for n in (1, 2)}
        units |= {f"conv_s2_{n}": f"fine.conv{n}" for n in (1, 2, 3)}
        parts = ("weight", "bias")
        return {f"params-{unit}.pk": {part: f"{own}.{part}" for part in parts} for unit, own in units.items()}

    def translate_file(self, name: str, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The two arrays of one unit, under whatever names, as its weight and bias.

        Kernels come as they are; full layers stored (in, out) are transposed, the first of 64 fine filters, which the
        coarse map displaces, is left out, and the kernel of the last convolution, stored for its transpose, is turned.
        ValueError unless there are one array that can be the weight and one that can be the bias.
        """
        layer = self.get_submodule(self.published_files()[name]["weight"].removesuffix(".weight"))
        arrays = _arrays(content)
        extra = 1 if layer is self.fine.conv1 else 0
        outputs, *rest = self.get_parameter(self.published_files()[name]["weight"]).shape
        count = outputs + extra
        shape = (rest[0], count, *rest[1:]) if layer is self.fine.conv3 else (count, *rest)
        shapes = {shape, shape[::-1]} if isinstance(layer, nn.Linear) else {shape}
        weights = [array for array in arrays if tuple(array.shape) in shapes]
        biases = [array for array in arrays if array.numel() == count and max(array.shape, default=1) == count]
        if len(weights) != 1 or len(biases) != 1 or len(arrays) != 2:
            found = ", ".join(str(tuple(array.shape)) for array in arrays) or "none"
            raise ValueError(f"{name}: expected two arrays, of shapes {shape} and ({count},), got {found}")
        found_weight, found_bias = weights[0], biases[0].flatten()
        if layer is self.fine.conv3:
            found_weight = found_weight.transpose(0, 1).flip(2, 3)
        elif isinstance(layer, nn.Linear) and tuple(found_weight.shape) != shape:
            found_weight = found_weight.T
        return {"weight": found_weight[extra:], "bias": found_bias[extra:]}


def _arrays(content: Any) -> list[Tensor]:
    if isinstance(content, Mapping):
        return [array for value in content.values() for array in _arrays(value)]
    return [content] if isinstance(content, Tensor) else []


register_model("eigen2014_nyu", Eigen2014)
register_model(
    "eigen2014_kitti", partial(Eigen2014, input_size=(172, 576), fine_rows=116, log_depth_mean=2.7, log_depth_std=0.6)
)

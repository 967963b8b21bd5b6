"""FlowNetSimple (Fischer et al., ICCV 2015, arXiv 1504.06852) as Back to Basics trains it (ECCVW 2016, 1608.05842)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Model, check_images, eval_mode, in_float32, stack_pair
from .registry import register_model

__all__ = ["FlowModel", "FlowNetS", "FlowPrediction"]


@dataclass(frozen=True)
class FlowPrediction:
    """What a network predicts for pairs of images: `flow` (B, 2, H, W) in pixels of the images, right and down.

    The pixel (x, y) of the first image is at (x, y) + flow(x, y) in the second.
    """

    flow: Tensor


class FlowModel(Model):
    """A network that maps two images (B, 3, H, W) in [0, 1] to optical flow; it normalises the images itself.

    `forward(first, second)` takes images whose sides are multiples of `multiple` and returns flow (B, 2, h, w) in
    pixels of the images, whose h, w may be a fraction of theirs; `infer` and `predict` bring it to their size.
    """

    checkpoint_prefix = "flow_net."
    multiple: ClassVar[int] = 64
    rgb_mean: ClassVar[tuple[float, float, float]] = (0.0, 0.0, 0.0)  # that the network subtracts

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        raise NotImplementedError

    def infer(self, first: Tensor, second: Tensor) -> Tensor:
        """Flow (B, 2, H, W) of images (B, 3, H, W) whose sides are multiples of `multiple`, at their size."""
        flow: Tensor = self(first, second)
        size = first.shape[-2:]
        return flow if flow.shape[-2:] == size else F.interpolate(flow, size, mode="bilinear", align_corners=False)

    def network_size(self, height: int, width: int) -> tuple[int, int]:
        """The size to which `predict` resizes images of the given size: the nearest multiples, at least one."""
        height, width = (max(1, int(side / self.multiple + 0.5)) * self.multiple for side in (height, width))
        return height, width

    @torch.no_grad()
    def predict(self, first: Tensor, second: Tensor, *, size: tuple[int, int] | None = None) -> FlowPrediction:
        """Flow from `first` to `second`, images (3, H, W) or (B, 3, H, W), floating point in [0, 1], of any size.

        The images are resized to `size`, else to `network_size`; the flow is resized back, and its vectors with it.
        Runs in eval mode and leaves every module in the mode it had. TypeError if the images are no floating-point
        tensors, ValueError for another shape, for images of different sizes, or for values outside [0, 1].
        """
        images, parameter = [], next(self.parameters())
        for name, image in (("first", first), ("second", second)):
            image = image.unsqueeze(0) if isinstance(image, Tensor) and image.dim() == 3 else image
            check_images(image, name)
            # Not so where NaN.
            if image.numel() and not (image.amin() >= -1e-3 and image.amax() <= 1 + 1e-3):
                low, high = image.amin().item(), image.amax().item()
                raise ValueError(f"{name}: expected values in [0, 1], got {low:.4g} to {high:.4g}")
            # Resized in float32 at least: half precision has no antialiased resizing.
            images.append(image.to(parameter.device, torch.promote_types(parameter.dtype, torch.float32)))
        stack_pair(images[0], images[1])
        shape = (images[0].shape[-2], images[0].shape[-1])
        height, width = size or self.network_size(*shape)
        if height % self.multiple or width % self.multiple or min(height, width) < 1:
            raise ValueError(f"size: expected multiples of {self.multiple}, got {height}x{width}")
        if (height, width) != shape:
            images = [
                F.interpolate(image, (height, width), mode="bilinear", align_corners=False, antialias=True)
                for image in images
            ]
        with eval_mode(self):
            flow = self.infer(*(image.to(parameter.dtype) for image in images))
        flow = flow.to(torch.promote_types(flow.dtype, torch.float32))
        if (height, width) != shape:
            flow = F.interpolate(flow, shape, mode="bilinear", align_corners=False)
            flow = flow * flow.new_tensor([shape[1] / width, shape[0] / height]).view(1, 2, 1, 1)
        return FlowPrediction(flow)


class _Conv(nn.Conv2d):
    """A convolution with TensorFlow's "SAME" padding: with stride 2 and an even side, one more at the far end."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, padding=0 if stride > 1 else kernel // 2)
        total = kernel - stride
        self.pads = (total // 2, total - total // 2) * 2 if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pads) if self.pads else x)


def _up(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False)


class FlowNetS(FlowModel):
    """FlowNetSimple: both images in one stack of convolutions, and a decoder that refines the flow level by level.

    Paper and released code differ: the paper's network ends at a quarter of the input's size, the released one of
    Back to Basics goes on to full size (38.8 M parameters). Every level's flow is read as 20 pixels per unit.

    Args:
        width: channels of the first layer; those of all others follow in proportion. 64 is published; a smaller one,
            a multiple of 4, is for small images and machines.
        output: "full", as released, or "quarter", as in the FlowNet paper.
    """

    scale: ClassVar[float] = 20.0
    rgb_mean = (0.448553, 0.431021, 0.410602)
    mean: Tensor

    def __init__(self, width: int = 64, output: Literal["full", "quarter"] = "full") -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"width: expected a positive multiple of 4, got {width}")
        if output not in ("full", "quarter"):
            raise ValueError(f"output: expected full or quarter, got {output!r}")
        self.finest = 0 if output == "full" else 2
        w = width
        encoder = [
            (6, w, 7, 2),
            (w, 2 * w, 5, 2),
            (2 * w, 4 * w, 5, 2),
            (4 * w, 4 * w, 3, 1),
            (4 * w, 8 * w, 3, 2),
            (8 * w, 8 * w, 3, 1),
            (8 * w, 8 * w, 3, 2),
            (8 * w, 8 * w, 3, 1),
            (8 * w, 16 * w, 3, 2),
            (16 * w, 16 * w, 3, 1),
        ]
        names = ("1", "2", "3", "3_1", "4", "4_1", "5", "5_1", "6", "6_1")
        self.encoder = nn.ModuleDict({f"conv{name}": _Conv(*sizes) for name, sizes in zip(names, encoder)})
        # Channels of the skip connection and of the deconvolution that arrive at each level, the input is level 0.
        skips = (6, w, 2 * w, 4 * w, 8 * w, 8 * w)
        ups = (w // 4, w // 2, w, 2 * w, 4 * w, 8 * w)
        self.deconv, self.upsample, self.predictor = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        inputs = 16 * w
        self.predictor["6"] = _Conv(inputs, 2, 3)
        for level in range(5, self.finest - 1, -1):
            self.deconv[str(level)] = _up(inputs, ups[level])
            self.upsample[str(level)] = _up(2, 2)
            inputs = ups[level] + skips[level] + 2
            self.predictor[str(level)] = _Conv(inputs, 2, 3)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                # The "uniform unit scaling" of the release: uniform with a variance of 1 / inputs.
                side = module.kernel_size[0]
                # TensorFlow counts a transposed convolution's outputs, by the order of its weights.
                fan = side * side * (module.in_channels if isinstance(module, nn.Conv2d) else module.out_channels)
                nn.init.uniform_(module.weight, -((3 / fan) ** 0.5), (3 / fan) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.register_buffer("mean", torch.tensor(self.rgb_mean * 2).view(1, 6, 1, 1), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Images (B, 3, H, W) to flow (B, 2, H, W), or (B, 2, H / 4, W / 4), always in pixels of the images."""
        pair = stack_pair(first, second)
        if pair.shape[-2] % self.multiple or pair.shape[-1] % self.multiple:
            raise ValueError(
                f"first: expected sides that are multiples of {self.multiple}, got {tuple(first.shape[-2:])}"
            )
        x = pair - self.mean
        features = {0: x}
        for name, layer in self.encoder.items():
            x = F.leaky_relu(layer(x), 0.1)
            features[int(name[4])] = x
        flow = in_float32(self.predictor["6"], x)
        for level in range(5, self.finest - 1, -1):
            key = str(level)
            up = F.leaky_relu(self.deconv[key](x), 0.1)
            x = torch.cat([up, features[level], self.upsample[key](flow)], 1)
            flow = in_float32(self.predictor[key], x)
        return self.scale * flow

    def translate(self, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """The network in a checkpoint of the released TensorFlow code, as named arrays, without the optimiser's."""
        scope = "netShare/"
        if f"{scope}predict_flow6/conv/weights" not in content:
            return content

        def numbered(name: str, index: int) -> str:
            return f"{name}_{index}" if index else name  # as TensorFlow makes names unique

        names = {f"{numbered('reluConv', index)}/conv": f"encoder.{key}" for index, key in enumerate(self.encoder)}
        names |= {f"predict_flow{level}/conv": f"predictor.{level}" for level in self.predictor}
        for index, level in enumerate(self.deconv):
            names[f"{numbered('reluDeconv', index)}/deconv"] = f"deconv.{level}"
            names[f"{numbered('flowRefinementConcat', index)}/upsampleFlow/deconv"] = f"upsample.{level}"
        slots = ("/Adam", "/Adam_1")
        state: dict[str, Any] = {}
        for key, value in content.items():
            if not key.startswith(scope) or key.endswith(slots):
                continue
            layer, _, leaf = key.removeprefix(scope).rpartition("/")
            own = {"weights": "weight", "biases": "bias"}.get(leaf, leaf)
            # HWIO, or HWOI where transposed: in both cases PyTorch has the last two in the reverse order, and first.
            value = value.permute(3, 2, 0, 1) if getattr(value, "ndim", 0) == 4 else value
            state[f"{names.get(layer, layer)}.{own}"] = value
        return state


register_model("flownet_s", FlowNetS)

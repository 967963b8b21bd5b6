"""What every net of the package shares: argument checks, prediction, the keys of its published files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..geometry import disparity_to_depth

__all__ = ["DepthModel", "DepthPrediction", "Model", "PoseModel", "check_images", "stack_pair"]


@dataclass(frozen=True)
class DepthPrediction:
    """Depth (B, 1, H, W) along the optical axis; "metric" in `unit`, or "relative": up to one factor per image."""

    depth: Tensor
    kind: Literal["metric", "relative"]
    unit: str | None


class Model(nn.Module):
    """A net that `load_checkpoint` can fill."""

    checkpoint_prefix: ClassVar[str]  # of its keys in a Lightning checkpoint of this package

    def published_files(self) -> dict[str, dict[str, str]]:
        """File name to {key in the published file: key in `state_dict()`}."""
        raise NotImplementedError


class DepthModel(Model):
    """A net from images to sigmoid maps, with the range and the unit that turn them into depth."""

    checkpoint_prefix = "depth_net."

    def __init__(
        self,
        *,
        min_depth: float,
        max_depth: float,
        scales: Sequence[int],
        unit: str | None,
        input_size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        if not 0 < min_depth < max_depth:
            raise ValueError(
                f"min_depth, max_depth: expected 0 < min_depth < max_depth, got {min_depth} and {max_depth}"
            )
        if not scales or len(set(scales)) != len(scales) or not set(scales) <= {0, 1, 2, 3}:
            raise ValueError(f"scales: expected distinct numbers out of 0, 1, 2, 3, got {scales!r}")
        if unit not in (None, "m"):
            raise ValueError(f'unit: expected "m" or None, got {unit!r}')
        self.min_depth, self.max_depth = min_depth, max_depth
        self.scales = tuple(scales)
        self.unit = unit
        self.input_size = input_size

    @torch.no_grad()
    def predict(self, images: Tensor, *, size: tuple[int, int] | None = None, flip: bool = False) -> DepthPrediction:
        """Depth of images (3, H, W) or (B, 3, H, W), floating point in [0, 1], of any size, on the device of the net.

        The images are resized to `size` (H, W), else to `input_size`, else to the nearest multiple of 32; the disparity
        is resized back bilinearly and inverted. Runs in eval mode and leaves every module in the mode it had.
        `flip` blends in the mirrored prediction of the mirrored image as published (arXiv 1806.01260, after Monodepth,
        arXiv 1609.03677): the mean of both, and near the left and right border the one that sees past the occlusion.

        TypeError if `images` is no floating-point tensor, ValueError for another shape or values outside [0, 1].
        """
        if isinstance(images, Tensor) and images.dim() == 3:
            images = images.unsqueeze(0)
        check_images(images, "images")
        if images.numel() and (images.amin() < -1e-3 or images.amax() > 1 + 1e-3):
            low, high = images.amin().item(), images.amax().item()
            raise ValueError(f"images: expected values in [0, 1], got {low:.4g} to {high:.4g}")
        images = images.to(next(self.parameters()))
        height, width = shape = images.shape[-2:]
        height, width = size or self.input_size or (_nearest_multiple(height), _nearest_multiple(width))
        if (height, width) != shape:
            images = F.interpolate(images, (height, width), mode="bilinear", align_corners=False, antialias=True)

        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            finest = self.scales.index(min(self.scales))
            if flip:
                plain, mirrored = self(torch.cat([images, images.flip(-1)]))[finest].chunk(2)
                disparity = _blend_flipped(plain, mirrored.flip(-1))
            else:
                disparity = self(images)[finest]
        finally:
            for module, training in modes:
                module.training = training
        disparity = F.interpolate(disparity, shape, mode="bilinear", align_corners=False)
        depth = disparity_to_depth(disparity, self.min_depth, self.max_depth)
        return DepthPrediction(depth, "metric" if self.unit else "relative", self.unit)


class PoseModel(Model):
    """A net from two images (B, 3, H, W) to the motion first -> second: axis-angle (B, 3) and translation (B, 3)."""

    checkpoint_prefix = "pose_net."
    scale_by_inverse_depth: ClassVar[bool] = (
        False  # the translation is to be multiplied by the image's mean of 1 / depth
    )


def check_images(images: Tensor, name: str) -> None:
    """TypeError or ValueError unless `images` is a floating-point tensor (B, 3, H, W)."""
    if not isinstance(images, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(images).__name__}")
    if not images.is_floating_point():
        hint = "; divide by 255 first" if images.dtype == torch.uint8 else ""
        raise TypeError(f"{name}: expected floating point in [0, 1], got {images.dtype}{hint}")
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"{name}: expected shape (B, 3, H, W), got {tuple(images.shape)}")


def stack_pair(first: Tensor, second: Tensor) -> Tensor:
    """Two batches of images (B, 3, H, W) as one (B, 6, H, W), checked."""
    check_images(first, "first")
    check_images(second, "second")
    if first.shape != second.shape:
        raise ValueError(f"second: expected the shape of first, {tuple(first.shape)}, got {tuple(second.shape)}")
    return torch.cat([first, second], 1)


def _nearest_multiple(length: int) -> int:
    return max(64, int(length / 32 + 0.5) * 32)


def _blend_flipped(plain: Tensor, mirrored: Tensor) -> Tensor:
    """Both (B, 1, H, W) in the frame of the image; ramps over 5 to 10 % of the width at either side."""
    x = torch.linspace(0, 1, plain.shape[-1], dtype=plain.dtype, device=plain.device)
    left = 1 - (20 * (x - 0.05)).clamp(0, 1)
    right = left.flip(0)
    return left * mirrored + right * plain + (1 - left - right) * (plain + mirrored) / 2

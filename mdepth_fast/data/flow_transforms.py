"""From a batch of image pairs to what a training step needs: crop, flips, order in time, colours."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data.flow import FlowSample
from mdepth_fast.data.samples import check_size

__all__ = ["FlowAugment", "collate_flow"]

_NONE = (1.0, 1.0)
_DRAWS = 12


def collate_flow(samples: Sequence[FlowSample]) -> dict[str, Any]:
    """Collates the images and names of samples of any size; ground truth is for evaluation and is left out.

    Images are padded with black at the bottom and on the right to the largest. "size" is a list of the (height, width)
    that they had, by which `FlowAugment` leaves the padding out.
    """
    sizes = [(int(sample["first"].shape[1]), int(sample["first"].shape[2])) for sample in samples]
    height, width = (max(lengths) for lengths in zip(*sizes))
    keys = [key for key in ("first", "second", "name", "skipped") if key in samples[0]]
    padded = []
    for sample, (h, w) in zip(samples, sizes):
        own: dict[str, Any] = {key: sample[key] for key in keys}  # type: ignore[literal-required]
        for key in ("first", "second"):
            own[key] = F.pad(own[key], (0, width - w, 0, height - h))
        padded.append(own)
    return {**default_collate(padded), "size": sizes}


class FlowAugment(nn.Module):
    """Batch of `collate_flow` on any device to images of (height, width), one draw for both images of a pair.

    In: first, second uint8 (B,3,h,w), "size". Out: first, second float32 [0,1] (B,3,height,width), for the loss;
    first_aug, second_aug, the same under other colours, for the network. An image smaller than the crop is an error.

    Colours change as in the released code of Back to Basics (arXiv 1608.05842): contrast, brightness, each channel,
    gamma, in this order. Its paper also moves the images by small affine maps; here are flips and the order in time,
    which need no resampling.

    Args:
        height, width: size of the random crop; the centre after `eval()`.
        flip, flip_vertical: probability of a horizontal and of a vertical flip.
        swap: probability that the second image comes first.
        contrast: range of a factor on all channels. brightness: standard deviation of what is added to them. color:
            range of a factor on each channel. gamma: range of 1 over the exponent.

    Random numbers come from `generator` (a CPU generator) or torch's global one, never from the device: the i-th sample
    of a batch has the same draws whatever the options, the device and the rest of the batch are.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        flip: float = 0.0,
        flip_vertical: float = 0.0,
        swap: float = 0.0,
        contrast: tuple[float, float] = _NONE,
        brightness: float = 0.0,
        color: tuple[float, float] = _NONE,
        gamma: tuple[float, float] = _NONE,
    ) -> None:
        super().__init__()
        self.height, self.width = check_size(height, width)
        for name, probability in (("flip", flip), ("flip_vertical", flip_vertical), ("swap", swap)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {probability}")
        for name, limits in (("contrast", contrast), ("color", color), ("gamma", gamma)):
            if len(limits) != 2 or not 0 < limits[0] <= limits[1]:
                raise ValueError(f"{name}: expected a range (low, high) of positive factors, got {limits}")
        if not brightness >= 0:
            raise ValueError(f"brightness: expected a standard deviation of at least 0, got {brightness}")
        self.flips = (flip, flip_vertical, swap)
        self.contrast, self.brightness, self.color, self.gamma = contrast, brightness, color, gamma

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        out = {key: value for key, value in batch.items() if key != "size"}
        count = len(batch["first"])
        draws = torch.rand(count, _DRAWS, generator=generator)
        normal = torch.randn(count, generator=generator)
        pairs = torch.stack([batch["first"], batch["second"]], 1)
        if pairs.dtype != torch.uint8 or pairs.dim() != 5 or pairs.shape[2] != 3:
            raise TypeError(f"first, second: expected uint8 (B,3,h,w), got {pairs.dtype} {tuple(pairs[:, 0].shape)}")
        sizes = batch.get("size", [tuple(pairs.shape[-2:])] * count)
        cropped = []
        for pair, (height, width), name, draw in zip(pairs, sizes, batch["name"], draws):
            if height < self.height or width < self.width:
                raise ValueError(
                    f"{name}: expected images of at least the crop's {self.height}x{self.width}, got {height}x{width}"
                )
            where = draw[:2].tolist() if self.training else (0.5, 0.5)
            free = height - self.height, width - self.width
            top, left = (min(int(share * (room + 1)), room) for share, room in zip(where, free))
            cut = pair[..., top : top + self.height, left : left + self.width]
            if self.training:
                for axis, limit, share in zip((-1, -2, 0), self.flips, draw[2:5].tolist()):
                    cut = cut.flip(axis) if share < limit else cut
            cropped.append(cut)
        images = torch.stack(cropped).float() / 255
        out["first"], out["second"] = images.unbind(1)
        if self.training:
            images = self._recolor(images, draws[:, 5:].to(images), normal.to(images))
        out["first_aug"], out["second_aug"] = images.unbind(1)
        return out

    def _recolor(self, images: Tensor, draws: Tensor, normal: Tensor) -> Tensor:
        """Pairs (B,2,3,H,W) in other colours; uniform draws (B,7), normal ones (B,)."""

        def between(limits: tuple[float, float], column: Tensor) -> Tensor:
            return (limits[0] + (limits[1] - limits[0]) * column).view(len(images), 1, -1, 1, 1)

        if (self.contrast, self.brightness, self.color, self.gamma) == (_NONE, 0.0, _NONE, _NONE):
            return images
        changed = images * between(self.contrast, draws[:, :1])
        changed = changed + self.brightness * normal.view(-1, 1, 1, 1, 1)
        changed = (changed * between(self.color, draws[:, 1:4])).clamp(0, 1)
        return changed ** (1 / between(self.gamma, draws[:, 4:5]))

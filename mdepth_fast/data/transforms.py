"""From a batch of bytes to what a training step needs: flip, colour jitter and the image pyramid, on the device."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast.geometry import flip_geometry, invert_pose

__all__ = ["Augment", "SequenceAugment", "StereoAugment", "adjust_color", "image_pyramid"]


def image_pyramid(images: Tensor, levels: int = 4) -> list[Tensor]:
    """(B,C,H,W) to `levels` images, each half of the one before by area averaging; odd sizes round down."""
    pyramid = [images]
    for _ in range(levels - 1):
        height, width = pyramid[-1].shape[-2:]
        if min(height, width) < 2:
            raise ValueError(f"levels: {levels} need a larger image, got {tuple(images.shape)}")
        pyramid.append(F.adaptive_avg_pool2d(pyramid[-1], (height // 2, width // 2)))
    return pyramid


def _grey(rgb: Tensor) -> Tensor:
    red, green, blue = rgb.split(1, -3)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def _brightness(rgb: Tensor, factor: Tensor) -> Tensor:
    return (rgb * factor).clamp_(0, 1)


def _contrast(rgb: Tensor, factor: Tensor) -> Tensor:
    mean = _grey(rgb.mean((-2, -1), keepdim=True))
    return (rgb * factor).add_((1 - factor) * mean).clamp_(0, 1)


def _saturation(rgb: Tensor, factor: Tensor) -> Tensor:
    return (rgb * factor).add_((1 - factor) * _grey(rgb)).clamp_(0, 1)


def _hue(rgb: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift`, a share of the full circle; value and saturation stay."""
    red, green, blue = rgb.split(1, -3)
    high = torch.maximum(red, green).maximum(blue)
    low = torch.minimum(red, green).minimum(blue)
    chroma = high - low
    # Where the image is grey, any hue will do: low + 0 * weight.
    sixths = torch.where(
        high == red,
        green - blue,
        torch.where(high == green, (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4)),
    )
    sixths = sixths.div_(chroma.clamp_min(1e-12)).add_(6 * shift).remainder_(6)
    # HSV to RGB without cases: each channel's share of the chroma is a trapezoid of the hue.
    out = torch.empty_like(rgb)
    for channel, centre in enumerate((3, 2, 4)):
        weight = (sixths - centre).abs_()
        weight = weight.sub_(1) if channel == 0 else weight.neg_().add_(2)
        torch.addcmul(low, chroma, weight.clamp_(0, 1), out=out.narrow(-3, channel, 1))
    return out


_ADJUST = (_brightness, _contrast, _saturation, _hue)


@torch.no_grad()
def adjust_color(images: Tensor, factors: Tensor, order: tuple[int, ...] = (0, 1, 2, 3)) -> Tensor:
    """(B,...,3,H,W) in [0, 1] under per-sample factors (B,4): brightness, contrast, saturation (1 = as is), hue (0).

    All frames of a sample get the same factors. `order` says which adjustment comes first (index into the four).
    """
    shape = (-1,) + (1,) * (images.dim() - 1)
    for index in order:
        images = _ADJUST[index](images, factors[:, index].view(shape))
    return images


class Augment(nn.Module):
    """Batch of `Sample` on any device to the float tensors of a training step (Monodepth2, section 4 of 1806.01260).

    In: target uint8 (B,3,H,W), sources uint8 (B,S,3,H,W), K, source_K, T as in `Sample`; other keys pass through
    (a "depth" or "image" is flipped with its sample).
    Out: target, sources float [0, 1], K, source_K, T after the flip; target_aug, sources_aug, the colour-jittered
    inputs of the networks; pyramid, the list of `levels` clean targets, each half the size of the one before.

    A sample is mirrored with probability `flip` and jittered with probability `jitter`: one draw of brightness,
    contrast, saturation (factors 1 +- the argument) and hue (share of the circle) for all its frames; the order of
    the four is drawn once per batch. Random numbers come from `generator` (a CPU generator) or torch's global one,
    never from the device, so CPU and GPU augment alike. After `eval()` there is conversion only.
    """

    def __init__(
        self,
        flip: float = 0.5,
        jitter: float = 0.5,
        *,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.1,
        levels: int = 4,
    ) -> None:
        super().__init__()
        for name, probability in (("flip", flip), ("jitter", jitter)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {probability}")
        limits = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.5}
        ranges = dict(brightness=brightness, contrast=contrast, saturation=saturation, hue=hue)
        for name, value in ranges.items():
            if not 0 <= value <= limits[name]:
                raise ValueError(f"{name}: expected a value in [0, {limits[name]}], got {value}")
        if levels < 1:
            raise ValueError(f"levels: expected at least 1, got {levels}")
        self.flip, self.jitter, self.levels = flip, jitter, levels
        self.ranges: tuple[Any, ...] = tuple(ranges.values())

    def extra_repr(self) -> str:
        return f"flip={self.flip}, jitter={self.jitter}, ranges={self.ranges}, levels={self.levels}"

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        out = dict(batch)
        for key, dims in (("target", 4), ("sources", 5)):
            images = out[key]
            if images.dtype != torch.uint8 or images.dim() != dims or images.shape[-3] != 3:
                shape = "(B,3,H,W)" if dims == 4 else "(B,S,3,H,W)"
                raise TypeError(f"{key}: expected uint8 {shape}, got {images.dtype} {tuple(images.shape)}")
        device, size = out["target"].device, len(out["target"])
        # All draws are made whether used or not: the stream does not depend on the outcome or on the options.
        chance = torch.rand(2, size, generator=generator)
        factors, recolor = self._draw_colors(size, generator)
        flipped = (chance[0] < self.flip) & self.training
        jittered = (chance[1] < self.jitter) & self.training

        if flipped.any():
            self._flip(out, flipped.to(device))
        for key in ("target", "sources"):
            out[key] = out[key].float().div_(255)

        rows = jittered.nonzero().flatten().to(device)
        factors = factors.to(device)[rows]
        for key in ("target", "sources"):
            clean = out[key]
            if len(rows):
                out[f"{key}_aug"] = clean.index_copy(0, rows, recolor(clean[rows], factors))
            else:
                out[f"{key}_aug"] = clean
        out["pyramid"] = image_pyramid(out["target"], self.levels)
        return out

    def _draw_colors(
        self, size: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """Factors (B,n), and the function that changes images (b,...,3,H,W) by rows (b,n) of them."""
        amounts = torch.rand(size, 4, generator=generator) * 2 - 1
        order = tuple(torch.randperm(4, generator=generator).tolist())
        factors = amounts * amounts.new_tensor(self.ranges) + amounts.new_tensor([1.0, 1.0, 1.0, 0.0])
        return factors, partial(adjust_color, order=order)

    @staticmethod
    def _flip(out: dict[str, Any], mask: Tensor) -> None:
        width = out["target"].shape[-1]

        def choose(mirrored: Tensor, straight: Tensor) -> Tensor:
            return torch.where(mask.view((-1,) + (1,) * (straight.dim() - 1)), mirrored, straight)

        for key in ("target", "sources", "depth", "image"):
            if key in out:
                out[key] = choose(out[key].flip(-1), out[key])
        K, T = flip_geometry(out["K"], out["T"], width)
        source_K, _ = flip_geometry(out["source_K"], out["T"], width)
        out["K"], out["source_K"], out["T"] = (
            choose(K, out["K"]),
            choose(source_K, out["source_K"]),
            choose(T, out["T"]),
        )


class StereoAugment(Augment):
    """Batch of rectified pairs to the float tensors of a training step, the left image always the target.

    Monodepth's augmentation (Godard et al., CVPR 2017, arXiv 1609.03677, section 4). In and out are those of `Augment`,
    with one source, the other camera. In training, a pair whose target is the right image comes out the other way
    round: target and source, their intrinsics and `T` change places. With probability `flip` both images are mirrored
    and change places, so that the mirrored right image becomes the left one. With probability `jitter` the colours of
    both images change alike: to the power of a number from `gamma`, times a number from `brightness`, times a number
    for each channel from `color`, cut to [0, 1]; `target_aug` and `sources_aug` hold the result. After `eval()` there
    is conversion only.

    ValueError for samples with more or fewer sources than one, and in training for samples with ground truth, which
    belongs to one image of the pair alone.
    """

    def __init__(
        self,
        flip: float = 0.5,
        jitter: float = 0.5,
        *,
        gamma: tuple[float, float] = (0.8, 1.2),
        brightness: tuple[float, float] = (0.5, 2.0),
        color: tuple[float, float] = (0.8, 1.2),
        levels: int = 4,
    ) -> None:
        super().__init__(flip, jitter, levels=levels)
        bounds = {"gamma": gamma, "brightness": brightness, "color": color}
        for name, pair in bounds.items():
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}: expected a range (low, high), 0 < low <= high, got {pair!r}")
        self.ranges = (tuple(gamma), tuple(brightness), *[tuple(color)] * 3)

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        if self.training:
            count = batch["sources"].shape[1]
            if count != 1:
                raise ValueError(f"sources: expected one, the other image of a rectified pair, got {count}")
            if "depth" in batch:
                raise ValueError("depth: expected none in training, it belongs to one image of the pair alone")
            batch = dict(batch)
            self._swap(batch, batch["T"][:, 0, 0, 3] > 0)
        return super().forward(batch, generator)

    def _draw_colors(
        self, size: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        low, high = torch.tensor(self.ranges).T
        return low + (high - low) * torch.rand(size, 5, generator=generator), _recolor

    @staticmethod
    def _flip(out: dict[str, Any], mask: Tensor) -> None:
        Augment._flip(out, mask)
        StereoAugment._swap(out, mask)

    @staticmethod
    def _swap(out: dict[str, Any], mask: Tensor) -> None:
        """Lets target and source of the samples in mask (B,) change places."""

        def choose(swapped: Tensor, straight: Tensor) -> Tensor:
            return torch.where(mask.view((-1,) + (1,) * (straight.dim() - 1)), swapped, straight)

        for target, source in (("target", "sources"), ("K", "source_K")):
            one, other = out[target], out[source][:, 0]
            out[target], out[source] = choose(other, one), choose(one, other)[:, None]
        out["T"] = choose(invert_pose(out["T"]), out["T"])


class SequenceAugment(Augment):
    """Batch of frames of a video to the float tensors of a training step.

    The augmentation of SfMLearner (arXiv 1704.07813) and vid2depth (arXiv 1802.05522). In and out are those of
    `Augment`. In training a sample is enlarged by numbers from `scale` along x and along y, all its frames alike, and a
    window of the old size is cut out at a random place; K and source_K follow. Both are one bilinear reading of the
    bytes, so the place is no whole number of pixels. With probability `jitter` the colours change as in
    `StereoAugment`. The objective sees the changed colours, too, unless `colors_in_loss` is False. After `eval()` there
    is conversion only.

    ValueError in training for samples with ground truth, which would have to be cut alike.
    """

    def __init__(
        self,
        flip: float = 0.0,
        jitter: float = 1.0,
        *,
        scale: tuple[float, float] = (1.0, 1.15),
        gamma: tuple[float, float] = (0.8, 1.2),
        brightness: tuple[float, float] = (0.5, 2.0),
        color: tuple[float, float] = (0.8, 1.2),
        colors_in_loss: bool = True,
        levels: int = 4,
    ) -> None:
        super().__init__(flip, jitter, levels=levels)
        bounds = {"scale": scale, "gamma": gamma, "brightness": brightness, "color": color}
        for name, pair in bounds.items():
            if len(pair) != 2 or not 0 < pair[0] <= pair[1]:
                raise ValueError(f"{name}: expected a range (low, high), 0 < low <= high, got {pair!r}")
        if scale[0] < 1:
            raise ValueError(f"scale: expected factors of at least 1, got {scale!r}")
        self.scale, self.colors_in_loss = tuple(scale), colors_in_loss
        self.ranges = (tuple(gamma), tuple(brightness), *[tuple(color)] * 3)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale}, colors_in_loss={self.colors_in_loss}"

    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        draws = torch.rand(len(batch["target"]), 4, generator=generator)
        if self.training and "depth" in batch:
            raise ValueError("depth: expected none in training, it would have to be cut like the image")
        if self.training and self.scale[1] > 1:
            batch = dict(batch)
            self._crop(batch, self.scale[0] + (self.scale[1] - self.scale[0]) * draws[:, :2], draws[:, 2:])
        out = super().forward(batch, generator)
        if self.training and self.colors_in_loss and self.jitter:
            out |= {"target": out["target_aug"], "sources": out["sources_aug"]}
            out["pyramid"] = image_pyramid(out["target"], self.levels)
        return out

    _draw_colors = StereoAugment._draw_colors

    @staticmethod
    def _crop(batch: dict[str, Any], scale: Tensor, place: Tensor) -> None:
        """Cuts windows out of enlarged images; scale, and place in [0, 1], (B,2) along x and y."""
        height, width = batch["target"].shape[-2:]
        # Positions in [-1, 1] over the image: x of the output reads x / scale + shift. In double, which no autocast
        # touches.
        scale, place = scale.double(), place.double()
        theta = torch.zeros(len(scale), 2, 3, dtype=torch.float64)
        theta[:, [0, 1], [0, 1]], theta[:, :, 2] = 1 / scale, (1 - 1 / scale) * (2 * place - 1)
        grid = F.affine_grid(theta, [len(theta), 1, height, width], align_corners=False).float()
        grid = grid.to(batch["target"].device)
        for key in ("target", "sources"):
            images = batch[key].flatten(1, -3).float()
            cut = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
            batch[key] = cut.round_().to(batch[key].dtype).view_as(batch[key])
        corner = place * (scale - 1) * torch.tensor([width, height])
        for key in ("K", "source_K"):
            K = batch[key].clone()
            by, left = (part.to(K).view(-1, *(1,) * (K.dim() - 3), 2) for part in (scale, corner))
            K[..., 0, :2] *= by[..., :1]
            K[..., 1, 1] *= by[..., 1]
            K[..., :2, 2] = (K[..., :2, 2] + 0.5) * by - 0.5 - left
            batch[key] = K


def _recolor(images: Tensor, factors: Tensor) -> Tensor:
    """(b,...,3,H,W) in [0, 1] under factors (b,5): exponent, brightness, and one for each channel."""
    shape = (-1,) + (1,) * (images.dim() - 4)
    images = images.pow(factors[:, 0].view(*shape, 1, 1, 1))
    return images.mul_((factors[:, 1:2] * factors[:, 2:]).view(*shape, 3, 1, 1)).clamp_(0, 1)

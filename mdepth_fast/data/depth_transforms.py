"""From a batch of images with measured depth to what a training step needs: scale, rotation, crop, flip and colour."""

from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.data.samples import DepthSample, check_size
from mdepth_fast.data.transforms import adjust_color

__all__ = ["AUGMENTATIONS", "DepthAugment", "collate_depth"]

_NONE = (1.0, 1.0)
# Depth is read this many pixels further right and down: half-way between two pixels, rounding must not decide.
_NUDGE = 1e-3
_DRAWS = 14


def collate_depth(samples: Sequence[DepthSample]) -> dict[str, Any]:
    """`default_collate` for samples of different sizes (the drives of KITTI differ by a few pixels).

    They are padded at the bottom and on the right with black and depth 0 to the largest. Then "size" is in the batch, a
    list of the (height, width) that they had, by which `DepthAugment` leaves the padding out.
    """
    sizes = [(int(sample["target"].shape[1]), int(sample["target"].shape[2])) for sample in samples]
    if len(set(sizes)) == 1:
        return default_collate(list(samples))
    largest = [max(lengths) for lengths in zip(*sizes)]
    padded = []
    for sample, (height, width) in zip(samples, sizes):
        pad = (0, largest[1] - width, 0, largest[0] - height)
        padded.append({**sample, "target": F.pad(sample["target"], pad), "depth": F.pad(sample["depth"], pad)})
    return {**default_collate(padded), "size": sizes}


class DepthAugment(nn.Module):
    """Batch of `DepthSample` on any device to images and depth at the network's size, after one draw for each sample.

    In: target uint8 (B,3,h,w), depth float (B,1,h,w), metres, 0 = none; "size" where `collate_depth` padded; other keys
    pass through. Out: target float32 [0,1] (B,3,height,width), depth float32 (B,1,height,width), exactly 0 where there
    is none: outside of the file's image (which is black there), outside of the range, or not finite. No "size".

    In this order: resize, scale, rotation, crop of `crop_size`, flip, resize of the crop to (height, width). All of it
    is one affine map and one reading of the file's pixels: depth of the nearest one, colour bilinear. Where the fixed
    part of the map makes the image smaller, that is done first, with antialiasing.

    Args:
        height, width: size of the output.
        resize: (rows, columns) of the resized image, None for a side that keeps its length; or the length of its
            shorter side, the ratio kept; or None for the file's size.
        crop_size: of the window cut out of the resized and scaled image, by default (height, width).
        crop: "random" or "centre". An image smaller than the window is an error, unless `scale` made it so.
        scale: range of the factor s by which the image grows. depth_from_scale: depth is divided by s, as if the camera
            had come nearer.
        rotate: largest angle in degrees, either way, about the centre of the image.
        flip: probability of a horizontal flip.
        recolor: probability that the colours of a sample change, by all of the following together.
        gamma: range of the exponent. brightness: range of a factor of all channels. color: of each channel.
        jitter: brightness, contrast, saturation: factors 1 +- these, one after the other in an order drawn per batch.
        min_depth, max_depth: depth (after the division) counts as measured in (min_depth, max_depth].
        drop_extremes: the smallest and the largest depth of an image count as not measured (Eigen et al., NIPS 2014).

    Defaults are those of Eigen et al. on NYU Depth V2; `AUGMENTATIONS` has published sets. Random numbers come from
    `generator` (a CPU generator) or torch's global one, never from the device: the i-th sample of a batch has the same
    draws whatever the options, the device and the rest of the batch are, and CPU and GPU give the same up to rounding
    (of colours to 8 bits where the CPU makes an image smaller). After `eval()` there are resize and centre crop only.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        resize: int | Sequence[int | None] | None = None,
        crop_size: Sequence[int] | None = None,
        crop: str = "random",
        scale: Sequence[float] = (1.0, 1.5),
        depth_from_scale: bool = True,
        rotate: float = 5.0,
        flip: float = 0.5,
        recolor: float = 1.0,
        gamma: Sequence[float] = _NONE,
        brightness: Sequence[float] = _NONE,
        color: Sequence[float] = (0.8, 1.2),
        jitter: Sequence[float] = (0.0, 0.0, 0.0),
        min_depth: float = 0.0,
        max_depth: float | None = None,
        drop_extremes: bool = False,
    ) -> None:
        super().__init__()
        self.size = check_size(height, width)
        self.resize = _check_resize(resize)
        self.crop_size = self.size if crop_size is None else _check_pair("crop_size", crop_size)
        if crop not in ("random", "centre"):
            raise ValueError(f'crop: expected "random" or "centre", got {crop!r}')
        self.crop, self.depth_from_scale, self.drop_extremes = crop, depth_from_scale, drop_extremes
        self.scale, self.gamma, self.brightness, self.color = (
            _check_range(name, given)
            for name, given in (("scale", scale), ("gamma", gamma), ("brightness", brightness), ("color", color))
        )
        if not 0 <= rotate <= 180:
            raise ValueError(f"rotate: expected degrees in [0, 180], got {rotate}")
        self.rotate = float(rotate)
        for name, probability in (("flip", flip), ("recolor", recolor)):
            if not 0 <= probability <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {probability}")
        self.flip, self.recolor = flip, recolor
        if not isinstance(jitter, (tuple, list)) or len(jitter) != 3 or not all(0 <= value <= 1 for value in jitter):
            raise ValueError(f"jitter: expected brightness, contrast, saturation in [0, 1], got {jitter!r}")
        self.jitter = tuple(jitter)
        self.min_depth, self.max_depth = min_depth, torch.finfo().max if max_depth is None else max_depth
        if not 0 <= min_depth < self.max_depth:
            raise ValueError(f"min_depth, max_depth: expected 0 <= min_depth < max_depth, got {min_depth}, {max_depth}")

    def extra_repr(self) -> str:
        names = (
            "resize crop_size crop scale depth_from_scale rotate flip recolor gamma brightness color jitter min_depth"
        )
        options = [f"{name}={getattr(self, name)}" for name in f"{names} max_depth drop_extremes".split()]
        return ", ".join([f"{self.size[0]}, {self.size[1]}", *options])

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        out = dict(batch)
        images, depth = out["target"], out["depth"]
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
            raise TypeError(f"target: expected uint8 (B,3,h,w), got {images.dtype} {tuple(images.shape)}")
        wanted = (len(images), 1, *images.shape[-2:])
        if not depth.is_floating_point() or depth.shape != wanted:
            raise TypeError(f"depth: expected floating point {wanted}, got {depth.dtype} {tuple(depth.shape)}")
        whole = (images.shape[-2], images.shape[-1])
        sizes: list[tuple[int, int]] = out.pop("size", None) or [whole] * len(images)
        self._check_window(sizes, out.get("name"))
        # All draws are made whether used or not: the stream depends neither on their outcome nor on the options.
        draws = torch.rand(len(images), _DRAWS, generator=generator, dtype=torch.float64)
        order = tuple(torch.randperm(3, generator=generator).tolist())
        theta, scale = self._affine(draws, sizes)
        # One transfer for everything that was drawn.
        numbers = torch.cat([theta.flatten(1), scale[:, None], self._colors(draws)], 1).float().to(images.device)
        theta, scale, colors = numbers[:, :6].view(-1, 2, 3), numbers[:, 6].view(-1, 1, 1, 1), numbers[:, 7:]

        if all(size == whole for size in sizes):
            target, depth = self._resample(images, depth, theta, whole)
        else:
            target, depth = self._resample_groups(images, depth, theta, sizes)
        if self.training and self.recolor:
            target = self._recolor(target, colors, order)
        if self.depth_from_scale:
            depth.div_(scale)
        out["target"] = target.clamp_(max=1)
        # The comparison holds for no NaN.
        out["depth"] = torch.threshold_(torch.where(depth <= self.max_depth, depth, 0.0), self.min_depth, 0.0)
        return out

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The size of an image after `resize`."""
        if self.resize is None:
            return height, width
        if isinstance(self.resize, int):
            factor = self.resize / min(height, width)
            return round(height * factor), round(width * factor)
        return self.resize[0] or height, self.resize[1] or width

    def centre_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """(top, bottom, left, right) in pixels of an image of that size, half-open: what is left after `eval()`."""
        window = []
        for length, resized, crop in zip((height, width), self._resized(height, width), self.crop_size):
            start = (resized - crop) // 2
            window += [round(start * length / resized), round((start + crop) * length / resized)]
        return window[0], window[1], window[2], window[3]

    def _check_window(self, sizes: list[tuple[int, int]], names: Any) -> None:
        for index, size in enumerate(sizes):
            resized = self._resized(*size)
            if resized[0] < self.crop_size[0] or resized[1] < self.crop_size[1]:
                name = f"sample {index}" if names is None else names[index]
                raise ValueError(f"crop_size: {self.crop_size} does not fit into {name}, {size} resized to {resized}")

    def _affine(self, draws: Tensor, sizes: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Maps (B,2,3), float64, from an output pixel (column + 0.5, row + 0.5) to [-1, 1] over the image; and s (B,).

        Lengths are measured from the outer edge of the first pixel: there, resizing is a multiplication.
        """
        resized = draws.new_tensor([self._resized(*size) for size in sizes]).view(len(sizes), 2)
        window, output = draws.new_tensor(self.crop_size), draws.new_tensor(self.size)
        scale, angle = torch.ones_like(draws[:, 0]), torch.zeros_like(draws[:, 0])
        mirrored = torch.zeros_like(angle, dtype=torch.bool)
        if self.training:
            scale = _within(self.scale, draws[:, 0])
            angle = torch.deg2rad(self.rotate * (2 * draws[:, 1] - 1))
            mirrored = draws[:, 4] < self.flip
        # Whole pixels, so that an image that is only cropped keeps its pixels as they are.
        room = (resized * scale[:, None] + 1e-6).floor() - window
        corner = (room / 2).floor()
        if self.training and self.crop == "random":
            corner = (draws[:, 2:4] * (room + 1)).floor()
        corner = torch.where(room < 0, room / 2, corner)

        # Output to window, from the centre of the scaled image; (rows, columns) until here, (x, y) from here on.
        zoom = (window / output).expand_as(corner).clone()
        start = corner - resized * scale[:, None] / 2
        start[:, 1] += window[1] * mirrored
        zoom[:, 1] *= torch.where(mirrored, -1.0, 1.0)
        zoom, start, resized = zoom.flip(1), start.flip(1), resized.flip(1)
        # Turned about that centre, at the scale of the resized image, and in shares of it.
        cos, sin = angle.cos() / scale, angle.sin() / scale
        turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        theta = torch.cat([turn * zoom[:, None], (turn * start[:, None]).sum(-1, keepdim=True)], 2)
        return theta * (2 / resized)[:, :, None], scale

    def _resample(self, images: Tensor, depth: Tensor, theta: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Images (B,3,h,w) of one size, in [0, 1], and depth at the output's pixels."""
        # Not affine_grid: its matrix product would be done in half precision under autocast.
        rows, columns = (torch.arange(n, device=theta.device, dtype=theta.dtype) + 0.5 for n in self.size)
        grid = theta.new_empty(len(theta), *self.size, 2)
        for axis in range(2):
            x, y, constant = (theta[:, axis, k].view(-1, 1, 1) for k in range(3))
            torch.add(y * rows.view(1, -1, 1) + constant, x * columns.view(1, 1, -1), out=grid[..., axis])

        resized = self._resized(*size)
        # What the fixed part of the map makes of the image, if that is smaller.
        small = [min(n, round(r * o / w)) for n, r, o, w in zip(size, resized, self.size, self.crop_size)]
        if small != list(size):
            # On the CPU PyTorch has it for bytes, several times as fast as for floats; on GPUs for floats only.
            pixels = images if images.device.type == "cpu" else images.float()
            images = F.interpolate(pixels, small, mode="bilinear", align_corners=False, antialias=True)
        images = images.float()
        target = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        target.mul_(1 / 255)

        depth = depth.float()
        if self.drop_extremes:
            depth = _drop_extremes(depth)
        grid += 2 * _NUDGE / grid.new_tensor([size[1], size[0]])
        depth = F.grid_sample(depth, grid, mode="nearest", padding_mode="zeros", align_corners=False)
        if self.training and (self.rotate or self.scale[0] < 1):
            target.masked_fill_(grid.abs_().amax(-1)[:, None] > 1, 0)
        return target, depth

    def _resample_groups(
        self, images: Tensor, depth: Tensor, theta: Tensor, sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """The same for a padded batch: the samples of each size together, without the padding."""
        target = theta.new_empty(len(images), 3, *self.size)
        sampled = theta.new_empty(len(images), 1, *self.size)
        for size in dict.fromkeys(sizes):
            rows = torch.tensor([index for index, other in enumerate(sizes) if other == size], device=theta.device)
            height, width = size
            part = self._resample(images[rows, :, :height, :width], depth[rows, :, :height, :width], theta[rows], size)
            target[rows], sampled[rows] = part
        return target, sampled

    def _colors(self, draws: Tensor) -> Tensor:
        """(B,8): exponent, factor of each channel, brightness of the whole, the three of `jitter`."""
        changed = (draws[:, 5:6] < self.recolor) & self.training
        factors = torch.cat(
            [
                _within(self.gamma, draws[:, 6:7]),
                _within(self.color, draws[:, 7:10]),
                _within(self.brightness, draws[:, 10:11]),
                1 + (2 * draws[:, 11:14] - 1) * draws.new_tensor(self.jitter),
            ],
            1,
        )
        return torch.where(changed, factors, 1.0)

    def _recolor(self, images: Tensor, factors: Tensor, order: tuple[int, ...]) -> Tensor:
        if self.gamma != _NONE:
            images = images.pow_(factors[:, 0].view(-1, 1, 1, 1))
        if any(self.jitter):
            images = adjust_color(images, factors[:, 5:], order)
        if self.brightness != _NONE or self.color != _NONE:
            images = images.mul_((factors[:, 1:4] * factors[:, 4:5])[..., None, None])
        return images


def _drop_extremes(depth: Tensor) -> Tensor:
    measured = (depth > 0) & depth.isfinite()
    low = torch.where(measured, depth, torch.inf).amin((2, 3), keepdim=True)
    high = torch.where(measured, depth, -torch.inf).amax((2, 3), keepdim=True)
    return torch.where((depth == low) | (depth == high), 0.0, depth)


def _within(bounds: tuple[float, float], draws: Tensor) -> Tensor:
    return bounds[0] + (bounds[1] - bounds[0]) * draws


def _check_range(name: str, given: Sequence[float]) -> tuple[float, float]:
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not 0 < given[0] <= given[1]:
        raise ValueError(f"{name}: expected a range (low, high), 0 < low <= high, got {given!r}")
    return float(given[0]), float(given[1])


def _check_pair(name: str, given: Sequence[int]) -> tuple[int, int]:
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not all(isinstance(n, int) and n >= 2 for n in given):
        raise ValueError(f"{name}: expected (rows, columns) of at least 2, got {given!r}")
    return given[0], given[1]


def _check_resize(resize: Any) -> int | tuple[int | None, int | None] | None:
    if resize is None or (isinstance(resize, int) and resize >= 2):
        return resize
    fits = isinstance(resize, (tuple, list)) and len(resize) == 2
    if not fits or not all(side is None or (isinstance(side, int) and side >= 2) for side in resize):
        raise ValueError(f"resize: expected the shorter side, (rows, columns) or None, got {resize!r}")
    return resize[0], resize[1]


# The preset, or other file of `mdepth_fast/configs`, whose `augment` section each recipe is.
_RECIPES = {
    "eigen_nyu": "eigen2014_nyu",  # Eigen, Puhrsch, Fergus, NIPS 2014
    "eigen_kitti": "eigen2014_kitti",
    "fcrn_nyu": "fcrn_nyu",  # Laina et al., 3DV 2016
    "dorn_nyu": "dorn_nyu",  # Fu et al., CVPR 2018; KITTI: 385 rows, the width as it is
    "dorn_kitti": "dorn_kitti",
    "fastdepth_nyu": "fastdepth_nyu",  # Wofk et al., ICRA 2019
    # As BTS trains (arXiv 1907.10326). The data sets crop first: `NYU_TRAINING_CROP`, "kb".
    "bts_nyu": "dpt_nyu",
    "bts_kitti": "dpt_kitti",
    "dpt": "augmentations/dpt",  # Ranftl et al., ICCV 2021
    "depth_anything_nyu": "depth_anything_nyu",  # Yang et al., NeurIPS 2024
    "depth_anything_kitti": "depth_anything_kitti",
}


class _Recipes(Mapping[str, dict[str, Any]]):
    """Read when they are asked for: importing the package needs no YAML."""

    def __getitem__(self, name: str) -> dict[str, Any]:
        import yaml

        file = resources.files("mdepth_fast").joinpath("configs", *f"{_RECIPES[name]}.yaml".split("/"))
        section = yaml.safe_load(file.read_text())["augment"]
        return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(_RECIPES)

    def __len__(self) -> int:
        return len(_RECIPES)


AUGMENTATIONS: Mapping[str, dict[str, Any]] = _Recipes()
"""Arguments of `DepthAugment` for each recipe: `DepthAugment(**AUGMENTATIONS["fcrn_nyu"])`."""

"""Accumulates what predictions are worth under one protocol."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from mdepth_fast import ops
from mdepth_fast.alignment import fit_line
from mdepth_fast.evaluation.metrics import METRICS, metrics_of
from mdepth_fast.evaluation.protocols import Protocol, get_protocol

__all__ = ["Evaluator", "compare", "summarise"]

_TITLES = {
    "abs_rel": "AbsRel",
    "sq_rel": "SqRel",
    "rmse": "RMSE",
    "rmse_log": "RMSElog",
    "d1": "d<1.25",
    "d2": "d<1.25^2",
    "d3": "d<1.25^3",
    "silog": "SILog",
    "log10": "log10",
    "sq_rel_kitti": "SqRel/g^2",
    "irmse": "iRMSE",
    "rmse_of_mse": "RMSE(MSE)",
    "si_log": "SI-log",
}


class Evaluator:
    """`update` once per image, then `compute` the averages or print the `table`.

    An image without valid ground truth has NaN metrics: it is counted, and left out of the averages in plain sight.
    """

    def __init__(self, protocol: Protocol | str) -> None:
        self.protocol = get_protocol(protocol) if isinstance(protocol, str) else protocol
        self._sums: list[list[float]] = []
        self._ratios: list[float] = []
        self._pixels: list[tuple[Tensor, Tensor]] = []  # where one scale is for all
        self._clamped = 0
        self.ground_truth = ""
        """what the table says of the ground truth: protocols do not tell LiDAR from annotated depth"""

    def update(
        self,
        prediction: Tensor | ArrayLike,
        ground_truth: Tensor | ArrayLike,
        name: str | None = None,
        *,
        inverse: bool = False,
    ) -> dict[str, float]:
        """Add one image and return its metrics.

        prediction: depth, (h,w), (1,h,w) or (1,1,h,w); ground_truth: depth in metres, the same ranks at any size,
        0 or non-finite = none. `name` stands in the error raised for a non-finite prediction, or a negative one where
        it has to be inverted; there 0 is clamped to the end of the protocol's range, and counted. inverse: the
        prediction is inverse depth. Under the alignment
        "lsq_disparity" any will do, as it is fitted to the inverse of the ground truth itself; under others it must be
        positive. Under "median_set" the metrics are not known before all images are, and {} is returned; the pixels
        with ground truth are kept until then (8 bytes each in float32).
        """
        name = name if name is not None else f"image {len(self._sums) + len(self._pixels)}"
        found = compare(self.protocol, prediction, ground_truth, name, inverse)
        if found.ratio is not None:
            self._ratios.append(found.ratio)
        self._clamped += found.clamped
        if self.protocol.alignment == "median_set":
            values, truth = found.pixels()
            self._pixels.append((1 / values if found.inverse else values, truth))
            return {}
        self._sums.append(found.sums())
        return metrics_of(self._sums[-1])

    def merge(self, other: "Evaluator") -> None:
        """Add the images that another evaluator of the same protocol has seen, such as that of another process."""
        if other.protocol != self.protocol:
            raise ValueError(
                f"other: expected an evaluator of {self.protocol.describe()}, got one of {other.protocol.describe()}"
            )
        self._clamped += other._clamped
        self._sums += other._sums
        self._ratios += other._ratios
        self._pixels += other._pixels

    def gather(self) -> "Evaluator":
        """An evaluator of the images of all processes of a distributed run, the same in each; else this one.

        Every process has to call it, with images of its own: none is counted twice that one process has seen.
        """
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        own = (self._sums, self._ratios, [(values.cpu(), truth.cpu()) for values, truth in self._pixels], self._clamped)
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own)
        whole = Evaluator(self.protocol)
        whole.ground_truth = self.ground_truth
        for sums, ratios, pixels, clamped in parts:
            whole._clamped += clamped
            whole._sums += sums
            whole._ratios += ratios
            whole._pixels += pixels
        return whole

    def compute(self) -> dict[str, float]:
        """Averages over the images with ground truth (NaN when there is none), and the counts.

        Keys: `METRICS`; "rmse_of_mse", the root of the mean of the images' mean squared errors; "si_log", SILog / 100;
        "images", those averaged; "without_ground_truth", those left out; for median alignment also
        "scale_median", the median of the per-image ratios, and "scale_std", the standard deviation of
        ratio / scale_median; "clamped" where predictions of 0 had to be, their number.
        """
        median = self.protocol.alignment in ("median", "median_set")
        middle = float(np.median(self._ratios)) if self._ratios else math.nan
        images = self._sums
        if self.protocol.alignment == "median_set":
            # The mask has done its work: what is left is one row, all of which counts.
            whole = replace(self.protocol, crop=None, cap_ground_truth=False, size=None)
            images = [Comparison(whole, p[None], g[None], False, middle).sums() for p, g in self._pixels]
        valid = [sums for sums in images if sums[0]]
        each = [[*metrics_of(sums).values(), sums[4] / sums[0]] for sums in valid]
        summary = summarise(
            self.protocol, [sum(column) for column in zip(*each)], [sum(column) for column in zip(*valid)], len(valid)
        )
        summary["images"] = len(valid)
        summary["without_ground_truth"] = len(images) - len(valid)
        if self._clamped:
            summary["clamped"] = self._clamped
        if median:
            summary["scale_median"] = middle
            summary["scale_std"] = float(np.std(np.array(self._ratios) / middle)) if self._ratios else math.nan
        return summary

    def table(self) -> str:
        """The averages under a line that states the protocol."""
        summary = self.compute()
        counts = f"{summary['images']:.0f} images"
        if summary["without_ground_truth"]:
            counts += f", {summary['without_ground_truth']:.0f} more had no valid ground truth and are left out"
        lines = [
            self.protocol.describe(),
            " ".join(f"{_TITLES[key]:>9}" for key in self.protocol.columns),
            " ".join(f"{summary[key]:9.3f}" for key in self.protocol.columns),
            counts,
        ]
        if self._clamped:
            lines.append(f"{self._clamped} pixels were predicted as exactly 0 and clamped to the protocol's range")
        if "scale_median" in summary:
            lines.append(f"scale: median {summary['scale_median']:.3f}, std/median {summary['scale_std']:.3f}")
        if self.ground_truth:
            lines.append(f"ground truth: {self.ground_truth}")
        return "\n".join(lines)


def summarise(protocol: Protocol, metrics: list[float], sums: list[float], images: int) -> dict[str, float]:
    """`METRICS`, "rmse_of_mse" and "si_log" of a set, as the protocol averages.

    metrics: over the images the sum of `METRICS` and of the mean squared error; sums: that of `ops.DEPTH_SUMS`.
    """
    if not images:
        summary = dict.fromkeys((*METRICS, "rmse_of_mse"), math.nan)
    else:
        *means, mse = (value / images for value in metrics)
        summary = metrics_of(sums) if protocol.average == "pixels" else dict(zip(METRICS, means))
        summary["rmse_of_mse"] = math.sqrt(mse)
    summary["si_log"] = summary["silog"] / 100
    return summary


class Comparison(NamedTuple):
    """A prediction at the size of its ground truth, and how it is aligned.

    The depth that is compared is scale * values + shift, or one over that where `inverse`.
    """

    protocol: Protocol
    values: Tensor  # (h, w)
    truth: Tensor  # (h, w)
    inverse: bool
    scale: float
    shift: float = 0.0
    ratio: float | None = None  # of the medians; None where they play no part, or nothing counts
    clamped: int = 0  # predictions of 0

    def sums(self) -> list[float]:
        """`ops.DEPTH_SUMS` under the protocol."""
        protocol = self.protocol
        sums = ops.depth_metrics(
            self.values[None],
            self.truth[None],
            valid=protocol.valid_range,
            clip=(protocol.min_depth, protocol.max_depth),
            window=protocol.window(*self.truth.shape),
            scale=None if self.scale == 1 else self._number(self.scale),
            shift=None if self.shift == 0 else self._number(self.shift),
            inverse=self.inverse,
        )
        found: list[float] = sums.tolist()[0]
        return found

    def pixels(self) -> tuple[Tensor, Tensor]:
        """Scaled values and ground truth of the pixels that count, (n,)."""
        counted = self.protocol.mask(self.truth).nonzero(as_tuple=True)
        return self.values[counted] * self.scale, self.truth[counted]

    def _number(self, value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64, device=self.values.device)


def compare(
    protocol: Protocol, prediction: Tensor | ArrayLike, ground_truth: Tensor | ArrayLike, name: str, inverse: bool
) -> Comparison:
    """Checks, resizes and aligns one image. The arguments are those of `Evaluator.update`."""
    values = _as_map(prediction, "prediction", name)
    truth = _as_map(ground_truth, "ground_truth", name).to(values.device)
    if protocol.size and tuple(truth.shape) != protocol.size:
        expected, got = ("x".join(map(str, size)) for size in (protocol.size, truth.shape))
        raise ValueError(f"ground_truth of {name}: expected {expected} under protocol {protocol.name}, got {got}")
    low, high = torch.stack(values.aminmax()).tolist()
    if not (math.isfinite(low) and math.isfinite(high)):
        count = int((~values.isfinite()).sum())
        raise ValueError(f"prediction of {name}: expected finite depths, got {count} non-finite of {values.numel()}")
    in_disparity = protocol.alignment == "lsq_disparity"
    affine = inverse and in_disparity  # its zero is not known yet: it cannot be inverted
    clamped = 0
    if not low > 0 and not affine and (inverse or in_disparity or protocol.resize == "disparity"):
        if low < 0 or not high > 0:
            raise ValueError(f"prediction of {name}: expected positive depths, got {low:g}")
        # Published code clips depth after its inversion; a ReLU gives exact zeros.
        zeros = values == 0
        clamped = int(zeros.sum())
        end = 1 / protocol.max_depth or torch.finfo(values.dtype).tiny if inverse else protocol.min_depth
        # Other pixels stay, and none is beyond a 0: before the alignment the range is not in the prediction's unit.
        values = torch.where(zeros, min(end, float(values[~zeros].min())), values)

    if values.shape != truth.shape:
        if protocol.resize != "nearest" and inverse != (protocol.resize == "disparity"):
            if affine:
                raise ValueError(
                    f"prediction of {name}: expected a protocol that resizes as disparity, or a prediction of the size "
                    f"of the ground truth, for inverse depth aligned as such; got {protocol.name}"
                )
            values, inverse = 1 / values, not inverse
        values = _resize(values, truth.shape, "nearest-exact" if protocol.resize == "nearest" else "bilinear")
    if inverse if protocol.alignment == "lsq_depth" else in_disparity and not inverse:
        values, inverse = 1 / values, not inverse
    found = Comparison(
        protocol, values, truth, inverse, 1 / protocol.scale if inverse else protocol.scale, clamped=clamped
    )
    return found if protocol.alignment == "none" else _align(found)


def _align(found: Comparison) -> Comparison:
    values, g = (pixels.double().cpu().numpy() for pixels in found.pixels())
    if not len(g):
        return found
    alignment = found.protocol.alignment
    if alignment in ("median", "median_set"):
        middle = float(np.median(1 / values if found.inverse else values))
        # A prediction that is not positive at its median has no scale: it stays as it is, to be clipped.
        ratio = float(np.median(g)) / middle if middle > 0 else 1.0
        if alignment == "median_set":
            return found._replace(ratio=ratio)
        return found._replace(scale=found.scale / ratio if found.inverse else found.scale * ratio, ratio=ratio)
    # A prediction whose disparity is fitted to zero or below is as far as the protocol sees.
    scale, shift = fit_line(values, 1 / g if alignment == "lsq_disparity" else g)
    return found._replace(scale=found.scale * scale, shift=shift)


def _as_map(values: Tensor | ArrayLike, argument: str, name: str) -> Tensor:
    """(h, w) in float32 or float64, where it is."""
    if isinstance(values, Tensor):
        found = values.detach()
        if found.device.type not in ("cpu", "cuda"):
            found = found.cpu()  # others need not have float64
    else:
        array = np.asarray(values)
        found = torch.from_numpy(np.ascontiguousarray(array if array.dtype.kind == "f" else array.astype(np.float64)))
    shape = tuple(found.shape)
    while found.dim() > 2 and found.shape[0] == 1:
        found = found[0]
    if found.dim() != 2 or not found.numel():
        raise ValueError(f"{argument} of {name}: expected (h,w), (1,h,w) or (1,1,h,w), got {shape}")
    if found.dtype in (torch.float32, torch.float64):
        return found
    return found.to(torch.float32 if found.is_floating_point() else torch.float64)


def _resize(values: Tensor, size: Sequence[int], mode: str) -> Tensor:
    # In double: PyTorch computes the positions in the type of the values, which costs four digits in float32.
    resized = F.interpolate(
        values[None, None].double(), tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None
    )
    return resized[0, 0].to(values.dtype)

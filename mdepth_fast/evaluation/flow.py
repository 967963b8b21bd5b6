"""Optical flow under a stated protocol: end-point error, and the share of outliers that KITTI ranks by."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor

__all__ = ["FLOW_METRICS", "FLOW_PROTOCOLS", "FlowEvaluator", "FlowProtocol", "get_flow_protocol"]

FLOW_METRICS = ("epe", "epe_noc", "fl", "fl_noc", "motion")
"""End-point error of all pixels with ground truth and of those that the second image shows, in pixels; Fl of both, in
percent; mean length of the true flow in pixels, which is the end-point error of "nothing moves"."""

_AVERAGES = {
    "images": "end-point error averaged over images",
    "pixels": "end-point error averaged over all pixels",
}


@dataclass(frozen=True)
class FlowProtocol:
    """How predicted flow is compared with the truth, at the size of the images.

    End-point error is the length of the difference, `average` says over what it is averaged. Fl is the share of
    outliers among all pixels of the set: more than `outlier` pixels and more than `outlier_share` of the true length
    off. columns: those of the table, out of `FLOW_METRICS`.
    """

    name: str
    average: str = "pixels"
    outlier: float = 3.0
    outlier_share: float = 0.05
    columns: tuple[str, ...] = FLOW_METRICS

    def __post_init__(self) -> None:
        if self.average not in _AVERAGES:
            raise ValueError(f"average: expected one of {list(_AVERAGES)}, got {self.average!r}")
        if not (self.outlier >= 0 and self.outlier_share >= 0):
            raise ValueError(
                f"outlier, outlier_share: expected numbers of at least 0, got {self.outlier} and {self.outlier_share}"
            )
        if unknown := [key for key in self.columns if key not in FLOW_METRICS]:
            raise ValueError(f"columns: expected some of {list(FLOW_METRICS)}, got {unknown[0]!r}")

    def describe(self) -> str:
        """One line that states everything."""
        outliers = f"Fl = share of pixels that are off by > {self.outlier:g} px and > {self.outlier_share:.0%}"
        parts = [_AVERAGES[self.average], outliers]
        if "epe_noc" in self.columns:
            parts.append("noc = without occluded pixels")
        if "motion" in self.columns:
            parts.append("motion = length of the true flow")
        return f"protocol {self.name}: {', '.join(parts)}"


FLOW_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        FlowProtocol("flow"),
        FlowProtocol("flow_chairs", columns=("epe", "fl", "motion")),
        # Published tables of end-point error average over images; Fl is that of KITTI 2015's server.
        FlowProtocol("flow_kitti", average="images"),
    )
}


def get_flow_protocol(name: str) -> FlowProtocol:
    """A preset by name, see `FLOW_PROTOCOLS`."""
    if name not in FLOW_PROTOCOLS:
        raise ValueError(f"protocol: expected one of {list(FLOW_PROTOCOLS)}, got {name!r}")
    return FLOW_PROTOCOLS[name]


class FlowEvaluator:
    """`update` once per pair, then `compute` the averages or print the `table`.

    A pair without ground truth is counted, and left out of the averages in plain sight.
    """

    def __init__(self, protocol: FlowProtocol | str) -> None:
        self.protocol = get_flow_protocol(protocol) if isinstance(protocol, str) else protocol
        # For each pair: pixels, sum of errors, outliers, of all and of the visible ones; sum of the true lengths.
        self._sums: list[list[float]] = []

    def update(
        self,
        prediction: Tensor | ArrayLike,
        flow: Tensor | ArrayLike,
        valid: Tensor | ArrayLike | None = None,
        visible: Tensor | ArrayLike | None = None,
        name: str | None = None,
    ) -> dict[str, float]:
        """Adds one pair and returns its metrics.

        prediction, flow: (2,h,w) or (1,2,h,w), in pixels; valid, visible: bool (h,w), (1,h,w) or (1,1,h,w), the pixels
        with ground truth (None: all) and those among them that are not occluded (None: not known). ValueError, which
        begins with `name`, for a prediction of another size or one that is not finite.
        """
        name = name if name is not None else f"pair {len(self._sums)}"
        predicted, truth = (_planes(values, 2, name) for values in (prediction, flow))
        if predicted.shape != truth.shape:
            raise ValueError(
                f"{name}: expected a prediction of the size of the ground truth, {tuple(truth.shape[1:])}, got "
                f"{tuple(predicted.shape[1:])}"
            )
        if not predicted.isfinite().all():
            raise ValueError(f"{name}: expected finite flow, got NaN or infinity")
        size = truth.shape[1:]
        known = torch.ones(size, dtype=torch.bool) if valid is None else _planes(valid, 1, name)[0] > 0
        seen = torch.zeros_like(known) if visible is None else _planes(visible, 1, name)[0] > 0
        if known.shape != size or seen.shape != size:
            raise ValueError(f"{name}: expected valid and visible of the size {tuple(size)} of the flow")
        seen = seen & known
        length = truth.norm(dim=0)
        error = (predicted - truth).norm(dim=0)
        outlier = (error > self.protocol.outlier) & (error > self.protocol.outlier_share * length)
        sums: list[float] = []
        for mask in (known, seen):
            sums += [float(mask.sum()), float(error[mask].sum()), float((outlier & mask).sum())]
        self._sums.append([*sums, float(length[known].sum())])
        return self._metrics([self._sums[-1]])

    def merge(self, other: "FlowEvaluator") -> None:
        """Adds the pairs that another evaluator of the same protocol has seen, such as that of another process."""
        if other.protocol != self.protocol:
            raise ValueError(
                f"other: expected an evaluator of {self.protocol.describe()}, got one of {other.protocol.describe()}"
            )
        self._sums += other._sums

    def gather(self) -> "FlowEvaluator":
        """An evaluator of the pairs of all processes of a distributed run, the same in each; else this one."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        parts: list[list[list[float]]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(parts, self._sums)
        whole = FlowEvaluator(self.protocol)
        whole._sums = [sums for part in parts for sums in part]
        return whole

    def compute(self) -> dict[str, float]:
        """`FLOW_METRICS` over the pairs with ground truth (NaN where there is none), and the counts "images" and
        "without_ground_truth"."""
        with_truth = [sums for sums in self._sums if sums[0]]
        summary = self._metrics(with_truth)
        summary["images"] = len(with_truth)
        summary["without_ground_truth"] = len(self._sums) - len(with_truth)
        return summary

    def table(self) -> str:
        """The averages under a line that states the protocol."""
        summary = self.compute()
        counts = f"{summary['images']:.0f} pairs"
        if summary["without_ground_truth"]:
            counts += f", {summary['without_ground_truth']:.0f} more had no ground truth and are left out"
        columns = self.protocol.columns
        return "\n".join(
            [
                self.protocol.describe(),
                " ".join(f"{_TITLES[key]:>9}" for key in columns),
                " ".join(f"{summary[key]:9.3f}" for key in columns),
                counts,
            ]
        )

    def _metrics(self, pairs: list[list[float]]) -> dict[str, float]:
        """`FLOW_METRICS` of pairs' sums."""
        everywhere = [(count, error, off, length) for count, error, off, *_, length in pairs]
        visible = [(count, error, off, 0.0) for *_, count, error, off, _ in pairs]
        (epe, fl, motion), (epe_noc, fl_noc, _) = (self._averages(part) for part in (everywhere, visible))
        return dict(zip(FLOW_METRICS, (epe, epe_noc, fl, fl_noc, motion), strict=True))

    def _averages(self, parts: list[tuple[float, float, float, float]]) -> tuple[float, float, float]:
        parts = [part for part in parts if part[0]]
        if not parts:
            return math.nan, math.nan, math.nan
        pixels, errors, outliers, lengths = (sum(column) for column in zip(*parts))
        if self.protocol.average == "pixels":
            means = errors / pixels, lengths / pixels
        else:
            each = ((error / count, length / count) for count, error, _, length in parts)
            means = tuple(sum(column) / len(parts) for column in zip(*each))  # type: ignore[assignment]
        return means[0], 100 * outliers / pixels, means[1]


_TITLES = {"epe": "EPE", "epe_noc": "EPE noc", "fl": "Fl %", "fl_noc": "Fl noc %", "motion": "motion"}


def _planes(values: Tensor | ArrayLike, channels: int, name: str) -> Tensor:
    """(channels,h,w) in double precision, from that or (1,channels,h,w), or (h,w) for one channel."""
    tensor = torch.as_tensor(values)
    while tensor.dim() > 3 and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.dim() == 2 and channels == 1:
        tensor = tensor[None]
    if tensor.dim() != 3 or tensor.shape[0] != channels:
        raise ValueError(f"{name}: expected ({channels},h,w) or (1,{channels},h,w), got {tuple(tensor.shape)}")
    return tensor.detach().cpu().double()

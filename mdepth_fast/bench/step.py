"""A training step of Monodepth2 and its parts: this package against the same networks and loss as usually written.

ResNet-18 depth network, pose network over two pairs, Adam. All variants start from the same weights and take turns
within one process; medians, and medians of ratios round by round, are compared.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mdepth_fast._dispatch import use_backend
from mdepth_fast.bench.cases import scene
from mdepth_fast.bench.plain_monodepth2 import PlainDepthNet, PlainPoseNet, copy_weights
from mdepth_fast.engines.runtimes import bfloat16_reason
from mdepth_fast.geometry import pose_matrix
from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.models import create_model

__all__ = ["PARTS", "SIZE", "Step", "StepSpeed", "measure_step", "step_table", "steps"]

SIZE = (2, 192, 640)
PARTS = ("depth net", "pose net", "loss", "backward", "optimiser")
_LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative to plain PyTorch's in float32


class Step:
    """One step; a call returns the loss.

    backend: of the fused losses. fused: PyTorch's fused Adam, which the trainer has. dtype: bfloat16 for the networks
    under autocast, with the loss in float32.
    """

    def __init__(
        self,
        depth_net: nn.Module,
        pose_net: nn.Module,
        backend: str | None,
        fused: bool | None,
        device: torch.device,
        size: tuple[int, int, int] = SIZE,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.depth_net, self.pose_net, self.backend = depth_net.to(device), pose_net.to(device), backend
        self.optimiser = torch.optim.Adam([*depth_net.parameters(), *pose_net.parameters()], lr=1e-4, fused=fused)
        self.loss, self.device, self.dtype = MonodepthLoss(), device, dtype
        inputs = scene(*size)
        self.inputs = [inputs[name].to(device) for name in ("target", "sources", "K")]

    def __call__(self, mark: Callable[[], Any] = lambda: None) -> float:
        """`mark` is called at the end of each of `PARTS`."""
        target, sources, K = self.inputs
        reduced = torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)
        with reduced:
            disparities = self.depth_net(target)
        mark()
        with reduced:
            pairs = [self.pose_net(sources[:, 0], target), self.pose_net(target, sources[:, 1])]
        (turn, shift), (next_turn, next_shift) = ([one.float() for one in pair] for pair in pairs)
        before, after = pose_matrix(turn, shift, invert=True), pose_matrix(next_turn, next_shift)
        mark()
        with use_backend(self.backend):
            maps = [one.float() for one in disparities]
            loss: Tensor = self.loss(maps, target, sources, K, torch.stack([before, after], 1))
        mark()
        self.optimiser.zero_grad()
        loss.backward()
        mark()
        self.optimiser.step()
        value = loss.item()
        mark()
        return value


@dataclass
class StepSpeed:
    """One variant: seconds of whole steps and their median, of each part, and its ratio to plain PyTorch in float32.

    `reason` says why it was not measured. error: relative difference of the first loss from plain PyTorch's.
    """

    variant: str
    reason: str | None = None
    seconds: float = float("nan")
    seconds_each: list[float] = field(default_factory=list)
    parts: dict[str, float] = field(default_factory=dict)
    ratio: float = float("nan")
    error: float = float("nan")


def steps(
    device: torch.device, size: tuple[int, int, int] = SIZE, dtype: torch.dtype = torch.float32
) -> dict[str, Step]:
    """Plain PyTorch's step, "eager", and this package's, "mdepth_fast", with the same weights.

    The trainer's optimiser is PyTorch's fused Adam; published code has the default.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        depth_net, pose_net = create_model("monodepth2_resnet18"), create_model("posenet_resnet18")
        plain_depth, plain_pose = PlainDepthNet(), PlainPoseNet()
    copy_weights(plain_depth, depth_net)
    copy_weights(plain_pose, pose_net)
    return {
        "eager": Step(plain_depth, plain_pose, "reference", None, device, size, dtype),
        "mdepth_fast": Step(depth_net, pose_net, None, True, device, size, dtype),
    }


def measure_step(
    size: tuple[int, int, int] = SIZE,
    *,
    device: torch.device | str = "cpu",
    rounds: int = 5,
    track: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> list[StepSpeed]:
    """Times the steps in turn, `rounds` times each after one to warm up, in float32 and bfloat16.

    bfloat16 is left out on hardware without units for it. RuntimeError where a step's first loss is not plain
    PyTorch's.
    """
    device = torch.device(device)
    ready: list[tuple[StepSpeed, Step]] = []
    left_out: list[StepSpeed] = []
    for dtype in (torch.float32, torch.bfloat16):
        suffix = "" if dtype == torch.float32 else " bfloat16"
        if suffix and (reason := bfloat16_reason(device)):
            left_out += [StepSpeed(name + suffix, reason) for name in ("eager", "mdepth_fast")]
            continue
        ready += [(StepSpeed(name + suffix), step) for name, step in steps(device, size, dtype).items()]
    expected = None
    for row, step in ready:
        loss = step()
        expected = loss if expected is None else expected
        row.error = abs(loss - expected) / abs(expected)
        if not row.error < _LOSS_TOLERANCE[step.dtype]:
            raise RuntimeError(f"{row.variant}: its loss is {loss:.6g}, plain PyTorch's {expected:.6g}")
    parts: dict[str, list[list[float]]] = {row.variant: [] for row, _ in ready}
    for _ in track(range(rounds)):
        for row, step in ready:
            marks = [_now(device)]
            step(lambda marks=marks: marks.append(_now(device)))  # type: ignore[misc]
            row.seconds_each.append(marks[-1] - marks[0])
            parts[row.variant].append([after - before for before, after in itertools.pairwise(marks)])
    first = ready[0][0]
    for row, _ in ready:
        row.seconds = statistics.median(row.seconds_each)
        row.ratio = statistics.median(a / b for a, b in zip(first.seconds_each, row.seconds_each, strict=True))
        row.parts = dict(zip(PARTS, map(statistics.median, zip(*parts[row.variant])), strict=True))
    return [row for row, _ in ready] + left_out


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def step_table(title: str, rows: list[StepSpeed]) -> str:
    """The measurements as lines to read, milliseconds."""
    lines = [title, f"  {'variant':<22}{'step':>9}{'x eager':>9}" + "".join(f"{part:>11}" for part in PARTS)]
    for row in rows:
        if row.reason:
            lines.append(f"  {row.variant:<22}  not here: {row.reason}")
            continue
        cells = "".join(f"{1e3 * row.parts[part]:>11.1f}" for part in PARTS)
        lines.append(f"  {row.variant:<22}{1e3 * row.seconds:>9.1f}{row.ratio:>9.2f}{cells}")
    return "\n".join(lines)

"""Speed of a network's inference: one image at a time, and in the batches in which it is fastest.

The network runs as it is, under `torch.compile`, and as its copy for inference. All three take turns within one
process, and medians are compared. Float32, without TF32; a GPU is waited for.
"""

import re
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mdepth_fast.bench.measure import Calls, in_turn, peak_bytes, precision, seconds
from mdepth_fast.bench.report import ran_text
from mdepth_fast.models import DepthModel, Model

__all__ = ["VARIANTS", "InferenceSpeed", "default_size", "free_bytes", "measure_network", "network_table"]

VARIANTS = ("eager", "compile", "optimized")
_GROWTH = 1.05  # a batch twice as large counts as faster from here on
_TOLERANCE = 1e-2  # relative L2 distance to eager's result


@dataclass
class InferenceSpeed:
    """Medians of one variant; `reason` says why it was not measured."""

    variant: str
    reason: str | None = None
    latency: float = float("nan")
    """seconds for one image"""
    latency_each: list[float] = field(default_factory=list)
    batch: int = 1
    """the batch size with the most images per second"""
    batch_seconds: float = float("nan")
    batch_seconds_each: list[float] = field(default_factory=list)
    start_up: float = float("nan")
    """seconds until the first result: compiling, folding batch norms, packing weights"""
    error: float = float("nan")
    """relative L2 distance of its result to eager's"""
    ran: Calls = field(default_factory=list)
    """(op, backend) of the kernels that ran"""

    @property
    def images_per_second(self) -> float:
        return self.batch / self.batch_seconds


def default_size(net: Any, published: tuple[int, int] | None = None) -> tuple[int, int]:
    """(H, W) to measure a network at: that of its training, of its paper, or near Monodepth2's 192x640."""
    size: tuple[int, int] | None = getattr(net, "input_size", None) or published
    return size or (net.network_size(192, 640) if hasattr(net, "network_size") else (192, 640))


def measure_network(
    net: Model,
    size: tuple[int, int],
    *,
    device: torch.device | str = "cpu",
    rounds: int = 5,
    variants: Iterable[str] = VARIANTS,
    free: Callable[[torch.device], int | None] | None = None,
    track: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> list[InferenceSpeed]:
    """Times the inference of `net`, which it moves to `device`, at `size` (H, W); a depth network up to its depth map.

    The best batch size is found by doubling, until the images per second stop to grow or the memory ends: `free`
    (default: `free_bytes`) says how much there is. Under torch.compile, the batch is eager's best one. A variant whose
    result is not eager's is not timed.

    ValueError if the network takes no images of this size, or reads the features of another network.
    """
    device = torch.device(device)
    net = net.to(device).eval().requires_grad_(False)
    call = _call(net)
    torch.compiler.reset()  # the sizes of other networks count towards the compiler's limit of recompilations
    rows = [InferenceSpeed(name) for name in variants]
    ready: list[tuple[InferenceSpeed, Callable[..., Any]]] = []
    with torch.no_grad(), precision(tf32=False):
        inputs = partial(_inputs, net, size, device)
        images = inputs(1)
        try:
            want = call(*images)
        except ValueError as error:
            raise ValueError(f"size: {type(net).__name__} does not take {size[0]}x{size[1]}: {error}") from error
        for row in track(rows):
            start = time.perf_counter()
            try:
                variant = _prepared(row.variant, net, call)
                got = variant(*images)
                _wait(device)
            except Exception as error:  # of a compiler, or of a network that it cannot trace: no fault of the others
                if row.variant == "eager":
                    raise
                row.reason = _first_line(error)
                continue
            row.start_up = time.perf_counter() - start
            row.error = _distance(got, want)
            if not row.error < _TOLERANCE:
                row.reason = f"its result is off by {row.error:.2g}"
                continue
            ready.append((row, variant))
        for row, measured in zip(
            [row for row, _ in ready],
            in_turn({row.variant: partial(variant, *images) for row, variant in ready}, rounds, device),
            strict=True,
        ):
            row.latency, row.latency_each, row.ran = measured.seconds, measured.seconds_each, measured.forward or []
        eager = 1
        for row, variant in track(ready):
            if row.variant == "compile":
                row.batch = eager
            else:
                row.batch = _best_batch(variant, inputs, device, row.latency, free or free_bytes)
            eager = row.batch if row.variant == "eager" else eager
        given = {batch: inputs(batch) for batch in {row.batch for row, _ in ready}}
        steps = {row.variant: partial(variant, *given[row.batch]) for row, variant in ready}
        for (row, _), measured in zip(ready, in_turn(steps, rounds, device), strict=True):
            row.batch_seconds, row.batch_seconds_each = measured.seconds, measured.seconds_each
    return rows


def _call(net: Model) -> Callable[..., Any]:
    if getattr(net, "reads_features", False):
        raise ValueError(f"{type(net).__name__}: it reads the features of a depth network, and runs with that alone")
    return net.infer if isinstance(net, DepthModel) else net


def _inputs(net: Any, size: tuple[int, int], device: torch.device, batch: int) -> tuple[Tensor, ...]:
    """Images for `_call`: one of each, two, or a stack of frames."""
    generator = torch.Generator().manual_seed(0)
    frames = 1 + net.sources if getattr(net, "stacks_frames", False) else 1 if isinstance(net, DepthModel) else 2
    images = torch.rand(batch, frames, 3, *size, generator=generator).to(device)
    if isinstance(net, DepthModel):
        return (images[:, 0],)
    return (images,) if getattr(net, "stacks_frames", False) else (images[:, 0], images[:, 1])


def _prepared(variant: str, net: Model, call: Callable[..., Any]) -> Callable[..., Any]:
    if variant == "compile":
        return torch.compile(call, dynamic=False)
    if variant == "optimized":
        if not isinstance(net, DepthModel):
            raise ValueError("only a depth network has optimize_for_inference")
        return net.optimize_for_inference().infer
    return call


def _best_batch(
    call: Callable[..., Any],
    inputs: Callable[[int], tuple[Tensor, ...]],
    device: torch.device,
    latency: float,
    free: Callable[[torch.device], int | None],
) -> int:
    best, rate, batch = 1, 1 / latency, 1
    taken = peak_bytes(partial(call, *inputs(1)), device)
    while True:
        room = free(device)
        if room is not None and 2 * taken > 0.8 * room:
            return best
        batch *= 2
        try:
            step = partial(call, *inputs(batch))
            taken = peak_bytes(step, device)
            new = batch / statistics.median(seconds(step, device) for _ in range(3))
        except (torch.OutOfMemoryError, MemoryError):
            return best
        except RuntimeError as error:
            if "memory" not in str(error):  # PyTorch's allocator for a CPU
                raise
            return best
        if new < _GROWTH * rate:
            return best
        best, rate = batch, new


def free_bytes(device: torch.device) -> int | None:
    """Memory that is left: on a GPU, or on Linux for this process and in its control group; None if unknown."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    found = []
    with suppress(OSError, ValueError, AttributeError):
        available = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
        found.append(1024 * int(available[1]))  # type: ignore[index]
    with suppress(OSError, ValueError):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        found.append(limit - int((group / "memory.current").read_text()))
    return max(0, min(found)) if found else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _distance(got: Any, want: Any) -> float:
    a, b = (torch.cat([leaf.double().flatten() for leaf in tree_leaves(one)]) for one in (got, want))
    return float((a - b).norm() / b.norm()) if b.any() else float(a.norm())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}" if not isinstance(error, ValueError) else lines[0]


def network_table(title: str, rows: list[InferenceSpeed], published: Iterable[Any]) -> str:
    """The measurements as lines to read, and under them the figures of papers, which other hardware reached."""
    lines = [
        title,
        f"  {'variant':<10}{'one image':>12}{'images/s':>10}{'best batch':>12}{'images/s':>10}{'x eager':>9}"
        f"{'start-up':>11}  ran",
    ]
    eager = next((row.latency for row in rows if row.variant == "eager"), float("nan"))
    for row in rows:
        if row.reason:
            lines.append(f"  {row.variant:<10}  not here: {row.reason}")
            continue
        ratio = f"{eager / row.latency:.2f}" if eager == eager else "-"
        lines.append(
            f"  {row.variant:<10}{1e3 * row.latency:>9.2f} ms{1 / row.latency:>10.4g}{row.batch:>12}"
            f"{row.images_per_second:>10.4g}{ratio:>9}{row.start_up:>9.1f} s  {ran_text(row.ran, None)}"
        )
    lines += [f"  published, other hardware: {one}" for one in published]
    return "\n".join(lines)

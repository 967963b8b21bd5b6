"""Speed of a network's inference: one image at a time, and in the batches in which it is fastest.

The network runs as it is, under `torch.compile`, and as its copy for inference on each engine that is installed, in
float32 and bfloat16. All take turns within one process, a block of runs each, with half a second between blocks: the
threads of one runtime would slow the next one down. Medians of blocks, and of their ratios to eager's round by round,
are compared. Float32 is without TF32; a GPU is waited for.
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

from mdepth_fast.bench.measure import Calls, in_blocks, peak_bytes, precision, seconds
from mdepth_fast.bench.report import ran_text
from mdepth_fast.engines import OF_ONNX
from mdepth_fast.models import DepthModel, Model

__all__ = [
    "VARIANTS",
    "InferenceSpeed",
    "default_size",
    "engine_speeds",
    "free_bytes",
    "measure_network",
    "network_table",
]

# Engines of `optimize_for_inference`, but for eager, which is its "torch", and compile.
VARIANTS = (
    "eager",
    "compile",
    "native",
    "onnxruntime",
    "openvino",
    "eager bfloat16",
    "native bfloat16",
    "openvino bfloat16",
)
_GROWTH = 1.05  # a batch twice as large counts as faster from here on
_TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1}  # relative L2 distance to eager's result in float32


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
    """relative L2 distance of its result to eager's in float32"""
    ratio: float = float("nan")
    """how many times faster than eager for one image: the median of the rounds"""
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
            name, _, dtype = row.variant.partition(" ")
            try:
                variant = _prepared(name, dtype or "float32", net, call)
                got = variant(*images)
                _wait(device)
            except Exception as error:  # of a compiler, or of a network that it cannot trace: no fault of the others
                if row.variant == "eager":
                    raise
                row.reason = _first_line(error)
                continue
            row.start_up = time.perf_counter() - start
            row.error = _distance(got, want)
            if not row.error < _TOLERANCE[dtype or "float32"]:
                row.reason = f"its result is off by {row.error:.2g}"
                continue
            ready.append((row, variant))
        for row, measured in zip(
            [row for row, _ in ready],
            in_blocks({row.variant: partial(variant, *images) for row, variant in ready}, rounds, device),
            strict=True,
        ):
            row.latency, row.latency_each, row.ran = measured.seconds, measured.seconds_each, measured.forward or []
        if ready and ready[0][0].variant == "eager":
            for row, _ in ready:
                each = zip(ready[0][0].latency_each, row.latency_each, strict=True)
                row.ratio = statistics.median(a / b for a, b in each)
        eager = 1
        for row, variant in track(ready):
            if row.variant == "compile":
                row.batch = eager
            else:
                row.batch = _best_batch(variant, inputs, device, row.latency, free or free_bytes)
            eager = row.batch if row.variant == "eager" else eager
        given = {batch: inputs(batch) for batch in {row.batch for row, _ in ready}}
        steps = {row.variant: partial(variant, *given[row.batch]) for row, variant in ready}
        for (row, _), measured in zip(ready, in_blocks(steps, rounds, device), strict=True):
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


def _prepared(name: str, dtype: str, net: Model, call: Callable[..., Any]) -> Callable[..., Any]:
    if name == "compile":
        return torch.compile(call, dynamic=False)
    if name == "eager" and dtype == "float32":
        return call
    return _call(net.optimize_for_inference(engine="torch" if name == "eager" else name, dtype=dtype))


def engine_speeds(rows: Iterable[InferenceSpeed], dtype: str) -> dict[str, float]:
    """The speed of each engine in `dtype`, as a multiple of eager's in float32: what `engines.fastest.record` takes."""
    speeds = {}
    for row in rows:
        name, _, own = row.variant.partition(" ")
        if name != "compile" and (own or "float32") == dtype and row.ratio == row.ratio:
            speeds["torch" if name == "eager" else name] = row.ratio
    return speeds


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
        f"  {'variant':<18}{'one image':>12}{'images/s':>10}{'best batch':>12}{'images/s':>10}{'x eager':>9}"
        f"{'error':>9}{'start-up':>11}  ran",
    ]
    for row in rows:
        if row.reason:
            lines.append(f"  {row.variant:<18}  not here: {row.reason}")
            continue
        ratio = f"{row.ratio:.2f}" if row.ratio == row.ratio else "-"
        error = f"{row.error:.0e}" if row.error == row.error else "-"
        engine = row.variant.partition(" ")[0]
        ran = engine if engine in OF_ONNX else ran_text(row.ran, None)
        lines.append(
            f"  {row.variant:<18}{1e3 * row.latency:>9.2f} ms{1 / row.latency:>10.4g}{row.batch:>12}"
            f"{row.images_per_second:>10.4g}{ratio:>9}{error:>9}{row.start_up:>9.1f} s  {ran}"
        )
    lines += [f"  published, other hardware: {one}" for one in published]
    return "\n".join(lines)

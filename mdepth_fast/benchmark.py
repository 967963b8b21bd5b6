"""Side-by-side measurements of ops, losses and networks: plain PyTorch, `torch.compile` of it, and every backend.

The variants of a case run in turn within one process, and medians are compared, so that a busy machine slows all of
them alike. No variant is timed before its result has been found equal to the reference's in float64. On a GPU a run is
timed by events, its caches cold and its launches queued beforehand; what they take on the host is a column of its own.
"""

import ctypes
import functools
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast import _dispatch, ops
from mdepth_fast.evaluation import get_protocol
from mdepth_fast.files import replacing
from mdepth_fast.geometry import pose_matrix
from mdepth_fast.losses import MonodepthLoss
from mdepth_fast.models import DepthModel, create_model
from mdepth_fast.ops.nnconv5 import reference as nnconv5_reference

__all__ = [
    "CASES",
    "GPU_CASES",
    "VARIANTS",
    "Case",
    "Measurement",
    "chart",
    "measure",
    "precision",
    "prepare",
    "seconds",
    "table",
    "unavailable",
]

FLUSH_BYTES = 2**28  # several times the second-level cache of any GPU
HEAD_START = 20_000_000  # a GPU's cycles, some 10 ms: longer than the host takes for the launches of a step

# Plain PyTorch first: everything is a ratio to it. "freeze" is `torch.compile` that takes weights for constants.
PLAIN = ("eager", "compile", "freeze")
VARIANTS = (*PLAIN, *(name for name in _dispatch.BACKENDS if name != "reference"))


@dataclass(frozen=True)
class Case:
    """One thing to measure: `inputs(batch, height, width)` gives tensors by name, `call(**tensors)` takes them.

    `call` may be the name of a network: plain PyTorch runs it as it is, in eval mode, the backends run its copy for
    inference. Tensors named in `differentiable` get gradients; without any only the forward is run. Bytes and
    operations are the least that any kernel could do; the larger of their times is the floor. `plain` is what plain
    PyTorch runs instead of the reference, all tensors of `dtype`; on a GPU in the faster layout of its images.
    """

    name: str
    op: str
    inputs: Callable[[int, int, int], dict[str, Any]]
    differentiable: tuple[str, ...]
    call: Callable[..., Tensor] | str
    bytes_per_pixel: float  # of forward + backward, every input read and every output written once a pass
    flops_per_pixel: float  # of forward + backward
    bytes_of_weights: float = 0  # read once, whatever the size
    plain: Callable[..., Tensor] | None = None
    dtype: torch.dtype = torch.float32  # of the products
    tf32: bool = False  # a GPU may round the factors of float32
    size: tuple[int, int, int] = (4, 192, 640)  # batch, height and width unless asked otherwise
    gpu_batch: int = 12  # the batch where a GPU is measured
    # Largest error. float32 flips the winner of a few pixels of the losses; anything beyond that is a wrong kernel.
    tolerance: float = 0.05


@dataclass
class Measurement:
    """Medians of one variant of a case; `reason` says why it was not measured."""

    variant: str
    reason: str | None = None
    seconds: float = float("nan")
    seconds_each: list[float] = field(default_factory=list)
    host_seconds: float = float("nan")  # on a GPU: until the host could go on
    kept_bytes: int = 0  # kept between forward and backward, beyond the inputs
    peak_bytes: int = 0  # largest extra memory of a step
    layout: str = "contiguous"  # of plain PyTorch's images, the faster one where it may choose
    error: float = float("nan")  # relative L2 error of all gradients (or of the output) against float64


def scene(batch: int, height: int, width: int, sources: int = 2, scales: int = 4) -> dict[str, Any]:
    """A smooth random target, sources that resemble it, depth maps and small motions; seeded."""
    generator = torch.Generator().manual_seed(0)

    def smooth(channels: int, cell: int) -> Tensor:
        coarse = torch.rand(batch, channels, height // cell + 2, width // cell + 2, generator=generator)
        return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True).clamp(0.02, 0.98)

    target = smooth(3, 8)
    shifted = [
        torch.roll(target, 2 + s, -1) + 0.02 * torch.rand(target.shape, generator=generator) for s in range(sources)
    ]
    K = torch.tensor([[0.58 * width, 0, (width - 1) / 2], [0, 1.92 * height, (height - 1) / 2], [0, 0, 1]])
    motion = 0.02 * torch.randn(batch, sources, 6, generator=generator)
    return {
        "target": target,
        "sources": torch.stack(shifted, 1).clamp(0, 1),
        "disparities": [smooth(1, 16)[..., :: 2**s, :: 2**s] * 0.05 + 0.01 for s in range(scales)],
        "depths": [2 + 6 * smooth(1, 2 ** (3 + s)) for s in range(scales)],
        "K": K.repeat(batch, 1, 1),
        "T": pose_matrix(0.3 * motion[..., :3], motion[..., 3:]),
    }


def _warp_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width, 1, 1)
    return {"source": s["sources"][:, 0], "depth": s["depths"][0], "K": s["K"], "T": s["T"][:, 0]}


def _pair_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width, 1, 1)
    return {"prediction": s["sources"][:, 0], "target": s["target"]}


def _smooth_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width, 1, 1)
    return {"disparity": s["disparities"][0], "image": s["target"]}


def _map_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    """A decoder's map of scale 2, and an image of the size of the depth."""
    s = scene(batch, height, width, 1, 3)
    return {"disparity": s["disparities"][2], "image": s["target"]}


def _disparity_to_depth(disparity: Tensor, image: Tensor) -> Tensor:
    return ops.disparity_to_depth(disparity, image.shape[2:])


def _reprojection_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width)
    return {name: s[name] for name in ("target", "sources", "depths", "K", "T")}


def _loss_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    s = scene(batch, height, width)
    return {name: s[name] for name in ("target", "sources", "disparities", "K", "T")}


def _whole_loss(target: Tensor, sources: Tensor, disparities: list[Tensor], K: Tensor, T: Tensor) -> Tensor:
    return MonodepthLoss()(disparities, target, sources, K, T)


def _ordinal_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    thresholds = torch.logspace(0, 1.9, 81)  # 80 bins, spaced as in DORN
    logits = 3 * torch.randn(batch, 160, height, width, generator=generator)
    return {
        "logits": logits,
        "depth": 1 + 78 * scene(batch, height, width, 1, 1)["disparities"][0] / 0.06,
        "thresholds": thresholds,
    }


def _decode_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    inputs = _ordinal_inputs(batch, height, width)
    return {name: inputs[name] for name in ("logits", "thresholds")}


def _sparse_inputs(batch: int, height: int, width: int) -> dict[str, Any]:
    """Ground truth as dense as an annotated LiDAR frame: a fifth of the pixels, without order."""
    generator = torch.Generator().manual_seed(0)
    depth = 1 + 78 * scene(batch, height, width, 1, 1)["disparities"][0] / 0.06
    prediction = depth * torch.exp(0.2 * torch.randn(depth.shape, generator=generator))
    return {
        "prediction": prediction,
        "depth": depth.masked_fill(torch.rand(depth.shape, generator=generator) > 0.2, 0.0),
    }


def lidar_frame(batch: int, height: int, width: int, scans: int = 1) -> dict[str, Any]:
    """Depth maps and ground truth as a LiDAR gives it: rows of points below the horizon, one pixel in thirty a scan."""
    generator = torch.Generator().manual_seed(0)
    y, x = torch.arange(height)[:, None], torch.arange(width)
    depth = (70 * height / (height + 14 * (y - 0.4 * height).clamp(min=0))).expand(batch, 1, height, width)
    beam = (y + 3 * torch.cos(4.0 * x / width)).round() % 6 == 0  # a horizontal circle, seen from above it
    kept = torch.rand(batch, 1, height, width, generator=generator)
    hit = beam & (x % 2 == 0) & (kept < 0.7) if scans == 1 else kept < 0.7 * scans / 24  # they overlap
    hit = hit & (y > 0.4 * height)
    error = 0.15 * torch.randn(batch, 1, height, width, generator=generator)
    return {"prediction": depth * error.exp(), "ground_truth": torch.where(hit, depth, 0).float()}


def _depth_metrics(prediction: Tensor, ground_truth: Tensor) -> Tensor:
    window = get_protocol("kitti_garg_80").window(prediction.shape[-2], prediction.shape[-1])
    return ops.depth_metrics(prediction, ground_truth, window=window)


def _nnconv5_case(channels: int, outputs: int, side: int, gpu_batch: int = 32, kind: str = "") -> Case:
    """One block of FastDepth's decoder in inference; a pixel is one of its input."""

    def inputs(batch: int, height: int, width: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        tensors = {
            "x": normal(batch, channels, height, width),
            "dw_weight": normal(channels, 1, 5, 5) / 5,
            "dw_scale": normal(channels).abs(),
            "dw_shift": normal(channels),
            "pw_weight": normal(outputs, channels, 1, 1) / channels**0.5,
            "pw_scale": normal(outputs).abs(),
            "pw_shift": normal(outputs),
        }
        rounded = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        return {name: one if name in ("x", "pw_weight") else one.float() for name, one in rounded.items()}

    dtype = torch.float16 if kind == "_fp16" else torch.float32
    return Case(
        f"nnconv5_{channels}{kind}" + "_single" * (gpu_batch == 1),
        "nnconv5",
        inputs,
        (),
        ops.nnconv5,
        bytes_per_pixel=dtype.itemsize * (channels + 4 * outputs),
        flops_per_pixel=2 * channels * (25 + outputs),
        bytes_of_weights=dtype.itemsize * channels * (outputs + 27),
        plain=nnconv5_reference,
        dtype=dtype,
        tf32=kind == "_tf32",
        size=(1, side, side),
        gpu_batch=gpu_batch,
        tolerance=5e-3 if kind else 1e-5,
    )


def _network_case(name: str, macs: float, parameters: int) -> Case:
    """A network on an image of 224 x 224, the weights read once."""

    def inputs(batch: int, height: int, width: int) -> dict[str, Any]:
        return {"images": scene(batch, height, width, 1, 1)["target"]}

    return Case(
        name,
        "conv_stack",
        inputs,
        (),
        name,
        bytes_per_pixel=12 + 4,
        flops_per_pixel=2 * macs / 224**2,
        bytes_of_weights=4 * parameters,
        size=(1, 224, 224),
        gpu_batch=32,
        tolerance=1e-4,
    )


def network(name: str, fast: bool, like: Tensor) -> nn.Module:
    """A network in eval mode, its batch norms with statistics as after training, or its copy for inference; seeded."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(name).eval().requires_grad_(False)
        assert isinstance(model, DepthModel)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                assert layer.running_mean is not None and layer.running_var is not None
                nn.init.normal_(layer.running_mean, 0.0, 0.1)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
                nn.init.normal_(layer.bias, 0.1, 0.1)
            if isinstance(layer, nn.Conv2d) and layer.out_channels == 1:
                layer.weight.abs_()  # or the ReLU behind it may leave nothing
    model = model.to(dtype=like.dtype, device=like.device)
    return model.optimize_for_inference() if fast else model


def _min_reprojection(target: Tensor, sources: Tensor, depths: list[Tensor], K: Tensor, T: Tensor) -> Tensor:
    return ops.min_reprojection(target, sources, depths, K, T).loss


_DECODER = ((1024, 512, 7), (512, 256, 14), (256, 128, 28), (128, 64, 56), (64, 32, 112))

CASES = {
    case.name: case
    for case in (
        Case(
            "inverse_warp",
            "inverse_warp",
            _warp_inputs,
            ("source", "depth", "T"),
            lambda **t: ops.inverse_warp(**t)[0],
            bytes_per_pixel=29 + 44,  # source, depth, warped, valid; gradient, source, depth and both gradients
            flops_per_pixel=94 + 140,
        ),
        Case(
            "photometric_loss",
            "photometric_loss",
            _pair_inputs,
            ("prediction",),
            ops.photometric_loss,
            bytes_per_pixel=28 + 40,  # both images, loss; its gradient, both images, one image's gradient
            flops_per_pixel=414 + 540,
        ),
        Case(
            "edge_aware_smoothness",
            "edge_aware_smoothness",
            _smooth_inputs,
            ("disparity",),
            ops.edge_aware_smoothness,
            bytes_per_pixel=20 + 8,  # disparity, image, gradient; the gradient times a number
            flops_per_pixel=75,
        ),
        Case(
            "disparity_to_depth",
            "disparity_to_depth",
            _map_inputs,
            ("disparity",),
            _disparity_to_depth,
            bytes_per_pixel=4 + 8 + 2 * 4 / 16,  # depth; depth and its gradient; the map and its gradient
            flops_per_pixel=8 + 5,
        ),
        Case(
            "min_reprojection",
            "min_reprojection",
            _reprojection_inputs,
            ("depths", "T"),
            _min_reprojection,
            # Target and 2 sources once; each of 4 scales: depth, gradient, selection, the gradient times a number.
            bytes_per_pixel=36 + 4 * (9 + 8),
            # Each scale and source: warp 94, SSIM and L1 294, choice 4, window adjoint 45, gradient 111; shared: 708.
            flops_per_pixel=8 * 548 + 708,
        ),
        Case(
            "monodepth_loss",
            "min_reprojection",
            _loss_inputs,
            ("disparities", "T"),
            _whole_loss,
            bytes_per_pixel=36 + 4 + 11,  # images, selections, disparities and their gradients
            flops_per_pixel=8 * 548 + 708 + 220,
        ),
        Case(
            "ordinal_decode",
            "ordinal_decode",
            _decode_inputs,
            (),
            lambda **t: ops.ordinal_decode(**t)[0],
            bytes_per_pixel=160 * 4 + 4 + 8,  # logits, depth, label
            flops_per_pixel=80 * 2,
            size=(2, 385, 513),
            gpu_batch=8,
        ),
        Case(
            "ordinal_loss",
            "ordinal_loss",
            _ordinal_inputs,
            ("logits",),
            ops.ordinal_loss,
            bytes_per_pixel=3 * 160 * 4 + 8,  # logits twice and their gradient once
            flops_per_pixel=80 * 40,
            size=(2, 385, 513),
            gpu_batch=8,
        ),
        Case(
            "silog_loss",
            "silog_loss",
            _sparse_inputs,
            ("prediction",),
            lambda **t: ops.silog_loss(**t, valid="measured"),
            bytes_per_pixel=2 * 8 + 4,  # both maps twice, the gradient
            flops_per_pixel=0.2 * 2 * 35,
            size=(8, 352, 1216),
            gpu_batch=32,
        ),
        Case(
            "berhu_loss",
            "berhu_loss",
            _sparse_inputs,
            ("prediction",),
            lambda **t: ops.berhu_loss(**t, valid="measured"),
            bytes_per_pixel=3 * 8 + 4,  # both maps for the largest error, the cost and the gradient
            flops_per_pixel=15,
            size=(8, 352, 1216),
            gpu_batch=32,
        ),
        Case(
            "depth_metrics",
            "depth_metrics",
            lidar_frame,
            (),
            _depth_metrics,
            bytes_per_pixel=0.54 * (4 + 0.06 * 4),  # of the window: ground truth, predictions where it is
            flops_per_pixel=0.54 * 0.06 * 80,
            size=(1, 375, 1242),
            gpu_batch=8,
        ),
        *(_nnconv5_case(*shape) for shape in _DECODER),
        _network_case("fastdepth", macs=0.7367e9, parameters=3_933_088),
        _network_case("fastdepth_pruned", macs=0.3664e9, parameters=1_343_664),
    )
}


# What is measured on a GPU beyond those: a single image, TF32 and half precision.
GPU_CASES = {
    case.name: case
    for case in (
        _nnconv5_case(*shape, gpu_batch, kind)
        for kind in ("", "_tf32", "_fp16")
        for gpu_batch in ((32, 1) if kind else (1,))
        for shape in _DECODER
    )
}


def unavailable(case: Case, variant: str, device: torch.device) -> str | None:
    """Why `variant` of a case cannot run on `device`; None if it can."""
    if variant == "freeze" and not isinstance(case.call, str):
        return "only a network has weights of its own"
    return None if variant in PLAIN else _dispatch.why_not(case.op, variant, device)


class Step:
    """Forward and backward of a case in one variant."""

    def __init__(self, case: Case, variant: str, inputs: dict[str, Any]) -> None:
        self.backend = "reference" if variant in PLAIN else variant
        self.inputs = {name: _leaf(value, name in case.differentiable) for name, value in inputs.items()}
        self.leaves = [t for name in case.differentiable for t in _tensors(self.inputs[name])]
        self.call: Callable[..., Tensor]
        if isinstance(case.call, str):
            self.call = network(case.call, variant not in PLAIN, _tensors(next(iter(self.inputs.values())))[0])
        else:
            self.call = case.plain if case.plain and variant in PLAIN else case.call
        if variant in ("compile", "freeze"):
            # dynamic=False: a size of its own for every case, as a training run would have.
            self.call = torch.compile(self.call, dynamic=False)
        if variant == "freeze":
            with torch.no_grad(), torch._inductor.config.patch(freezing=True):
                self.forward()  # which compiles it

    def forward(self) -> Tensor:
        with _dispatch.use_backend(self.backend):
            return self.call(**self.inputs)

    def __call__(self) -> list[Tensor]:
        if not self.leaves:
            with torch.no_grad():
                return [self.forward()]
        output = self.forward()
        return list(torch.autograd.grad(output, self.leaves, torch.ones_like(output)))


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _leaf(value: Any, differentiable: bool) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_(differentiable)
    return [_leaf(one, differentiable) for one in value]


def _channels_last(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(memory_format=torch.channels_last) if isinstance(value, Tensor) and value.dim() == 4 else value
        for name, value in inputs.items()
    }


def _convert(value: Any, **to: Any) -> Any:
    return value.to(**to) if isinstance(value, Tensor) else [_convert(one, **to) for one in value]


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Products of float32 on a GPU by TF32 or exact, cuDNN's too, which PyTorch would round unless told otherwise."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def measure(
    case: Case,
    batch: int,
    height: int,
    width: int,
    *,
    variants: Iterable[str] = VARIANTS,
    device: torch.device | str = "cpu",
    rounds: int = 5,
    track: Callable[[Iterable[Any]], Iterable[Any]] = lambda items: items,
) -> list[Measurement]:
    """Times the variants in turn, `rounds` times each after one warm-up, forward and backward.

    Raises AssertionError where a variant's gradients are not those of the reference.
    """
    device = torch.device(device)
    torch.compiler.reset()  # the sizes of other cases count towards the compiler's limit of recompilations
    given = problem(case, batch, height, width, device)
    results: list[Measurement] = []
    steps: list[tuple[Measurement, Step, list[float]]] = []
    for variant in track(list(variants)):
        reason = unavailable(case, variant, device)
        if reason:
            results.append(Measurement(variant, reason))
            continue
        try:
            step, one = prepare(case, variant, given, device=device)
        except torch._dynamo.exc.TorchDynamoException as error:  # torch.compile's failure is not ours
            results.append(Measurement(variant, f"torch.compile failed: {str(error).strip().splitlines()[0]}"))
            continue
        results.append(one)
        steps.append((one, step, []))
    with precision(case.tf32):
        for _ in track(range(rounds)):
            for one, step, host in steps:
                whole, issued = seconds_and_host(step, device)
                one.seconds_each.append(whole)
                host.append(issued)
    for one, _, host in steps:
        one.seconds, one.host_seconds = statistics.median(one.seconds_each), statistics.median(host)
    return results


@dataclass
class Problem:
    """What all variants of a case are given, and what they are to find: its results in float64."""

    inputs: dict[str, Any]
    exact: list[Tensor]


def problem(case: Case, batch: int, height: int, width: int, device: torch.device) -> Problem:
    inputs = {name: _convert(value, device=device) for name, value in case.inputs(batch, height, width).items()}
    wide = {name: _convert(value, dtype=torch.float64) for name, value in inputs.items()}
    return Problem(inputs, Step(case, "eager", wide)())


def prepare(case: Case, variant: str, given: Problem, *, device: torch.device) -> tuple[Step, Measurement]:
    """A variant that is ready to be timed: run once, found right, its memory measured.

    Raises AssertionError where its gradients are not those of the reference in float64.
    """
    with precision(case.tf32):
        plain = case.plain is not None and variant in PLAIN
        inputs = given.inputs
        if plain:
            inputs = {name: _convert(value, dtype=case.dtype) for name, value in inputs.items()}
        step, one = Step(case, variant, inputs), Measurement(variant)
        if plain and device.type == "cuda":
            steps = {"contiguous": step, "channels_last": Step(case, variant, _channels_last(inputs))}
            times = {layout: min(seconds(steps[layout], device) for _ in range(10)) for layout in steps}
            one.layout = min(times, key=times.__getitem__)
            step = steps[one.layout]
        one.error = _relative_error(step(), given.exact)
        assert one.error < case.tolerance, f"{case.name}, {variant}: the result is off by {one.error:.2g}"
        one.kept_bytes = kept_bytes(step)
        one.peak_bytes = peak_bytes(step, device)
    return step, one


@dataclass(frozen=True)
class Speed:
    """What the device was measured to do: bytes and operations per second."""

    copy: float
    arithmetic: float

    def floor(self, case: Case, pixels: int) -> float:
        """Seconds below which no kernel could be: its bytes at copy speed or its arithmetic at matrix product speed."""
        moved = case.bytes_per_pixel * pixels + case.bytes_of_weights
        return max(moved / self.copy, case.flops_per_pixel * pixels / self.arithmetic)


@functools.cache
def device_speed(device: torch.device, dtype: torch.dtype = torch.float32, tf32: bool = False) -> Speed:
    """Measures a large copy and a large matrix product of `dtype`."""
    source = torch.ones(2**28 if device.type == "cuda" else 2**24, device=device)
    target = torch.empty_like(source)
    copy = min(seconds_and_host(lambda: target.copy_(source), device)[0] for _ in range(10))
    n = 8192 if device.type == "cuda" else 2048
    a, out = torch.ones(2, n, n, device=device, dtype=dtype)
    with precision(tf32):
        product = min(seconds_and_host(lambda: torch.mm(a, a, out=out), device)[0] for _ in range(5))
    return Speed(2 * source.nbytes / copy, 2 * n**3 / product)


def _relative_error(got: list[Tensor], want: list[Tensor]) -> float:
    a, b = (torch.cat([t.double().flatten() for t in tensors]) for tensors in (got, want))
    return float((a - b).norm() / b.norm())


def seconds(step: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock time of one run, waited for."""
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def seconds_and_host(step: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Time of one run, and on a GPU, beside it, the time until the host could go on; neither waits for the other."""
    if device.type != "cuda":
        return seconds(step, device), float("nan")
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device).zero_()  # nothing of the last run is left in a cache
        torch.cuda._sleep(HEAD_START)  # type: ignore[no-untyped-call]
        start.record()
        before = time.perf_counter()
        step()
        host = time.perf_counter() - before
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3, host


def kept_bytes(step: Step) -> int:
    """Bytes of all storages that autograd keeps between forward and backward, without those of the inputs."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = step.forward()
    given = {t.untyped_storage().data_ptr() for value in step.inputs.values() for t in _tensors(value)}
    del output
    return sum(size for pointer, size in kept.items() if pointer not in given)


def peak_bytes(step: Callable[[], Any], device: torch.device) -> int:
    """Largest extra memory during a step: of the allocator on a GPU, of the process (Linux) on a CPU, 0 if unknown."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists():
        return 0
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory that is free but not returned would hide what the step takes
        reset.write_text("5")  # the process's high-water mark starts anew
    except (OSError, AttributeError):
        return 0
    before = _status_bytes(status, "VmRSS")
    step()
    return max(0, _status_bytes(status, "VmHWM") - before)


def _status_bytes(status: Path, key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", status.read_text(), re.M)
    return int(found[1]) * 1024 if found else 0


def table(case: Case, size: str, results: list[Measurement]) -> str:
    """The measurements as lines to read, each with its ratio to eager and to `torch.compile`."""
    by_name = {one.variant: one for one in results}
    eager, compiled = by_name.get("eager"), by_name.get("compile")
    on_gpu = any(one.host_seconds == one.host_seconds for one in results)
    host = f"{'host':>12}" if on_gpu else ""
    lines = [
        f"{case.name}  {size}, {'forward + backward' if case.differentiable else 'forward'}",
        f"  {'variant':<9}{'median':>12}{host}{'x eager':>9}{'x compile':>11}{'kept':>12}{'peak':>12}{'error':>10}",
    ]
    for one in results:
        if one.reason:
            lines.append(f"  {one.variant:<9}  not here: {one.reason}")
            continue
        host = f"{one.host_seconds * 1e3:>9.3f} ms" if on_gpu else ""
        lines.append(
            f"  {one.variant:<9}{one.seconds * 1e3:>9.3f} ms{host}{_ratio(eager, one):>9}{_ratio(compiled, one):>11}"
            f"{one.kept_bytes / 2**20:>8.1f} MiB{one.peak_bytes / 2**20:>8.1f} MiB{one.error:>10.1e}"
        )
    return "\n".join(lines)


def _ratio(base: Measurement | None, one: Measurement) -> str:
    return f"{base.seconds / one.seconds:.1f}" if base and base.seconds == base.seconds else "-"


def chart(results: dict[str, list[Measurement]], path: Path, title: str) -> None:
    """Bar chart (PNG) of how many times faster than eager each variant is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measured = [v for v in VARIANTS if any(m.variant == v and not m.reason for ms in results.values() for m in ms)]
    figure, axes = pyplot.subplots(figsize=(1.5 + 1.9 * len(results), 4), layout="constrained")
    width = 0.8 / len(measured)
    for k, variant in enumerate(measured):
        for x, measurements in enumerate(results.values()):
            by_name = {one.variant: one for one in measurements}
            if variant not in by_name or by_name[variant].reason or "eager" not in by_name:
                continue
            ratio = by_name["eager"].seconds / by_name[variant].seconds
            bar = axes.bar(x + (k - (len(measured) - 1) / 2) * width, ratio, width, color=f"C{k}")
            axes.bar_label(bar, [f"{ratio:.1f}"], fontsize=8)
    for k, variant in enumerate(measured):
        axes.bar(0, 0, color=f"C{k}", label=variant)
    axes.set_xticks(range(len(results)), list(results))
    axes.set_yscale("log")
    axes.set_ylabel("times faster than PyTorch eager")
    axes.set_title(title)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
    pyplot.close(figure)

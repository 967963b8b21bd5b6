"""How a case is measured.

The variants of a case run in turn within one process, and medians are compared, so that a busy machine slows all of
them alike. No variant is timed before its result has been found equal to the reference's in float64, and before its
kernels, forward and backward, have been found to run on the backend whose name it has. On a GPU a run is timed by
events, its caches cold and its launches queued beforehand; what they take on the host is a column of its own.
"""

import ctypes
import functools
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mdepth_fast import _dispatch
from mdepth_fast.bench.cases import Case, network

__all__ = [
    "PLAIN",
    "VARIANTS",
    "Measurement",
    "Problem",
    "Speed",
    "Step",
    "check_backends",
    "device_speed",
    "gradient_errors",
    "in_blocks",
    "in_turn",
    "kept_bytes",
    "measure",
    "peak_bytes",
    "precision",
    "prepare",
    "problem",
    "seconds",
    "seconds_and_host",
    "unavailable",
]

PAUSE = 0.5  # seconds before a block, after which the threads of another runtime sleep
BLOCK = 0.3  # seconds that a block lasts at least
FLUSH_BYTES = 2**28  # several times the second-level cache of any GPU
HEAD_START = 20_000_000  # a GPU's cycles, some 10 ms: longer than the host takes for the launches of a step

# Plain PyTorch first: everything is a ratio to it. "freeze" is `torch.compile` that takes weights for constants.
PLAIN = ("eager", "compile", "freeze")
VARIANTS = (*PLAIN, *(name for name in _dispatch.BACKENDS if name != "reference"))

Calls = list[tuple[str, str]]  # (name of the registered op, backend)


@dataclass
class Measurement:
    """Medians of one variant of a case; `reason` says why it was not measured.

    `forward` and `backward` hold (op, backend) of the kernels that ran, each once, in order: none for plain PyTorch,
    and none for a backward that only multiplies what the forward computed. `forward` is None where that was not
    recorded, `backward` where there is none or where both run as one.
    """

    variant: str
    reason: str | None = None
    seconds: float = float("nan")
    seconds_each: list[float] = field(default_factory=list)
    host_seconds: float = float("nan")  # on a GPU: until the host could go on
    kept_bytes: int | None = None  # kept between forward and backward, beyond the inputs
    peak_bytes: int | None = None  # largest extra memory of a step
    layout: str = "contiguous"  # of plain PyTorch's images, the faster one where it may choose
    error: float = float("nan")  # relative L2 error of all gradients (or of the output) against float64
    forward: Calls | None = None
    backward: Calls | None = None


def unavailable(case: Case, variant: str, device: torch.device) -> str | None:
    """Why `variant` of a case cannot run on `device`; None if it can."""
    if variant == "freeze" and not isinstance(case.call, str):
        return "only a network has weights of its own"
    return None if variant in PLAIN else _dispatch.why_not(case.op, variant, device)


class Step:
    """Forward and backward of a case in one variant.

    Only the forward is told the backend, as in a training loop: the backward has to follow it.
    """

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

    def backward(self, output: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(output, self.leaves, torch.ones_like(output)))

    def __call__(self) -> list[Tensor]:
        if not self.leaves:
            with torch.no_grad():
                return [self.forward()]
        return self.backward(self.forward())

    def recorded(self) -> tuple[list[Tensor], Calls, Calls]:
        """The result of a run, and what ran: the kernels of the forward and of the backward."""
        with torch.set_grad_enabled(bool(self.leaves)), _dispatch.record() as forward:
            output = self.forward()
        with _dispatch.record() as backward:
            result = self.backward(output) if self.leaves else [output]
        return result, list(dict.fromkeys(forward)), list(dict.fromkeys(backward))


def check_backends(name: str, variant: str, forward: Calls, backward: Calls, differentiable: bool) -> None:
    """Raises RuntimeError unless every kernel ran on the backend `variant`, or none for plain PyTorch.

    `name` is for the message. Where there are gradients, each op of `forward` that has a backward kernel must have
    run it.
    """
    for direction, calls in (("forward", forward), ("backward", backward)):
        for op, backend in calls:
            if backend != variant:
                raise RuntimeError(f"{name}, {variant}: {direction} ran {op} on {backend}")
    if variant in PLAIN:
        return
    if not forward:
        raise RuntimeError(f"{name}, {variant}: forward ran no kernel")
    ran = {op for op, _ in backward}
    for op, _ in forward if differentiable else ():
        if hasattr(torch.ops.mdepth, f"{op}_backward") and f"{op}_backward" not in ran:
            raise RuntimeError(f"{name}, {variant}: backward did not run {op}_backward")


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

    Raises AssertionError where a variant's gradients are not those of the reference, RuntimeError where one of its
    kernels ran on another backend.
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
                with _dispatch.record() as calls:
                    whole, issued = seconds_and_host(step, device)
                check_backends(case.name, one.variant, calls, [], differentiable=False)  # of both directions
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


def problem(case: Case, batch: int, height: int, width: int, device: torch.device, **keywords: Any) -> Problem:
    """The inputs of a case on a device, and its exact results; `keywords` go to `case.inputs`."""
    given = case.inputs(batch, height, width, **keywords)
    inputs = {name: _convert(value, device=device) for name, value in given.items()}
    wide = {name: _convert(value, dtype=torch.float64) for name, value in inputs.items()}
    return Problem(inputs, Step(case, "eager", wide)())


def prepare(case: Case, variant: str, given: Problem, *, device: torch.device) -> tuple[Step, Measurement]:
    """A variant that is ready to be timed: run once, found right, its backends recorded, its memory measured.

    Raises AssertionError where its gradients are not those of the reference in float64, RuntimeError where one of its
    kernels ran on another backend.
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
        result, one.forward, one.backward = step.recorded()
        check_backends(case.name, variant, one.forward, one.backward, bool(step.leaves))
        if not step.leaves:
            one.backward = None
        one.error = _relative_error(result, given.exact)
        assert one.error < case.tolerance, f"{case.name}, {variant}: the result is off by {one.error:.2g}"
        one.kept_bytes = kept_bytes(step)
        one.peak_bytes = peak_bytes(step, device)
    return step, one


def in_turn(
    steps: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | str = "cpu"
) -> list[Measurement]:
    """Times functions in turn, each once to warm up, when its kernels are recorded too, and then `rounds` times."""
    return _rounds(steps, rounds, torch.device(device), seconds)


def in_blocks(
    steps: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device | str = "cpu"
) -> list[Measurement]:
    """Times functions of several runtimes, a block of each in turn: call by call they would slow each other down,
    because their threads wait for work for a while.

    In a block, one run warms up; those after it are timed, and `seconds_each` gets their median.
    """
    return _rounds(steps, rounds, torch.device(device), _block_seconds)


def _rounds(
    steps: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    measured: Callable[[Callable[[], Any], torch.device], float],
) -> list[Measurement]:
    results = []
    for name, step in steps.items():
        with _dispatch.record() as calls:
            seconds(step, device)
        results.append(Measurement(name, forward=list(dict.fromkeys(calls))))
    for _ in range(rounds):
        for one, step in zip(results, steps.values(), strict=True):
            one.seconds_each.append(measured(step, device))
    for one in results:
        one.seconds = statistics.median(one.seconds_each)
    return results


def _block_seconds(step: Callable[[], Any], device: torch.device) -> float:
    time.sleep(PAUSE)
    seconds(step, device)
    block = [seconds(step, device)]
    while len(block) < 2 or sum(block) < BLOCK:
        block.append(seconds(step, device))
    return statistics.median(block)


def gradient_errors(
    case: Case,
    backend: str,
    scenes: Mapping[str, Mapping[str, Any]],
    seeds: Iterable[int],
    size: tuple[int, int, int],
    device: torch.device | str = "cpu",
) -> dict[str, dict[str, list[float]]]:
    """Relative L2 errors of a case's gradients against float64, of eager float32 and of a backend, seed by seed.

    `scenes` maps names to keywords of `case.inputs`, which takes a `seed` as well. Returns {scene: {"eager": [...],
    backend: [...]}}.
    """
    device, seeds = torch.device(device), list(seeds)
    errors: dict[str, dict[str, list[float]]] = {}
    for name, keywords in scenes.items():
        errors[name] = {"eager": [], backend: []}
        for seed in seeds:
            given = problem(case, *size, device, seed=seed, **keywords)
            for variant, found in errors[name].items():
                result, forward, backward = Step(case, variant, given.inputs).recorded()
                check_backends(case.name, variant, forward, backward, bool(case.differentiable))
                found.append(_relative_error(result, given.exact))
    return errors


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

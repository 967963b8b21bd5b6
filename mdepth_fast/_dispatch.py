"""Which backend runs an op: choice, order, and a reason for every "no".

Implementations are registered with `implementation`: those of the compiled module by the op's declaration, Triton's in
`mdepth_fast/kernels/<op>.py`, which is imported when first considered. What a caller asks for is read above the op: a
compiled graph holds it, forward and backward alike, and a change of it is a recompile. What is left open is resolved
inside the op, from op and device alone.
"""

import functools
import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.library

from mdepth_fast import _native

__all__ = [
    "BACKENDS",
    "asked",
    "forget",
    "full_precision",
    "implementation",
    "never",
    "ran",
    "reasons",
    "record",
    "resolve",
    "select",
    "use_backend",
    "uses_reference",
    "warn_once",
]

BACKENDS = ("cpu", "cuda", "triton", "nvrtc", "reference")
_ORDER = {"cuda": ("cuda", "triton", "nvrtc"), "cpu": ("cpu",)}

_implementations: dict[tuple[str, str], Callable[..., Any]] = {}
_never: dict[tuple[str, str], str] = {}
_recorders: list[list[tuple[str, str]]] = []
_warned: set[str] = set()


def _known(name: str, where: str) -> str:
    if name and name not in BACKENDS:
        raise ValueError(f"{where}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


# Read once, at import: a compiler freezes what it finds in the environment, and a thread that starts later agrees.
_DEFAULT = _known(os.environ.get("MDEPTH_BACKEND", ""), "MDEPTH_BACKEND")


class _Choice(threading.local):
    """The backend that `use_backend` asks for in this thread; at first the default of the process."""

    def __init__(self) -> None:  # of each thread; an attribute of the class would be one that no compiler guards
        self.name = _DEFAULT


_choice = _Choice()


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op of this thread on backend `name` ("cpu", "cuda", "triton", "nvrtc", "reference"); None: automatic.

    Raises ValueError for an unknown name; an op that cannot run there raises RuntimeError with every reason.
    """
    before = _choice.name
    _choice.name = _known(name or "", "use_backend")
    try:
        yield
    finally:
        _choice.name = before


@contextmanager
def record() -> Iterator[list[tuple[str, str]]]:
    """Collects (registered function, backend) of every kernel that runs, in whatever thread."""
    calls: list[tuple[str, str]] = []
    _recorders.append(calls)
    try:
        yield calls
    finally:
        _recorders[:] = [one for one in _recorders if one is not calls]


def ran(function: str, backend: str) -> None:
    """Tells those who `record`."""
    for calls in _recorders:
        calls.append((function, backend))


def implementation(function: str, backend: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers `backend`'s implementation of a registered function, which is called by keyword."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        _implementations[function, backend] = run
        forget()
        return run

    return register


def never(op: str, backend: str, reason: str) -> None:
    """Says why `backend` runs `op` on no machine."""
    _never[op, backend] = reason
    forget()


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Context in which PyTorch computes what the kernels compute: without autocast."""
    if device.type == "meta":  # has no autocast
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


@functools.cache
def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """None if `backend` can run `op` on `device`, else the reason. Found once: see `forget`."""
    if (op, backend) in _never:
        return _never[op, backend]
    if backend == "cpu" and device.type != "cpu":
        return f"runs on the CPU, the tensors are on {device}"
    if backend == "cpu" and _native.unavailable():
        return _native.unavailable()
    if backend in ("cuda", "nvrtc") and device.type != "cuda":
        return f"needs CUDA tensors, the tensors are on {device}"
    if (op, backend) in _implementations:
        if backend == "cuda" and (reason := _native.cuda_unavailable(device)):
            return reason
        if backend == "nvrtc" and (reason := _nvrtc_unavailable(device)):
            return reason
    if backend == "triton" and (reason := _load_triton(op, device)):
        return reason
    if (op, backend) not in _implementations:
        return f"{op} has no {backend} kernel in this version"
    return None


def forget() -> None:
    """What can run is looked up again: after an implementation was added, or a test has changed the machine."""
    why_not.cache_clear()
    resolve.cache_clear()


def _load_triton(op: str, device: torch.device) -> str | None:
    """Imports the Triton kernels of `op`; None or the reason why they cannot run on `device`."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"needs CUDA tensors (or TRITON_INTERPRET=1), the tensors are on {device}"
    name = "mdepth_fast.kernels." + op
    if importlib.util.find_spec(name) is not None:
        importlib.import_module(name)
    return None


def _nvrtc_unavailable(device: torch.device) -> str | None:
    if _native.unavailable():  # the launch plans come from there
        return _native.unavailable()
    reason: str | None = importlib.import_module("mdepth_fast.kernels.nvrtc").unavailable(device)
    return reason


def reasons(op: str, device: torch.device) -> dict[str, str | None]:
    """For every backend None (it can run `op` on `device`) or the reason why not. `reference` always can."""
    return {name: None if name == "reference" else why_not(op, name, device) for name in BACKENDS}


def _has_kernel(op: str, device: torch.device) -> bool:
    """Whether any backend can run `op`; it asks the compiled module and the driver, which no compiler can trace.

    An automatic choice does not paper over a broken installation: it is a RuntimeError.
    """
    if device.type in _ORDER and (reason := _native.unavailable()):
        raise RuntimeError(f"{op}: {reason}; MDEPTH_BACKEND=reference runs plain PyTorch")
    return any(why_not(op, candidate, device) is None for candidate in _ORDER.get(device.type, ()))


# What torch.compiler.assume_constant_result sets; calling that would import the whole compiler with this package.
_has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def asked(backend: str | None) -> str:
    """The backend that a call asks for: its argument, else the thread's choice; "" leaves it open."""
    return _known(backend or "", "backend") or _choice.name


def uses_reference(op: str, name: str, device: torch.device) -> bool:
    """Whether a call that asks for `name` goes to the plain PyTorch reference; warns once where that is a surprise."""
    if name:
        return name == "reference"
    if _has_kernel(op, device):
        return False
    if device.type in _ORDER and not torch.compiler.is_compiling():
        warn_once(f"{op} runs as plain PyTorch on {device.type}: " + _listing(op, device))
    return True


def warn_once(message: str) -> None:
    """A RuntimeWarning where the caller of a public op stands."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, RuntimeWarning, stacklevel=5)


@functools.cache
def resolve(op: str, name: str, device: torch.device) -> str:
    """The backend that runs `op`, and its backward, for tensors on `device` where `name` was asked for, "" being none.

    It depends on nothing else, so what the forward resolves is what the backward runs, in whatever thread.

    Raises RuntimeError with every backend's reason when the one asked for, or every one, cannot run.
    """
    for candidate in (name,) if name and name != "reference" else _ORDER.get(device.type, ()):
        if why_not(op, candidate, device) is None:
            return candidate
    wanted = f"backend {name!r}" if name else "a backend"
    raise RuntimeError(f"{op}: {wanted} was asked for and cannot run: {_listing(op, device)}")


def select(function: str, backend: str) -> Callable[..., Any]:
    """The implementation of a registered function, a backward among them, that `resolve` has found able to run."""
    return _implementations[function, backend]


def _listing(op: str, device: torch.device) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons(op, device).items() if reason)

"""Which backend runs an op: choice, order, and a reason for every "no".

Implementations are registered with `implementation`: those of the compiled module beside the op, in
`mdepth_fast/ops/<op>.py`, Triton's in `mdepth_fast/kernels/<op>.py`, which is imported when first considered. The
choice is made inside the opaque custom op, at run time, so `torch.compile` needs no recompile when it changes; only the
choice of `reference`, plain PyTorch above the op, is seen by the compiler.
"""

import functools
import importlib
import importlib.util
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.library

from mdepth_fast import _native

__all__ = [
    "BACKENDS",
    "full_precision",
    "implementation",
    "native_implementation",
    "reasons",
    "register_autocast",
    "select",
    "use_backend",
    "uses_reference",
]

BACKENDS = ("cpu", "cuda", "triton", "nvrtc", "reference")
_ORDER = {"cuda": ("cuda", "triton", "nvrtc"), "cpu": ("cpu",)}

_implementations: dict[tuple[str, str], Callable[..., Any]] = {}
_warned: set[str] = set()


class _Choice(threading.local):
    """The backend asked for by `use_backend`; starts from MDEPTH_BACKEND, which is read once, at import.

    `reference` is kept apart from `name` because it is all that a compiler sees: a change among the other backends
    then breaks no guard.
    """

    def __init__(self) -> None:
        self.set(os.environ.get("MDEPTH_BACKEND", ""))

    def set(self, name: str) -> None:
        self.name = name
        self.reference = name == "reference"


_choice = _Choice()


def _known(name: str, where: str) -> str:
    if name and name not in BACKENDS:
        raise ValueError(f"{where}: expected one of {', '.join(BACKENDS)}, got {name!r}")
    return name


_known(_choice.name, "MDEPTH_BACKEND")


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op of this thread on backend `name` ("cpu", "cuda", "triton", "nvrtc", "reference"); None: automatic.

    Raises ValueError for an unknown name; an op that cannot run there raises RuntimeError with every reason.
    """
    before = _choice.name
    _choice.set(_known(name or "", "use_backend"))
    try:
        yield
    finally:
        _choice.set(before)


def implementation(op: str, backend: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers a function as `backend`'s implementation of `op`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _implementations[op, backend] = function
        return function

    return register


def native_implementation(op: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: registers a function of (backend, *arguments) for every backend that `_native.call` reaches."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for backend in ("cpu", "cuda", "nvrtc"):
            _implementations[op, backend] = functools.partial(function, backend)
        return function

    return register


def full_precision(device: torch.device) -> torch.autocast:
    """Context in which the reference computes what the kernels compute: without autocast."""
    return torch.autocast(device.type, enabled=False)


def register_autocast(op: torch.library.CustomOpDef) -> None:
    """Losses are computed in float32 under autocast, whoever calls the registered op."""
    for device_type in ("cpu", "cuda"):
        op.register_autocast(device_type, torch.float32)


def why_not(op: str, backend: str, device: torch.device) -> str | None:
    """None if `backend` can run `op` on `device`, else the reason."""
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


def _load_triton(op: str, device: torch.device) -> str | None:
    """Imports the Triton kernels of `op`; None or the reason why they cannot run on `device`."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"needs CUDA tensors (or TRITON_INTERPRET=1), the tensors are on {device}"
    name = "mdepth_fast.kernels." + op.removesuffix("_backward")
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
    if not _choice.name and device.type in _ORDER and (reason := _native.unavailable()):
        raise RuntimeError(f"{op}: {reason}; MDEPTH_BACKEND=reference runs plain PyTorch")
    return any(why_not(op, candidate, device) is None for candidate in _ORDER.get(device.type, ()))


# What torch.compiler.assume_constant_result sets; calling that would import the whole compiler with this package.
_has_kernel._dynamo_marked_constant = True  # type: ignore[attr-defined]


def uses_reference(op: str, backend: str | None, device: torch.device) -> bool:
    """Whether a call goes to the plain PyTorch reference; warns once where that is a surprise."""
    if _known(backend or "", "backend"):
        return backend == "reference"
    if _choice.reference:
        return True
    if _has_kernel(op, device) or _choice.name:
        return False
    if device.type in _ORDER and not torch.compiler.is_compiling():
        message = f"{op} runs as plain PyTorch on {device.type}: " + _listing(op, device)
        if message not in _warned:
            _warned.add(message)
            warnings.warn(message, RuntimeWarning, stacklevel=3)
    return True


def select(op: str, backend: str, device: torch.device) -> Callable[..., Any]:
    """The implementation of `op` for tensors on `device`. `backend` "" means the thread's choice, else automatic.

    Raises RuntimeError with every backend's reason when the one asked for, or every one, cannot run.
    """
    name = backend or _choice.name
    candidates = (name,) if name and name != "reference" else _ORDER.get(device.type, ())
    for candidate in candidates:
        if why_not(op, candidate, device) is None:
            return _implementations[op, candidate]
    asked = f"backend {name!r}" if name else "a backend"
    raise RuntimeError(f"{op}: {asked} was asked for and cannot run: {_listing(op, device)}")


def _listing(op: str, device: torch.device) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons(op, device).items() if reason)

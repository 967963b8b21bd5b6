"""The only caller of the compiled module: every tensor is checked here before its pointer is taken."""

import functools
import importlib
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdepth_fast import _source_tree

__all__ = ["aligned", "call", "cuda_unavailable", "instruction_set", "module", "pointer", "unavailable"]

CPU = torch.device("cpu")

_module: ModuleType | None = None
_reason: str | None = None
_cuda_reason: str | None = None
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def _load() -> None:
    global _module, _reason, _cuda_reason
    from mdepth_fast import __version__

    try:
        found = importlib.import_module("mdepth_fast._C")
    except ImportError as error:
        _reason = f"the compiled module could not be loaded: {error}"
        if "pip install" not in _reason:
            _reason += "; build it with: pip install ."
        return
    if found.version != __version__:
        _reason = f"the compiled module is of version {found.version}, the package {__version__}; run: pip install ."
        return
    if found.cuda and _source_tree.cuda_sources_changed(found.sources):
        # Not for NVRTC, which compiles them as they are now.
        _cuda_reason = "csrc/cuda is not what the module was built from; run pip install again"
        warnings.warn(f"the cuda backend is off: {_cuda_reason}", RuntimeWarning, stacklevel=2)
    _module = found


_load()


def unavailable() -> str | None:
    """None if the compiled module is there, else the reason."""
    return _reason


def module() -> ModuleType:
    """The compiled module. Raises RuntimeError with the reason where there is none."""
    if _module is None:
        raise RuntimeError(_reason)
    return _module


def instruction_set() -> str:
    """The instruction set that the CPU kernels use: "avx512", "avx2" or "baseline"."""
    return str(module().isa())


def cuda_unavailable(device: torch.device) -> str | None:
    """None if the compiled CUDA kernels can run on `device`, else the reason."""
    if _module is None:
        return _reason
    if _module.cuda is None:
        return "the module was built without CUDA (no nvcc); build it with nvcc on PATH: MDEPTH_CUDA=1 pip install ."
    if _cuda_reason:
        return _cuda_reason
    toolkit, architectures, driver = _module.cuda["toolkit"], _module.cuda["architectures"], _module.cuda_driver()
    if driver // 1000 < int(toolkit.split(".")[0]):
        return f"built with CUDA {toolkit}, the driver is for CUDA {driver // 1000}.{driver % 1000 // 10}: too old"
    capability = torch.cuda.get_device_capability(device)
    if not any(_runs_on(architecture, capability) for architecture in architectures.split()):
        return (
            f"{device} has compute capability {capability[0]}.{capability[1]}, the module was compiled for "
            f"{architectures}; set MDEPTH_CUDA_ARCHS and build again"
        )
    return None


@functools.cache
def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture as CMake writes it ("80-real", "90a-real", "120") runs on a device."""
    number, _, kind = architecture.partition("-")
    digits = number.rstrip("af")
    if not digits.isdigit():
        return True  # "native", "all", "all-major"
    compiled = int(digits[:-1]), int(digits[-1])
    if number != digits:  # code for this one alone (a) or for its family (f)
        return compiled == capability
    binary = kind != "virtual" and compiled[0] == capability[0] and compiled[1] <= capability[1]
    return binary or (kind != "real" and compiled <= capability)


def pointer(
    tensor: Tensor | None,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device = CPU,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> int:
    """Address of a contiguous tensor that has exactly this shape and dtype and is on `device`; 0 for None."""
    if tensor is None:
        return 0
    if tensor.device != device or tensor.dtype != dtype or tensor.shape != shape:
        raise RuntimeError(
            f"{name}: expected {dtype} {shape} on {device}, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        )
    if not tensor.is_contiguous(memory_format=memory_format):
        kind = "contiguous" if memory_format == torch.contiguous_format else "channels_last"
        raise RuntimeError(f"{name}: expected a {kind} tensor, got strides {tensor.stride()}")
    return tensor.data_ptr()


def aligned(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where its address is no multiple of 16 bytes: GPU kernels may read that much at once."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def call(
    op: str,
    dtype: torch.dtype,
    *arguments: Any,
    padding: str | None = None,
    backend: str = "cpu",
    device: torch.device = CPU,
) -> None:
    """Runs `op` on a backend of compiled or run-time compiled C++: "cpu", "cuda" or "nvrtc".

    On the CPU it runs on torch's own number of threads: 1 in a forked worker, where OpenMP would hang with more. On a
    GPU it goes to the current stream of `device`, which must be that of every pointer; workspace comes from torch.
    """
    native = module()
    codes = native.enums
    head = [codes[_DTYPES[dtype]]] + ([] if padding is None else [codes[padding]])
    function = getattr(native, op)
    if backend == "cpu":
        function(*head, torch.get_num_threads(), *arguments)
        return
    workspace: list[Tensor] = []  # alive until the kernels are in the stream; then torch may hand it out again

    def allocate(count: int) -> int:
        workspace.append(torch.empty(count, dtype=torch.float64, device=device))
        return workspace[-1].data_ptr()

    if backend == "nvrtc":
        from mdepth_fast.kernels import nvrtc

        launches, params = function(*head, native.Where(False, 0, 0, allocate), *arguments)
        nvrtc.launch(op, launches, params, device)
        return
    stream = torch.cuda.current_stream(device).cuda_stream
    try:
        function(*head, native.Where(True, device.index, stream, allocate), *arguments)
    except RuntimeError as error:
        raise RuntimeError(f"{op}: CUDA: {error}") from None

"""The only caller of the compiled module: every tensor is checked here before its pointer is taken."""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

__all__ = ["call", "instruction_set", "module", "pointer", "unavailable"]

_module: ModuleType | None = None
_reason: str | None = None
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def _load() -> None:
    global _module, _reason
    from mdepth_fast import __version__

    try:
        found = importlib.import_module("mdepth_fast._C")
    except ImportError as error:
        _reason = f"the compiled module could not be loaded ({error}); build it with: pip install ."
        return
    if found.version != __version__:
        _reason = f"the compiled module is of version {found.version}, the package {__version__}; run: pip install ."
        return
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


def pointer(tensor: Tensor | None, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Address of a CPU tensor that is contiguous and has exactly this shape and dtype; 0 for None."""
    if tensor is None:
        return 0
    if tensor.device.type != "cpu" or tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise RuntimeError(
            f"{name}: expected {dtype} {shape} on cpu, got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        )
    if not tensor.is_contiguous():
        raise RuntimeError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")
    return tensor.data_ptr()


def call(op: str, dtype: torch.dtype, *arguments: Any, padding: str | None = None) -> None:
    """Runs `_C.<op>` on torch's own number of threads: 1 in a forked worker, where OpenMP would hang with more."""
    native = module()
    codes = native.enums
    head = [codes[_DTYPES[dtype]]] + ([] if padding is None else [codes[padding]]) + [torch.get_num_threads()]
    getattr(native, op)(*head, *arguments)

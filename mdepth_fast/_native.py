"""The only caller of the compiled module: every tensor is checked here before its pointer is taken."""

import functools
import importlib
import struct
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mdepth_fast import _source_tree

__all__ = [
    "Params",
    "address",
    "aligned",
    "backends",
    "code",
    "cuda_unavailable",
    "has",
    "instruction_set",
    "module",
    "params",
    "run",
    "struct_named",
    "unavailable",
]

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


class Params:
    """A struct of the compiled module that is filled by the names of its members; what is not named is 0."""

    def __init__(self, description: tuple[int, list[tuple[str, int, str, int]]]) -> None:
        size, members = description
        layout, end = "=", 0
        for _, offset, kind, count in members:
            code = {"e": "i", "P": "Q"}.get(kind, kind)
            layout += f"{offset - end}x{count}{code}"
            end = offset + count * struct.calcsize("=" + code)
        self._struct = struct.Struct(f"{layout}{size - end}x")
        self.names = [name for name, *_ in members]
        self._arrays = {name: count for name, _, _, count in members if count > 1}

    def pack(self, members: Mapping[str, Any]) -> bytes:
        """Raises ValueError for more elements than an array member has room for."""
        get = members.get
        if not self._arrays:
            return self._packed([get(name, 0) for name in self.names])
        values: list[Any] = []
        for name in self.names:
            count = self._arrays.get(name)
            if count is None:
                values.append(get(name, 0))
                continue
            elements = get(name, [])
            if len(elements) > count:
                raise ValueError(f"{name}: expected at most {count}, got {len(elements)}")
            values += [*elements, *[0] * (count - len(elements))]
        return self._packed(values)

    def _packed(self, values: list[Any]) -> bytes:
        try:
            return self._struct.pack(*values)
        except struct.error as error:
            raise ValueError(f"a number does not fit into the kernels' parameters: {error}") from None


def has(op: str) -> bool:
    """Whether the compiled module has this function; where there is no module, nothing is known to be missing."""
    return _module is None or op in _module.ops


def backends(op: str) -> tuple[str, ...]:
    """The backends that run this function from C++; those of the GPU need its launch plan."""
    if not has(op):
        return ()
    return ("cpu", "cuda", "nvrtc") if _module is None or _module.ops[op].has_plan else ("cpu",)


@functools.cache
def params(op: str) -> Params:
    return Params(module().ops[op].params)


@functools.cache
def struct_named(name: str) -> Params:
    """A struct that parameters point to."""
    return Params(getattr(module(), name))


@functools.cache
def code(name: str | torch.dtype) -> int:
    """The number of an enumerator: of a dtype, a padding, a form of a loss."""
    if isinstance(name, torch.dtype) and name not in _DTYPES:
        raise RuntimeError(f"the kernels compute in float32 or float64, got {name}")
    return int(module().enums[_DTYPES[name] if isinstance(name, torch.dtype) else name])


def address(
    tensor: Tensor,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> int:
    """Where a contiguous tensor of this dtype on `device` begins. Its shape is checked by who knows the sizes."""
    if tensor.device != device or tensor.dtype != dtype:
        raise RuntimeError(f"{name}: expected {dtype} on {device}, got {tensor.dtype} on {tensor.device}")
    if not tensor.is_contiguous(memory_format=memory_format):
        kind = "contiguous" if memory_format == torch.contiguous_format else "channels_last"
        raise RuntimeError(f"{name}: expected a {kind} tensor, got strides {tensor.stride()}")
    return tensor.data_ptr()


def aligned(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy where its address is no multiple of 16 bytes: GPU kernels may read that much at once."""
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def run(op: str, backend: str, members: dict[str, Any], device: torch.device = CPU) -> None:
    """Runs a function of the compiled module on "cpu", "cuda" or "nvrtc", its parameters given by name.

    On the CPU it runs on torch's own number of threads: 1 in a forked worker, where OpenMP would hang with more. On a
    GPU it goes to the current stream of `device`, which must be that of every address; workspace comes from torch.
    """
    native, layout = module().ops[op], params(op)
    if backend == "cpu":
        members["threads"] = torch.get_num_threads()
        native.cpu(layout.pack(members))
        return
    packed = layout.pack(members)
    if count := native.workspace(packed):
        workspace = torch.empty(count, dtype=torch.float64, device=device)
        members["workspace"] = workspace.data_ptr()
        packed = layout.pack(members)
    if backend == "nvrtc":
        from mdepth_fast.kernels import nvrtc

        nvrtc.launch(op, native.launches(packed), packed, device)
    elif error := native.cuda(packed, device.index, torch.cuda.current_stream(device).cuda_stream):
        raise RuntimeError(f"{op}: CUDA: {error}")
    # Only now may torch hand the workspace out again: the kernels are in the stream.

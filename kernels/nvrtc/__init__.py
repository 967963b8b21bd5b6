"""The CUDA kernels of csrc/cuda compiled when first used, through CuPy: no nvcc, no rebuild after an edit.

What is launched comes from the compiled module (plans of csrc/include/mdepth), as do the parameters; memory and stream
are torch's. So a kernel's body may be edited without a rebuild, but not a header of csrc/include: plans depend on them.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mdepth_fast

__all__ = ["launch", "options", "source", "source_folder", "unavailable"]


def source_folder() -> Path:
    """`csrc`: package data of an installation, beside the package in a source tree."""
    package = Path(mdepth_fast.__file__).parent
    installed = package / "csrc"
    return installed if installed.is_dir() else package.parent / "csrc"


def options() -> tuple[str, ...]:
    """What NVRTC needs to compile a .cuh, the architecture apart."""
    folder = source_folder()
    return ("-std=c++17", f"-I{folder / 'include'}", f"-I{folder / 'cuda'}")


def source(op: str) -> str:
    """The program that has all kernels of an op.

    CuPy keeps on disk what it has compiled, by this text: it must change with the files that are included.
    """
    return f'#include "{op}.cuh"\n// {_digest()}\n'


@functools.cache
def _digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in source_folder().rglob("*") if path.suffix in (".h", ".cuh")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@functools.cache
def unavailable(device: torch.device) -> str | None:
    """None if kernels can be compiled and run on `device`, else the reason."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed; pip install cupy-cuda12x (or cupy-cuda13x, as the driver has it)"
    if not (source_folder() / "cuda").is_dir():
        return f"the kernels' sources are missing: {source_folder() / 'cuda'}"
    import cupy

    try:
        if not cupy.cuda.is_available():
            return "CuPy finds no CUDA driver or device"
        cupy.cuda.nvrtc.getVersion()
    except Exception as error:  # whatever a broken CUDA installation raises
        return f"CuPy cannot use CUDA: {error}"
    return None


@functools.cache
def _module(op: str, device_index: int) -> Any:
    """The kernels of one op; CuPy loads a module into the device that is current."""
    import cupy

    return cupy.RawModule(code=source(op), options=options())


def launch(op: str, launches: Sequence[tuple[str, int, int]], params: bytes, device: torch.device) -> None:
    """Runs kernels (name, blocks, threads), which all take `params`, on torch's current stream of `device`."""
    import cupy

    argument = np.frombuffer(params, dtype=f"V{len(params)}")  # one element: CuPy passes it by value
    with torch.cuda.device(device), cupy.cuda.Device(device.index), _current_stream(device):
        module = _module(op.removesuffix("_backward"), device.index)
        try:
            for kernel, blocks, threads in launches:
                module.get_function(f"mdepth_{kernel}")((blocks,), (threads,), (argument,))
        except (cupy.cuda.compiler.CompileException, cupy.cuda.driver.CUDADriverError) as error:
            raise RuntimeError(f"{op}: NVRTC: {error}") from error


class _Stream:
    """A stream as CUDA's Python protocol has it."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle


def _current_stream(device: torch.device) -> Any:
    """torch's stream as CuPy's."""
    import cupy

    handle = torch.cuda.current_stream(device).cuda_stream
    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_Stream(handle))
    return cupy.cuda.ExternalStream(handle, device.index)  # CuPy before 14

"""The runtimes that a file of ONNX can be run by, what each can do on this machine, and one session of each.

A session computes on as many threads as PyTorch does. Its threads wait without spinning, so that they take no time from
the rest of the process.
"""

import platform
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mdepth_fast.engines import OF_ONNX
from mdepth_fast.engines.onnx_file import PACKAGES, missing

__all__ = [
    "bfloat16_reason",
    "machine_kind",
    "onnxruntime_session",
    "open_session",
    "versions",
    "why_not",
]

Session = Callable[[Sequence[Tensor]], list[Tensor]]


def why_not(engine: str, dtype: str = "float32", device: torch.device | str = "cpu") -> str | None:
    """Why an engine cannot compute in `dtype` here, and what to do about it; None if it can."""
    device = torch.device(device)
    if engine in OF_ONNX:
        if device.type != "cpu":
            return f"{engine} runs on the CPU, the network is on {device}; take native or move it to the CPU"
        if package := missing((engine, *PACKAGES)):
            return f'{package} is missing: pip install "mdepth-fast[{engine}]"'
    if dtype == "bfloat16":
        if engine == "onnxruntime":
            return "onnxruntime has no bfloat16 on a CPU; take openvino or torch, or float32"
        return bfloat16_reason(device)
    return None


def bfloat16_reason(device: torch.device | str = "cpu") -> str | None:
    """Why bfloat16 is not to be computed in on a device: it has no units for it; None if it has."""
    device = torch.device(device)
    if device.type == "cuda":
        own = torch.cuda.is_bf16_supported(including_emulation=False)
        return None if own else f"{torch.cuda.get_device_name(device)} has no units for bfloat16; take float32"
    if _instructions() in ("amx", "avx512_bf16"):
        return None
    with suppress(AttributeError, RuntimeError):
        if platform.machine() in ("aarch64", "arm64") and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return None
    return "this CPU has no units for bfloat16 (AMX or AVX512-BF16); take float32"


def _instructions() -> str:
    """The instructions of this CPU that decide what is fast on it."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^flags\s*:(.*)$", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    flags = set(found[1].split()) if found else set()
    if {"amx_tile", "amx_bf16"} <= flags:
        return "amx"
    return next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in flags), platform.machine())


def machine_kind() -> str:
    """What machines of one kind share, such as "GenuineIntel amx": the vendor and instructions of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    vendor = re.search(r"^vendor_id\s*:\s*(\S+)", cpuinfo.read_text(), re.M) if cpuinfo.exists() else None
    return f"{vendor[1] if vendor else platform.system()} {_instructions()}"


def versions(engines: Sequence[str] = OF_ONNX) -> dict[str, str]:
    """Of those that are installed."""
    return {name: _version(name) for name in engines if missing((name,)) is None}


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, packages_distributions, version

    try:
        return version(name)
    except PackageNotFoundError:  # the module of another package, such as onnxruntime-gpu
        others = packages_distributions().get(name)
        return version(others[0]) if others else "unknown"


def onnxruntime_session(path: Path) -> Any:
    """ONNX Runtime's own session, on as many threads as PyTorch has, which do not spin."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    for pool in ("intra", "inter"):
        options.add_session_config_entry(f"session.{pool}_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def open_session(engine: str, path: Path, shapes: Sequence[Sequence[int]], dtype: str) -> Session:
    """A function of inputs of these shapes, float32, that runs the file; its weights are read here."""
    return _SESSIONS[engine](path, shapes, dtype)


def _onnxruntime(path: Path, shapes: Sequence[Sequence[int]], dtype: str) -> Session:
    session = onnxruntime_session(path)
    names = [one.name for one in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return [torch.from_numpy(value) for value in session.run(None, given)]

    return run


def _openvino(path: Path, shapes: Sequence[Sequence[int]], dtype: str) -> Session:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes, strict=True)})
    compiled = core.compile_model(
        model,
        "CPU",
        {
            # By itself it would take bfloat16 wherever there are units for it.
            "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()

    def run(inputs: Sequence[Tensor]) -> list[Tensor]:
        found = request.infer([value.numpy() for value in inputs], share_inputs=True)
        return [torch.from_numpy(np.array(found[port], np.float32)) for port in compiled.outputs]

    return run


_SESSIONS: dict[str, Callable[[Path, Sequence[Sequence[int]], str], Session]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}

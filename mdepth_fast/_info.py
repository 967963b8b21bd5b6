"""What this installation can do, and why not where it cannot."""

import importlib.metadata
import platform
from typing import Any

import torch

from mdepth_fast import _dispatch, _native, _op
from mdepth_fast.engines import ENGINES
from mdepth_fast.engines.runtimes import bfloat16_reason, machine_kind, why_not


def info() -> dict[str, Any]:
    """Versions, the native module, the devices, and per engine, op and backend None or the reason why it cannot run."""
    from mdepth_fast import __version__, ops  # noqa: F401  (importing ops registers the backends)

    native: dict[str, Any] = {"reason": _native.unavailable()}
    if native["reason"] is None:
        module = _native.module()
        native.update(compiler=module.compiler, openmp=module.openmp, instruction_set=_native.instruction_set())
        native["cuda"] = dict(module.cuda) if module.cuda else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "mdepth_fast": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in ("triton", "cupy-cuda12x", "cupy-cuda13x", "lightning")},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "native": native,
        "machine": machine_kind(),
        "engines": {name: why_not(name) for name in ENGINES},
        "bfloat16": bfloat16_reason(),
        "backends": {op: _dispatch.reasons(op, device) for op in _op.OPS},
    }


def info_text() -> str:
    """`info()` as lines to read."""
    facts = info()
    native = facts["native"]
    lines = [
        f"mdepth_fast  {facts['mdepth_fast']}",
        f"python       {facts['python']}",
        f"torch        {facts['torch']}",
        *(f"{name:<12} {version or 'not installed'}" for name, version in facts["packages"].items()),
        f"device       {facts['device']}",
        f"native       {native['reason'] or _native_line(native)}",
        f"machine      {facts['machine']}, bfloat16: {facts['bfloat16'] or 'available'}",
        "engines",
        *(f"  {name:<12} {reason or 'available'}" for name, reason in facts["engines"].items()),
        "backends",
    ]
    for op, backends in facts["backends"].items():
        lines.append(f"  {op}")
        for name, reason in backends.items():
            if reason and reason == native["reason"]:
                reason = "needs the compiled module, see native"
            lines.append(f"    {name:<10} {reason or 'available'}")
    return "\n".join(lines)


def _native_line(native: dict[str, Any]) -> str:
    openmp = "OpenMP" if native["openmp"] else "no OpenMP: one thread"
    cuda = native["cuda"]
    kernels = f"CUDA {cuda['toolkit']} for {cuda['architectures']}" if cuda else "no CUDA"
    return f"{native['instruction_set']}, {openmp}, compiler {native['compiler']}, {kernels}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None

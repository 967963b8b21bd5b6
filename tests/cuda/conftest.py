"""A backend of tests only, "host": the CUDA kernels compiled by g++, run thread by thread, reached through the ops."""

import ctypes
import sys
from pathlib import Path

import pytest

from mdepth_fast import _dispatch, ops  # noqa: F401  (importing ops registers the backends)
from mdepth_fast.kernels import nvrtc

sys.path.insert(0, str(Path(__file__).parent / "host"))
from host_build import build


@pytest.fixture(scope="session")
def host_library():
    library = ctypes.CDLL(str(build("library.cpp", "-O2", "-fPIC", "-shared")))
    library.kernel_name.restype = ctypes.c_char_p
    library.run_kernel.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p]
    return library


@pytest.fixture
def host(host_library, monkeypatch):
    """Registers "host" for CPU tensors; yields the names of the kernels that have run."""
    ran = []

    def launch(op, launches, params, device):
        for kernel, blocks, threads in launches:
            ran.append(kernel)
            assert host_library.run_kernel(kernel.encode(), blocks, threads, params) == 0, kernel

    for (function, backend), run in list(_dispatch._implementations.items()):
        if backend == "nvrtc":
            monkeypatch.setitem(_dispatch._implementations, (function, "host"), run)
    monkeypatch.setattr(nvrtc, "launch", launch)
    monkeypatch.setattr(_dispatch, "BACKENDS", (*_dispatch.BACKENDS, "host"))
    return ran

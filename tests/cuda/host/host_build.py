"""Compiles the kernels for the host, once per set of flags and session."""

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# Loops that every CUDA compiler unrolls make g++ see uses of what was not set.
FLAGS = ("-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized", "-pthread")
INCLUDES = ("csrc/include", "csrc/cuda", "tests/cuda/host", "csrc/cpu")


@functools.cache
def _folder():
    folder = tempfile.TemporaryDirectory(prefix="mdepth-host-")
    return folder  # deleted with the process


@functools.cache
def build(source: str, *flags: str) -> Path:
    """Compiles one of this folder's sources with the kernels; returns the library or program."""
    output = Path(_folder().name) / f"{Path(source).stem}{abs(hash(flags))}"
    command = ["g++", *FLAGS, *flags, *(f"-I{ROOT / path}" for path in INCLUDES)]
    command += ["-include", str(HERE / "emulate.h"), str(HERE / source), "-o", str(output)]
    assert shutil.which("g++"), "the kernels are run on the host by g++"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output

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
def ops() -> tuple[str, ...]:
    """Names of the ops with CUDA kernels."""
    files = sorted((ROOT / "csrc" / "cuda").glob("*.cuh"))
    return tuple(path.stem for path in files if path.stem not in ("block", "reprojection", "tensor"))


@functools.cache
def _all_kernels() -> Path:
    """The folder of a header that includes the kernels and lists them."""
    folder, lines, segments, before = Path(_folder().name), [], [], "kBeforeKernels"
    lines.append(f"inline constexpr int {before} = __COUNTER__;")
    for op in ops():
        lines += [f'#include "{op}.cuh"', f"inline constexpr int kAfter_{op} = __COUNTER__;"]
        segments.append(f'{{"{op}", {before} + 1, kAfter_{op}}}')
        before = f"kAfter_{op}"
    # Barriers have numbers of __COUNTER__: which op's source has which.
    lines += ["struct Segment {", "  const char* op;", "  int first, end;", "};"]
    lines.append(f"inline constexpr Segment kSegments[] = {{{', '.join(segments)}}};")
    lists = " ".join(f"MDEPTH_{op.upper()}_KERNELS(KERNEL)" for op in ops())
    text = "\n".join([*lines, f"#define MDEPTH_ALL_KERNELS(KERNEL) {lists}", ""])
    (folder / "all_kernels.h").write_text(text)
    return folder


@functools.cache
def build(source: str, *flags: str) -> Path:
    """Compiles one of this folder's sources with the kernels; returns the library or program."""
    output = Path(_folder().name) / f"{Path(source).stem}{abs(hash(flags))}"
    command = ["g++", *FLAGS, *flags, *(f"-I{ROOT / path}" for path in INCLUDES)]
    command += [f"-I{_all_kernels()}", "-include", str(HERE / "emulate.h"), str(HERE / source), "-o", str(output)]
    assert shutil.which("g++"), "the kernels are run on the host by g++"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return output

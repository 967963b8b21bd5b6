"""Builds the native module with CMake; everything declarative lives in pyproject.toml."""

import os
import runpy
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures and builds `mdepth_fast._C`; the module links no libtorch, so no torch is needed here."""

    def build_extension(self, ext: Extension) -> None:
        # Tools that were installed beside this interpreter count, whether its environment is activated or not.
        path = f"{os.environ.get('PATH', '')}{os.pathsep}{Path(sys.executable).parent}"
        cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
        if cmake is None:
            raise RuntimeError("the kernels are built with CMake 3.22 or newer, which was not found: pip install cmake")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(self.build_temp).resolve() / "cmake"
        build_dir.mkdir(parents=True, exist_ok=True)
        # A cache of an earlier build names tools of an isolated environment that is gone.
        (build_dir / "CMakeCache.txt").unlink(missing_ok=True)
        shutil.rmtree(build_dir / "CMakeFiles", ignore_errors=True)
        configure = [
            cmake,
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            *(("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ()),
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            *pybind11_options(),
            f"-DMDEPTH_OUTPUT_DIR={target.parent}",
            f"-DMDEPTH_OUTPUT_NAME={target.name}",
            f"-DMDEPTH_CUDA={os.environ.get('MDEPTH_CUDA', 'auto')}",
            f"-DMDEPTH_SOURCES={runpy.run_path(str(ROOT / 'mdepth_fast' / '_source_tree.py'))['digests']()}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        if archs := os.environ.get("MDEPTH_CUDA_ARCHS"):
            configure.append(f"-DMDEPTH_CUDA_ARCHS={archs}")
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS", "" if ninja else str(os.cpu_count()))
        build = [cmake, "--build", str(build_dir), *(("--parallel", jobs) if jobs else ())]
        subprocess.run(build, check=True)


def pybind11_options() -> list[str]:
    """Where pybind11 is: its package, else the copy of its headers that every torch brings."""
    if find_spec("pybind11") is not None:
        import pybind11

        return [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}"]
    torch = find_spec("torch")
    headers = Path(torch.origin).parent / "include" if torch and torch.origin else None
    if headers is None or not (headers / "pybind11").is_dir():
        raise RuntimeError("the kernels are bound to Python by pybind11, which was not found: pip install pybind11")
    return [f"-DMDEPTH_PYBIND11_HEADERS={headers}"]


# Before 77 setuptools knows the one, from then on it prefers the other.
LICENSE = "license_expression" if int(setuptools.__version__.split(".")[0]) >= 77 else "license"

setup(
    **{LICENSE: "Apache-2.0"},
    # The top-level folder kernels/ is installed as mdepth_fast.kernels, never under its own name. Of csrc/ goes in what
    # NVRTC compiles at run time.
    packages=[
        *find_packages(include=["mdepth_fast", "mdepth_fast.*"], exclude=["mdepth_fast.kernels*"]),
        "mdepth_fast.kernels",
        "mdepth_fast.kernels.nvrtc",
        "mdepth_fast.csrc",
    ],
    package_dir={"mdepth_fast": "mdepth_fast", "mdepth_fast.kernels": "kernels", "mdepth_fast.csrc": "csrc"},
    include_package_data=False,  # MANIFEST.in is for the sdist
    package_data={
        "mdepth_fast": [
            "py.typed",
            "configs/*.yaml",
            "configs/augmentations/*.yaml",
            "engines/*.json",
            "weights/*.yaml",
        ],
        "mdepth_fast.csrc": ["cuda/*.cuh", "include/mdepth/*.h"],
    },
    ext_modules=[Extension("mdepth_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

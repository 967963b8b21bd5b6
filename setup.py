"""Builds the native module with CMake; everything declarative lives in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures and builds `mdepth_fast._C`; the module links no libtorch, so no torch is needed here."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = Path(self.build_temp).resolve() / "cmake"
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            "--fresh",  # a cache of an earlier build names tools of an isolated environment that is gone
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-G",
            "Ninja",
            "-DCMAKE_BUILD_TYPE=Release",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DMDEPTH_OUTPUT_DIR={target.parent}",
            f"-DMDEPTH_OUTPUT_NAME={target.name}",
            f"-DMDEPTH_CUDA={os.environ.get('MDEPTH_CUDA', 'auto')}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        if archs := os.environ.get("MDEPTH_CUDA_ARCHS"):
            configure.append(f"-DMDEPTH_CUDA_ARCHS={archs}")
        subprocess.run(configure, check=True)
        build = ["cmake", "--build", str(build_dir)]
        if jobs := os.environ.get("MAX_JOBS"):
            build += ["--parallel", jobs]
        subprocess.run(build, check=True)


setup(
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
        "mdepth_fast": ["py.typed", "configs/*.yaml"],
        "mdepth_fast.csrc": ["cuda/*.cuh", "include/mdepth/*.h"],
    },
    ext_modules=[Extension("mdepth_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)

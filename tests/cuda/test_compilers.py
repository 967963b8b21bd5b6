"""Every kernel compiled for every architecture by nvcc and by NVRTC; neither needs a device."""

import ctypes
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from host_build import ops

from mdepth_fast.kernels import nvrtc

SOURCES = nvrtc.source_folder() / "cuda"
OPS = ops()
ARCHITECTURES = ("80", "90", "120")
SHARED_MEMORY = 48 * 1024  # what every device gives a block without asking


def _names(host_library):
    names = set()
    while name := host_library.kernel_name(len(names)):
        names.add(name.decode())
    return names


def _resources(log):
    """What ptxas says of every kernel: its name, architecture, registers and shared memory, having found no spill."""
    for entry in re.split(r"Compiling entry function ", log)[1:]:
        kernel, architecture = re.match(r"'mdepth_(\w+)' for 'sm_(\w+)'", entry).groups()
        spills = re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", entry)
        shared = re.search(r"(\d+) bytes smem", entry)
        # Three numbers of the kernel, and three of each function that it calls (pow in double).
        assert len(spills) >= 3 and set(spills) == {"0"}, entry
        assert not shared or int(shared[1]) <= SHARED_MEMORY, entry
        yield kernel, architecture, int(re.search(r"Used (\d+) registers", entry)[1]), int(shared[1]) if shared else 0


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc: not on PATH")
def test_nvcc_needs_no_spills_and_little_shared_memory(tmp_path, capsys, host_library):
    everything = tmp_path / "everything.cu"
    everything.write_text("".join(f'#include "{op}.cuh"\n' for op in OPS))
    targets = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in ARCHITECTURES]
    command = ["nvcc", *nvrtc.options(), "-O3", "-Xptxas", "-v", "--threads", "2", *targets, "-fatbin"]
    done = subprocess.run([*command, "-o", tmp_path / "out", everything], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    use = {}
    for kernel, architecture, registers, shared in _resources(done.stdout + done.stderr):
        use.setdefault(kernel, {})[architecture] = registers, shared
    with capsys.disabled():
        print(f"\n{'registers, shared memory':<44}" + "".join(f"{'sm_' + one:>13}" for one in ARCHITECTURES))
        for kernel, columns in sorted(use.items()):
            print(f"{kernel:<44}" + "".join(f"{columns[one][0]:>6}{columns[one][1]:>7}" for one in ARCHITECTURES))
    assert set(use) == _names(host_library)
    assert all(len(columns) == len(ARCHITECTURES) for columns in use.values())


def _load_nvrtc():
    """CuPy's binding of NVRTC, which wants the library loaded where it is not on the loader's path."""
    if importlib.util.find_spec("cupy_backends") is None:
        pytest.skip("nvrtc: CuPy is not installed")
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in spec.submodule_search_locations] if spec else []
    for library in sorted(path for root in roots for path in root.glob("*/lib/libnvrtc.so.*")):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    from cupy_backends.cuda.libs import nvrtc as binding

    try:
        binding.getVersion()
    except RuntimeError as error:
        pytest.skip(f"nvrtc: {str(error).splitlines()[0]}")
    return binding


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvrtc_compiles_what_the_loader_gives_it_without_spills(architecture, host_library):
    binding = _load_nvrtc()
    if binding.getVersion() < (12, 8) and architecture == "120":
        pytest.skip("nvrtc: before 12.8, which knows no sm_120")
    found = set()
    for op in OPS:
        program = binding.createProgram(nvrtc.source(op), f"{op}.cu", (), ())
        try:
            binding.compileProgram(program, (*nvrtc.options(), f"-arch=sm_{architecture}", "--ptxas-options=-v"))
        except binding.NVRTCError:
            pytest.fail(binding.getProgramLog(program))
        assert len(binding.getCUBIN(program)) > 1000
        found |= {kernel for kernel, *_ in _resources(binding.getProgramLog(program))}
    assert found == _names(host_library)

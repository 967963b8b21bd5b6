"""Why a backend of CUDA C++ cannot run, in words; without a device, a driver or CuPy."""

import contextlib
import importlib.util
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from cases import CASES
from host_build import ROOT

import mdepth_fast
from mdepth_fast import _dispatch, _native
from mdepth_fast.kernels import nvrtc

DEVICE = torch.device("cuda", 0)


@pytest.mark.parametrize(
    "architecture, runs, does_not",
    [
        ("80-real", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0)]),
        ("86-real", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("90-virtual", [(9, 0), (10, 0), (12, 0)], [(8, 9)]),
        ("120", [(12, 0), (12, 1), (13, 0)], [(9, 0), (10, 3)]),
        ("90a-real", [(9, 0)], [(8, 9), (10, 0)]),
        ("native", [(8, 0)], []),
    ],
)
def test_which_devices_code_runs_on(architecture, runs, does_not):
    assert all(_native._runs_on(architecture, capability) for capability in runs)
    assert not any(_native._runs_on(architecture, capability) for capability in does_not)


@pytest.fixture
def installation(monkeypatch):
    """A compiled module and a device of the test's making."""

    def make(cuda, driver=13000, capability=(9, 0)):
        module = types.SimpleNamespace(cuda=cuda, cuda_driver=lambda: driver)
        monkeypatch.setattr(_native, "_module", module)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return _native.cuda_unavailable(DEVICE)

    return make


def test_reasons_of_cuda(installation):
    built = {"toolkit": "13.0.88", "architectures": "80-real 90-real 120"}
    assert installation(built) is None
    assert "built without CUDA" in installation(None)
    assert "capability 7.5, the module was compiled for 80-real 90-real 120" in installation(built, capability=(7, 5))
    assert "the driver is for CUDA 12.8: too old" in installation(built, driver=12080)


@pytest.fixture
def forgetful():
    _dispatch.forget()
    yield
    _dispatch.forget()


def test_the_dispatcher_passes_the_reasons_on(forgetful, installation, monkeypatch):
    installation(None)
    monkeypatch.setattr(nvrtc, "unavailable", lambda device: "no CuPy")
    with pytest.raises(RuntimeError, match=r"backend 'cuda' was asked for.*cuda: .*without CUDA.*nvrtc: no CuPy"):
        _dispatch.resolve("photometric_loss", "cuda", DEVICE)
    assert _dispatch.why_not("photometric_loss", "cuda", torch.device("cpu")).startswith("needs CUDA tensors")


def test_reasons_of_nvrtc(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cupy" else find(name))
    assert "CuPy is not installed" in nvrtc.unavailable.__wrapped__(DEVICE)


def test_info_names_the_compiled_architectures():
    cuda = mdepth_fast.info()["native"]["cuda"]
    assert cuda == _native.module().cuda
    assert (f"for {cuda['architectures']}" if cuda else "no CUDA") in mdepth_fast.info_text()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_compiler_does_not_look_into_the_choice(case, monkeypatch):
    """On a GPU the choice asks the compiled module and the driver, which no compiler can trace."""
    why_not = _dispatch.why_not

    def asking(op, backend, device):
        assert _native.module().isa()
        return why_not(op, backend, device)

    _dispatch.forget()
    monkeypatch.setattr(_dispatch, "why_not", asking)
    torch._dynamo.reset()
    inputs = case.inputs()
    compiled = torch.compile(lambda **t: case.call(None, **t), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(**inputs)[0], case.call(None, **inputs)[0])


def test_the_loader_launches_on_torchs_stream(monkeypatch):
    """With a CuPy that only writes down what it is asked."""
    log = []

    class Module:
        def __init__(self, code, options):
            log.append(("compile", code))
            assert any(option.endswith("include") for option in options)

        def get_function(self, name):
            return lambda grid, block, arguments: log.append((name, grid, block, arguments[0].tobytes(), current[-1]))

    current = ["default stream"]

    class Stream:
        @classmethod
        @contextlib.contextmanager
        def from_external(cls, stream):
            current.append(stream.__cuda_stream__())
            yield
            current.pop()

    compiler = types.SimpleNamespace(CompileException=OSError)
    driver = types.SimpleNamespace(CUDADriverError=KeyError)
    cuda = types.SimpleNamespace(
        Device=lambda index: contextlib.nullcontext(), Stream=Stream, compiler=compiler, driver=driver
    )
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(RawModule=Module, cuda=cuda))
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=1234))
    nvrtc._module.cache_clear()
    a, b = np.random.default_rng(0).random((2, 1, 3, 8, 9))
    shape, out = (1, 3, 8, 9), np.zeros((1, 1, 8, 9))
    addresses = [x.ctypes.data for x in (a, b, out)]
    members = dict(zip(("batch", "channels", "height", "width"), shape), dtype=1, ssim_weight=0.85)
    members |= dict(zip(("prediction", "target", "loss"), addresses))
    params = _native.params("photometric_loss").pack(members)
    for _ in range(2):
        _native.run("photometric_loss", "nvrtc", members, DEVICE)
    nvrtc._module.cache_clear()
    compiled, first, second = log
    assert compiled == ("compile", nvrtc.source("photometric_loss"))
    assert first == second == ("mdepth_photometric_loss_f64", (1,), (128,), params, (0, 1234))
    assert all(address.to_bytes(8, "little") in params for address in addresses)


def test_an_edited_header_is_compiled_anew(tmp_path, monkeypatch):
    """CuPy's cache on disk knows a program by its text."""
    shutil.copytree(nvrtc.source_folder(), tmp_path / "csrc")
    monkeypatch.setattr(nvrtc, "source_folder", lambda: tmp_path / "csrc")
    nvrtc._digest.cache_clear()
    before = nvrtc.source("silog_loss")
    with (tmp_path / "csrc" / "include" / "mdepth" / "silog.h").open("a") as header:
        header.write("// more\n")
    nvrtc._digest.cache_clear()
    assert before.startswith('#include "silog_loss.cuh"\n') and nvrtc.source("silog_loss") != before
    nvrtc._digest.cache_clear()


@pytest.mark.parametrize("wanted", ["auto", "1", "0"])
def test_configuring_without_nvcc(wanted, tmp_path):
    """auto: the CPU alone, said in one line; 1: an error; 0: not even looked for."""
    pybind11 = subprocess.run(
        [sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True, check=True
    ).stdout.strip()
    hidden = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path), "CUDACXX": str(tmp_path / "nvcc")}
    (tmp_path / "bin").mkdir()
    for tool in ("g++", "c++", "ninja", "as", "ld", "ar", "ranlib", "sh", "uname"):
        if found := shutil.which(tool):
            (tmp_path / "bin" / tool).symlink_to(found)
    command = [shutil.which("cmake"), "-S", ROOT, "-B", tmp_path / "build", "-G", "Ninja"]
    command += [f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11}", f"-DMDEPTH_CUDA={wanted}"]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True)
    if wanted == "1":
        assert done.returncode != 0 and "MDEPTH_CUDA=1, but nvcc was not found" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert ("nvcc not found: building the CPU kernels only" in done.stdout) == (wanted == "auto")

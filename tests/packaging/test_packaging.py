"""What is built and shipped: from the sdist, as a wheel, editable; no torch in the build, none in the module.

And what then runs in the root of a checkout, whose own mdepth_fast/ comes before the installed one.
"""

import itertools
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools

import mdepth_fast
from mdepth_fast import _source_tree
from mdepth_fast.cli import _COMMANDS

ROOT = Path(__file__).parents[2]
MODULE = Path(__import__("mdepth_fast._C").__file__).parent


# A compiler launcher for CMake. What these tests look at does not depend on the optimiser, so it is off; and every
# build after the first takes its objects from the first, where command, source and headers are the same.
LAUNCHER = """#!{python}
import hashlib, pathlib, shutil, subprocess, sys
command = sys.argv[1:] + ["-O0"]
if "-c" not in command or "/csrc/" not in command[command.index("-c") + 1]:
    sys.exit(subprocess.run(command).returncode)
source, output = (pathlib.Path(command[command.index(flag) + 1]) for flag in ("-c", "-o"))
csrc = next(parent for parent in source.parents if parent.name == "csrc")
key = hashlib.sha256(" ".join(command).replace(str(csrc), "").encode() + source.read_bytes())
for header in sorted(csrc.rglob("*.h")):
    key.update(header.read_bytes())
kept = pathlib.Path({folder!r}) / key.hexdigest()
if not kept.exists():
    if code := subprocess.run(command).returncode:
        sys.exit(code)
    shutil.copyfile(output, kept)
shutil.copyfile(kept, output)
if "-MF" in command:
    pathlib.Path(command[command.index("-MF") + 1]).write_text(f"{{output}}: {{source}}\\n")
"""


@pytest.fixture(scope="module", autouse=True)
def launcher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("objects")
    script = folder / "launcher"
    script.write_text(LAUNCHER.format(python=sys.executable, folder=str(folder)))
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMAKE_CXX_COMPILER_LAUNCHER", str(script))
        yield


def start(*command, **options):
    environment = {**os.environ, "MDEPTH_CUDA": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    for name in ("PYTHONPATH", "PYTHONSAFEPATH", "MDEPTH_BACKEND", "MDEPTH_REQUIRE_BACKENDS"):
        environment.pop(name, None)
    environment.update(options.pop("env", {}))
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, **options)


def run(*command, **options):
    done = start(*command, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def copy_of_the_project(target):
    """As git would give it, so that nothing is written into the checkout."""
    ignore = shutil.ignore_patterns(
        ".git", "build", "dist", "*.egg-info", "*.so", "__pycache__", "runs", ".venv", ".*_cache"
    )
    shutil.copytree(ROOT, target, ignore=ignore, symlinks=True)
    return target


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_of_the_project(tmp_path_factory.mktemp("source") / "mdepth_fast")


@pytest.fixture(scope="module")
def new_environment(tmp_path_factory):
    """Makes a virtual environment, which sees all that this one has but for this package; returns its Python."""
    everything = tmp_path_factory.mktemp("everything")
    for site in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in site.iterdir():
            ours = entry.name.startswith(("mdepth_fast", "__editable__")) or entry.suffix == ".pth"
            if not ours and not (everything / entry.name).exists():
                (everything / entry.name).symlink_to(entry)

    def make():
        folder = tmp_path_factory.mktemp("environment")
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        (site,) = (folder / "lib").glob("python*/site-packages")
        (site / "everything.pth").write_text(f"{everything}\n")
        return folder / "bin" / "python"

    return make


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, cwd=source)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, new_environment, tmp_path_factory):
    """Built from the sdist, so whatever that forgets is missed here; and as if for the second time.

    A build under isolation leaves a CMake cache whose tools are gone when the next one comes.
    """
    out = tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(out, filter="data")
    (folder,) = out.iterdir()
    platform = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    cache = folder / "build" / f"temp.{platform}" / "cmake" / "CMakeCache.txt"
    cache.parent.mkdir(parents=True)
    cache.write_text("CMAKE_MAKE_PROGRAM:FILEPATH=/gone/ninja\nCMAKE_GENERATOR:INTERNAL=Ninja\n")
    run(new_environment(), "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", out, folder)
    assert "/gone/" not in cache.read_text(), "the build used another folder than this test means"
    (archive,) = out.glob("*.whl")
    return archive


def test_sdist_holds_what_the_build_needs(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for path in (
        "CMakeLists.txt",
        "csrc/bindings.cpp",
        "csrc/include/mdepth/params.h",
        "kernels/__init__.py",
        "LICENSE",
    ):
        assert path in names


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [archive.read(name).decode() for name in names if name.endswith("METADATA")]
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"mdepth_fast"}
    assert any(re.fullmatch(r"mdepth_fast/_C\.[^/]+\.(so|pyd)", name) for name in names)
    assert "mdepth_fast/kernels/__init__.py" in names and "mdepth_fast/py.typed" in names
    assert {"mdepth_fast/configs/motorcycle.yaml", "mdepth_fast/weights/published.yaml"} <= set(names)
    assert not [name for name in names if re.match(r"test_|conftest|bench_", Path(name).name)]
    assert "License-Expression: Apache-2.0" in metadata
    required = set(re.findall(r"^Requires-Dist: ([\w-]+)[^;\n]*$", metadata, re.M))
    assert required == {"torch", "numpy"}


def test_wheel_installs_beside_torch_and_runs(wheel, tmp_path):
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", tmp_path, wheel)
    code = "import mdepth_fast, mdepth_fast.kernels as k; print(mdepth_fast.__file__); print(k.__file__)"
    code += "; assert mdepth_fast.info()['native']['reason'] is None"
    out = run(sys.executable, "-c", code, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert out.splitlines() == [
        str(tmp_path / "mdepth_fast" / "__init__.py"),
        str(tmp_path / "mdepth_fast" / "kernels" / "__init__.py"),
    ]


SCRIPT = """
import importlib.util, warnings, torch, mdepth_fast, mdepth_fast.kernels
from mdepth_fast import _native, ops
warnings.simplefilter("error")
x = torch.rand(1, 3, 8, 9, requires_grad=True)
ops.photometric_loss(x, x.detach().flip(3)).mean().backward()
csrc = importlib.util.find_spec("mdepth_fast.csrc").submodule_search_locations
print(mdepth_fast.__file__, mdepth_fast.kernels.__file__, *csrc)
print(_native.module().__file__)
"""


class Installed:
    """A checkout that was installed from into an environment of its own, plainly or editable."""

    def __init__(self, folder, python, options):
        self.python, self.options = python, options
        self.root = copy_of_the_project(folder / "checkout")
        (self.root / "mine.py").write_text(SCRIPT)
        self.install()

    def install(self):
        run(self.python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", *self.options, self.root)

    def ways(self, root=None):
        """What one starts in the root of a checkout: name, process."""
        root = root or self.root
        test = "tests/ops/test_edge_aware_smoothness.py"
        yield "-c", start(self.python, "-c", SCRIPT, cwd=root)
        yield "script", start(self.python, root / "mine.py", cwd=root.parent)
        yield "info", start(self.python, "-m", "mdepth_fast", "info", cwd=root)
        pytest_line = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", test)
        yield "pytest", start(self.python, *pytest_line, cwd=root, env={"MDEPTH_REQUIRE_BACKENDS": "cpu"})

    def runs_the_kernels(self, module_folder):
        """Whether every way runs the kernels of the module in that folder, with the rest taken from the checkout."""
        for name, done in self.ways():
            assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
            if name in ("-c", "script"):
                parts, module = done.stdout.splitlines()
                there = [self.root / part for part in ("mdepth_fast/__init__.py", "kernels/__init__.py", "csrc")]
                assert parts.split() == list(map(str, there))
                assert Path(module).parent == module_folder
            elif name == "info":
                backends = done.stdout.partition("backends\n")[2]
                ops = re.findall(r"^  (\w+)$", backends, re.M)
                assert len(re.findall(r"^    cpu +available$", backends, re.M)) == len(ops) > 5
        return True

    def stops_with(self, reason, root=None, most=4):
        """Whether every way, or the first of them, ends with a line that gives the reason, and what to do about it."""
        for name, done in itertools.islice(self.ways(root), most):
            text = done.stdout if name == "info" else done.stdout + done.stderr
            lines = [line for line in text.splitlines() if "the compiled module could not be loaded" in line]
            assert len(lines) == 1 and reason in lines[0] and "run: pip install" in lines[0], f"{name}\n{text}"
            assert (done.returncode != 0) == (name != "info"), name
        return True


@pytest.fixture(scope="module")
def plain(tmp_path_factory, new_environment, wheel):  # after the wheel, whose build is the one that compiles
    return Installed(tmp_path_factory.mktemp("plain"), new_environment(), [])


@pytest.fixture(scope="module")
def editable(tmp_path_factory, new_environment, wheel):
    return Installed(tmp_path_factory.mktemp("editable"), new_environment(), ["-e"])


def test_in_the_checkout_after_pip_install(plain, editable):
    (site,) = (plain.python.parents[1] / "lib").glob("python*/site-packages")
    assert plain.runs_the_kernels(site / "mdepth_fast")
    # Nor does a module that an editable install left there long ago get in the way.
    (module,) = (editable.root / "mdepth_fast").glob("_C.*.so")
    old = plain.root / "mdepth_fast" / module.name
    old.write_bytes(module.read_bytes().replace(b"mdepth_fast.sources=", b"mdepth_fast.sources=0"))
    assert run(plain.python, "-c", SCRIPT, cwd=plain.root).splitlines()[1].startswith(str(site))
    old.unlink()


def test_in_the_checkout_after_an_editable_install(editable, tmp_path):
    assert editable.runs_the_kernels(editable.root / "mdepth_fast")
    out = run(editable.python, "-c", SCRIPT, cwd=tmp_path)  # and so elsewhere
    assert out.split()[0] == str(editable.root / "mdepth_fast" / "__init__.py")


def test_in_a_checkout_that_is_not_installed(editable, plain):
    """Here the environment has another one's editable install: its kernels are not taken for this one's."""
    assert editable.stops_with("has not been built for this environment", plain.root)


@pytest.mark.parametrize("kind", ["plain", "editable"])
def test_in_a_checkout_whose_sources_have_changed(kind, request):
    """Last: it edits the checkouts."""
    installed = request.getfixturevalue(kind)
    with (installed.root / "csrc" / "cpu" / "photometric_loss.cpp").open("a") as file:
        file.write("// edited\n")
    assert installed.stops_with("was built from other C++ sources than those in", most=1)
    backend = {"MDEPTH_BACKEND": "reference"}
    assert start(installed.python, "-c", SCRIPT.rpartition("print")[0], cwd=installed.root, env=backend).returncode == 0
    installed.install()
    run(installed.python, "-c", SCRIPT, cwd=installed.root)


def test_edited_cuda_sources_turn_off_the_kernels_that_were_built_from_them_alone(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    before = _source_tree.digests(tmp_path)
    with (tmp_path / "csrc" / "cuda" / "silog_loss.cuh").open("a") as file:
        file.write("// edited\n")
    after = _source_tree.digests(tmp_path)
    assert before.partition("+")[0] == after.partition("+")[0] and before != after
    assert before == _source_tree.digests(ROOT)


def test_the_build_asks_for_no_torch():
    requires = re.search(r"^requires = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert "torch" not in requires
    assert not re.search(r"^\s*(import|from) torch", (ROOT / "setup.py").read_text(), re.M)


def test_the_module_links_no_torch():
    (module,) = MODULE.glob("_C*.so")
    symbols = run("nm", "-D", "--demangle", module)
    assert not re.search(r"\bc10::|\bat::|torch", symbols)
    libraries = {line.split()[0].split(".so")[0] for line in run("ldd", module).splitlines()}
    allowed = {"linux-vdso", "libgomp", "libstdc++", "libm", "libgcc_s", "libc", "libpthread", "libdl", "librt"}
    assert {Path(name).name for name in libraries if not name.startswith("/lib64/ld")} <= allowed


def imported(code):
    """The modules that are there after `code`, in a process of its own."""
    out = run(sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)", env=SAME_PACKAGE)
    return set(out.splitlines()[-1].split())


# Of `run`, which tests installations: the package that this session tests.
SAME_PACKAGE = {name: os.environ[name] for name in ("PYTHONPATH", "PYTHONSAFEPATH") if name in os.environ}
OPTIONAL = {"cupy", "triton", "torchvision", "timm", "lightning", "skimage", "PIL", "matplotlib"}


def test_import_is_light():
    """The package alone needs nothing of others; the ops and losses torch, and nothing optional.

    `benches/bench_startup.py` has its time.
    """
    bare = imported("import mdepth_fast; mdepth_fast.__version__")
    assert not bare & {*OPTIONAL, "torch", "numpy"}
    assert {name for name in bare if name.startswith("mdepth_fast")} == {"mdepth_fast", "mdepth_fast._source_tree"}
    assert not imported("import mdepth_fast.ops, mdepth_fast.losses") & OPTIONAL


@pytest.mark.parametrize("words", [["--help"], ["--version"], [], *([name, "--help"] for name in _COMMANDS)])
def test_help_comes_without_torch(words):
    code = f"from mdepth_fast.cli import main\ntry:\n    main({words})\nexcept SystemExit:\n    pass"
    modules = imported(code)
    assert not modules & {*OPTIONAL, "torch", "numpy", "jsonargparse", "yaml"}


@pytest.mark.parametrize("name", mdepth_fast.__all__)
def test_what_the_package_promises_is_there(name):
    """Each first in a process of its own would take minutes: here as `__getattr__` gives it, whatever came before."""
    assert mdepth_fast.__getattr__(name) is getattr(mdepth_fast, name) if name in LAZY else hasattr(mdepth_fast, name)
    assert name in dir(mdepth_fast)


LAZY = set(mdepth_fast.__all__) - {"__version__", "load"}


def test_what_the_package_does_not_have():
    with pytest.raises(AttributeError, match=r"^module 'mdepth_fast' has no attribute 'models_'$"):
        _ = mdepth_fast.models_


def test_architectures_that_an_older_nvcc_does_not_know_are_left_out(tmp_path):
    nvcc, script = tmp_path / "nvcc", tmp_path / "ask.cmake"
    nvcc.write_text("#!/bin/sh\nprintf 'compute_50\\ncompute_80\\ncompute_90\\n'\n")  # as that of CUDA 12.4
    nvcc.chmod(0o755)
    lines = [f"include({ROOT}/csrc/cuda/architectures.cmake)"]
    for archs in ("80-real;90-real;120", "80-real;90-real", "120", "all-major"):
        lines += [f'mdepth_known_architectures({nvcc} "{archs}" kept)', 'message(STATUS "kept=${kept}.")']
    script.write_text("\n".join(lines))
    out = run("cmake", "-P", script)
    assert re.findall(r"kept=(.*)\.", out) == ["80-real;90", "80-real;90-real", "", "all-major"]
    assert f"GPU architecture 120 is left out: {nvcc} does not know it" in out


def test_quoted_cmake_arguments_stay_whole(monkeypatch):
    commands, classes = [], {}
    monkeypatch.setattr("setuptools.setup", lambda **options: classes.update(options["cmdclass"]))
    monkeypatch.setattr(subprocess, "run", lambda command, **options: commands.append(command))
    monkeypatch.setenv("CMAKE_ARGS", "-DA=1 '-DCMAKE_CXX_FLAGS=-O2 -g'")
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    build = classes["build_ext"](setuptools.Distribution())
    build.build_temp, build.build_lib, build.inplace = "build/none", "build/none", False
    monkeypatch.setattr(build, "get_ext_fullpath", lambda name: "build/none/_C.so")
    monkeypatch.setattr(Path, "mkdir", lambda *rest, **options: None)
    build.build_extension(setuptools.Extension("mdepth_fast._C", []))
    assert commands[0][-2:] == ["-DA=1", "-DCMAKE_CXX_FLAGS=-O2 -g"]

"""What is built and shipped: from the sdist, as a wheel, editable; no torch in the build, none in the module."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULE = Path(__import__("mdepth_fast._C").__file__).parent


def run(*command, **options):
    environment = {**os.environ, "MDEPTH_CUDA": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    environment.update(options.pop("env", {}))
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the project as git would give it, so that nothing is written into the checkout."""
    target = tmp_path_factory.mktemp("source") / "mdepth_fast"
    ignore = shutil.ignore_patterns(
        ".git", "build", "dist", "*.egg-info", "*.so", "__pycache__", "runs", ".venv", ".*_cache"
    )
    shutil.copytree(ROOT, target, ignore=ignore, symlinks=True)
    return target


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", out, cwd=source)
    (archive,) = out.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
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
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "-w", out, folder)
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
    assert "mdepth_fast/configs/motorcycle.yaml" in names
    assert not [name for name in names if "test" in Path(name).name or "bench_" in name]
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


def test_editable_install(source, tmp_path):
    """In an environment of its own, which sees torch and the build tools of this one."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    parent = tmp_path / "parent"  # all that this environment has, but for this package
    parent.mkdir()
    for folder in (Path(path) for path in sys.path if path.endswith("site-packages")):
        for entry in folder.iterdir():
            if not entry.name.startswith(("mdepth_fast", "__editable__")) and not (parent / entry.name).exists():
                (parent / entry.name).symlink_to(entry)
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "parent.pth").write_text(f"{parent}\n")
    run(python, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", source)
    code = "import mdepth_fast, mdepth_fast.kernels, mdepth_fast._C as c; print(mdepth_fast.__file__, c.__file__)"
    package, module = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(package) == source / "mdepth_fast" / "__init__.py"
    assert Path(module).parent == source / "mdepth_fast"


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


def test_import_is_light():
    """Nothing optional comes with it; `benches/bench_startup.py` has its time."""
    code = (
        "import sys, mdepth_fast, mdepth_fast.ops, mdepth_fast.losses;"
        "optional = ('cupy', 'triton', 'torchvision', 'timm', 'lightning', 'skimage', 'PIL', 'matplotlib');"
        "print([name for name in optional if name in sys.modules])"
    )
    modules = run(sys.executable, "-c", code, env={"PYTHONPATH": os.environ.get("PYTHONPATH", "")})
    assert modules.strip() == "[]"

"""Rules of every test session: which backends ran, and that nothing is skipped without a reason that is known.

`pytest -n 2` (pytest-xdist) shares the files of tests among processes of one thread each: most tests are small, and two
of them side by side keep two cores busier than one on two threads.
"""

import collections
import gc
import os
import random
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

import numpy as np
import pytest
import torch

import mdepth_fast
from mdepth_fast import _dispatch, _native

TESTS = Path(__file__).parent

# What `pytest -m fast` runs, as the names of its tests begin: what all ops must hold, and the quick part of each room.
FAST = (
    "cli/test_cli.py::TestTrain::test_prints_both_tables",
    "cli/test_cli.py::test_wrong_usage",
    "cli/test_visualize.py",
    "data",
    "evaluation",
    "losses",
    "models/test_predict.py",
    "models/test_registry.py",
    "netadapt/test_graph.py",
    "ops/test_contract.py",
    "ops/test_contract_autograd.py::test_a_",
    "ops/test_contract_autograd.py::test_the_direct_way",
    "ops/test_contract_autograd.py::test_what_the_forward_resolved",
    "ops/test_min_reprojection.py",
    "packaging/test_packaging.py::test_import_is_light",
    "packaging/test_packaging.py::test_what",
    "systems/test_config.py",
    "systems/test_motion.py",
    "systems/test_registry.py",
    "test_architecture.py",
    "test_files.py",
    "test_geometry.py",
    "test_alignment.py",
    "inference/test_writers.py",
    "inference/test_demo.py",
    "training/test_module.py",
    "weights/test_numpy_pickle.py",
)
# Those that take longest, which must not be the last to start.
LONGEST = (
    "kernels/test_triton.py",
    "packaging/test_packaging.py",
    "cuda/test_host.py",
    "cuda/test_compilers.py",
    "cuda/test_sanitizers.py",
    "ops/test_contract.py",
    "ops/test_contract_autograd.py",
    "ops/test_vectorised.py",
    "training/test_resume.py",
    "training/test_distributed.py",
    "systems/test_presets.py",
)

# A skip is counted and printed; with any other reason it fails the session.
KNOWN_SKIPS = ("real frames:", "gpu:", "gcc:", "nvcc:", "nvrtc:", "chromium:", "gradio:", "rerun:", "openvino:")


class _Executed(collections.Counter):
    """Kernel calls per backend."""

    def append(self, call):
        self[call[1]] += 1


_executed = _Executed()
_unknown_skips: list[str] = []


def pytest_configure(config):
    if gone := [name for name in (*FAST, *LONGEST) if not (TESTS / name.partition("::")[0]).exists()]:
        raise pytest.UsageError(f"tests/conftest.py names what is not there: {', '.join(gone)}")
    reason = _native.unavailable()
    if reason:
        raise pytest.UsageError(f"the tests need the compiled module: {reason}")
    # A child process must import the package that is tested here, whether that is the installed one (`pytest`) or the
    # one in the checkout (`python -m pytest`), wherever it is started.
    os.environ["PYTHONSAFEPATH"] = "1"
    package = Path(mdepth_fast.__file__).parents[1]
    if package.samefile(Path(__file__).parents[1]):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
    # Or torch lets no matrix product on a GPU pass as deterministic; it looks when the first one is made.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    _dispatch._recorders.append(_executed)


@pytest.fixture(scope="session")
def real_data():
    """The folder of real frames; what needs one that is not there is skipped."""
    root = Path(os.environ.get("MDEPTH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        pytest.skip(f"real frames: none at {root}, set MDEPTH_DATA")
    return root


@pytest.fixture
def packaged_only(monkeypatch):
    """The networks and systems of the package, without those that other tests have registered."""
    from mdepth_fast.models import registry as models
    from mdepth_fast.systems import registry as systems

    for module, name in ((models, "_FACTORIES"), (systems, "SYSTEMS")):
        own = {key: made for key, made in getattr(module, name).items() if _is_packaged(key, made)}
        monkeypatch.setattr(module, name, own)


def _is_packaged(name, made):
    """Tests register classes of their own, or small versions of the package's as tiny_..."""
    return getattr(made, "func", made).__module__.startswith("mdepth_fast.") and not name.startswith("tiny_")


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (for libraries that draw from the global state)
    torch.manual_seed(0)


def pytest_ignore_collect(collection_path, config):
    """Only what is needed is imported for `-m fast`."""
    if config.option.markexpr == "fast" and collection_path.suffix == ".py":
        name = collection_path.relative_to(TESTS).as_posix()
        return not any(name.startswith(entry.partition("::")[0]) for entry in FAST) or None
    return None


def pytest_collection_modifyitems(items):
    order = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))
    for item in items:
        if item.nodeid.partition("tests/")[2].startswith(FAST):
            item.add_marker(pytest.mark.fast)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="gpu: no CUDA device here"))


def pytest_collection_finish():
    """What has been imported and collected by now stays: the garbage collector need not look through it again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logreport(report):
    if report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(KNOWN_SKIPS):
            _unknown_skips.append(f"{report.nodeid}: {reason}")


def pytest_terminal_summary(terminalreporter):
    ran = ", ".join(f"{name} {count}" for name, count in sorted(_executed.items())) or "none"
    terminalreporter.write_line(f"kernel calls per backend: {ran}")
    for problem in _problems():
        terminalreporter.write_line(problem, red=True)


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["executed"] = dict(_executed)
    elif exitstatus == 0 and _problems():
        session.exitstatus = 1


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    _executed.update(getattr(node, "workeroutput", {}).get("executed", {}))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file goes to one process, for what its fixtures build is worth minutes; in the order of above."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def _problems():
    required = [name for name in os.environ.get("MDEPTH_REQUIRE_BACKENDS", "").split(",") if name]
    missing = [f"required backend {name!r} ran no kernel" for name in required if not _executed[name]]
    return missing + [f"skipped for a reason that is not known: {skip}" for skip in _unknown_skips]

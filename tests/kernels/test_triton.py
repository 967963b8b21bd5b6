"""The Triton kernels without a GPU: interpreted, and compiled ahead of time, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mdepth_fast.kernels import _launch

TESTS = Path(__file__).parents[1]
SOURCES = sorted(Path(_launch.__file__).parent.glob("*.py"))


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """Both test runs, side by side."""
    temporary = tmp_path_factory.mktemp("triton")
    running = {}
    for folder, variables in (
        ("triton_interp", {"TRITON_INTERPRET": "1", "MDEPTH_REQUIRE_BACKENDS": "triton"}),
        ("triton_aot", {"MDEPTH_TRITON_AOT": "1", "TRITON_CACHE_DIR": str(temporary / "cache")}),
    ):
        inherited = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MDEPTH_REQUIRE_BACKENDS")}
        with (temporary / folder).open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS / folder)],
                cwd=TESTS,  # not the root, whose package folder would hide the installed one
                env={**inherited, **variables, "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        running[folder] = process, temporary / folder
    yield running
    for process, _ in running.values():
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(("folder", "least"), [("triton_interp", 100), ("triton_aot", 100)])
def test_in_a_process_of_its_own(processes, folder, least):
    process, output = processes[folder]
    code = process.wait(timeout=900)
    text = output.read_text()
    print(text)
    passed = re.search(r"(\d+) passed", text)
    assert code == 0 and passed and int(passed.group(1)) >= least, text[-10_000:]


@pytest.mark.parametrize("folder", ["triton_interp", "triton_aot"])
def test_those_folders_are_empty_to_any_other_process(folder):
    variables = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "MDEPTH_TRITON_AOT")}
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-p", "no:cacheprovider", str(TESTS / folder)]
    result = subprocess.run(command, cwd=TESTS, env=variables, capture_output=True, text=True)
    assert result.returncode == 5 and "no tests" in result.stdout, result.stdout + result.stderr


def test_a_launch_pins_contraction_and_skips_nothing_to_do():
    calls = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda **keywords: calls.append((grid, keywords))

    x = torch.zeros(3)
    _launch.launch(Kernel(), 0, 4, x=x)
    assert not calls
    _launch.launch(Kernel(), 5, 2, x=x, COLUMNS=8)
    assert calls == [((5,), {"x": x, "COLUMNS": 8, "num_warps": 2, "enable_fp_fusion": False})]


def calls(text, name):
    """The argument lists of every `name(...)`, by counting parentheses."""
    for match in re.finditer(rf"{re.escape(name)}\(", text):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        yield text[match.end() : end - 1], text[end:]


def violations(text):
    """What no Triton kernel of this package may do, each for a bug that others have had."""
    found = [f"{name} is gone from newer Triton" for name in ("make_block_ptr", "tl.advance") if name in text]
    found += [
        f"a masked load without other= reads anything: {arguments}"
        for arguments, _ in calls(text, "tl.load")
        if "mask=" in arguments and "other=" not in arguments
    ]
    found += [
        f"a program's index overflows in 32 bits: {rest[:30]!r}"
        for _, rest in calls(text, "tl.program_id")
        if not rest.startswith(".to(tl.int64)")
    ]
    found += [f"{name} runs a kernel more than once" for name in ("autotune",) if re.search(rf"\b{name}\b", text)]
    return found


def test_the_rules_that_the_kernels_keep():
    assert len(SOURCES) >= 5
    for source in SOURCES:
        assert violations(source.read_text()) == [], source.name


@pytest.mark.parametrize(
    "line",
    [
        "p = tl.make_block_ptr(x)",
        "p = tl.advance(p, (1,))",
        "v = tl.load(x + (a), mask=on)",
        "v = tl.load(\n    x,\n    mask=f(on),\n)",
        "i = tl.program_id(0) * 4",
        "@triton.autotune(configs=[])",
    ],
)
def test_a_broken_rule_is_seen(line):
    assert len(violations(line)) == 1

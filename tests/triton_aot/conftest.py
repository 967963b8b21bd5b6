"""Kernels cannot be compiled where they were imported to be interpreted, so these tests run in a process of their own,
which tests/kernels/test_triton.py starts with MDEPTH_TRITON_AOT=1."""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("MDEPTH_TRITON_AOT") == "1" else ["test_*.py"]

_rows = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[_rows] = []


@pytest.fixture
def table(pytestconfig):
    """Rows of the table that the session prints."""
    return pytestconfig.stash[_rows]


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(f"{'kernel':110} {'sm':>4} {'registers':>9} {'stack':>6} {'local':>6} {'shared':>7}")
    for label, capability, *numbers in config.stash[_rows]:
        terminalreporter.write_line(
            f"{label:110} {capability:4} {numbers[0]:9} {numbers[1]:6} {numbers[2]:6} {numbers[3]:7}"
        )

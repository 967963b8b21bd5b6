"""Triton decides when a kernel is imported whether it is interpreted, so these tests run in a process of their own:
`TRITON_INTERPRET=1 pytest tests/triton_interp`, which tests/kernels/test_triton.py starts."""

import os

import pytest

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]


@pytest.fixture(autouse=True)
def large_blocks(monkeypatch):
    """A program takes tens of milliseconds, whatever its size: few of them, of 32 x 64 pixels."""
    import triton_blocks

    from mdepth_fast.kernels._launch import Block

    triton_blocks.set_blocks(monkeypatch, Block(32, 64, 4))

"""The tiles of every Triton kernel, found by type so that a new one cannot be forgotten."""

import importlib

from cases import CASES

from mdepth_fast.kernels._launch import Block

MODULES = [importlib.import_module(f"mdepth_fast.kernels.{case.name}") for case in CASES]


def set_blocks(monkeypatch, block):
    for module in MODULES:
        names = [name for name, value in vars(module).items() if isinstance(value, Block)]
        assert names, module.__name__
        for name in names:
            monkeypatch.setattr(module, name, block)

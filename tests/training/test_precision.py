"""`trainer.precision: auto`: what it chooses on which hardware, and that a run under bfloat16 trains and resumes."""

from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config

from mdepth_fast.engines import runtimes
from mdepth_fast.training.checkpoint import read_checkpoint
from mdepth_fast.training.precision import choose_precision
from mdepth_fast.training.run import train


@pytest.fixture
def hardware(monkeypatch):
    def pretend(cpu="avx2", gpu=None):
        monkeypatch.setattr(runtimes, "_instructions", lambda: cpu)
        monkeypatch.setattr(runtimes.platform, "machine", lambda: "x86_64")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu or including_emulation)

    return pretend


@pytest.mark.parametrize(
    ("machine", "accelerator", "expected", "reason"),
    [
        ({}, "auto", "32-true", "this CPU has no units for bfloat16"),
        ({"cpu": "avx512f"}, "auto", "32-true", "this CPU has no units for bfloat16"),
        ({"cpu": "avx512_bf16"}, "auto", "bf16-mixed", "this CPU has units"),
        ({"cpu": "amx"}, "cpu", "bf16-mixed", "this CPU has units"),
        ({"gpu": True}, "auto", "bf16-mixed", "this GPU has units"),
        ({"gpu": False, "cpu": "amx"}, "gpu", "32-true", "Some GPU has no units for bfloat16"),  # emulated, and slow
        ({"gpu": True}, "cpu", "32-true", "this CPU has no units"),
        ({"cpu": "amx"}, "mps", "32-true", "mps"),
    ],
)
def test_auto_follows_the_hardware(hardware, machine, accelerator, expected, reason):
    hardware(**machine)
    precision, why = choose_precision("auto", accelerator)
    assert precision == expected and reason in why


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "64-true"])
def test_what_is_configured_is_taken(hardware, precision):
    hardware("amx", gpu=True)
    assert choose_precision(precision)[0] == precision


def test_a_run_under_bfloat16_says_so_trains_and_goes_on_with_the_same_numbers(hardware, tmp_path: Path):
    hardware("avx512_bf16")  # whatever this machine has: slow where it has none, and the same
    lines = []

    def run(name, epochs, **options):
        changes = {"data__length": 2, "data__sources": [-1, 1], "trainer__max_epochs": epochs}
        return train(tiny_config(output=str(tmp_path / name), trainer__precision="auto", **changes), **options)

    whole = run("whole", 2, say=lines.append)
    assert [line for line in lines if line.startswith("precision")] == [
        "precision bf16-mixed: this CPU has units for bfloat16"
    ]
    part = run("part", 1)
    start = read_checkpoint(part.checkpoint)["state_dict"]
    rest = run("part", 2, resume=str(part.folder))
    expected, resumed = (read_checkpoint(result.checkpoint)["state_dict"] for result in (whole, rest))
    assert all(value.dtype == torch.float32 for value in expected.values() if value.is_floating_point())
    assert any(not torch.equal(value, start[key]) for key, value in expected.items())
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())

"""`trainer.precision: auto`: what it chooses on which hardware, and that a run under bfloat16 trains and resumes."""

from pathlib import Path

import pytest
import torch
from tiny_run import tiny_config

from mdepth_fast.training.checkpoint import read_checkpoint
from mdepth_fast.training.precision import choose_precision
from mdepth_fast.training.run import train


@pytest.fixture
def hardware(monkeypatch):
    def pretend(*, amx=False, avx512_bf16=False, gpu=None):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu or including_emulation)

    return pretend


@pytest.mark.parametrize(
    ("machine", "accelerator", "expected", "reason"),
    [
        ({}, "auto", "32-true", "no instructions"),
        ({"avx512_bf16": True}, "auto", "bf16-mixed", "AVX512-BF16"),
        ({"amx": True, "avx512_bf16": True}, "cpu", "bf16-mixed", "AMX"),
        ({"gpu": True}, "auto", "bf16-mixed", "Some GPU has tensor cores"),
        ({"gpu": False, "amx": True}, "gpu", "32-true", "Some GPU has no bfloat16"),  # emulated, and slow
        ({"gpu": True}, "cpu", "32-true", "no instructions"),
        ({"amx": True}, "mps", "32-true", "mps"),
    ],
)
def test_auto_follows_the_hardware(hardware, machine, accelerator, expected, reason):
    hardware(**machine)
    precision, why = choose_precision("auto", accelerator)
    assert precision == expected and reason in why


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "64-true"])
def test_what_is_configured_is_taken(hardware, precision):
    hardware(amx=True, gpu=True)
    assert choose_precision(precision)[0] == precision


def test_a_run_under_bfloat16_says_so_trains_and_goes_on_with_the_same_numbers(hardware, tmp_path: Path):
    hardware(avx512_bf16=True)  # whatever this machine has: slow where it has none, and the same
    lines = []

    def run(name, epochs, **options):
        changes = {"data__length": 2, "data__sources": [-1, 1], "trainer__max_epochs": epochs}
        return train(tiny_config(output=str(tmp_path / name), trainer__precision="auto", **changes), **options)

    whole = run("whole", 2, say=lines.append)
    assert [line for line in lines if line.startswith("precision")] == [
        "precision bf16-mixed: this processor has AVX512-BF16"
    ]
    part = run("part", 1)
    start = read_checkpoint(part.checkpoint)["state_dict"]
    rest = run("part", 2, resume=str(part.folder))
    expected, resumed = (read_checkpoint(result.checkpoint)["state_dict"] for result in (whole, rest))
    assert all(value.dtype == torch.float32 for value in expected.values() if value.is_floating_point())
    assert any(not torch.equal(value, start[key]) for key, value in expected.items())
    assert all(torch.equal(value, resumed[key]) for key, value in expected.items())

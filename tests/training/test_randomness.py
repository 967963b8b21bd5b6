"""A training step draws from its own place in the run, and leaves the global random numbers alone."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_run import Recorder, Untouched, read_record, tiny_supervised, write_frames

from mdepth_fast.systems import list_presets, load_config
from mdepth_fast.training.randomness import seeded
from mdepth_fast.training.run import train


def test_numbers_inside_depend_on_the_seed_and_those_behind_on_nothing() -> None:
    cpu = torch.device("cpu")
    expected = torch.rand(5)
    torch.manual_seed(0)
    with seeded(3, cpu):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(5), expected)
    with seeded(3, cpu):
        assert torch.equal(torch.rand(4), inside)
    with seeded(4, cpu):
        assert not torch.equal(torch.rand(4), inside)
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stopped"), seeded(3, cpu):
        torch.rand(4)
        raise RuntimeError("stopped")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("preset", sorted({*list_presets("monodepth2")} - {"toy"}))
def test_a_step_of_every_preset_leaves_them_alone(preset: str, tmp_path: Path) -> None:
    """On rooms in place of its data, with its objective, its optimiser and its augmentation; see `test_presets` for
    the supervised ones."""
    words = ["--data.name=synthetic", "--data.length=2", "--data.height=64", "--data.width=96", "--data.batch_size=2"]
    words += ["--data.repeat=1", "--data.workers=0", "--trainer.max_steps=2", "--trainer.accelerator=cpu"]
    words += ["--model.name=tiny_depth", "--pose.name=tiny_pose", "--trainer.devices=1", f"--output={tmp_path}"]
    untouched = Untouched()
    assert train(load_config(preset, words), callbacks=[untouched]) is not None
    assert untouched.steps == 2


def test_dropout_is_a_function_of_the_place_in_the_run(tmp_path: Path) -> None:
    """Whatever else draws from the global numbers between the steps."""
    root = write_frames(tmp_path / "frames")

    class Draws(Untouched):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            torch.rand(int(3 * random.random()) + 1)
            np.random.rand(2)  # noqa: NPY002
            super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def losses(name: str, seed: int, *callbacks: Any) -> list[float]:
        settings: dict[str, Any] = {"model__options": {"dropout": 0.5}, "stages": {"coarse": 6}, "seed": seed}
        settings["optimizer__lr"] = 1e-12
        config = tiny_supervised(root, **settings, data__val_split=None, output=str(tmp_path))
        train(config, callbacks=[Recorder(tmp_path / name, None), *callbacks])
        return [line["loss"] for line in read_record(tmp_path / name).values()]

    assert losses("a", 0) == losses("b", 0, Draws())
    assert len(set(losses("c", 1))) == 6

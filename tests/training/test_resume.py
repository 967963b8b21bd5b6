"""A run that is killed and resumed goes on with the same numbers; two processes train as one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from tiny_run import Recorder, read_record, tiny_config, tiny_supervised, write_frames

from mdepth_fast.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from mdepth_fast.training.run import train


def spawn(record: Path, config: dict[str, Any], **options: Any) -> subprocess.CompletedProcess[str]:
    arguments = json.dumps({"record": str(record), "config": config, **options})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, tiny_run.__file__, arguments], capture_output=True, text=True, env=environment, timeout=240
    )


@pytest.mark.parametrize(("every", "workers"), [(3, 0), (4, 2)], ids=["mid-epoch", "end of epoch, loader workers"])
def test_a_killed_run_goes_on_with_the_same_numbers(tmp_path: Path, every: int, workers: int) -> None:
    config = {"trainer__checkpoint_every_n_steps": every, "data__workers": workers}
    whole = spawn(tmp_path / "whole", {**config, "output": str(tmp_path / "a")})
    assert whole.returncode == 0, whole.stderr
    config["output"] = str(tmp_path / "b")
    killed = spawn(tmp_path / "parts", config, kill_after=10)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    before = read_record(tmp_path / "parts")
    assert sorted(before) == list(range(1, 11))
    resumed = spawn(tmp_path / "rest", config, resume="auto")
    assert resumed.returncode == 0, resumed.stderr

    expected, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    start = 10 // every * every  # the newest checkpoint before the kill
    assert sorted(rest) == list(range(start + 1, 21))
    assert {step: expected[step] for step in before} == before
    assert {step: expected[step] for step in rest} == rest, "bit for bit, learning rate included"
    assert len({line["loss"] for line in expected.values()}) == 20, "the losses differ from step to step"
    assert [path.name for path in (tmp_path / "b" / "tiny").iterdir()] == ["001"], "it goes on in its own folder"


class _Stop(Recorder):
    """Records, and ends the run by an error instead of a kill: the same for what is on the disk, and much faster."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        stop, self.kill_after = self.kill_after, None
        super().on_train_batch_end(trainer, *rest)
        if trainer.global_step == stop:
            raise RuntimeError("stopped")
        self.kill_after = stop


@pytest.mark.parametrize("every", [3, 4], ids=["mid-epoch", "end of epoch"])
def test_a_supervised_run_goes_on_with_the_same_numbers(tmp_path: Path, every: int) -> None:
    """With stages that change after the resumption, a rate that falls by what was seen before it, validation within
    epochs, and dropout."""
    root = write_frames(tmp_path / "frames")
    settings: dict[str, Any] = {
        "root": root,
        "data__val_split": str(root),
        "trainer__val_every_n_steps": 3,
        "stages": {"coarse": 11, "fine": 9},
        "model__options": {"dropout": 0.2},
        "optimizer__lr": 0.02,
        "optimizer__schedule": "plateau",
        "optimizer__patience": 0,
        "optimizer__gamma": 0.5,
        "trainer__checkpoint_every_n_steps": every,
    }
    train(tiny_supervised(**settings, output=str(tmp_path / "a")), callbacks=[_Stop(tmp_path / "whole", None)])
    config = tiny_supervised(**settings, output=str(tmp_path / "b"))
    with pytest.raises(RuntimeError, match="stopped"):
        train(config, callbacks=[_Stop(tmp_path / "parts", 10)])
    torch.rand(100)
    train(config, callbacks=[_Stop(tmp_path / "rest", None)], resume="auto")
    expected, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert sorted(rest) == list(range(10 // every * every + 1, 21))
    assert {step: expected[step] for step in rest} == rest
    assert len({line["lr"] for line in expected.values()}) > 1
    assert len({line["loss"] for line in expected.values()}) == 20


def test_a_truncated_checkpoint_is_named_in_one_error(tmp_path: Path) -> None:
    config = tiny_config(output=str(tmp_path), trainer__max_steps=1)
    result = train(config)
    assert result is not None
    result.checkpoint.write_bytes(result.checkpoint.read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"last\.ckpt: cannot be read as a checkpoint"):
        train(config, resume="auto")


def test_resuming_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    config = tiny_config(output=str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"resume: no last\.ckpt in any run under .*tiny"):
        train(config, resume="auto")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"value": lambda: None}, path)
    assert read_checkpoint(path) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("task", ["self_supervised", "supervised"])
def test_two_processes_train_as_one_on_the_same_global_batch(tmp_path: Path, task: str) -> None:
    """Without batch norm and augmentation: statistics and random numbers belong to a process, the rest is shared."""
    config: dict[str, Any] = {"output": str(tmp_path), "data__batch_size": 4, "augment__flip": 0.0}
    config["trainer__max_epochs"] = 3
    if task == "supervised":
        # Every stage leaves parameters without a gradient, and each has others.
        config |= {"root": str(write_frames(tmp_path / "frames", holes=0)), "stages": {"coarse": 3, "fine": 3}}
        config |= {"model__name": "tiny_metric_without_norm", "augment__recolor": 0.0, "augment__scale": [1, 1]}
        config |= {"augment__rotate": 0.0, "augment__crop": "centre"}
    else:
        config |= {"model__name": "tiny_depth_without_norm", "pose__name": "tiny_pose_without_norm"}
        config |= {"augment__jitter": 0.0}
    build = tiny_supervised if task == "supervised" else tiny_config
    train(build(**config), callbacks=[Recorder(tmp_path / "one", None)])
    two = spawn(tmp_path / "two", {**config, "trainer__devices": 2, "trainer__strategy": "ddp"})
    assert two.returncode == 0, two.stderr
    expected, actual = read_record(tmp_path / "one"), read_record(tmp_path / "two")
    assert sorted(expected) == sorted(actual) == list(range(1, 7))
    for step, line in expected.items():
        assert actual[step]["loss"] == pytest.approx(line["loss"], rel=1e-5)

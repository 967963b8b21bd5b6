"""The last checkpoint and the best one: what they are by, which is which, and that a resumed run knows."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback
from tiny_run import stop_as_killed, tiny_config, tiny_supervised, write_frames

from mdepth_fast.cli import main
from mdepth_fast.evaluation import Evaluator
from mdepth_fast.inference import evaluate, load_trained
from mdepth_fast.systems.supervised import Supervised
from mdepth_fast.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from mdepth_fast.training.run import train


class Curve(Callback):
    """The logged metric after every validation, by step; stops with an error after step `stop`."""

    def __init__(self, metric: str, stop: int | None = None) -> None:
        self.metric, self.stop, self.values = metric, stop, {}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.values[trainer.global_step] = trainer.callback_metrics[self.metric].item()

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.stop:
            stop_as_killed(trainer)


def settings(root: Path, output: Path, **changes: Any) -> Any:
    """Ten steps at a rate at which the error goes up and down, validated every second one."""
    changes = {"stages": {"coarse": 10}, "trainer__val_every_n_steps": 2, "optimizer__lr": 0.05, **changes}
    return tiny_supervised(root, output=str(output), **changes)


@pytest.mark.parametrize(("metric", "mode"), [("val/abs_rel", "min"), ("val/d1", "max")])
def test_best_is_the_best_validation_and_both_files_are_what_they_say(
    metric: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_frames(tmp_path / "frames")
    curve = Curve(metric)
    monitor = {"trainer__monitor": metric, "trainer__monitor_mode": mode}
    result = train(settings(root, tmp_path, **monitor), callbacks=[curve])
    assert result is not None
    assert sorted(curve.values) == [2, 4, 6, 8, 10]
    choose = min if mode == "min" else max
    step = choose(curve.values, key=lambda step: curve.values[step])
    assert (result.best_step, result.best_value, result.step) == (step, curve.values[step], 10)
    assert step != 10, "otherwise nothing is told apart"

    config = load_trained(result.folder).config
    for checkpoint, at in (("last", 10), ("best", step)):
        assert read_checkpoint(result.folder / f"{checkpoint}.ckpt")["global_step"] == at
        evaluator = Evaluator(config.protocol)
        evaluate(load_trained(result.folder, checkpoint=checkpoint).net, Supervised.evaluation_data(config), evaluator)
        assert evaluator.compute()[metric.removeprefix("val/")] == pytest.approx(curve.values[at], rel=1e-6)
    assert not list(result.folder.glob("*.tmp*")) and len(list(result.folder.glob("*.ckpt"))) == 2

    which = "smallest" if mode == "min" else "largest"
    assert result.checkpoints().splitlines() == [
        f"checkpoint: {result.folder / 'last.ckpt'} (the last, step 10)",
        f"best: {result.folder / 'best.ckpt'} (the {which} {metric}, {curve.values[step]:.4g}, step {step})",
    ]
    record = json.loads((result.folder / "metrics.json").read_text())["checkpoints"]
    assert record == {
        "last": {"step": 10},
        "best": {"step": step, "monitor": metric, "mode": mode, "value": curve.values[step]},
    }
    tables = []
    for words in ([], ["--checkpoint=last"], ["--checkpoint=best"]):
        assert main(["eval", str(result.folder), *words]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] != tables[2]


def test_a_resumed_run_remembers_the_best(tmp_path: Path) -> None:
    root = write_frames(tmp_path / "frames")
    whole = train(settings(root, tmp_path / "a"))
    with pytest.raises(RuntimeError, match="stopped"):
        train(settings(root, tmp_path / "b", trainer__checkpoint_every_n_steps=3), callbacks=[Curve("val/d1", 9)])
    rest = train(settings(root, tmp_path / "b", trainer__checkpoint_every_n_steps=3), resume="auto")
    assert whole is not None and rest is not None
    assert (rest.best_step, rest.best_value) == (whole.best_step, whole.best_value)
    first, second = (read_checkpoint(run.folder / "best.ckpt")["state_dict"] for run in (whole, rest))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_end_counts_where_no_validation_came_before_it(tmp_path: Path) -> None:
    root = write_frames(tmp_path / "frames")
    result = train(settings(root, tmp_path, trainer__val_every_n_steps=None, trainer__check_val_every_n_epoch=9))
    assert result is not None and result.after is not None
    assert (result.best_step, result.best_value) == (10, result.after["abs_rel"])


def test_without_ground_truth_or_monitor_there_is_the_last_alone(tmp_path: Path) -> None:
    root = write_frames(tmp_path / "frames")
    for changes in ({"data__val_split": None}, {"trainer__monitor": None}):
        result = train(settings(root, tmp_path, **changes))
        assert result is not None and result.best is None
        assert [path.name for path in result.folder.glob("*.ckpt")] == ["last.ckpt"]
        assert "best" not in result.checkpoints()
    with pytest.raises(FileNotFoundError, match=r"best\.ckpt: no such checkpoint"):
        load_trained(result.folder, checkpoint="best")


def test_bad_choices_are_one_error_each(tmp_path: Path) -> None:
    config = tiny_config(output=str(tmp_path / "out"), trainer__monitor="val/epe")
    with pytest.raises(ValueError, match=r"trainer\.monitor: expected null or one of val/abs_rel, .*got 'val/epe'"):
        train(config)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="checkpoint: expected last or best, got 'first'"):
        load_trained(tmp_path, checkpoint="first")
    (tmp_path / "some.ckpt").touch()
    with pytest.raises(ValueError, match=r"checkpoint: expected a run folder to choose best from, got .*some\.ckpt"):
        load_trained(tmp_path / "some.ckpt", checkpoint="best")


def test_a_validation_without_a_number_is_never_the_best(tmp_path: Path) -> None:
    """Where no pixel of the held-out frames is known, there is none to compare by."""
    root = write_frames(tmp_path / "frames")
    unknown = write_frames(tmp_path / "unknown", count=2, holes=1.0)
    result = train(settings(root, tmp_path, data__val_split=str(unknown), trainer__max_epochs=1))
    assert result is not None and result.after is not None
    assert math.isnan(result.after["abs_rel"]) and result.best is None
    assert result.panel.is_file()


def test_a_full_disk_is_said_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch makes an error of its own of it, which names neither; the old file stays."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def full(values: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 832 vs 726")

    def no_more(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match="unexpected pos"):  # with room left it is another fault
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    monkeypatch.setattr(os, "fsync", no_more)
    with pytest.raises(OSError, match=r"No space left on device: '.*last\.ckpt'"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert read_checkpoint(path) == {"step": 1} and list(tmp_path.iterdir()) == [path]


def test_a_resumed_run_says_its_settings_and_clears_what_a_kill_has_left(tmp_path: Path) -> None:
    root = write_frames(tmp_path / "frames")
    result = train(settings(root, tmp_path / "runs", optimizer__lr=0.05))
    assert result is not None

    def resume(**changes: Any) -> float:
        left = result.folder / f".last.{'0123456789abcdef' * 2}.ckpt"
        left.write_bytes(b"half")
        config = settings(root, tmp_path / "runs", **changes)
        train(config, resume=str(result.folder), allow_changed=["optimizer.lr", "stages"])
        assert not left.exists()
        rate: float = yaml.safe_load((result.folder / "config.yaml").read_text())["optimizer"]["lr"]
        return rate

    assert resume(optimizer__lr=0.02) == 0.05, "no step was left to train at that rate"
    assert resume(optimizer__lr=0.02, stages={"coarse": 12}) == 0.02

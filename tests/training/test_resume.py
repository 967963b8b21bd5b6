"""A run that is killed and resumed goes on with the same numbers."""

import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback
from tiny_run import Recorder, read_record, spawn, stop_as_killed, tiny_config, tiny_supervised, write_frames
from torch import Tensor

from mdepth_fast.inference import load_trained
from mdepth_fast.systems import load_config
from mdepth_fast.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from mdepth_fast.training.resume import ChangedSettings
from mdepth_fast.training.run import train


@pytest.mark.parametrize(("every", "workers"), [(3, 2)], ids=["mid-epoch, loader workers"])
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
    """Records, and ends the run by an error in place of a kill."""

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        stop, self.kill_after = self.kill_after, None
        super().on_train_batch_end(trainer, *rest)
        if trainer.global_step == stop:
            stop_as_killed(trainer)
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
    with pytest.raises(ValueError, match=r"last\.ckpt: damaged, truncated or not a checkpoint"):
        train(config, resume="auto")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"value": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"value": lambda: None}, path)
    assert read_checkpoint(path) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_run_from_before_systems_had_names_goes_on(tmp_path: Path) -> None:
    """Its checkpoint and its config.yaml say `task`, know no monitor, and have one checkpoint's state."""
    root = write_frames(tmp_path / "frames")
    for build, task in ((tiny_config, "self_supervised"), (partial(tiny_supervised, root), "supervised")):
        settings: dict[str, Any] = {"trainer__max_epochs": 2, "run": task, "model__weights": None}
        if task == "supervised":
            settings |= {"stages": {"coarse": 8}, "data__val_split": str(root)}
        expected = train(build(**settings, output=str(tmp_path / "whole")))
        with pytest.raises(RuntimeError, match="stopped"):
            train(
                build(**settings, output=str(tmp_path / "part"), trainer__checkpoint_every_n_steps=3),
                callbacks=[_Stop(tmp_path / f"{task}.json", 5)],
            )
        path = tmp_path / "part" / task / "001" / "last.ckpt"
        values = read_checkpoint(path)
        config = values["mdepth_fast"]["config"]
        del config["system"], config["trainer"]["monitor"], config["trainer"]["monitor_mode"]
        config["task"] = task
        values["callbacks"] = {key: state for key, state in values["callbacks"].items() if "ModelCheckpoint" in key}
        torch.save(values, path)
        path.with_name("config.yaml").write_text(yaml.safe_dump(config))
        lines: list[str] = []
        resumed = train(load_config(str(path.with_name("config.yaml"))), resume=str(path.parent), say=lines.append)
        assert expected is not None and resumed is not None
        assert not any("other settings" in line for line in lines)
        assert resumed.after == expected.after
        assert load_trained(path).config.system == ("monodepth2" if task == "self_supervised" else task)


class _Rates(Callback):
    """The rate and Adam's first moment of every step, as the step finds them."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.moments: list[Tensor | None] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])
        states = [state["exp_avg"].clone() for state in optimizer.state.values() if "exp_avg" in state]
        self.moments.append(states[0] if states else None)


def test_a_resumed_run_takes_the_rate_and_the_schedule_of_its_configuration(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output": str(tmp_path), "optimizer__lr": 1e-3, "trainer__max_epochs": 1}
    settings |= {"data__length": 2}
    train(tiny_config(**settings))
    rates = _Rates()
    settings |= {"optimizer__lr": 1e-4, "optimizer__step_size": 3, "optimizer__gamma": 0.1, "trainer__max_epochs": 4}
    changed = tiny_config(**settings, optimizer__weight_decay=0.01)
    with pytest.raises(ChangedSettings) as refused:
        train(changed, resume="auto")
    assert refused.value.lines == [
        f"{key}: expected {old!r}, as the run to resume has it, got {new!r}; --allow-changed {key} takes it"
        for key, old, new in (
            ("optimizer.lr", 1e-3, 1e-4),
            ("optimizer.weight_decay", 0.0, 0.01),
            ("optimizer.step_size", 2, 3),
            ("optimizer.gamma", 0.5, 0.1),
        )
    ]
    with pytest.raises(ValueError, match=r"allow_changed: expected a setting such as optimizer\.lr, or .* 'rates'"):
        train(changed, resume="auto", allow_changed=["rates"])
    with pytest.raises(ValueError, match=r"allow_changed: model\.name cannot change within a run"):
        train(changed, resume="auto", allow_changed=["model.name"])
    train(changed, callbacks=[rates], resume="auto", allow_changed=["optimizer"])
    assert rates.rates == pytest.approx([1e-4] * 2 + [1e-5])
    values = read_checkpoint(tmp_path / "tiny" / "001" / "last.ckpt")
    assert values["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.01
    config = (tmp_path / "tiny" / "001" / "config.yaml").read_text()
    for change, message in (
        ({"optimizer__schedule": "poly"}, r"optimizer\.schedule: expected 'step', as the run to resume has it, got"),
        ({"data__batch_size": 1}, r"data\.batch_size: expected 2, as the run to resume has it, got 1$"),
        ({"model__name": "monodepth2_resnet18"}, r"model\.name: expected '.*', as the run to resume has it, got"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tiny_config(**settings, **change), resume="auto", allow_changed=["optimizer"])
    assert (tmp_path / "tiny" / "001" / "config.yaml").read_text() == config


def test_a_finished_run_keeps_its_results(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"output": str(tmp_path), "trainer__max_epochs": 1, "data__length": 2}
    first = train(tiny_config(**settings))
    assert first is not None and first.after is not None
    metrics, lines = (first.folder / "metrics.json").read_text(), list[str]()
    again = train(tiny_config(**settings), resume="auto", say=lines.append)
    assert again is not None and again.after == first.after and again.before == first.before
    assert (first.folder / "metrics.json").read_text() == metrics
    assert any(line.startswith(f"nothing left to train: the run is at step {first.step}") for line in lines)


def test_fine_tuning_starts_from_weights_and_moments_at_its_own_rate(tmp_path: Path) -> None:
    """As the published recipe for larger images: the moments of the first run, but a tenth of its rate."""
    first = train(tiny_config(output=str(tmp_path), optimizer__lr=1e-3, trainer__max_epochs=1, data__length=4))
    assert first is not None
    values = read_checkpoint(first.checkpoint)
    rates = _Rates()
    start: dict[str, Any] = {f"{section}__weights": str(first.folder) for section in ("model", "pose")}
    start |= {"output": str(tmp_path), "run": "larger", "data__height": 96, "data__width": 128}
    start |= {"optimizer__lr": 1e-4, "trainer__max_epochs": 1, "trainer__max_steps": 2, "data__length": 4}
    state = {"optimizer__state": str(first.folder)}
    result = train(tiny_config(**start, **state), callbacks=[rates])
    assert result is not None and rates.rates == pytest.approx([1e-4, 1e-4])
    assert rates.moments[0] is not None
    torch.testing.assert_close(rates.moments[0], values["optimizer_states"][0]["state"][0]["exp_avg"])
    with pytest.raises(ValueError, match=r"optimizer.state: .*last.ckpt: expected the state of the same networks"):
        train(tiny_config(**{**start, "run": "other", "pose__weights": None, "pose__name": "posecnn"}, **state))
    with pytest.raises(FileNotFoundError, match=r"nothing: no such checkpoint"):
        train(tiny_config(**{**start, "run": "none", "optimizer__state": str(tmp_path / "nothing")}))

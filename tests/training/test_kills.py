"""However a run ends, it goes on: after kills at any steps, after signals and after errors, bit for bit."""

import errno
import os
import signal
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import Checkpoint
from tiny_run import stop_as_killed, tiny_config, tiny_supervised, write_frames

from mdepth_fast.cli import main
from mdepth_fast.training.checkpoint import Diverged, first_not_finite, read_checkpoint
from mdepth_fast.training.interruption import Interrupted, SaveFirst, Signals
from mdepth_fast.training.run import train

STEPS = 12  # three epochs of four


class Kill(Checkpoint):
    """Ends a run after a step and its checkpoint as a kill does: nothing more is saved.

    Lightning calls what is a `Checkpoint` last.
    """

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.after:
            stop_as_killed(trainer)


def settings(root: Path, output: Path, **changes: Any) -> Any:
    """A run that ends after so many steps, with all that a resumed one has to know: momentum, statistics, dropout, the
    mean loss of a plateau, stages."""
    options: dict[str, Any] = {
        "data__val_split": None,
        "stages": {"coarse": 7, "fine": 5},
        "model__options": {"dropout": 0.2},
        "optimizer__lr": 0.02,
        "optimizer__schedule": "plateau",
        "optimizer__patience": 0,
        "trainer__checkpoint_every_n_steps": 1,
        **changes,
    }
    return tiny_supervised(root, output=str(output), **options)


def of_epochs(output: Path) -> Any:
    """A run that ends after so many epochs."""
    options = {"trainer__max_epochs": 3, "trainer__checkpoint_every_n_steps": 1, "trainer__monitor": None}
    return tiny_config(output=str(output), data__keep=True, **options)


def weights(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_checkpoint(folder / "last.ckpt")["state_dict"]
    return state


def killed_at(config: Any, kills: Sequence[int]) -> Path:
    """The folder of a run that is killed after each of these steps, and goes on each time."""
    for after in kills:
        with pytest.raises(RuntimeError, match="stopped"):
            train(config, resume="auto", callbacks=[Kill(after)])
    result = train(config, resume="auto")
    assert result is not None and result.step == STEPS
    return result.folder


# Of epochs of four: at the ends of two, next to one and at the last step. MDEPTH_KILLS=all: all of them.
PAIRS = [(4, 8), (3, 12)]
if os.environ.get("MDEPTH_KILLS") == "all":
    PAIRS = list(combinations(range(1, STEPS + 1), 2))


@pytest.mark.parametrize("limit", ["epochs", "steps"])
def test_two_kills_leave_the_weights_of_no_kill(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("progress.write_panel", "progress.show_panel", "run.write_panel"):  # takes longer than the training
        monkeypatch.setattr(f"mdepth_fast.training.{name}", lambda *arguments: None)
    root = write_frames(tmp_path / "frames")

    def config(name: str) -> Any:
        return of_epochs(tmp_path / name) if limit == "epochs" else settings(root, tmp_path / name)

    expected = weights(killed_at(config("whole"), ()))
    for number, kills in enumerate(PAIRS):
        found = weights(killed_at(config(str(number)), kills))
        assert all(torch.equal(found[key], value) for key, value in expected.items()), kills


@pytest.fixture
def _heard() -> Iterator[None]:
    """A job in the background may ignore signals."""
    before = [
        (number, signal.signal(number, signal.SIG_DFL)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    ]
    yield
    for number, handler in before:
        signal.signal(number, handler)


class Send(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_before_optimizer_step(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.step - 1:
            os.kill(os.getpid(), self.number)


class Fail(Callback):
    """An error in a step, after its forward pass has changed the statistics of the batch norms."""

    def on_before_backward(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 4:
            raise OSError(errno.EIO, "Input/output error", "frame7.png")


@pytest.mark.usefixtures("_heard")
def test_signals_and_errors_save_first_and_lose_nothing(tmp_path: Path) -> None:
    root = write_frames(tmp_path / "frames")
    options = {"stages": {"coarse": 4, "fine": 4}, "trainer__checkpoint_every_n_steps": 99}
    whole = train(settings(root, tmp_path / "whole", **options))
    assert whole is not None
    config = settings(root, tmp_path / "parts", **options)
    folder = tmp_path / "parts" / "tiny" / "001"
    go_on = f"checkpoint: {folder / 'last.ckpt'} (step {{}}); go on with --resume {folder}"
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    for number, step in ((signal.SIGTERM, 2), (signal.SIGINT, 3), (signal.SIGHUP, 4)):
        with pytest.raises(Interrupted) as stopped:
            train(config, resume="auto", callbacks=[Send(number, step)])
        assert stopped.value.number == number
        assert str(stopped.value) == f"interrupted by {number.name} at step {step}; {go_on.format(step)}"
    lines: list[str] = []
    with pytest.raises(OSError, match=r"frame7\.png"):
        train(config, resume="auto", callbacks=[Fail()], say=lines.append)
    # Nothing was learnt since the step before: the checkpoint is the last signal's.
    assert lines[-1] == f"stopped at step 4 by an error; {go_on.format(4)}"
    with pytest.raises(OSError, match=r"frame7\.png"):
        train(settings(root, tmp_path / "error", **options), callbacks=[Fail()])
    again = train(settings(root, tmp_path / "error", **options), resume="auto")
    rest = train(config, resume="auto")
    assert rest is not None and again is not None and rest.step == again.step == 8
    for result in (rest, again):
        found = weights(result.folder)
        assert all(torch.equal(found[key], value) for key, value in weights(whole.folder).items())
    assert [entry.name for entry in folder.parent.iterdir()] == ["001"]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == handlers


@pytest.mark.usefixtures("_heard")
def test_a_second_signal_ends_at_once_and_ignored_ones_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, Any]] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    try:
        signals = Signals()
        with signals.caught():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with signals.held():
                signal.raise_signal(signal.SIGTERM)
                assert signals.number == signal.SIGTERM
                monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((number, signal.getsignal(number))))
                signal.raise_signal(signal.SIGTERM)
        assert sent == [(signal.SIGTERM, signal.SIG_DFL)]
        with Signals().caught(), pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_another_process_of_a_run_ends_this_one_as_well(tmp_path: Path) -> None:
    met: list[str] = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda own, all: True, barrier=lambda: met.append("barrier"))
    trainer: Any = SimpleNamespace(world_size=2, strategy=strategy)
    module = SimpleNamespace(roll_back=lambda: False)
    signals = Signals()
    guard = SaveFirst(tmp_path, signals, 0)
    with pytest.raises(BaseException) as stopped:
        guard.look(trainer)
    assert signals.number == signal.SIGTERM, "or the command would show a traceback"
    guard.on_exception(trainer, module, OSError())
    assert not met, "others need not have failed"
    guard.on_exception(trainer, module, stopped.value)
    assert met == ["barrier"], "or the first process would be killed while it saves"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_command_ends_with_the_code_of_the_signal(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*words: Any, **options: Any) -> None:
        raise Interrupted(number, "interrupted at step 3; go on with --resume runs/x/001")

    monkeypatch.setattr("mdepth_fast.training.run.train", stopped)
    assert main(["train", "motorcycle"]) == 128 + number
    assert capsys.readouterr().err == "mdepth-fast: interrupted at step 3; go on with --resume runs/x/001\n"


class Poison(Callback):
    """Makes a weight NaN after step 6, so that no checkpoint is written, or before step 7, whose loss shows it."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, self.poison)

    def poison(self, trainer: Any, module: Any, *rest: Any) -> None:
        if trainer.global_step == 6:
            module.system.net.coarse[1][0].weight.data[0, 0, 0, 0] = float("nan")


@pytest.mark.parametrize(
    ("hook", "last", "message"),
    [
        (
            "on_train_batch_start",
            6,
            r"loss: expected a finite number at step 7, got nan; .*: depth_net\.coarse\.1\.0\.",
        ),
        ("on_train_batch_end", 5, r"depth_net\.coarse\.1\.0\.weight: expected finite weights after step 6"),
    ],
)
def test_nothing_that_is_not_finite_is_saved(hook: str, last: int, message: str, tmp_path: Path) -> None:
    root = write_frames(tmp_path / "frames")
    options = {"data__val_split": str(root), "trainer__val_every_n_steps": 2, "trainer__log_every_n_steps": 50}
    config = settings(root, tmp_path, **options, stages={"coarse": STEPS})
    lines: list[str] = []
    with pytest.raises(Diverged, match=message):
        train(config, callbacks=[Poison(hook)], say=lines.append)
    folder = tmp_path / "tiny" / "001"
    assert f"last.ckpt (step {last}); go on with" in lines[-1]
    for name in ("last", "best"):
        assert first_not_finite(read_checkpoint(folder / f"{name}.ckpt")["state_dict"]) is None
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == last


def test_what_is_not_finite_is_found_by_name() -> None:
    huge = {"large": torch.full((4,), 3e38), "int": torch.ones(2, dtype=torch.int64)}
    assert first_not_finite(huge) is None, "only their sum overflows"
    assert first_not_finite({**huge, "odd": torch.tensor([1.0, float("inf")])}) == "odd"

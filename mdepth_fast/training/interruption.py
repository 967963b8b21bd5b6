"""Signals and errors: what has been learnt is saved before a run ends."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import Callback, Trainer

from mdepth_fast.training.checkpoint import LAST, Diverged

__all__ = ["Interrupted", "SaveFirst", "Signals", "keep_working"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run; `number` is that of the signal, the message says how to go on."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.number = number


class _Stop(BaseException):
    """Lightning makes exit(1) of a KeyboardInterrupt, so within its loops there is this one."""


class Signals:
    """Takes note of SIGTERM, SIGINT and SIGHUP, so that the run ends where its state is whole.

    Outside of `held`, a signal raises `Interrupted` at once. Inside it sets `number`, and whoever holds it asks. A
    second signal ends the process as if nobody had caught it. What is ignored (nohup, a shell's background job) stays
    ignored.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._holding = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Only the main thread gets signals: a run in another one leaves them alone."""
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):
                    before[number] = signal.signal(number, self._handle)
        self._caught = before
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def again(self) -> None:
        """Takes the signals back from Lightning, which has a handler of its own for SIGTERM."""
        for number in self._caught:
            signal.signal(number, self._handle)

    @contextmanager
    def held(self) -> Iterator[None]:
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = number
        if not self._holding:
            raise Interrupted(number)


class SaveFirst(Callback):
    """Ends a run at the first whole step after a signal, and saves what is whole before any error ends it."""

    def __init__(self, folder: Path, signals: Signals, started: int) -> None:
        self.path, self.signals, self.started = folder / LAST, signals, started

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.signals.again()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:  # type: ignore[override]
        if not trainer.fit_loop._should_accumulate():
            self.look(trainer)

    def on_validation_batch_end(self, trainer: Any, *rest: Any) -> None:  # type: ignore[override]
        self.look(trainer)

    def look(self, trainer: Any) -> None:
        """Ends the run if a signal has come, in all processes together."""
        asked = self.signals.number is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            if self.signals.number is None:  # another process got it
                self.signals.number = signal.SIGTERM
            raise _Stop

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._save(trainer, pl_module, exception)
        if isinstance(exception, _Stop):
            # All come here. Lightning kills the first process some seconds after the end of another one.
            trainer.strategy.barrier()

    def _save(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        if isinstance(exception, Diverged) or not pl_module.roll_back():
            return
        if not trainer.is_global_zero or trainer.global_step <= self.started:
            return
        try:
            # Not `save_checkpoint`, where the processes wait for each other: one of them may be gone.
            state = trainer._checkpoint_connector.dump_checkpoint(False)
            trainer.strategy.checkpoint_io.save_checkpoint(state, self.path)
        except (Diverged, OSError):
            return  # the error at hand is what is to be told, and the checkpoint before it is whole


def keep_working(worker: int) -> None:
    """For processes that load data: a signal to all processes of a job is the training process's to answer.

    Without its loaders it could not finish the step. They end with it; SIGTERM ends them after a while, too, as they
    would otherwise be waited for.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def later(number: int, frame: FrameType | None) -> None:
        timer = threading.Timer(10, os._exit, (128 + number,))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, later)

"""How far a run is: lines where there is no terminal, a bar where there is one, curves and pictures for TensorBoard."""

import copy
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from mdepth_fast.training.module import TrainingModule
from mdepth_fast.visualize import draw_panel

__all__ = ["Bar", "Curves", "Lines", "Panels", "write_panel"]


class Curves(TensorBoardLogger):
    """TensorBoard's files, without Lightning's of hyperparameters, which would be empty: config.yaml has them."""

    def save(self) -> None:
        self.experiment.flush()


class _Clock:
    """The steps of a run, and how long those that are left will take at the pace since it started or went on."""

    began, first, steps = 0.0, 0, math.inf

    def start(self, trainer: Any) -> None:
        self.began, self.first = time.monotonic(), trainer.global_step
        self.steps = _all_steps(trainer)

    def pace(self, trainer: Any) -> float:
        """Seconds a step; NaN before the first."""
        done = trainer.global_step - self.first
        return (time.monotonic() - self.began) / done if done else math.nan

    def left(self, trainer: Any) -> str:
        seconds = self.pace(trainer) * (self.steps - trainer.global_step)
        if not math.isfinite(seconds):
            return "?"
        minutes, seconds = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{int(hours)}:{int(minutes):02d}:{int(seconds):02d}"


def _all_steps(trainer: Any) -> float:
    """Optimiser steps of the whole run."""
    limits = [math.inf]
    if trainer.max_steps >= 0:
        limits.append(trainer.max_steps)
    if (trainer.max_epochs or 0) >= 0:
        limits.append(
            (trainer.max_epochs or 0) * math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        )
    return min(limits)


class Lines(Callback):
    """A line after a logging interval and at the end, two a minute at most.

    Args:
        images: of a step, over all processes.
    """

    def __init__(self, say: Callable[[str], None], images: int) -> None:
        self.say, self.images, self.clock = say, images, _Clock()
        self.next, self.said = 0.0, -1

    def on_train_start(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        self.clock.start(trainer)
        self.next = time.monotonic() + 5  # by then the loaders have started

    def on_train_batch_end(self, trainer: Any, pl_module: TrainingModule, *rest: Any) -> None:  # type: ignore[override]
        if trainer.global_step % trainer.log_every_n_steps == 0 and time.monotonic() >= self.next:
            self._line(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if trainer.global_step >= self.clock.steps or time.monotonic() >= self.next:
            self._line(trainer, pl_module)

    def _line(self, trainer: Any, module: TrainingModule) -> None:
        if self.said == trainer.global_step:
            return
        self.said, self.next = trainer.global_step, time.monotonic() + 30
        known = trainer.callback_metrics
        losses = [name for name in known if "/" not in name and name not in ("loss", "lr")]
        names = ("loss", *losses, *(f"val/{name}" for name in module.system.shown))
        numbers = ", ".join(f"{name} {float(known[name]):.4g}" for name in names if name in known)
        epochs = trainer.max_epochs if (trainer.max_epochs or -1) > 0 else "-"
        pace = self.clock.pace(trainer)
        speed = f"{self.images / pace:.3g} images/s, " if pace > 0 else ""
        self.say(
            f"epoch {trainer.current_epoch + 1} of {epochs}, step {trainer.global_step} of {self.clock.steps}: "
            f"{numbers}; {speed}{self.clock.left(trainer)} left"
        )


class Bar(RichProgressBar):
    """Lightning's bar is of an epoch; this one says how long the run still takes."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = _Clock()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.clock.start(trainer)
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: Any, pl_module: Any) -> Any:
        return {"run left": self.clock.left(trainer), **super().get_metrics(trainer, pl_module)}


class Panels(Callback):
    """Draws the panel after an epoch, once in `every` seconds at most, and shows it in TensorBoard."""

    def __init__(self, path: Path, sample: Callable[[], Any], every: float = 300.0) -> None:
        self.path, self.sample, self.every = path, sample, every
        self.next = math.inf

    def on_train_start(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        self.next = time.monotonic() + self.every / 5

    def on_train_epoch_end(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if trainer.is_global_zero and time.monotonic() >= self.next:
            self.next = time.monotonic() + self.every
            write_panel(self.path, copy.deepcopy(pl_module.system), self.sample())
            show_panel(self.path, trainer)

    def on_train_end(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if trainer.is_global_zero:
            write_panel(self.path, copy.deepcopy(pl_module.system), self.sample())
            show_panel(self.path, trainer)


def write_panel(path: Path, system: Any, sample: Any) -> None:
    """Draws the panel of a sample; the system is moved to the CPU."""
    with torch.inference_mode():
        cells = system.cpu().eval().panel(sample)
    draw_panel(path, list(cells), title=str(sample["name"]))


def show_panel(path: Path, trainer: Any) -> None:
    if trainer.logger is not None:
        with Image.open(path) as picture:
            image = np.asarray(picture.convert("RGB"))
        trainer.logger.experiment.add_image("panel", image, trainer.global_step, dataformats="HWC")

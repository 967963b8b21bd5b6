"""How fast a loader is, and how much of a training step is spent waiting for it."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mdepth_fast.training.loader import build_loader

__all__ = ["LoaderSpeed", "TimedLoader", "measure_loader", "measure_training"]


@dataclass
class LoaderSpeed:
    """What was measured after the first batch, which starts the workers and takes `first` seconds.

    waiting is the part of `seconds` that was spent in the loader, the rest in the steps between.
    """

    first: float = 0.0
    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    waiting: float = 0.0

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds

    @property
    def waiting_share(self) -> float:
        return self.waiting / self.seconds

    @property
    def seconds_per_batch(self) -> float:
        return self.seconds / self.batches


class TimedLoader:
    """Hands out `batches` batches of a loader after a first one, epoch after epoch, and measures them into `speed`.

    A step on a GPU is waited for before the next batch is asked for, so that waiting is what the loader costs.
    Workers decode ahead: take more batches than they have under way (workers * prefetch_factor) to see them keep up.
    """

    def __init__(self, loader: Any, batches: int, device: torch.device | str = "cpu") -> None:
        if batches < 1:
            raise ValueError(f"batches: expected at least 1, got {batches}")
        self.loader, self.batches, self.device = loader, batches, torch.device(device)
        self.speed = LoaderSpeed()

    def __len__(self) -> int:
        return self.batches + 1

    def __iter__(self) -> Iterator[Any]:
        self.speed = speed = LoaderSpeed()
        source = _endless(self.loader)
        began = asked = self._now()
        for number in range(self.batches + 1):
            batch = next(source)
            came = time.perf_counter()
            yield batch
            now = self._now()
            if number == 0:
                speed.first, began = came - began, now
            else:
                speed.batches, speed.images = number, speed.images + len(batch["name"])
                speed.waiting, speed.seconds = speed.waiting + came - asked, now - began
            asked = now

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            raise ValueError("loader: expected batches, got none")


def measure_loader(
    loader: Any, batches: int = 50, step: Callable[[Any], Any] | None = None, *, device: torch.device | str = "cpu"
) -> LoaderSpeed:
    """Speed of a loader of `Sample` or `DepthSample` batches, alone or with `step(batch)` after each."""
    timed = TimedLoader(loader, batches, device)
    for batch in timed:
        if step is not None:
            step(batch)
    return timed.speed


def measure_training(config: Any, dataset: Any, steps: int = 20) -> LoaderSpeed:
    """Speed of the first training steps of a run of this configuration on one device, and their waiting."""
    from lightning import Trainer

    from mdepth_fast.training.precision import choose_precision
    from mdepth_fast.training.run import build_module, quieten

    quieten()
    module = build_module(config, dataset)
    trainer = Trainer(
        accelerator=config.trainer.accelerator,
        devices=1,
        precision=choose_precision(config.trainer.precision, config.trainer.accelerator)[0],  # type: ignore[arg-type]
        gradient_clip_val=config.trainer.gradient_clip_val,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    device = trainer.strategy.root_device
    # Lightning asks for no batch after the last, which is when the last step would be known to be over: one more.
    timed = TimedLoader(build_loader(config, dataset, pin_memory=device.type == "cuda"), steps + 1, device)
    trainer.fit(module, timed)
    return timed.speed

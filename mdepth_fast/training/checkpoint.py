"""The checkpoints of a run: whole or absent, the last one and the best one."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from lightning.fabric.plugins import TorchCheckpointIO

from mdepth_fast.files import replacing
from mdepth_fast.systems.saved import first_not_finite, read_checkpoint

__all__ = ["BEST", "LAST", "AtomicCheckpointIO", "Diverged", "KeepBest", "first_not_finite", "read_checkpoint"]

LAST, BEST = "last.ckpt", "best.ckpt"


class Diverged(ValueError):
    """A loss or a weight is not finite: nothing of it is saved."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writer copies from the system's temporary folder, which a kill can interrupt half way.

    step: of the last.ckpt that was written last, None before.
    """

    step: int | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        with replacing(path, durable=True) as temporary:
            torch.save(checkpoint, temporary)
        if Path(path).name == LAST:
            self.step = checkpoint.get("global_step")

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path, map_location)


class KeepBest(Callback):
    """Writes best.ckpt after every evaluation that is better than all before it; a resumed run knows those.

    Args:
        folder: of the run.
        monitor: the logged metric, such as val/abs_rel.
        mode: "min" or "max".
    """

    def __init__(self, folder: Path, monitor: str, mode: str) -> None:
        self.path, self.monitor, self.mode = folder / BEST, monitor, mode
        self.value, self.step = math.nan, -1
        self.seen = -1

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.consider(trainer, float(trainer.callback_metrics[self.monitor]))

    def consider(self, trainer: Any, value: float) -> None:
        """Compares the value of the monitored metric at this step, of which the first one counts."""
        if trainer.global_step == self.seen:
            return
        self.seen = trainer.global_step
        better = value < self.value if self.mode == "min" else value > self.value
        if math.isfinite(value) and (better or self.step < 0):
            # Every process comes here with the same value: saving is done together.
            before = self.value, self.step
            self.value, self.step = value, trainer.global_step
            try:
                trainer.save_checkpoint(self.path)
            except BaseException:
                self.value, self.step = before  # of the file that is still there
                raise

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "mode": self.mode, "value": self.value, "step": self.step, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # Values of another metric say nothing about this one.
        if (state["monitor"], state["mode"]) == (self.monitor, self.mode):
            self.value, self.step = state["value"], state["step"]
            self.seen = state.get("seen", -1)

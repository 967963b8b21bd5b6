"""What both kinds of training share as a LightningModule: optimiser, schedule, random numbers, validation."""

import hashlib
from collections.abc import Iterable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from lightning import LightningModule
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau, StepLR

from mdepth_fast.evaluation import METRICS, Evaluator
from mdepth_fast.models import DepthModel
from mdepth_fast.training.config import AnyConfig, OptimizerConfig
from mdepth_fast.training.trained import evaluate_sample

__all__ = ["DepthModule", "Preview", "make_optimizer"]

_SHOWN = ("abs_rel", "rmse", "d1")

C = TypeVar("C", bound=AnyConfig)


class Preview(NamedTuple):
    """What a panel shows of one sample."""

    image: Tensor
    """uint8 (3,h,w)"""
    depth: Tensor
    """(h,w), predicted"""
    truth: Tensor | None
    """(1,h',w'), metres, 0 = none; None where there is no ground truth"""
    selection: Tensor | None
    """int8 (h,w), negative where auto-masking leaves a pixel out; None where there is none to show"""


def make_optimizer(options: OptimizerConfig, groups: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimiser of a configuration over parameters or groups of them."""
    # Fused: the default goes over every parameter several times, which shows on a CPU.
    common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay, "fused": True}
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, **common)
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(groups, eps=options.eps, **common)


class DepthModule(LightningModule, Generic[C]):
    """The base of the modules of both tasks, which add their `training_step`.

    Args:
        config: optimiser, seed and validation protocol are used here; the whole is stored in every checkpoint.
        depth_net: the network that is validated, and that `mdepth_fast.training.load_trained` reads back.
    """

    def __init__(self, config: C, depth_net: DepthModel) -> None:
        super().__init__()
        self.config: C = config
        self.depth_net: Any = depth_net
        self.evaluator = Evaluator(config.protocol)
        # Sum and number of the losses since the last epoch that a plateau was looked for in.
        self._epoch_loss: Tensor | float = 0.0
        self._epoch_steps = 0

    def describe(self, samples: int) -> str:
        """What is trained on, in words: `training NAME` comes before it."""
        raise NotImplementedError

    def preview(self, sample: Any) -> Preview:
        """A prediction for one sample, on the CPU in eval mode."""
        raise NotImplementedError

    def _seed(self, batch_idx: int, use: str = "") -> int:
        """A seed for one step, a function of where it is in the run: a resumed run draws the same numbers."""
        place = (self.config.seed, self.current_epoch, batch_idx, self.global_rank, *([use] if use else []))
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _generator(self, batch_idx: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(batch_idx))

    def _report(self, loss: Tensor, names: list[str], **parts: Tensor) -> None:
        """Logs a step's loss and its parts, and stops the run where the loss is not finite."""
        options: dict[str, Any] = {"batch_size": len(names)}
        mean = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
        self._epoch_loss, self._epoch_steps = self._epoch_loss + mean, self._epoch_steps + 1
        if self._looks() and not loss.isfinite():
            raise ValueError(
                f"loss: expected a finite number at step {self.global_step}, got {loss.item()}; samples {names}"
            )
        self.log("loss", mean, prog_bar=True, **options)
        for name, value in parts.items():
            self.log(name, value, sync_dist=self.trainer.world_size > 1, **options)

    def _looks(self) -> bool:
        """Whether numbers of this step are looked at, which waits for the device."""
        return self.global_step % self.config.trainer.log_every_n_steps == 0

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups of an optimiser; a group may have a rate of its own."""
        return [{"params": list(self.parameters())}]

    def configure_optimizers(self) -> Any:
        options = self.config.optimizer
        groups = self.parameter_groups(options.lr)
        optimizer = make_optimizer(options, groups)
        scheduler: LRScheduler
        if options.schedule == "constant":
            return {"optimizer": optimizer}
        if options.schedule == "poly":
            steps, floor = self.trainer.estimated_stepping_batches, options.end / options.lr

            def factor(step: int) -> float:
                return floor + (1 - floor) * (1 - min(step / steps, 1)) ** options.power

            scheduler = LambdaLR(optimizer, factor)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if options.schedule == "plateau":
            scheduler = ReduceLROnPlateau(optimizer, factor=options.gamma, patience=options.patience)
            # Lightning's own plateau forgets an epoch in which a run is resumed: see `lr_scheduler_step`.
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "reduce_on_plateau": False}}
        # Stepped by Lightning at the END of an epoch: epochs 0..step_size-1 run at the full rate, as in Monodepth2.
        scheduler = StepLR(optimizer, options.step_size, options.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)
            return
        scheduler.step(self._epoch_loss / self._epoch_steps)
        self._epoch_loss, self._epoch_steps = 0.0, 0

    def on_validation_epoch_start(self) -> None:
        self.evaluator = Evaluator(self.config.protocol)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """A batch of one evaluation sample; every process sees all of them."""
        evaluate_sample(self.depth_net, batch, self.evaluator)

    def on_validation_epoch_end(self) -> None:
        summary = self.evaluator.compute()
        for key in METRICS:
            self.log(f"val/{key}", summary[key], prog_bar=key in _SHOWN)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mdepth_fast"] = {
            "config": self.config.to_dict(),
            "epoch_loss": (float(self._epoch_loss), self._epoch_steps),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._epoch_loss, self._epoch_steps = checkpoint["mdepth_fast"].get("epoch_loss", (0.0, 0))

"""Any system as a LightningModule: optimiser, schedule, random numbers, validation."""

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, ReduceLROnPlateau, StepLR

from mdepth_fast.systems import Config, OptimizerConfig, StepInfo, System
from mdepth_fast.training.checkpoint import LAST, Diverged, first_not_finite, read_checkpoint
from mdepth_fast.training.randomness import seeded
from mdepth_fast.training.resume import batches_done, place_of

__all__ = ["TrainingModule", "load_moments", "make_optimizer"]


def make_optimizer(options: OptimizerConfig, groups: Iterable[Any]) -> torch.optim.Optimizer:
    """The optimiser of a configuration over parameters or groups of them."""
    # Fused: the default goes over every parameter several times, which shows on a CPU.
    common: dict[str, Any] = {"lr": options.lr, "weight_decay": options.weight_decay, "fused": True}
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum, **common)
    kind = torch.optim.AdamW if options.name == "adamw" else torch.optim.Adam
    return kind(groups, eps=options.eps, **common)


def load_moments(optimizer: torch.optim.Optimizer, path: str | Path) -> None:
    """Gives an optimiser the state of a run (its last checkpoint) or checkpoint, but none of its settings.

    FileNotFoundError or ValueError where there is none, or one of other networks.
    """
    path = Path(path)
    path = path / LAST if path.is_dir() else path
    saved = (read_checkpoint(path).get("optimizer_states") or [{}])[0].get("state")
    own = optimizer.state_dict()
    if not saved:
        raise ValueError(f"optimizer.state: {path}: expected the state of an optimiser, got none")
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    for number, state in saved.items():
        for name, value in state.items():
            if value.dim() and (number >= len(shapes) or value.shape != shapes[number]):
                raise ValueError(
                    f"optimizer.state: {path}: expected the state of the same networks, got {name} of shape "
                    f"{tuple(value.shape)} for parameter {number} of {len(shapes)}"
                )
    optimizer.load_state_dict({"state": saved, "param_groups": own["param_groups"]})


class TrainingModule(LightningModule):
    """Trains a system.

    Args:
        system: what is trained; optimiser, seed and protocol are those of its configuration, and checkpoints hold its
            parameters under their own names.
    """

    def __init__(self, system: System[Any]) -> None:
        super().__init__()
        self.system = system
        self.config: Any = system.config
        self.evaluator = system.evaluator(self.config.protocol)
        # Sum and number of the losses since the last epoch that a plateau was looked for in.
        self._epoch_loss: Tensor | float = 0.0
        self._epoch_steps = 0
        # The step, from 1 on, whose loss was the first that was not finite, or 0: a number on the device.
        self._bad_step: Tensor | None = None
        # What a step changes before the optimiser does, as it was after the step before; None while that is at work.
        self._whole: tuple[Tensor | float, int] | None = None
        self._statistics: list[Tensor] = []
        self._statistics_before: list[Tensor] = []

    @property
    def depth_net(self) -> Any:
        """The network of the system; its name from before there were systems of another kind."""
        return self.system.net

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return self.system.state_dict(*args, **options)

    def load_state_dict(self, state_dict: Any, *args: Any, **options: Any) -> Any:
        return self.system.load_state_dict(state_dict, *args, **options)

    def _seed(self, batch_idx: int, use: str = "") -> int:
        """A seed for one step, a function of where it is in the run: a resumed run draws the same numbers."""
        place = (self.config.seed, self.current_epoch, batch_idx, self.global_rank, *([use] if use else []))
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def _generator(self, batch_idx: int) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed(batch_idx))

    def _report(self, loss: Tensor, names: list[str], **parts: Tensor) -> None:
        """Logs a step's loss and its parts, and stops the run where the loss is not finite.

        On a CPU that is seen at once. A GPU would have to be waited for: it keeps the number of the first such step,
        which is read where numbers are looked at anyway, and before anything is saved.
        """
        options: dict[str, Any] = {"batch_size": len(names)}
        mean = self.trainer.strategy.reduce(loss.detach(), reduce_op="mean")
        self._epoch_loss, self._epoch_steps = self._epoch_loss + mean, self._epoch_steps + 1
        bad = (~mean.isfinite()).int() * (self.global_step + 1)
        self._bad_step = bad if self._bad_step is None else torch.where(self._bad_step == 0, bad, self._bad_step)
        if self._looks() or self.device.type == "cpu":
            self.check_finite(f", got {loss.item()}; samples {names}")
        self.log("loss", mean, prog_bar=True, **options)
        for name, value in parts.items():
            self.log(name, value.detach(), sync_dist=self.trainer.world_size > 1, **options)
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], batch_size=len(names))

    def _looks(self) -> bool:
        """Whether numbers of this step are looked at, which waits for the device."""
        return bool(self.global_step % self.config.trainer.log_every_n_steps == 0)

    def check_finite(self, more: str = "") -> None:
        """Raises Diverged if a loss since the start, or a weight, is not finite."""
        step = 0 if self._bad_step is None else int(self._bad_step)
        if not step and more:
            return
        name = first_not_finite(self.system.state_dict())
        if step:
            first = f"; the first tensor that is not finite: {name}" if name else "; all weights are finite"
            raise Diverged(f"loss: expected a finite number at step {step}{more}{first}")
        if name:
            raise Diverged(f"{name}: expected finite weights after step {self.global_step}")

    def on_train_start(self) -> None:
        learnt = {*dict(self.system.named_parameters())}
        saved = self.system.state_dict(keep_vars=True)
        self._statistics = [value for name, value in saved.items() if name not in learnt]
        self._statistics_before = [buffer.clone() for buffer in self._statistics]
        self._whole = (self._epoch_loss, self._epoch_steps)

    def on_train_batch_end(self, *step: Any) -> None:
        if self._whole is None:
            self._whole = (self._epoch_loss, self._epoch_steps)
            if self._statistics:
                torch._foreach_copy_(self._statistics_before, self._statistics)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self._whole = None

    def roll_back(self) -> bool:
        """Takes back what a step that failed has changed, or says that it cannot: that the optimiser was at work."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        if progress.processed == progress.ready and not self.trainer.fit_loop._should_accumulate():
            return True
        if self._whole is None:
            return False
        self._epoch_loss, self._epoch_steps = self._whole
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._statistics_before)
        return True

    def _place(self) -> dict[str, int]:
        return {"batches": self.batches_done, "epoch_batches": int(self.trainer.num_training_batches)}

    @property
    def batches_done(self) -> int:
        """Batches of the run whose steps are done: those of a step that gathers gradients count with its last one."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        done, current = progress.total.processed, progress.current.processed
        gathered = current % self.trainer.accumulate_grad_batches if current < self.trainer.num_training_batches else 0
        return int(done - gathered)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        main = self.trainer.is_global_zero
        info = StepInfo(self.global_step, self._generator(batch_idx), self._looks() and main)
        with seeded(self._seed(batch_idx, "dropout"), self.device):
            terms = dict(self.system.step(batch, info))
        if "loss" not in terms:
            raise ValueError(f'step of {self.system.name}: expected a term "loss", got {sorted(terms)}')
        loss = terms.pop("loss")
        self._report(loss, batch["name"], **terms)
        return loss

    def configure_optimizers(self) -> Any:
        options = self.config.optimizer
        groups = self.system.parameter_groups(options.lr)
        optimizer = make_optimizer(options, groups)
        if options.state and not self.trainer.ckpt_path:  # a resumed run has a state of its own
            load_moments(optimizer, options.state)
        scheduler: LRScheduler
        if options.schedule == "constant":
            return {"optimizer": optimizer}
        if options.schedule in ("poly", "cosine"):
            steps, floor = self.trainer.estimated_stepping_batches, options.end / options.lr

            def factor(step: int) -> float:
                left = 1 - min(step / steps, 1)
                share = left**options.power if options.schedule == "poly" else math.sin(math.pi / 2 * left) ** 2
                return floor + (1 - floor) * share

            scheduler = LambdaLR(optimizer, factor)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        if options.schedule == "plateau":
            scheduler = ReduceLROnPlateau(optimizer, factor=options.gamma, patience=options.patience)
            # Lightning's own plateau forgets an epoch in which a run is resumed: see `lr_scheduler_step`.
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "reduce_on_plateau": False}}
        # Stepped by Lightning at the END of an epoch: epochs 0..step_size-1 run at the full rate, as in Monodepth2.
        interval = "epoch"
        if options.schedule in ("milestones", "step_milestones"):
            interval = "epoch" if options.schedule == "milestones" else "step"
            if not options.milestones or min(options.milestones) < 1:
                raise ValueError(f"optimizer.milestones: expected numbers of {interval}s, got {options.milestones}")
            scheduler = MultiStepLR(optimizer, options.milestones, options.gamma)
        else:
            scheduler = StepLR(optimizer, options.step_size, options.gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)
            return
        scheduler.step(self._epoch_loss / self._epoch_steps)
        self._epoch_loss, self._epoch_steps = 0.0, 0

    def on_validation_epoch_start(self) -> None:
        self.share_buffers()
        self.evaluator = self.system.evaluator(self.config.protocol)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """A batch of one evaluation sample, of this process's share of them."""
        if batch:
            self.system.evaluate_sample(self.system.net, batch, self.evaluator)

    def on_validation_epoch_end(self) -> None:
        self.evaluator = self.evaluator.gather()
        summary = self.evaluator.compute()
        for key in self.system.metrics:
            # In double precision. Every process has the same number, so that their mean is that number.
            value = torch.tensor(summary[key], dtype=torch.float64)
            shown = key in self.system.shown
            self.log(f"val/{key}", value, prog_bar=shown, sync_dist=self.trainer.world_size > 1)

    def evaluate(self, loader: Iterable[Any]) -> Any:
        """An evaluator of all data, outside of validation: every process calls this with the loader of its share."""
        self.share_buffers()
        evaluator = self.system.evaluator(self.config.protocol)
        for batch in loader:
            if batch:
                self.system.evaluate_sample(self.system.net, move_data_to_device(batch, self.device), evaluator)
        return evaluator.gather()

    def share_buffers(self) -> None:
        """Gives every process the buffers of the first: the statistics of batch norms are each process's own."""
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            for buffer in self.system.buffers():
                dist.broadcast(buffer, 0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        checkpoint["mdepth_fast"] = {
            **({} if self._trainer is None else self._place()),
            "config": self.config.to_dict(),
            "epoch_loss": (float(self._epoch_loss), self._epoch_steps),
            **self.system.extra_state(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._apply_optimizer_settings(checkpoint)
        trainer = self.trainer
        source: Any = trainer.fit_loop._data_source.instance
        length, done, steps = len(source), batches_done(checkpoint), checkpoint["global_step"]
        over = 0 <= trainer.max_steps <= steps or 0 <= (trainer.max_epochs or 0) <= done // length
        place_of(checkpoint["loops"]["fit_loop"], done, steps, length, trainer.accumulate_grad_batches, over=over)
        self._epoch_loss, self._epoch_steps = checkpoint["mdepth_fast"].get("epoch_loss", (0.0, 0))

    def _apply_optimizer_settings(self, checkpoint: dict[str, Any]) -> None:
        """Puts this configuration's settings into the states of a checkpoint, which hold those of the run that wrote it
        and would win: the learning rate above all."""
        old: OptimizerConfig = Config.from_dict(checkpoint["mdepth_fast"]["config"]).optimizer
        new: OptimizerConfig = self.config.optimizer
        ratio = new.lr / old.lr
        for state in checkpoint.get("optimizer_states", ()):
            for group in state["param_groups"]:
                for key in {"lr", "initial_lr"} & group.keys() if ratio != 1 else ():
                    group[key] *= ratio
                for key in ("momentum", "weight_decay", "eps"):
                    if key in group and group[key] == getattr(old, key):
                        group[key] = getattr(new, key)
        for state in checkpoint.get("lr_schedulers", ()):
            for key in ("step_size", "gamma", "factor", "patience", "milestones"):
                state.pop(key, None)
            for key in {"base_lrs", "_last_lr"} & state.keys() if ratio != 1 else ():
                state[key] = [rate * ratio for rate in state[key]]

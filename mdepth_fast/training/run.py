"""One training run from a configuration to a folder: checkpoints, curves, metrics before and after, panel."""

import json
import logging
import math
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy

from mdepth_fast.data import SkipBroken
from mdepth_fast.files import replacing
from mdepth_fast.systems import Config, System, system_of
from mdepth_fast.training.checkpoint import LAST, AtomicCheckpointIO, KeepBest, read_checkpoint
from mdepth_fast.training.folder import find_checkpoint, new_run_folder, owning
from mdepth_fast.training.interruption import Interrupted, SaveFirst, Signals
from mdepth_fast.training.loader import build_loader, evaluation_loader
from mdepth_fast.training.module import TrainingModule
from mdepth_fast.training.precision import choose_precision
from mdepth_fast.training.progress import Bar, Curves, Lines, Panels, write_panel
from mdepth_fast.training.resume import batches_done, compare_settings

__all__ = ["Interrupted", "TrainResult", "build_module", "find_checkpoint", "new_run_folder", "quieten", "train"]


@dataclass
class TrainResult:
    """What a run left behind; metrics are None where the data have no ground truth.

    checkpoint, step: the last of the run. best, best_step, best_value: that of the best validation by
    `trainer.monitor`, which need not be the last; None where there is no ground truth, or nothing monitored. losses:
    those logged last.
    """

    folder: Path
    checkpoint: Path
    panel: Path
    protocol: Any
    before: dict[str, float] | None
    after: dict[str, float] | None
    skipped: list[int]
    step: int = 0
    best: Path | None = None
    best_step: int | None = None
    best_value: float | None = None
    monitor: str | None = None
    monitor_mode: str = "min"
    losses: dict[str, float] = field(default_factory=dict)

    def checkpoints(self) -> str:
        """Which checkpoint is which, a line each."""
        lines = [f"checkpoint: {self.checkpoint} (the last, step {self.step})"]
        if self.best is not None:
            which = "smallest" if self.monitor_mode == "min" else "largest"
            lines.append(
                f"best: {self.best} (the {which} {self.monitor}, {self.best_value:.4g}, step {self.best_step})"
            )
        return "\n".join(lines)

    def table(self) -> str:
        """Metrics before and after training under the line that states their protocol."""
        if self.after is None:
            losses = ", ".join(f"{name} {value:.4g}" for name, value in self.losses.items())
            return f"no ground truth: no metrics; at the end {losses}" if losses else "no ground truth: no metrics"
        widths = {key: max(9, len(key) + 1) for key in self.protocol.columns}
        lines = [self.protocol.describe(), " " * 7 + "".join(f"{key:>{width}}" for key, width in widths.items())]
        for title, row in (("before", self.before), ("after", self.after)):
            if row is not None:
                lines.append(
                    f"{title:7}" + "".join(f"{row.get(key, math.nan):{width}.3f}" for key, width in widths.items())
                )
        return "\n".join(lines)


def train(
    config: Any,
    *,
    resume: str | None = None,
    allow_changed: Sequence[str] = (),
    callbacks: Iterable[Callback] = (),
    say: Callable[[str], None] = lambda line: None,
) -> TrainResult | None:
    """Trains as configured and evaluates before and after, where the data have ground truth.

    SIGTERM, SIGINT (Ctrl-C) and SIGHUP end a run after the step at hand, an error at once; both save first.

    Args:
        resume: see `find_checkpoint`; the run goes on in the checkpoint's folder, on the same curve.
        allow_changed: settings that may differ from those of the run to resume, see `compare_settings`.
        callbacks: Lightning callbacks to add.
        say: receives one line for each stage.

    Returns:
        The result, or None in the processes of a multi-process run that are not the first.

    Raises:
        Interrupted: by a signal; a `KeyboardInterrupt` that says where the checkpoint is.
        Diverged: a loss or a weight is not finite; the checkpoints before it stay.
        ValueError: settings that cannot be, or that are not those of the run to resume; another process trains there.
        OSError: a file cannot be read or written.
    """
    signals = Signals()
    with signals.caught(), ExitStack() as owned:
        return _train(config, resume, allow_changed, callbacks, say, signals, owned)


def _train(
    config: Any,
    resume: str | None,
    allow_changed: Sequence[str],
    callbacks: Iterable[Callback],
    say: Callable[[str], None],
    signals: Signals,
    owned: ExitStack,
) -> TrainResult | None:
    """`owned` keeps the run's folder for this process until the run has ended, however it does."""
    quieten()
    seed_everything(config.seed, verbose=False)
    main = (getattr(rank_zero_only, "rank", None) or 0) == 0
    checkpoint = find_checkpoint(config, resume) if resume else None
    resumed = read_checkpoint(checkpoint) if checkpoint else None
    if resumed is not None and (changes := compare_settings(config, resumed, allow_changed)):
        say(changes)

    kind = system_of(config)
    monitor = _check_monitor(config, kind)
    dataset = kind.training_data(config)
    if config.data.skip_bad:
        dataset = SkipBroken(dataset)
    held_out = kind.evaluation_data(config)
    module = build_module(config, dataset)
    folder = checkpoint.parent if checkpoint else new_run_folder(config) if main else Path(config.output)
    if main:
        owned.enter_context(owning(folder, new=checkpoint is None))

    started = resumed["global_step"] if resumed else 0
    guard, files = SaveFirst(folder, signals, started), AtomicCheckpointIO()
    best = KeepBest(folder, monitor, config.trainer.monitor_mode) if monitor and held_out is not None else None
    record = folder / "metrics.json"
    table = _Tables(best, guard, at_start=checkpoint is None, write=record if main else None, say=say)
    bar = sys.stdout.isatty()
    images = config.data.batch_size * config.trainer.accumulate_grad_batches
    options, every = trainer_options(config, module.system)

    def sample() -> Any:
        return held_out[0] if held_out is not None else dataset[0]

    trainer = Trainer(
        **options,
        logger=Curves(folder.parent, name=None, version=folder.name),
        callbacks=[
            ModelCheckpoint(
                dirpath=folder, filename=Path(LAST).stem, every_n_train_steps=every, enable_version_counter=False
            ),
            *([best] if best else []),
            *([_WriteConfig(folder / "config.yaml", config)] if main else []),
            table,
            Bar() if bar else Lines(say if main else lambda line: None, images),
            Panels(folder / "panel.png", sample),
            *callbacks,
            guard,
        ],
        plugins=[files],
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders share out every global batch and the evaluation themselves
    )
    share: dict[str, Any] = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    loader = build_loader(config, dataset, **share, pin_memory=trainer.strategy.root_device.type == "cuda")
    trainer.log_every_n_steps = _log_interval(trainer, len(loader))  # type: ignore[attr-defined]
    if resumed is not None:
        before = resumed["mdepth_fast"].get("epoch_batches", len(loader))
        if before != len(loader):
            raise ValueError(
                f"data: expected {before} batches an epoch, as the run to resume has it, got {len(loader)}: the data "
                "have changed; start another run"
            )
        loader.steps.done = batches_done(resumed)
    table.loader = held_out_loader = evaluation_loader(config, held_out, **share) if held_out is not None else None

    earlier = json.loads(record.read_text()) if checkpoint and record.is_file() else {}
    if main:
        table.before = earlier.get("before")
        say(f"training {module.system.describe(len(dataset))}, into {folder}")
        if config.trainer.precision == "auto":
            say("precision {}: {}".format(*choose_precision("auto", config.trainer.accelerator)))
    try:
        with signals.held():
            trainer.fit(module, loader, held_out_loader, ckpt_path=checkpoint)
            if resumed is not None and trainer.global_step == started:
                table.after = earlier.get("after")
                # Missing where a signal came in the middle of the last evaluation.
                if table.after is None and trainer.world_size == 1:
                    table.on_train_end(trainer, module)
                if main:
                    say(
                        f"nothing left to train: the run is at step {trainer.global_step} already; a larger "
                        "trainer.max_epochs or trainer.max_steps goes on"
                    )
            trainer.save_checkpoint(folder / LAST)
    except BaseException as error:
        where = ""
        if main:
            where = f"; {_where_to_go_on(folder, started if files.step is None else files.step)}"
        if signals.number is not None:
            # Whatever came of it: a signal to all processes of a job ends those that load the data, too.
            name = signal.Signals(signals.number).name
            raise Interrupted(signals.number, f"interrupted by {name} at step {trainer.global_step}{where}") from None
        if isinstance(error, KeyboardInterrupt | SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise Interrupted(signal.SIGINT, f"interrupted at step {trainer.global_step}{where}") from None
        if main:
            with suppress(OSError):  # nobody may be there to read it
                say(f"stopped at step {trainer.global_step} by an error{where}")
        raise
    if not main:
        return None
    losses = {name: float(value) for name, value in trainer.callback_metrics.items() if "/" not in name}
    result = TrainResult(
        folder,
        folder / LAST,
        folder / "panel.png",
        module.evaluator.protocol,
        table.before,
        table.after,
        dataset.broken if isinstance(dataset, SkipBroken) else [],
        step=trainer.global_step,
        losses={name: value for name, value in losses.items() if name != "lr"},
    )
    kept: dict[str, Any] = {"last": {"step": result.step}}
    if best and best.step >= 0:
        result.best, result.best_step, result.best_value = best.path, best.step, best.value
        result.monitor, result.monitor_mode = best.monitor, best.mode
        kept["best"] = {"step": best.step, "monitor": best.monitor, "mode": best.mode, "value": best.value}
    _write_metrics(record, table.before, table.after, kept, result.losses or earlier.get("losses", {}))
    if not result.panel.is_file():
        write_panel(result.panel, module.system, sample())
    return result


def _where_to_go_on(folder: Path, step: int) -> str:
    """What a run that has ended leaves, and how to go on with it."""
    if not (folder / LAST).is_file():
        return "no checkpoint yet"
    return f"checkpoint: {folder / LAST} (step {step}); go on with --resume {folder}"


def _log_interval(trainer: Any, batches: int) -> int:
    """Steps between logged values: as configured, but some twenty values in the whole of a short run."""
    steps = trainer.max_epochs * batches // trainer.accumulate_grad_batches if (trainer.max_epochs or -1) > 0 else 0
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps) if steps else trainer.max_steps
    return min(trainer.log_every_n_steps, max(1, steps // 20)) if steps else trainer.log_every_n_steps


def build_module(config: Config, dataset: Any) -> TrainingModule:
    """The module that trains as configured on this data set."""
    return TrainingModule(system_of(config).create(config, dataset))


def trainer_options(config: Config, system: System[Any]) -> tuple[dict[str, Any], int]:
    """Arguments of Lightning's Trainer that the configuration says, and the steps between checkpoints."""
    options = vars(config.trainer).copy()
    every = options.pop("checkpoint_every_n_steps")
    del options["monitor"], options["monitor_mode"]
    if steps := options.pop("val_every_n_steps"):
        options |= {"val_check_interval": steps, "check_val_every_n_epoch": None}
    limits = [limit for limit in (system.last_step, config.trainer.max_steps) if limit is not None and limit >= 0]
    options["max_steps"] = min(limits, default=-1)
    options["strategy"] = _strategy(config, system)
    options["precision"], _ = choose_precision(config.trainer.precision, config.trainer.accelerator)
    return options, every


def _strategy(config: Config, system: System[Any]) -> Any:
    """The strategy as configured; where that is DDP, one that bears parameters without a gradient if it has to."""
    given = config.trainer
    name = given.strategy
    if name in ("ddp_spawn", "ddp_fork", "ddp_notebook"):
        # Their processes begin within the run, with the loaders of the first.
        raise ValueError(
            f"trainer.strategy: expected one that starts a program for each device, such as ddp, got {name}"
        )
    if name not in ("auto", "ddp") or not system.leaves_parameters_unused:
        return name
    if name == "auto":
        # Only Lightning knows what "auto" makes of these devices.
        probe = Trainer(accelerator=given.accelerator, devices=given.devices, num_nodes=given.num_nodes, logger=False)
        if not isinstance(probe.strategy, DDPStrategy):
            return name
    return DDPStrategy(find_unused_parameters=True)


def _check_monitor(config: Config, system: type[System[Any]]) -> str | None:
    monitor = config.trainer.monitor
    if monitor is not None and monitor.removeprefix("val/") not in system.metrics:
        known = ", ".join(f"val/{metric}" for metric in system.metrics)
        raise ValueError(f"trainer.monitor: expected null or one of {known}, got {monitor!r}")
    return None if monitor is None else f"val/{monitor.removeprefix('val/')}"


class _WriteConfig(Callback):
    """Writes the configuration once training begins: a run that cannot be resumed, or is at its end, keeps its own."""

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config

    def on_train_start(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        with replacing(self.path, durable=True) as temporary:
            temporary.write_text(yaml.safe_dump(self.config.to_dict(), sort_keys=False))


class _Tables(Callback):
    """Evaluates before the first step and after the last one, in all processes together."""

    def __init__(
        self,
        best: KeepBest | None,
        guard: SaveFirst,
        *,
        at_start: bool,
        write: Path | None,
        say: Callable[[str], None],
    ) -> None:
        self.loader: Any = None
        self.best, self.guard, self.at_start, self.write, self.say = best, guard, at_start, write, say
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] | None = None

    def on_fit_start(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if self.at_start:
            self.before = self.evaluate(trainer, pl_module)
            if self.write is not None:
                _write_metrics(self.write, self.before, None, {}, {})
                if self.before is not None:
                    shown = pl_module.system.shown
                    self.say("before: " + ", ".join(f"{name} {self.before[name]:.3f}" for name in shown))

    def on_train_start(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        # A run that ended between a step and the validation due after it goes on with that.
        if self.best is None or self.at_start or self.best.seen == trainer.global_step:
            return
        epoch, batch = divmod(pl_module.batches_done, trainer.num_training_batches)
        every = trainer.check_val_every_n_epoch
        due = pl_module.batches_done % trainer.val_check_batch if every is None else batch or epoch % every
        if not due and (values := self.evaluate(trainer, pl_module)):
            shown = {f"val/{name}": values[name] for name in pl_module.system.metrics}
            trainer.logger.log_metrics(shown, step=trainer.global_step)
            self.best.consider(trainer, shown[self.best.monitor])

    def on_train_end(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        pl_module.check_finite()
        self.after = self.evaluate(trainer, pl_module)
        if self.best is not None and self.after is not None:
            # The last evaluation counts too, whether or not a validation came right before it.
            self.best.consider(trainer, self.after[self.best.monitor.removeprefix("val/")])

    def evaluate(self, trainer: Any, module: TrainingModule) -> dict[str, float] | None:
        if self.loader is None:
            return None

        def batches() -> Iterator[Any]:
            for batch in self.loader:
                self.guard.look(trainer)
                yield batch

        summary: dict[str, float] = module.evaluate(batches()).compute()
        return summary


def _write_metrics(path: Path, before: Any, after: Any, checkpoints: dict[str, Any], losses: dict[str, float]) -> None:
    """Without ground truth the losses are what there is to say of a run."""
    values = {"before": before, "after": after} if before or after else {}
    if losses:
        values["losses"] = losses
    if not values and not checkpoints:
        return
    values["checkpoints"] = checkpoints
    with replacing(path, durable=True) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def quieten() -> None:
    """Lightning's greetings and the warnings that no reader of a training log can act on."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance\\(treespec, LeafSpec\\).*",
        ".*have no `val_dataloader`.*",
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",
        ".*module\\(s\\) in eval mode.*",  # what is frozen
    ):
        warnings.filterwarnings("ignore", message)

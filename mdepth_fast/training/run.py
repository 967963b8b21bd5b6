"""One training run from a configuration to a folder: checkpoints, curves, metrics before and after, panel."""

import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy

from mdepth_fast.data import SkipBroken
from mdepth_fast.files import replacing
from mdepth_fast.systems import Config, System, system_of
from mdepth_fast.training.checkpoint import LAST, AtomicCheckpointIO, KeepBest, read_checkpoint
from mdepth_fast.training.loader import build_loader, evaluation_loader
from mdepth_fast.training.module import TrainingModule
from mdepth_fast.training.precision import choose_precision
from mdepth_fast.visualize import draw_panel

__all__ = ["TrainResult", "build_module", "find_checkpoint", "new_run_folder", "quieten", "train"]


@dataclass
class TrainResult:
    """What a run left behind; metrics are None where the data have no ground truth.

    checkpoint, step: the last of the run. best, best_step, best_value: that of the best validation by
    `trainer.monitor`, which need not be the last; None where there is no ground truth, or nothing monitored.
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
            return "no ground truth: no metrics"
        widths = {key: max(9, len(key) + 1) for key in self.protocol.columns}
        lines = [self.protocol.describe(), " " * 7 + "".join(f"{key:>{width}}" for key, width in widths.items())]
        for title, row in (("before", self.before), ("after", self.after)):
            if row is not None:
                lines.append(
                    f"{title:7}" + "".join(f"{row.get(key, math.nan):{width}.3f}" for key, width in widths.items())
                )
        return "\n".join(lines)


def new_run_folder(config: Config) -> Path:
    """Makes <output>/<run>/<next free number>."""
    parent = Path(config.output) / config.run
    parent.mkdir(parents=True, exist_ok=True)
    number = max((int(entry.name) for entry in parent.iterdir() if entry.name.isdecimal()), default=0)
    while True:
        number += 1
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder


def find_checkpoint(config: Config, resume: str) -> Path:
    """The checkpoint to go on from: a file, a run folder, or "auto" for the newest run of this name that has one."""
    if resume == "auto":
        parent = Path(config.output) / config.run
        found = sorted(parent.glob(f"*/{LAST}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise FileNotFoundError(f"resume: no {LAST} in any run under {parent}")
        return found[-1]
    path = Path(resume)
    path = path / LAST if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"resume: no such checkpoint: {path}")
    return path


def train(
    config: Any,
    *,
    resume: str | None = None,
    callbacks: Iterable[Callback] = (),
    say: Callable[[str], None] = lambda line: None,
) -> TrainResult | None:
    """Trains as configured and evaluates before and after, where the data have ground truth.

    Args:
        resume: see `find_checkpoint`; the run goes on in the checkpoint's folder, on the same curve.
        callbacks: Lightning callbacks to add.
        say: receives one line for each stage.

    Returns:
        The result, or None in the processes of a multi-process run that are not the first.
    """
    quieten()
    seed_everything(config.seed, verbose=False)
    main = (getattr(rank_zero_only, "rank", None) or 0) == 0
    checkpoint = find_checkpoint(config, resume) if resume else None
    resumed = read_checkpoint(checkpoint) if checkpoint else None
    if resumed is not None:
        _compare(config, resumed, say)

    kind = system_of(config)
    monitor = _check_monitor(config, kind)
    dataset = kind.training_data(config)
    if config.data.skip_bad:
        dataset = SkipBroken(dataset)
    held_out = kind.evaluation_data(config)
    module = build_module(config, dataset)
    folder = checkpoint.parent if checkpoint else new_run_folder(config) if main else Path(config.output)

    best = KeepBest(folder, monitor, config.trainer.monitor_mode) if monitor and held_out is not None else None
    record = folder / "metrics.json"
    table = _Tables(best, at_start=checkpoint is None, write=record if main else None, say=say)
    bar = sys.stdout.isatty()
    options, every = trainer_options(config, module.system)
    trainer = Trainer(
        **options,
        logger=TensorBoardLogger(folder.parent, name=None, version=folder.name),
        callbacks=[
            ModelCheckpoint(
                dirpath=folder, filename=Path(LAST).stem, every_n_train_steps=every, enable_version_counter=False
            ),
            *([best] if best else []),
            *([_WriteConfig(folder / "config.yaml", config)] if main else []),
            table,
            RichProgressBar() if bar else _Lines(say if main else lambda line: None),
            *callbacks,
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the loaders share out every global batch and the evaluation themselves
    )
    share: dict[str, Any] = {"rank": trainer.global_rank, "world_size": trainer.world_size}
    loader = build_loader(config, dataset, **share, pin_memory=trainer.strategy.root_device.type == "cuda")
    table.loader = held_out_loader = evaluation_loader(config, held_out, **share) if held_out is not None else None

    earlier = json.loads(record.read_text()) if checkpoint and record.is_file() else {}
    if main:
        table.before = earlier.get("before")
        for left in folder.glob(".*.ckpt") if checkpoint else ():  # by a run that was killed while it saved
            left.unlink(missing_ok=True)
        say(f"training {module.system.describe(len(dataset))}, into {folder}")
        if config.trainer.precision == "auto":
            say("precision {}: {}".format(*choose_precision("auto", config.trainer.accelerator)))
    try:
        trainer.fit(module, loader, held_out_loader, ckpt_path=checkpoint)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit(1).
        if isinstance(stop.__context__, KeyboardInterrupt):
            if main and (folder / LAST).is_file():
                say(f"interrupted at step {trainer.global_step}; go on with --resume {folder}")
            raise KeyboardInterrupt from None
        raise
    if resumed is not None and trainer.global_step == resumed["global_step"]:
        table.after = earlier.get("after")
        if main:
            say(
                f"nothing left to train: the run is at step {trainer.global_step} already; a larger "
                "trainer.max_epochs or trainer.max_steps goes on"
            )
    trainer.save_checkpoint(folder / LAST)
    if not main:
        return None
    result = TrainResult(
        folder,
        folder / LAST,
        folder / "panel.png",
        module.evaluator.protocol,
        table.before,
        table.after,
        dataset.broken if isinstance(dataset, SkipBroken) else [],
        step=trainer.global_step,
    )
    kept: dict[str, Any] = {"last": {"step": result.step}}
    if best and best.step >= 0:
        result.best, result.best_step, result.best_value = best.path, best.step, best.value
        result.monitor, result.monitor_mode = best.monitor, best.mode
        kept["best"] = {"step": best.step, "monitor": best.monitor, "mode": best.mode, "value": best.value}
    _write_metrics(record, table.before, table.after, kept)
    _write_panel(result.panel, module, held_out[0] if held_out is not None else dataset[0])
    return result


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
        with replacing(self.path) as temporary:
            temporary.write_text(yaml.safe_dump(self.config.to_dict(), sort_keys=False))


class _Lines(Callback):
    """A line after an epoch, two a minute at most: progress where there is no terminal for a bar."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say, self.next = say, 0.0

    def on_train_epoch_end(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs
        if time.monotonic() < self.next and epoch != epochs:
            return
        self.next = time.monotonic() + 30
        names = ("loss", *(f"val/{name}" for name in pl_module.system.shown))
        values = {name: trainer.callback_metrics[name] for name in names if name in trainer.callback_metrics}
        numbers = ", ".join(f"{name} {float(value):.4g}" for name, value in values.items())
        self.say(f"epoch {epoch} of {epochs}, step {trainer.global_step}: {numbers}")


class _Tables(Callback):
    """Evaluates before the first step and after the last one, in all processes together."""

    def __init__(
        self, best: KeepBest | None, *, at_start: bool, write: Path | None, say: Callable[[str], None]
    ) -> None:
        self.loader: Any = None
        self.best, self.at_start, self.write, self.say = best, at_start, write, say
        self.before: dict[str, float] | None = None
        self.after: dict[str, float] | None = None

    def on_fit_start(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        if self.at_start:
            self.before = self._evaluate(pl_module)
            if self.write is not None:
                _write_metrics(self.write, self.before, None, {})
                if self.before is not None:
                    shown = pl_module.system.shown
                    self.say("before: " + ", ".join(f"{name} {self.before[name]:.3f}" for name in shown))

    def on_train_end(self, trainer: Any, pl_module: TrainingModule) -> None:  # type: ignore[override]
        self.after = self._evaluate(pl_module)
        if self.best is not None and self.after is not None:
            # The last evaluation counts too, whether or not a validation came right before it.
            self.best.consider(trainer, self.after[self.best.monitor.removeprefix("val/")])

    def _evaluate(self, module: TrainingModule) -> dict[str, float] | None:
        if self.loader is None:
            return None
        summary: dict[str, float] = module.evaluate(self.loader).compute()
        return summary


def _write_panel(path: Path, module: TrainingModule, sample: Any) -> None:
    with torch.inference_mode():
        cells = module.cpu().eval().system.panel(sample)
    draw_panel(path, list(cells), title=str(sample["name"]))


def _write_metrics(path: Path, before: Any, after: Any, checkpoints: dict[str, Any]) -> None:
    values = {"before": before, "after": after, "checkpoints": checkpoints}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2) + "\n")


def _compare(config: Config, checkpoint: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says which settings are not those of the interrupted run: its curve goes on exactly only where none is."""
    if "mdepth_fast" not in checkpoint:
        raise ValueError("resume: the checkpoint was not written by `mdepth-fast train`")
    # What the run did not know of had its default.
    old, new = _flat(Config.from_dict(checkpoint["mdepth_fast"]["config"]).to_dict()), _flat(config.to_dict())
    for key in ("system", "model.name", "optimizer.name", "optimizer.schedule"):
        if key in old and old[key] != new.get(key):
            raise ValueError(f"{key}: expected {old[key]!r}, as the run to resume has it, got {new.get(key)!r}")
    changed = [f"{key} {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]
    if changed:
        say(f"resuming with other settings than the run had: {', '.join(changed)}")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


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

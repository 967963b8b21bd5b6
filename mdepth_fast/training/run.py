"""One training run from a configuration to a folder: checkpoint, curves, metrics before and after, panel."""

import json
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from lightning import Callback, Trainer, seed_everything
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from mdepth_fast.data import SkipBroken
from mdepth_fast.evaluation import Evaluator, Protocol
from mdepth_fast.files import replacing
from mdepth_fast.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from mdepth_fast.training.config import AnyConfig, SupervisedConfig
from mdepth_fast.training.module import DepthModule
from mdepth_fast.training.panel import write_panel
from mdepth_fast.training.self_supervised import SelfSupervisedDepth
from mdepth_fast.training.setup import build_depth_net, build_loader, build_pose_net, evaluation_data, training_data
from mdepth_fast.training.supervised import SupervisedDepth
from mdepth_fast.training.trained import evaluate

__all__ = ["TrainResult", "build_module", "find_checkpoint", "new_run_folder", "quieten", "train"]

_CHECKPOINT = "last.ckpt"
T = TypeVar("T")


@dataclass
class TrainResult:
    """What a run left behind; metrics are None where the data have no ground truth."""

    folder: Path
    checkpoint: Path
    panel: Path
    protocol: Protocol
    before: dict[str, float] | None
    after: dict[str, float] | None
    skipped: list[int]

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


def new_run_folder(config: AnyConfig) -> Path:
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


def find_checkpoint(config: AnyConfig, resume: str) -> Path:
    """The checkpoint to go on from: a file, a run folder, or "auto" for the newest run of this name that has one."""
    if resume == "auto":
        parent = Path(config.output) / config.run
        found = sorted(parent.glob(f"*/{_CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise FileNotFoundError(f"resume: no {_CHECKPOINT} in any run under {parent}")
        return found[-1]
    path = Path(resume)
    path = path / _CHECKPOINT if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"resume: no such checkpoint: {path}")
    return path


def train(
    config: AnyConfig,
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
    if checkpoint:
        _compare(config, read_checkpoint(checkpoint), say)

    dataset = training_data(config)
    if config.data.skip_bad:
        dataset = SkipBroken(dataset)
    held_out = evaluation_data(config)
    module = build_module(config, dataset)
    folder = checkpoint.parent if checkpoint else new_run_folder(config) if main else Path(config.output)

    options = vars(config.trainer).copy()
    every = options.pop("checkpoint_every_n_steps")
    if steps := options.pop("val_every_n_steps"):
        options |= {"val_check_interval": steps, "check_val_every_n_epoch": None}
    stages = config.stages if isinstance(config, SupervisedConfig) else {}
    if stages:
        limits = [sum(stages.values()), config.trainer.max_steps]
        options["max_steps"] = min(limit for limit in limits if limit >= 0)
    bar = sys.stdout.isatty()
    trainer = Trainer(
        **options,
        logger=TensorBoardLogger(folder.parent, name=None, version=folder.name),
        callbacks=[
            ModelCheckpoint(
                dirpath=folder, filename=Path(_CHECKPOINT).stem, every_n_train_steps=every, enable_version_counter=False
            ),
            *([RichProgressBar()] if bar else []),
            *callbacks,
        ],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=bar,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the batch sampler shares out every global batch itself
    )
    if isinstance(module, SupervisedDepth) and isinstance(trainer.strategy, DDPStrategy):
        # Parameters that a published file has and nothing reads (DPT), or that another stage trains.
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)
    loader = build_loader(
        config,
        dataset,
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        pin_memory=trainer.strategy.root_device.type == "cuda",
    )
    held_out_loader = None
    if held_out is not None:
        held_out_loader = DataLoader(held_out, num_workers=config.data.workers)

    record = folder / "metrics.json"
    before = None
    if main:
        if checkpoint and record.is_file():
            before = json.loads(record.read_text())["before"]
        elif not checkpoint:
            before = _evaluate(module, held_out, trainer.strategy.root_device, config)
            with replacing(folder / "config.yaml") as temporary:
                temporary.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
            _write_metrics(record, before, None)
        say(f"training {config.model.name} {module.describe(len(dataset))}, into {folder}")
    try:
        trainer.fit(module, loader, held_out_loader, ckpt_path=checkpoint)
    except SystemExit as stop:
        # Lightning turns Ctrl-C into exit(1).
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    trainer.save_checkpoint(folder / _CHECKPOINT)
    if not main:
        return None
    after = _evaluate(module, held_out, trainer.strategy.root_device, config)
    _write_metrics(record, before, after)
    write_panel(folder / "panel.png", module.cpu(), held_out[0] if held_out is not None else dataset[0])
    return TrainResult(
        folder,
        folder / _CHECKPOINT,
        folder / "panel.png",
        module.evaluator.protocol,
        before,
        after,
        dataset.broken if isinstance(dataset, SkipBroken) else [],
    )


def build_module(config: AnyConfig, dataset: Any) -> DepthModule[Any]:
    """The module that trains as configured on this data set."""
    if isinstance(config, SupervisedConfig):
        net, model = build_depth_net(config), config.model
        frozen = [name for name, parameter in net.named_parameters() if not parameter.requires_grad]
        if frozen and not (config.stages or model.weights or model.encoder_weights):
            raise ValueError(
                f"model.weights: {model.name} does not train {len(frozen)} of its parameters, {frozen[0]} among them, "
                "and starts without weights for them; give --model.encoder_weights=FILE or --model.weights=FILE"
            )
        return SupervisedDepth(config, net)
    sources = tuple(dataset.sources)
    return SelfSupervisedDepth(config, build_depth_net(config, sources), build_pose_net(config, sources), sources)


def _evaluate(module: DepthModule[Any], held_out: Any, device: torch.device, config: AnyConfig) -> Any:
    if held_out is None:
        return None
    evaluator = Evaluator(config.protocol)
    evaluate(module.depth_net.to(device), held_out, evaluator, workers=config.data.workers)
    return evaluator.compute()


def _write_metrics(path: Path, before: Any, after: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"before": before, "after": after}, indent=2) + "\n")


def _compare(config: AnyConfig, checkpoint: dict[str, Any], say: Callable[[str], None]) -> None:
    """Says which settings are not those of the interrupted run: its curve goes on exactly only where none is."""
    if "mdepth_fast" not in checkpoint:
        raise ValueError("resume: the checkpoint was not written by `mdepth-fast train`")
    old, new = _flat(checkpoint["mdepth_fast"]["config"]), _flat(config.to_dict())
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

"""The configuration that every run has: dataclasses, which a system extends with its own sections.

The dataclasses are the only schema: `load_config` lets jsonargparse read types, defaults and help texts from them.
"""

from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from mdepth_fast.systems.names import get_system

__all__ = ["Config", "OptimizerConfig", "TrainerConfig", "system_of"]


@dataclass
class OptimizerConfig:
    """The optimiser and its schedule.

    Args:
        name: adam, adamw or sgd.
        lr: learning rate. The network's `parameter_groups` multiplies it for some layers if the paper does.
        momentum: momentum of sgd.
        weight_decay: L2 penalty; decoupled from the gradient in adamw.
        eps: epsilon of adam and adamw.
        schedule: constant keeps lr; step multiplies it by `gamma` at the END of every `step_size`-th epoch; milestones
            multiplies it by `gamma` once as many epochs are done as each number in `milestones` says, and
            step_milestones after as many optimiser steps; poly lowers it at every step from lr to `end` as (1 - step /
            steps) ** power, cosine as half a period of the cosine; plateau multiplies it by `gamma` at the end of an
            epoch once more than `patience` epochs in a row have not lowered the mean training loss.
        step_size: step: epochs between the drops.
        gamma: step, milestones, step_milestones and plateau: factor that multiplies the learning rate.
        milestones: milestones and step_milestones: epochs or optimiser steps after which the learning rate drops.
        power: poly: exponent.
        end: poly and cosine: learning rate after the last step.
        patience: plateau: epochs without improvement to wait for.
        state: run or checkpoint of the same networks whose optimiser state (Adam's moments) to start from, or null; the
            learning rate is that of this configuration all the same.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = 1e-4
    momentum: float = 0.0
    weight_decay: float = 0.0
    eps: float = 1e-8
    schedule: Literal["constant", "step", "milestones", "step_milestones", "poly", "cosine", "plateau"] = "step"
    step_size: int = 15
    gamma: float = 0.1
    power: float = 0.9
    end: float = 0.0
    patience: int = 2
    state: str | None = None
    milestones: list[int] = field(default_factory=list)


@dataclass
class TrainerConfig:
    """How long and where to train. Most settings go to Lightning's Trainer.

    Args:
        max_epochs: epochs to train.
        max_steps: optimiser steps to train, if this limit comes first; -1 for no limit.
        accelerator: cpu, gpu, mps or auto.
        devices: number of devices, a list of them, or auto.
        num_nodes: number of machines.
        strategy: auto, ddp, ...
        precision: 32-true, bf16-mixed, 16-mixed, ..., or auto: bf16-mixed where the hardware multiplies bfloat16
            faster, else 32-true. The networks run in it; losses, poses and depth stay in float32.
        accumulate_grad_batches: batches per optimiser step.
        gradient_clip_val: gradient norm to clip at, or null.
        sync_batchnorm: compute batch statistics over all processes (GPU).
        deterministic: use only deterministic algorithms.
        log_every_n_steps: steps between logged values.
        checkpoint_every_n_steps: steps between checkpoints.
        check_val_every_n_epoch: epochs between validations.
        val_every_n_steps: training batches between validations instead, or null.
        monitor: metric that selects best.ckpt: val/ and a metric of the system; null keeps only last.ckpt.
        monitor_mode: min if a lower value is better, max if a higher value is.
    """

    max_epochs: int = 20
    max_steps: int = -1
    accelerator: str = "auto"
    devices: int | list[int] | str = "auto"
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    accumulate_grad_batches: int = 1
    gradient_clip_val: float | None = None
    sync_batchnorm: bool = False
    deterministic: bool = False
    log_every_n_steps: int = 50
    checkpoint_every_n_steps: int = 250
    check_val_every_n_epoch: int = 1
    val_every_n_steps: int | None = None
    monitor: str | None = "val/abs_rel"
    monitor_mode: Literal["min", "max"] = "min"


@dataclass
class Config:
    """The settings of every run. A system adds `data`, `model` and other sections, and its name in `system`.

    Its `data` section has batch_size, repeat, workers and skip_bad.

    Args:
        run: name of the run. Results go to <output>/<run>/<number>.
        output: folder for all runs.
        seed: random seed of the initial weights, the order of the samples and the augmentation.
        protocol: evaluation protocol, see `mdepth_fast.evaluation`.
    """

    run: str = "run"
    output: str = "runs"
    seed: int = 0
    protocol: str = "motorcycle"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    @property
    def folder(self) -> Path:
        """<output>/<run>, where the numbered folders are; ValueError if `run` leads out of `output`."""
        run = Path(self.run)
        if run.is_absolute() or ".." in run.parts or not run.parts:
            raise ValueError(f"run: expected a name, whose folder lies in that of output, got {self.run!r}")
        return Path(self.output) / run

    def to_dict(self) -> dict[str, Any]:
        """The plain nested dict that checkpoints and YAML files store."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Any":
        """The inverse of `to_dict`: the configuration of the system that the values name.

        Missing settings take their defaults; the default system is monodepth2. Files written before systems had names
        say `task` instead of `system`.
        """
        kind = system_of(values).config_class
        default = kind()
        sections = {entry.name: type(getattr(default, entry.name)) for entry in fields(kind)}
        given = {key: value for key, value in values.items() if key not in ("task", "system")}
        for key, value in given.items():
            if is_dataclass(sections.get(key)) and not isinstance(value, dict):
                raise ValueError(f"{key}: expected a mapping of settings, got {value!r}")
        return kind(
            **{
                key: sections[key](**value) if is_dataclass(sections.get(key)) else value
                for key, value in given.items()
            }
        )


def system_of(values: "Config | dict[str, Any]") -> Any:
    """The class of the system that a configuration, or its values, belong to."""
    if isinstance(values, Config):
        values = {"system": getattr(values, "system", "monodepth2")}
    key = "system" if "system" in values else "task"
    return get_system(values.get(key, "monodepth2"), key)

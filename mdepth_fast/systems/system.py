"""What a system is to the engine that trains it: data, networks, a step, an evaluation, a picture."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.systems.config import Config
from mdepth_fast.visualize import Cell

__all__ = ["StepInfo", "System"]

C = TypeVar("C", bound=Config)


class StepInfo(NamedTuple):
    """Where in a run a step is."""

    step: int
    """optimiser steps taken so far"""
    generator: torch.Generator
    """of the augmentation: a CPU generator, a function of seed, epoch, batch and process"""
    look: bool
    """whether the numbers of this step may be looked at, which waits for the device"""


class System(nn.Module, Generic[C]):
    """One way to learn: its samples, its networks and what a step minimises.

    A subclass is registered by `register_system`; `mdepth_fast.training` trains any, and knows none. The parameters
    and buffers of the instance are what a checkpoint holds, under their own names.

    Class attributes:
        name, aliases: what configurations call it in `system:`.
        about: one line for the command line.
        config_class: its configuration, a `Config` with further sections.
        presets: name to YAML file; see `packaged_presets`.
        metrics: what its evaluation gives, logged as val/<metric>; shown: those in the progress bar.
        leaves_parameters_unused: whether some step gives a parameter no gradient, which distributed training has to
            be told.
        collate: samples to a batch. A batch has "name", a list of the samples' names.
    """

    name: ClassVar[str]
    about: ClassVar[str] = ""
    aliases: ClassVar[tuple[str, ...]] = ()
    config_class: ClassVar[type[Config]]
    presets: ClassVar[Mapping[str, Any]] = {}
    metrics: ClassVar[tuple[str, ...]]
    shown: ClassVar[tuple[str, ...]] = ()
    leaves_parameters_unused: ClassVar[bool] = False
    collate: ClassVar[Any] = staticmethod(default_collate)

    def __init__(self, config: C) -> None:
        super().__init__()
        self.config: C = config

    # From a configuration.

    @classmethod
    def training_data(cls, config: C) -> Any:
        """The data set that is trained on."""
        raise NotImplementedError

    @classmethod
    def evaluation_data(cls, config: C) -> Any:
        """The data set with ground truth: held out where there is such a part, or None."""
        raise NotImplementedError

    @classmethod
    def create(cls, config: C, dataset: Any) -> "System[C]":
        """The system with the weights that training on this data set starts from."""
        raise NotImplementedError

    @classmethod
    def restore(cls, config: C, saved: dict[str, Any], weights: dict[str, Tensor]) -> Any:
        """The trained `net` of a checkpoint: saved is what `extra_state` gave, weights the state of the system."""
        raise NotImplementedError

    # Training.

    def describe(self, samples: int) -> str:
        """What is trained, on how many samples of what, in one line."""
        raise NotImplementedError

    def step(self, batch: dict[str, Any], info: StepInfo) -> dict[str, Tensor]:
        """One forward pass. "loss" is what is minimised, whatever else is in the dict is logged under its name."""
        raise NotImplementedError

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Groups of an optimiser; a group may have a rate of its own."""
        return [{"params": list(self.parameters())}]

    @property
    def last_step(self) -> int | None:
        """Where the system itself ends training, or None."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Plain values that a checkpoint has to hold beside configuration and weights."""
        return {}

    # Evaluation.

    @property
    def net(self) -> Any:
        """The network that is evaluated, and what `mdepth_fast.inference.load_trained` reads back."""
        raise NotImplementedError

    @classmethod
    def evaluator(cls, protocol: Any) -> Any:
        """Collects the results of a data set under a protocol or the name of one, as `evaluation.Evaluator` does.

        It has `protocol`, `gather()`, `compute() -> dict` and `table() -> str`.
        """
        raise NotImplementedError

    @staticmethod
    def evaluate_sample(net: Any, batch: dict[str, Any], evaluator: Any) -> None:
        """Feeds the evaluator with what `net` predicts for a batch of one evaluation sample, on any device."""
        raise NotImplementedError

    @classmethod
    def data_settings(cls, net: Any) -> list[str]:
        """Overrides of the configuration under which its evaluation data are as a trained `net` takes them."""
        return []

    def panel(self, sample: Any) -> Sequence[Cell]:
        """Pictures of one sample of the evaluation data, else of the training data, on the CPU in eval mode."""
        raise NotImplementedError

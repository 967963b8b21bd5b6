"""The interface between a system and the training engine: data, networks, a step, an evaluation, a picture."""

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
    """The position of a step in a run."""

    step: int
    """optimiser steps taken so far"""
    generator: torch.Generator
    """for the augmentation: a CPU generator, determined by seed, epoch, batch and process"""
    look: bool
    """whether the step may read its numbers, which waits for the device"""


class System(nn.Module, Generic[C]):
    """One way to learn: its samples, its networks and the loss of a step.

    `register_system` registers a subclass; `mdepth_fast.training` trains any system and knows none in particular. A
    checkpoint holds the parameters and buffers of the instance under their own names.

    Class attributes:
        name, aliases: its names in the `system:` setting of configurations.
        about: one line for the command line.
        config_class: its configuration, a `Config` with further sections.
        presets: name to YAML file; see `packaged_presets`.
        metrics: results of its evaluation, logged as val/<metric>; shown: the ones in the progress bar.
        leaves_parameters_unused: whether a parameter may get no gradient in some step. Distributed training must
            know this.
        collate: makes a batch of samples. A batch has "name", a list of the samples' names.
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
        """The training data set."""
        raise NotImplementedError

    @classmethod
    def evaluation_data(cls, config: C) -> Any:
        """The data set with ground truth, held out from training if possible, or None."""
        raise NotImplementedError

    @classmethod
    def create(cls, config: C, dataset: Any) -> "System[C]":
        """The system with the initial weights for training on this data set."""
        raise NotImplementedError

    @classmethod
    def restore(cls, config: C, saved: dict[str, Any], weights: dict[str, Tensor]) -> Any:
        """The trained `net` of a checkpoint; saved is the result of `extra_state`, weights the state of the system."""
        raise NotImplementedError

    # Training.

    def describe(self, samples: int) -> str:
        """One line that says what is trained, and on how many samples of which data."""
        raise NotImplementedError

    def step(self, batch: dict[str, Any], info: StepInfo) -> dict[str, Tensor]:
        """One forward pass. Training minimises "loss"; the other entries of the dict are logged under their names."""
        raise NotImplementedError

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser; a group may set its own learning rate."""
        return [{"params": list(self.parameters())}]

    @property
    def last_step(self) -> int | None:
        """The step at which the system itself ends training, or None."""
        return None

    def extra_state(self) -> dict[str, Any]:
        """Plain values that a checkpoint must hold besides configuration and weights."""
        return {}

    # Evaluation.

    @property
    def net(self) -> Any:
        """The network that is evaluated and that `mdepth_fast.inference.load_trained` reads back."""
        raise NotImplementedError

    @classmethod
    def evaluator(cls, protocol: Any) -> Any:
        """Collects the results of a data set under a protocol, or a protocol's name, as `evaluation.Evaluator` does.

        It has `protocol`, `gather()`, `compute() -> dict` and `table() -> str`.
        """
        raise NotImplementedError

    @staticmethod
    def evaluate_sample(net: Any, batch: dict[str, Any], evaluator: Any) -> None:
        """Gives the evaluator the prediction of `net` for a batch of one evaluation sample, on any device."""
        raise NotImplementedError

    @classmethod
    def data_settings(cls, net: Any) -> list[str]:
        """Configuration overrides that make the evaluation data fit a trained `net`."""
        return []

    def panel(self, sample: Any) -> Sequence[Cell]:
        """Pictures of one sample of the evaluation data, or else of the training data, on the CPU in eval mode."""
        raise NotImplementedError

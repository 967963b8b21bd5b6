"""The interface between a system and the training engine: data, networks, a step, an evaluation, a picture."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from mdepth_fast.systems.config import Config
from mdepth_fast.visualize import Cell

__all__ = ["PredictOptions", "StepInfo", "System"]

C = TypeVar("C", bound=Config)


class StepInfo(NamedTuple):
    """The position of a step in a run."""

    step: int
    """optimiser steps taken so far"""
    generator: torch.Generator
    """for the augmentation: a CPU generator, determined by seed, epoch, batch and process"""
    look: bool
    """whether the step may read its numbers, which waits for the device"""


@dataclass(frozen=True)
class PredictOptions:
    """How predictions are written to files.

    output: the folder. format: suffix of the files, None for the system's own choice. size: (H, W) of the network
    input, None for that of training or of the images. progress: a context manager that takes a title and gives a
    function that passes on the items of an iterable. scale: the value for 1 in a 16-bit PNG.
    """

    output: Path
    progress: Callable[[str], AbstractContextManager[Callable[[Iterable[Any]], Iterable[Any]]]]
    format: str | None = None
    size: tuple[int, int] | None = None
    scale: float = 256.0


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
        net_type: what `net` is an instance of, such as `DepthModel`. formats: suffixes of the files that
            `write_predictions` writes, the usual one first.
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
    net_type: ClassVar[type] = object
    formats: ClassVar[tuple[str, ...]] = ()

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
    def packed_data(cls, config: C, part: str) -> Any:
        """What `mdepth-fast data pack` stores of the part "train" or "val", or None."""
        return cls.training_data(config) if part == "train" else cls.evaluation_data(config)

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

    @classmethod
    def write_predictions(cls, net: Any, paths: Sequence[Path], options: PredictOptions) -> list[str]:
        """Predicts for the image files `paths`, writes the results to files, and says in lines what they are.

        A system whose `net` is a `DepthModel` needs none: `mdepth_fast.inference.predict_source` is for them all.
        """
        raise ValueError(f"the system {cls.name} does not write its predictions to files")

    @classmethod
    def chosen_format(cls, options: PredictOptions) -> str:
        """The suffix of the files to write. ValueError if the system does not write such files."""
        chosen = options.format or cls.formats[0]
        if chosen not in cls.formats:
            raise ValueError(f"--format: expected {' or '.join(cls.formats)}, got {chosen}")
        return chosen

    def panel(self, sample: Any) -> Sequence[Cell]:
        """Pictures of one sample of the evaluation data, or else of the training data, on the CPU in eval mode."""
        raise NotImplementedError

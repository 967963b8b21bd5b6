"""The former name of training `mdepth_fast.systems.supervised.Supervised`."""

from typing import Any

from mdepth_fast.systems.supervised import Supervised
from mdepth_fast.training.module import TrainingModule

__all__ = ["SupervisedDepth"]


def SupervisedDepth(config: Any, depth_net: Any) -> TrainingModule:
    """A module that trains `Supervised(config, depth_net)`."""
    return TrainingModule(Supervised(config, depth_net))

"""The former name of training `mdepth_fast.systems.monodepth2.Monodepth2`."""

from typing import Any

from mdepth_fast.systems.monodepth2 import Monodepth2
from mdepth_fast.training.module import TrainingModule

__all__ = ["SelfSupervisedDepth"]


def SelfSupervisedDepth(config: Any, depth_net: Any, pose_net: Any, sources: Any) -> TrainingModule:
    """A module that trains `Monodepth2(config, depth_net, pose_net, sources)`."""
    return TrainingModule(Monodepth2(config, depth_net, pose_net, sources))

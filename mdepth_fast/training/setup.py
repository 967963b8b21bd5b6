"""The former place of what `mdepth_fast.systems` and `mdepth_fast.training.loader` hold."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from mdepth_fast.systems import system_of
from mdepth_fast.systems.supervised import build_loss, cache_size
from mdepth_fast.training.loader import build_loader

__all__ = [
    "build_depth_net",
    "build_loader",
    "build_loss",
    "build_pose_net",
    "cache_size",
    "evaluation_data",
    "training_data",
]


def training_data(config: Any) -> Any:
    """See `System.training_data`."""
    return system_of(config).training_data(config)


def evaluation_data(config: Any) -> Any:
    """See `System.evaluation_data`."""
    return system_of(config).evaluation_data(config)


def build_depth_net(config: Any, sources: Sequence[int | str] = ()) -> Any:
    """See `DepthSystem.starting_net`."""
    return system_of(config).starting_net(config, {"sources": sources})


def build_pose_net(config: Any, sources: Sequence[int | str]) -> nn.Module | None:
    """See `SelfSupervisedSystem.build_pose_net`."""
    net: nn.Module | None = system_of(config).build_pose_net(config, sources)
    return net

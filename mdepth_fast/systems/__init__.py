"""The systems that can be trained, each with its networks, motion, objective, configuration and presets.

To add a system, write one file and add a line here, or call `register_system` anywhere.
"""

from mdepth_fast.systems.config import Config, OptimizerConfig, TrainerConfig, system_of
from mdepth_fast.systems.motion import AllPoses, MotionModel, PairPoses, StackedPoses, known_poses, no_motion
from mdepth_fast.systems.registry import (
    SYSTEMS,
    config_parser,
    get_system,
    list_presets,
    load_config,
    packaged_presets,
    preset_notes,
    register_system,
)
from mdepth_fast.systems.self_supervised import Objective, Outputs, SelfSupervisedSystem, ViewsConfig
from mdepth_fast.systems.system import StepInfo, System
from mdepth_fast.systems.views import Views

from mdepth_fast.systems import monodepth2, supervised  # isort: skip  # one line for each system

__all__ = [
    "SYSTEMS",
    "AllPoses",
    "Config",
    "MotionModel",
    "Objective",
    "OptimizerConfig",
    "Outputs",
    "PairPoses",
    "SelfSupervisedSystem",
    "StackedPoses",
    "StepInfo",
    "System",
    "TrainerConfig",
    "Views",
    "ViewsConfig",
    "config_parser",
    "get_system",
    "known_poses",
    "list_presets",
    "load_config",
    "monodepth2",
    "no_motion",
    "packaged_presets",
    "preset_notes",
    "register_system",
    "supervised",
    "system_of",
]

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
    system_for,
)
from mdepth_fast.systems.self_supervised import Objective, Outputs, SelfSupervisedSystem, ViewsConfig
from mdepth_fast.systems.system import PredictOptions, StepInfo, System
from mdepth_fast.systems.views import Views

from mdepth_fast.systems import flow, left_right, monodepth2, sfmlearner, supervised, vid2depth  # isort: skip

__all__ = [
    "SYSTEMS",
    "AllPoses",
    "Config",
    "MotionModel",
    "Objective",
    "OptimizerConfig",
    "Outputs",
    "PairPoses",
    "PredictOptions",
    "SelfSupervisedSystem",
    "StackedPoses",
    "StepInfo",
    "System",
    "TrainerConfig",
    "Views",
    "ViewsConfig",
    "config_parser",
    "flow",
    "get_system",
    "known_poses",
    "left_right",
    "list_presets",
    "load_config",
    "monodepth2",
    "no_motion",
    "packaged_presets",
    "preset_notes",
    "register_system",
    "sfmlearner",
    "supervised",
    "system_for",
    "system_of",
    "vid2depth",
]

"""The configurations of all systems under one roof: they live in `mdepth_fast.systems`."""

from typing import Any

from mdepth_fast.systems import (
    Config,
    OptimizerConfig,
    TrainerConfig,
    config_parser,
    list_presets,
    load_config,
    preset_notes,
)
from mdepth_fast.systems.monodepth2 import LossConfig, Monodepth2Config
from mdepth_fast.systems.self_supervised import ModelConfig, PoseConfig
from mdepth_fast.systems.supervised import (
    SupervisedAugmentConfig,
    SupervisedConfig,
    SupervisedDataConfig,
    SupervisedLossConfig,
    SupervisedModelConfig,
)
from mdepth_fast.systems.views import AugmentConfig, DataConfig

__all__ = [
    "AnyConfig",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "DepthAugmentConfig",
    "DepthDataConfig",
    "DepthLossConfig",
    "DepthModelConfig",
    "LossConfig",
    "ModelConfig",
    "Monodepth2Config",
    "OptimizerConfig",
    "PoseConfig",
    "SelfSupervisedConfig",
    "SupervisedAugmentConfig",
    "SupervisedConfig",
    "SupervisedDataConfig",
    "SupervisedLossConfig",
    "SupervisedModelConfig",
    "TrainerConfig",
    "config_parser",
    "list_presets",
    "load_config",
    "preset_notes",
]

# Former names.
AnyConfig = Any
SelfSupervisedConfig = Monodepth2Config
DepthAugmentConfig = SupervisedAugmentConfig
DepthDataConfig = SupervisedDataConfig
DepthLossConfig = SupervisedLossConfig
DepthModelConfig = SupervisedModelConfig

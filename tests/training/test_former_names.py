"""Names from before there were systems, which scripts and other packages may use."""

from pathlib import Path

import torch
from tiny_run import TinyDepth, TinyMetric, tiny_config, tiny_supervised, write_frames

from mdepth_fast import inference, systems
from mdepth_fast.systems.supervised import Supervised
from mdepth_fast.training import config, setup, trained
from mdepth_fast.training.module import TrainingModule
from mdepth_fast.training.self_supervised import SelfSupervisedDepth
from mdepth_fast.training.supervised import SupervisedDepth


def test_modules_and_classes(tmp_path: Path) -> None:
    assert trained.load_trained is inference.load_trained and trained.evaluate is inference.evaluate
    assert config.load_config is systems.load_config and config.list_presets is systems.list_presets
    assert isinstance(systems.load_config("kitti_mono"), config.SelfSupervisedConfig)
    for section in ("Augment", "Data", "Loss", "Model"):
        assert getattr(config, f"Depth{section}Config") is getattr(config, f"Supervised{section}Config")

    module = SelfSupervisedDepth(tiny_config(), TinyDepth(), None, ("stereo",))
    assert isinstance(module, TrainingModule) and isinstance(module.depth_net, TinyDepth)
    root = write_frames(tmp_path / "frames", count=2)
    values = tiny_supervised(root)
    assert isinstance(SupervisedDepth(values, TinyMetric()).depth_net, TinyMetric)
    assert len(setup.training_data(values)) == len(setup.evaluation_data(values)) == 2
    assert type(setup.build_depth_net(values)) is TinyMetric
    assert setup.build_depth_net(tiny_config(), ("stereo",)).unit == "m"
    assert setup.build_pose_net(tiny_config(), ("stereo",)) is None
    loader = setup.build_loader(tiny_supervised(root, data__batch_size=2), Supervised.training_data(values))
    assert [batch["target"].dtype for batch in loader] == [torch.uint8]

"""The presets of the supervised systems: their numbers, a few steps of each on real frames, and that each can learn."""

import inspect
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback
from small_systems import SMALL, write_folder, write_kitti, write_nyu
from tiny_run import Untouched

from mdepth_fast.data import AUGMENTATIONS, Augment, DepthAugment
from mdepth_fast.evaluation import PROTOCOLS
from mdepth_fast.inference import load_trained
from mdepth_fast.models import create_model
from mdepth_fast.systems import list_presets, load_config, preset_notes
from mdepth_fast.systems.supervised import SupervisedAugmentConfig
from mdepth_fast.systems.views import AugmentConfig
from mdepth_fast.training.run import train

PRESETS = list_presets("supervised")


def test_there_is_a_preset_for_every_system_and_data_set() -> None:
    systems = {"depth_anything": 3, "dorn": 2, "dpt": 2, "eigen2014": 2, "fastdepth": 1, "fcrn": 1}
    assert {system: sum(name.startswith(system) for name in PRESETS) for system in systems} == systems
    assert len(PRESETS) == sum(systems.values())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_valid_and_says_what_it_needs(preset: str) -> None:
    config = load_config(preset)
    assert config.run == preset
    assert config.protocol in PROTOCOLS
    with torch.device("meta"):
        net = create_model(config.model.name, **config.model.options)
    notes = " ".join(preset_notes(preset))
    assert "--data.root" in notes
    assert getattr(net, "stages", None) is None or set(config.stages) == {"coarse", "fine"}


# Published: learning rate, momentum, weight decay, batch, schedule and how long.
RECIPES: dict[str, tuple[Any, ...]] = {
    "eigen2014_nyu": ("sgd", 1e-3, 0.9, 0.0, 32, "constant", 62500 + 46875),
    "eigen2014_kitti": ("sgd", 1e-3, 0.9, 0.0, 32, "constant", 46875 + 31250),
    "fcrn_nyu": ("sgd", 1e-2, 0.9, 0.0, 16, "plateau", None),
    "dorn_nyu": ("sgd", 1e-4, 0.9, 5e-4, 3, "poly", 3_000_000),
    "dorn_kitti": ("sgd", 1e-4, 0.9, 5e-4, 3, "poly", 300_000),
    "fastdepth_nyu": ("sgd", 1e-2, 0.9, 1e-4, 8, "step", None),
    "dpt_nyu": ("adamw", 1e-4, 0.0, 1e-2, 4, "poly", None),
    "dpt_kitti": ("adamw", 1e-4, 0.0, 1e-2, 4, "poly", None),
    # The rate of the head, ten times that of the encoder.
    **dict.fromkeys(
        ("depth_anything_folder", "depth_anything_kitti", "depth_anything_nyu"),
        ("adamw", 5e-5, 0.0, 1e-2, 4, "poly", None),
    ),
}
EPOCHS = {"fcrn_nyu": 20, "fastdepth_nyu": 20, "dpt_nyu": 50, "dpt_kitti": 50}
EPOCHS |= {"depth_anything_folder": 40, "depth_anything_kitti": 40, "depth_anything_nyu": 40}
# Published: size of the network's input, of the resized image, range of the scale, largest rotation, and what else is
# not Eigen's.
_PLAIN = (1.0, 1.0)
AUGMENTS: dict[str, tuple[Any, ...]] = {
    "eigen2014_nyu": ((228, 304), (240, 320), (1.0, 1.5), 5.0, {"drop_extremes": True}),
    "eigen2014_kitti": ((172, 576), (184, 612), (1.0, 1.2), 0.0, {}),
    "fcrn_nyu": ((228, 304), (240, 320), (1.0, 1.5), 5.0, {}),
    "dorn_nyu": ((257, 353), (288, 384), (1.0, 1.5), 5.0, {}),
    "dorn_kitti": ((385, 513), (385, None), (1.0, 1.2), 0.0, {}),
    "fastdepth_nyu": (
        (224, 224),
        250,
        (1.0, 1.5),
        5.0,
        {"crop_size": (228, 304), "crop": "centre", "color": _PLAIN, "jitter": (0.4, 0.4, 0.4)},
    ),
    "dpt_nyu": (
        (416, 544),
        None,
        _PLAIN,
        2.5,
        {"recolor": 0.5, "gamma": (0.9, 1.1), "brightness": (0.75, 1.25), "color": (0.9, 1.1), "max_depth": 10.0},
    ),
    "dpt_kitti": (
        (352, 704),
        None,
        _PLAIN,
        1.0,
        {"recolor": 0.5, "gamma": (0.9, 1.1), "brightness": (0.9, 1.1), "color": (0.9, 1.1), "max_depth": 80.0},
    ),
}
for _preset, _farthest in (("folder", 20.0), ("kitti", 80.0), ("nyu", 20.0)):
    _others = {"recolor": 0.0, "min_depth": 1e-3, "max_depth": _farthest}
    AUGMENTS[f"depth_anything_{_preset}"] = ((518, 518), 518, _PLAIN, 0.0, _others)
RECIPES_OF_DATA = {"eigen2014_nyu": "eigen_nyu", "eigen2014_kitti": "eigen_kitti"}
RECIPES_OF_DATA |= {"dpt_nyu": "bts_nyu", "dpt_kitti": "bts_kitti"}
RECIPES_OF_DATA |= {"depth_anything_folder": "depth_anything_nyu"}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_holds_the_published_recipe(preset: str) -> None:
    config: Any = load_config(preset)
    optimizer, trainer = config.optimizer, config.trainer
    steps = sum(config.stages.values()) or (trainer.max_steps if trainer.max_steps >= 0 else None)
    found = (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay, config.data.batch_size)
    assert (*found, optimizer.schedule, steps) == RECIPES[preset]
    assert trainer.max_epochs == EPOCHS.get(preset, -1)
    if optimizer.schedule == "poly":
        assert optimizer.power == 0.9
        assert optimizer.end == (1e-5 if preset.startswith("dpt") else 0)
    if preset == "fastdepth_nyu":
        assert (optimizer.step_size, optimizer.gamma) == (5, 0.1)
    (height, width), resize, scale, rotate, others = AUGMENTS[preset]
    expected = {"height": height, "width": width, "resize": resize, "scale": scale, "rotate": rotate, **others}
    eigen = {**vars(SupervisedAugmentConfig()), **expected}
    found_augment = {key: _tuple(value) for key, value in vars(config.augment).items()}
    assert found_augment == eigen
    # The recipe of the data package is the same.
    recipe = DepthAugment(**AUGMENTATIONS[RECIPES_OF_DATA.get(preset, preset)])
    assert repr(recipe) == repr(DepthAugment(**found_augment))


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_defaults_of_a_configuration_are_those_of_what_it_configures() -> None:
    for section, kind in ((SupervisedAugmentConfig, DepthAugment), (AugmentConfig, Augment)):
        parameters = inspect.signature(kind).parameters
        defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
        assert {name: value for name, value in vars(section()).items() if name in defaults} == {
            name: value for name, value in defaults.items() if name in vars(section())
        }
        assert set(vars(section())) <= set(parameters)


def test_rates_of_eigens_layers() -> None:
    """Equal to the paper's in the release's logarithms, of which the loss is that of the preset."""
    config = load_config("eigen2014_nyu")
    with torch.device("meta"):
        net: Any = create_model("eigen2014_nyu")
    rates: dict[str, tuple[float, float]] = {}
    for stage in config.stages:  # type: ignore[union-attr]
        net.stage = stage
        groups = net.parameter_groups(config.optimizer.lr)
        rates |= {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {
        "coarse.conv": (0.001, 5e-4),
        "coarse.full": (0.1, 1e-4),
        "fine.conv1,3": (0.001, 1e-4),
        "fine.conv2": (0.01, 1e-4),
    }
    options = config.loss.options  # type: ignore[union-attr]
    assert options["log_prediction"] is True and options["variance_focus"] == 0.5
    assert options["scale"] == pytest.approx(1 / net.log_depth_std**2, rel=1e-4)
    scale = load_config("eigen2014_kitti").loss.options["scale"]  # type: ignore[union-attr]
    assert scale == pytest.approx(1 / create_model("eigen2014_kitti", hidden=2).log_depth_std ** 2, rel=1e-4)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def nyu(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nyu(real_data, tmp_path_factory.mktemp("nyu"))


@pytest.fixture(scope="module")
def kitti(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kitti(real_data, tmp_path_factory.mktemp("kitti"))


@pytest.fixture(scope="module")
def folder(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(real_data, tmp_path_factory.mktemp("folder"))


class Losses(Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(outputs["loss"].item())


RUN = ["--data.workers=0", "--trainer.accelerator=cpu", "--trainer.devices=1"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_few_steps_on_real_frames(preset: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The preset with its data as they are published, its sizes, augmentation and protocol; a narrow network."""
    data = preset.rpartition("_")[2]
    root = request.getfixturevalue(data)
    words = [*RUN, *SMALL[preset], f"--data.root={root}", "--data.batch_size=2", f"--output={tmp_path}"]
    words += {"kitti": ["--data.val_split=val"], "folder": [f"--data.val_split={root / 'val'}"]}.get(data, [])
    staged = preset.startswith("eigen")
    words += ["--stages={coarse: 1, fine: 1}"] if staged else ["--trainer.max_steps=2"]
    losses, untouched, lines = Losses(), Untouched(), []
    config = load_config(preset, words)
    result = train(config, callbacks=[losses, untouched], say=lines.append)
    assert result is not None and result.before is not None and result.after is not None
    assert len(losses.values) == untouched.steps == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses.values)
    assert result.after["images"] == 1
    assert all(math.isfinite(result.after[column]) for column in PROTOCOLS[config.protocol].columns)
    assert result.protocol.name == config.protocol
    size = f"{config.augment.height}x{config.augment.width}"  # type: ignore[union-attr]
    assert f"samples of {config.data.name} at {size}" in lines[0]

    trained = load_trained(result.folder)
    assert trained.config == config
    assert trained.net.unit == "m"


def at(height: int, width: int) -> list[str]:
    """Frames of 360x540 at this size, without augmentation."""
    words = [f"--augment.height={height}", f"--augment.width={width}", f"--augment.resize=[{height},{width}]"]
    return [
        *words,
        "--augment.crop=centre",
        "--augment.crop_size=null",
        "--augment.scale=[1,1]",
        "--augment.rotate=0",
        "--augment.flip=0",
        "--augment.recolor=0",
    ]


# Small networks that start from nothing, at rates for that; loss, optimiser and schedule are the preset's, an epoch one
# step. Then the
# largest mean relative error that eight frames may be left with.
OVERFIT: dict[str, tuple[list[str], float]] = {
    "eigen2014_nyu": ([*at(64, 64), "--model.options.input_size=[64,64]", "--stages={coarse: 40, fine: 40}"], 0.17),
    "fcrn_nyu": (
        [
            *at(32, 64),
            "--model.options={layers: 18, bn_momentum: 0.3, dropout: 0, input_size: [32,64]}",
            "--optimizer.lr=0.03",
            "--trainer.max_steps=40",
        ],
        0.14,
    ),
    "dorn_nyu": (
        [
            *at(49, 73),
            "--model.options.window=[49,73]",
            "--model.options.rates=[2,4,6]",
            "--model.options.pool=4",
            "--optimizer.lr=2e-3",
            "--trainer.max_steps=40",
        ],
        0.12,
    ),
    "fastdepth_nyu": (
        [
            *at(64, 96),
            "--model.options.input_size=[64,96]",
            "--optimizer.lr=0.03",
            "--optimizer.step_size=100",
            "--trainer.max_steps=60",
        ],
        0.16,
    ),
    "dpt_nyu": (
        [*at(32, 64), "--model.options.input_size=[32,64]", "--optimizer.lr=3e-3", "--trainer.max_steps=50"],
        0.16,
    ),
}


@pytest.mark.parametrize("preset", list(OVERFIT))
def test_overfits_eight_real_frames(preset: str, real_data: Path, tmp_path: Path) -> None:
    words, limit = OVERFIT[preset]
    indoor = real_data / "indoor_rgbd"
    data = ["--data.name=rgbd_folder", f"--data.root={indoor}", f"--data.val_split={indoor}", "--data.crop=null"]
    data += ["--data.images=images/*[0-5].png", "--data.depth=depth/*[0-5].png", "--data.view=whole", "--data.repeat=1"]
    data += [f"--data.cache={tmp_path / 'cache'}", "--data.cache_size=[96,144]", "--data.batch_size=8"]
    often = ["--trainer.val_every_n_steps=null", "--trainer.check_val_every_n_epoch=1000000"]
    config = load_config(
        preset,
        [
            *RUN,
            *SMALL[preset],
            *data,
            *often,
            *words,
            "--protocol=nyu",
            "--trainer.max_epochs=-1",
            f"--output={tmp_path}",
        ],
    )
    losses = Losses()
    result = train(config, callbacks=[losses])
    assert result is not None and result.before is not None and result.after is not None
    assert result.after["images"] == 8
    assert result.after["abs_rel"] < limit < result.before["abs_rel"] / 3
    assert np.mean(losses.values[-3:]) < 0.25 * np.mean(losses.values[:3])

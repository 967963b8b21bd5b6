"""Presets, overrides and their errors."""

from pathlib import Path

import pytest
import yaml

from mdepth_fast.evaluation import PROTOCOLS
from mdepth_fast.training.config import (
    Config,
    SelfSupervisedConfig,
    SupervisedConfig,
    list_presets,
    load_config,
    preset_notes,
)


def test_every_preset_is_valid_and_names_a_protocol() -> None:
    """Those of measured depth have tests of their own."""
    names = list_presets("self_supervised")
    published = ["kitti_mono", "kitti_mono_stereo", "kitti_stereo"]
    variants = [f"{name}_{kind}" for name in published for kind in ("1024x320", "scratch")]
    others = ["kitti_mono_416x128", "kitti_odometry_mono", "kitti_odometry_mono_stereo", "lite_mono_kitti"]
    assert names == sorted(["folder", "motorcycle", "synthetic", "synthetic_mono", *published, *variants, *others])
    assert set(list_presets()) >= {*names, *list_presets("supervised")}
    for name in names:
        config = load_config(name)
        assert isinstance(config, SelfSupervisedConfig)
        assert config.run == name
        assert config.protocol in PROTOCOLS
        assert config.data.height % 32 == config.data.width % 32 == 0


@pytest.mark.parametrize(
    ("preset", "sources"),
    [("kitti_mono", [-1, 1]), ("kitti_stereo", ["stereo"]), ("kitti_mono_stereo", [-1, 1, "stereo"])],
)
def test_kitti_presets_hold_the_published_recipe(preset: str, sources: list[int | str]) -> None:
    config = load_config(preset)
    assert (config.data.height, config.data.width, config.data.batch_size) == (192, 640, 12)
    assert config.data.sources == sources
    assert (config.optimizer.lr, config.optimizer.step_size, config.optimizer.gamma) == (1e-4, 15, 0.1)
    assert config.trainer.max_epochs == 20
    assert (config.loss.smoothness, config.loss.ssim_weight, config.loss.auto_mask) == (1e-3, 0.85, True)
    augment = config.augment
    assert (augment.flip, augment.jitter) == (0.5, 0.5)
    assert (augment.brightness, augment.contrast, augment.saturation, augment.hue) == (0.2, 0.2, 0.2, 0.1)
    # Published stereo models work in units of 5.4 m (KITTI's baseline over 0.1), depth 0.1 to 100 of them.
    unit = 1.0 if preset == "kitti_mono" else 5.4
    assert (config.model.min_depth, config.model.max_depth) == pytest.approx((0.1 * unit, 100 * unit))


MODES = {"mono": [-1, 1], "stereo": ["stereo"], "mono_stereo": [-1, 1, "stereo"]}


@pytest.mark.parametrize(
    ("preset", "base", "changes"),
    [
        *(
            (f"kitti_{mode}_1024x320", f"kitti_{mode}", {"data": (320, 1024), "lr": 1e-5, "max_epochs": 5})
            for mode in MODES
        ),
        *((f"kitti_{mode}_scratch", f"kitti_{mode}", {"max_epochs": 30}) for mode in MODES),
        ("kitti_mono_416x128", "kitti_mono", {"data": (128, 416)}),
        ("kitti_odometry_mono", "kitti_mono", {"name": "kitti_odometry"}),
        ("kitti_odometry_mono_stereo", "kitti_mono_stereo", {"name": "kitti_odometry"}),
    ],
)
def test_a_variant_differs_from_its_base_as_published(preset: str, base: str, changes: dict[str, object]) -> None:
    config, expected = load_config(preset), load_config(base)
    assert config.run == preset and len(preset) < 27, "what the list of presets has room for"
    expected.run = preset
    expected.data.height, expected.data.width = changes.get("data", (192, 640))  # type: ignore[misc]
    expected.data.name = changes.get("name", "kitti")  # type: ignore[assignment]
    expected.optimizer.lr = changes.get("lr", 1e-4)  # type: ignore[assignment]
    expected.trainer.max_epochs = changes.get("max_epochs", 20)  # type: ignore[assignment]
    assert config == expected
    assert config.data.sources == MODES[base.removeprefix("kitti_")]
    notes = " ".join(preset_notes(preset))
    assert "--data.root" in notes and "--data.split" in notes
    assert ("--model.weights" in notes) == preset.endswith("1024x320")


def test_a_file_builds_on_another(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("base: kitti_mono\noptimizer: {lr: 3.0e-4}\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\nrun: two\ndata: {height: 64}\n")
    config = load_config(str(tmp_path / "two.yaml"), ["--trainer.max_epochs=2"])
    assert (config.run, config.optimizer.lr, config.data.height, config.data.width) == ("two", 3e-4, 64, 640)
    assert (config.optimizer.step_size, config.trainer.max_epochs, config.data.sources) == (15, 2, [-1, 1])
    (tmp_path / "one.yaml").write_text("base: two.yaml\n")
    with pytest.raises(ValueError, match=r"one\.yaml: base: expected a preset or file that does not build on this one"):
        load_config(str(tmp_path / "two.yaml"))
    (tmp_path / "one.yaml").write_text("base: [kitti_mono]\n")
    with pytest.raises(ValueError, match=r"base: expected a preset or a \.yaml file, got \['kitti_mono'\]"):
        load_config(str(tmp_path / "one.yaml"))
    (tmp_path / "one.yaml").write_text("base: three.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"three\.yaml: no such file"):
        load_config(str(tmp_path / "one.yaml"))


def test_overrides_are_typed() -> None:
    config = load_config(
        "kitti_mono",
        [
            "--optimizer.lr=3e-4",
            "--data.sources",
            "[-1, 1, stereo]",
            "--trainer.devices",
            "2",
            "--loss.auto_mask=false",
        ],
    )
    assert config.optimizer.lr == 3e-4
    assert config.data.sources == [-1, 1, "stereo"]
    assert config.trainer.devices == 2
    assert config.loss.auto_mask is False
    assert config.optimizer.step_size == load_config("kitti_mono").optimizer.step_size


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--optimizer.lr=fast", "optimizer.lr.*float.*fast"),
        ("--optimizer.speed=1", "optimizer.speed"),
        ("--data.name=imagenet", "data.name.*motorcycle.*imagenet"),
        ("--data.sources=[-1, left]", "data.sources.*left"),
        ("--trainer.max_epochs=2.5", "trainer.max_epochs.*int.*2.5"),
    ],
)
def test_a_bad_override_is_one_line_that_names_it(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_config("motorcycle", [override])
    assert "\n" not in str(caught.value)


def test_a_yaml_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("run: mine\noptimizer: {lr: 5.0e-4}\n")
    config = load_config(str(path), ["--seed=3"])
    assert (config.run, config.optimizer.lr, config.seed) == ("mine", 5e-4, 3)
    assert config.data == SelfSupervisedConfig().data

    path.write_text("optimizer: {rate: 1}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*rate"):
        load_config(str(path))
    path.write_text("a: [")
    with pytest.raises(ValueError, match=r"mine\.yaml: not a YAML file"):
        load_config(str(path))
    with pytest.raises(FileNotFoundError, match=r"other\.yaml: no such file"):
        load_config(str(tmp_path / "other.yaml"))
    with pytest.raises(ValueError, match=r"preset: expected one of .*dorn_kitti, .*kitti_mono.*'cityscapes'"):
        load_config("cityscapes")


@pytest.mark.parametrize("preset", list_presets())
def test_a_configuration_survives_its_dictionary_and_its_file(preset: str, tmp_path: Path) -> None:
    config = load_config(preset, ["--data.root=/data", "--trainer.devices=[0, 1]"])
    assert Config.from_dict(config.to_dict()) == config
    assert load_config(config) == config
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.to_dict(), sort_keys=False))
    assert load_config(str(path)) == config


def test_the_task_decides_which_settings_there_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("task: supervised\nmodel: {name: fastdepth, options: {skip: none}}\n")
    config = load_config(str(path), ["--model.options.decoder=upconv", "--stages.coarse=3"])
    assert isinstance(config, SupervisedConfig)
    assert config.model.options == {"skip": "none", "decoder": "upconv"}
    assert config.stages == {"coarse": 3}
    for preset, override in (("fcrn_nyu", "--pose.name=posecnn"), ("kitti_mono", "--loss.name=berhu")):
        with pytest.raises(ValueError, match=override[2:10]):
            load_config(preset, [override])
    with pytest.raises(ValueError, match="task"):
        load_config("kitti_mono", ["--task=supervised"])
    path.write_text("task: zero_shot\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: task: expected one of .*, got 'zero_shot'"):
        load_config(str(path))
    # Runs from before there were tasks.
    assert isinstance(Config.from_dict({"run": "old"}), SelfSupervisedConfig)


def test_notes_of_a_preset() -> None:
    notes = preset_notes("fcrn_nyu")
    assert notes[0].startswith("FCRN, up-projection (Laina et al., 3DV 2016")
    assert not any(line.startswith("#") or "task:" in line for line in notes)

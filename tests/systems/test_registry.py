"""Systems by name, and whose presets are whose."""

from importlib import resources
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml

from mdepth_fast.systems import (
    SYSTEMS,
    Config,
    System,
    get_system,
    list_presets,
    load_config,
    register_system,
    system_of,
)


def test_every_file_of_presets_is_one_systems_and_says_so() -> None:
    files = {
        entry.name.removesuffix(".yaml"): yaml.safe_load(entry.read_text())
        for entry in (resources.files("mdepth_fast") / "configs").iterdir()
        if entry.name.endswith(".yaml")
    }
    packaged = [system for system in SYSTEMS.values() if system.__module__.startswith("mdepth_fast.")]
    owners = {name: system.name for system in packaged for name in system.presets}
    assert {name: values["system"] for name, values in files.items()} == owners
    assert set(owners) <= set(list_presets())


def test_names_and_former_names() -> None:
    assert get_system("self_supervised") is get_system("monodepth2") is SYSTEMS["monodepth2"]
    assert list_presets("self_supervised") == list_presets("monodepth2")
    with pytest.raises(ValueError, match=r"system: expected one of .*monodepth2, .*supervised.*, got 'stereo'"):
        get_system("stereo")
    assert system_of({}) is system_of({"task": "self_supervised"}) is SYSTEMS["monodepth2"]
    assert system_of({"task": "supervised"}) is SYSTEMS["supervised"]


def test_a_name_is_taken_once() -> None:
    class Other(System[Config]):
        name = "other"
        aliases = ("self_supervised",)

    with pytest.raises(ValueError, match="Other: 'self_supervised' belongs to the system monodepth2 already"):
        register_system(Other)

    class Third(System[Config]):
        name = "third"
        presets = MappingProxyType({"fcrn_nyu": None})

    with pytest.raises(ValueError, match="Third: 'fcrn_nyu' belongs to the system supervised already"):
        register_system(Third)
    assert not {"other", "third"} & set(SYSTEMS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: ../{folder}/one.yaml\n", "base: expected a preset or file that does not build on this one"),
        ("base: ./one.yaml\n", "base: expected a preset or file that does not build on this one"),
        ("base: kitti_mono\ndata:\n", "data: expected a mapping of settings, got None"),
        ("optimizer: [1, 2]\n", r"optimizer: expected a mapping of settings, got \[1, 2\]"),
        ("system: flow\nmodel: 3\n", "model: expected a mapping of settings, got 3"),
        ("base: below.yaml\n", "below.yaml: trainer: expected a mapping of settings, got 4"),
        ("run: \xe9\n", "not a YAML file: 'utf-8'"),
        ("1: 2\n", "expected names of settings, got 1"),
        ("task: supervised\nsystem: flow\n", "task: expected none beside system: flow, got 'supervised'"),
        ("system: [flow]\n", "system: expected one of "),
        ("system:\n", "system: expected one of "),
    ],
)
def test_a_bad_file_is_named_with_its_setting(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "one.yaml"
    (tmp_path / "below.yaml").write_text("trainer: 4\n")
    path.write_bytes(text.replace("{folder}", tmp_path.name).encode("latin1"))
    with pytest.raises(
        ValueError, match=rf"^{tmp_path}/\S*{'' if message.startswith('below') else 'one.yaml: '}{message}"
    ) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


def test_task_and_system_are_one_setting(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("task: self_supervised\nsystem: monodepth2\nrun: one\n")
    (tmp_path / "two.yaml").write_text("base: one.yaml\ntask: supervised\n")
    assert system_of(load_config(str(tmp_path / "one.yaml"))).name == "monodepth2"
    assert system_of(load_config(str(tmp_path / "two.yaml"))).name == "supervised"

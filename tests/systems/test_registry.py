"""Systems by name, and whose presets are whose."""

from importlib import resources
from types import MappingProxyType

import pytest
import yaml

from mdepth_fast.systems import SYSTEMS, Config, System, get_system, list_presets, register_system, system_of


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

"""The systems by name, and their presets."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from mdepth_fast.systems.config import Config, system_of
from mdepth_fast.systems.names import SYSTEMS, get_system
from mdepth_fast.systems.system import System

__all__ = [
    "SYSTEMS",
    "config_parser",
    "get_system",
    "list_presets",
    "load_config",
    "packaged_presets",
    "preset_notes",
    "register_system",
    "system_for",
]

S = TypeVar("S", bound=type[System[Any]])


def register_system(system: S) -> S:
    """Class decorator that makes a system and its presets available by name to `train`, `eval` and `predict`.

    ValueError if another system already has the name, an alias or a preset.
    """
    names = (system.name, *system.aliases)
    for other in SYSTEMS.values():
        taken = {*names} & {other.name, *other.aliases} | {*system.presets} & {*other.presets}
        if taken:
            raise ValueError(f"{system.__name__}: {sorted(taken)[0]!r} belongs to the system {other.name} already")
    SYSTEMS[system.name] = system
    return system


def system_for(net: Any) -> Any:
    """The first system whose networks are of the kind of `net`, for a network that no configuration came with."""
    for system in SYSTEMS.values():
        if system.net_type is not object and isinstance(net, system.net_type):
            return system
    raise ValueError(f"net: expected a network of one of the systems {', '.join(SYSTEMS)}, got {type(net).__name__}")


def packaged_presets(*names: str) -> dict[str, Any]:
    """Presets from files in `mdepth_fast/configs`."""
    folder = resources.files("mdepth_fast") / "configs"
    return {name: folder / f"{name}.yaml" for name in names}


def _presets() -> dict[str, Any]:
    return {name: path for system in SYSTEMS.values() for name, path in system.presets.items()}


def list_presets(system: str | None = None) -> list[str]:
    """Names of all presets, or of one system's presets."""
    return sorted(_presets() if system is None else get_system(system).presets)


def preset_notes(name: str) -> list[str]:
    """The comment lines at the top of a preset: what it is, and what it needs."""
    lines = _presets()[name].read_text().splitlines()
    return [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]


MAX_ENTRIES = 10_000
"""Settings in a YAML file, with those that an alias repeats: a few lines can unfold to more than fits in memory."""


def _check_entries(path: Any, values: Any) -> None:
    waiting, seen = [values], 0
    while waiting:
        value, seen = waiting.pop(), seen + 1
        if seen > MAX_ENTRIES:
            raise ValueError(f"{path}: refused: it unfolds to more than {MAX_ENTRIES} entries")
        waiting += [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()


def _read_yaml(preset: str | Config, above: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
    """A preset's path and values; those of its `base`, another preset or file, fill in what it leaves out."""
    import yaml

    if isinstance(preset, Config):
        return preset.run, preset.to_dict()
    path: Any = _presets().get(preset)
    own = str(preset)
    if path is None:
        path = Path(preset)
        own = str(path.resolve())
        if path.suffix not in (".yaml", ".yml"):
            raise ValueError(f"preset: expected one of {', '.join(list_presets())}, or a .yaml file, got {preset!r}")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {_one_line(error)}") from error
    _check_entries(path, values)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of settings, got {type(values).__name__}")
    if unnamed := [key for key in values if not isinstance(key, str)]:
        raise ValueError(f"{path}: expected names of settings, got {unnamed[0]!r}")
    if {"task", "system"} <= values.keys() and _system(path, values, "task") is not _system(path, values, "system"):
        raise ValueError(f"{path}: task: expected none beside system: {values['system']}, got {values['task']!r}")
    if "base" in values:
        base = values.pop("base")
        if not isinstance(base, str):
            raise ValueError(f"{path}: base: expected a preset or a .yaml file, got {base!r}")
        if base.endswith((".yaml", ".yml")):
            base = str(Path(str(path)).parent / base)
        above = (*above, own)
        if (str(Path(base).resolve()) if base.endswith((".yaml", ".yml")) else base) in above:
            raise ValueError(f"{path}: base: expected a preset or file that does not build on this one, got {base}")
        values = _merged(_read_yaml(base, above)[1], values)
    system = _system(path, values, "system" if "system" in values else "task")
    default = system.config_class()
    for entry in fields(default):
        section = values.get(entry.name, {})
        if is_dataclass(getattr(default, entry.name)) and not isinstance(section, dict):
            raise ValueError(f"{path}: {entry.name}: expected a mapping of settings, got {section!r}")
    return str(path), values


def _system(path: Any, values: Mapping[str, Any], key: str) -> Any:
    """The system that a file names under `key`."""
    try:
        return get_system(values.get(key, "monodepth2"), key)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings that `changes` has in its place, section by section."""
    if {"task", "system"} & changes.keys():  # two keys of one meaning
        base = {key: value for key, value in base.items() if key not in ("task", "system")}
    sections = {key for key, value in changes.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return {**base, **changes, **{key: {**base[key], **changes[key]} for key in sections}}


def config_parser(preset: str | Config) -> Any:
    """The jsonargparse parser for a system's settings, with defaults from the preset, YAML file or configuration."""
    import jsonargparse

    path, values = _read_yaml(preset)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    try:
        system = system_of(values)
        parser.add_class_arguments(system.config_class)
        settings: Mapping[str, Any] = {key: value for key, value in values.items() if key not in ("task", "system")}
        parser.set_defaults(parser.parse_object(settings))
    except (argparse.ArgumentError, ValueError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from error
    return parser


def load_config(preset: str | Config, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a preset, YAML file or other configuration, with overrides like `--optimizer.lr=3e-4`.

    Raises:
        ValueError: an unknown setting or a value of the wrong type, naming both.
        FileNotFoundError: there is no such YAML file.
    """
    parser = config_parser(preset)
    try:
        return Config.from_dict(parser.parse_args(list(overrides)).as_dict())
    except argparse.ArgumentError as error:
        raise ValueError(_one_line(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())

"""The registered systems by name. Configurations look them up, so this knows neither."""

from typing import Any

__all__ = ["SYSTEMS", "get_system"]

SYSTEMS: dict[str, Any] = {}
"""Name to class, a `System`: see `register_system`."""


def get_system(name: str, setting: str = "system") -> Any:
    """The system of a name or alias; ValueError that begins with `setting` for an unknown one."""
    for system in SYSTEMS.values():
        if name in (system.name, *system.aliases):
            return system
    raise ValueError(f"{setting}: expected one of {', '.join(SYSTEMS)}, got {name!r}")

"""The registered systems by name. Configurations look systems up here, so this module imports neither."""

from typing import Any

__all__ = ["SYSTEMS", "get_system"]

SYSTEMS: dict[str, Any] = {}
"""Name to `System` class, see `register_system`."""


def get_system(name: str, setting: str = "system") -> Any:
    """The system with this name or alias; ValueError that begins with `setting` if it is unknown."""
    for system in SYSTEMS.values():
        if name in (system.name, *system.aliases):
            return system
    raise ValueError(f"{setting}: expected one of {', '.join(SYSTEMS)}, got {name!r}")

"""Models by name. A model registers itself in its own file."""

import difflib
import fnmatch
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Model

__all__ = ["create_model", "get_factory", "list_models", "register_model"]

_FACTORIES: dict[str, "Callable[..., Model]"] = {}


def register_model(name: str, factory: "Callable[..., Model]") -> None:
    """Make `create_model(name, **kw)` call `factory(**kw)`. ValueError if the name is taken."""
    if name in _FACTORIES:
        raise ValueError(f"name: {name!r} is registered already")
    _FACTORIES[name] = factory


def get_factory(name: str) -> "Callable[..., Model]":
    """The factory that `create_model` calls. ValueError that lists the nearest names if there is none."""
    if name not in _FACTORIES:
        near = difflib.get_close_matches(name, _FACTORIES, n=3) or list_models()
        raise ValueError(f"name: no model is called {name!r}; did you mean {', '.join(near)}?")
    return _FACTORIES[name]


def create_model(name: str, **kwargs: Any) -> "Model":
    """A new model; `kwargs` go to its constructor. ValueError that lists the nearest names if there is none."""
    model = get_factory(name)(**kwargs)
    model.created_as = (name, kwargs)
    return model


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names that match a shell pattern such as `"posenet*"`."""
    return sorted(fnmatch.filter(_FACTORIES, pattern))

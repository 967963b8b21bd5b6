"""The tensors of a module that was pickled whole, without the classes it is made of.

A script: `python -I unpickle.py IN OUT.safetensors`, run by `mdepth-fast convert --trust-pickle` in a process of its
own. It imports nothing of the package. A pickle is a program whose only instructions that reach outside are calls of
what it names; here every name but those that rebuild tensors stands for a class that keeps what it is given.
"""

import collections
import pickle
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Shell:
    """Stands for an object of any class: takes every call, keeps its state, does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Shell":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> "Shell":
        return Shell()

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.__dict__.update({key: value for key, value in part.items() if isinstance(key, str)})

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def _rebuild_object(cls: Any, base: type, state: Any) -> Any:
    return cls.__new__(cls)


_KNOWN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("copy_reg", "_reconstructor"): _rebuild_object,
    ("copyreg", "_reconstructor"): _rebuild_object,
}


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return getattr(torch, name)
        return _KNOWN.get((module, name)) or type(name, (Shell,), {"__module__": module})


def load(file: Any, **options: Any) -> Any:
    return Unpickler(file, **options).load()


def tensors_of(value: Any, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a pickled module under the names of `state_dict()`, or the tensors of a dictionary."""
    state = vars(value) if isinstance(value, Shell) else {}
    if "_modules" not in state:
        items = value.items() if isinstance(value, Mapping) else ()
        return {f"{prefix}{key}": item for key, item in items if isinstance(item, Tensor)}
    result = {}
    temporary = state.get("_non_persistent_buffers_set") or ()
    for group in ("_parameters", "_buffers"):
        for key, item in state.get(group, {}).items():
            if isinstance(item, Tensor) and key not in temporary:
                result[f"{prefix}{key}"] = item
    for key, item in state["_modules"].items():
        result |= tensors_of(item, f"{prefix}{key}.")
    return result


def main(source: str, target: str) -> None:
    from safetensors.torch import save_file

    content = torch.load(source, map_location="cpu", weights_only=False, pickle_module=sys.modules[__name__])
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping | Shell):
            content = content[key]
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors_of(content).items()}
    if not tensors:
        raise ValueError("no module and no tensors in it")
    save_file(tensors, target)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""mdepth_fast: monocular depth estimation in PyTorch on fused kernels.

`mdepth_fast.ops` holds the fused ops, `losses` the training losses, `models` the networks, `data` the data sets,
`evaluation` metrics and protocols, `training` the trainers. What people use most is here too: `create_model`,
`list_models`, `load`, `use_backend`, `info`.

Importing this package imports nothing else, not even torch: everything comes when it is first used.
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING
from typing import Any as _Any

from mdepth_fast import _source_tree

if TYPE_CHECKING:
    import torch

    from mdepth_fast import data, evaluation, geometry, losses, models, ops
    from mdepth_fast._dispatch import use_backend
    from mdepth_fast._info import info, info_text
    from mdepth_fast.models import DepthModel, create_model, list_models

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "create_model",
    "data",
    "evaluation",
    "geometry",
    "info",
    "info_text",
    "list_models",
    "load",
    "losses",
    "models",
    "ops",
    "use_backend",
]

_source_tree.install()

_MODULES = ("data", "evaluation", "geometry", "losses", "models", "ops")
_HOMES = {
    "create_model": "models",
    "info": "_info",
    "info_text": "_info",
    "list_models": "models",
    "use_backend": "_dispatch",
}


def load(
    path: "str | _Path", device: "str | torch.device" = "cpu", *, accept_licence: str | None = None
) -> "DepthModel":
    """A trained depth network on `device`, ready to predict: `mdepth_fast.load("runs/kitti_mono/001").predict(images)`.

    `path` is a checkpoint or run folder of `mdepth-fast train`, a file of `mdepth-fast convert` or `netadapt`, a folder
    of `save_pretrained`, `hub:user/repo` on the Hugging Face Hub, or a folder with Monodepth2's encoder.pth and
    depth.pth, or the name of published weights (`mdepth-fast weights list`), whose licence may have to be accepted.
    Raises FileNotFoundError or ValueError for anything else.
    """
    from mdepth_fast.inference import load_trained

    network: DepthModel = load_trained(path, device, accept_licence=accept_licence).net
    return network


def __getattr__(name: str) -> _Any:
    if name in _MODULES:
        return _import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

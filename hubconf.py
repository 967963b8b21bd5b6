"""Entry points for `torch.hub`: one for each registered model, and `load` for trained networks.

    net = torch.hub.load("path/to/mdepth_fast", "fastdepth", source="local")
    net = torch.hub.load("path/to/mdepth_fast", "load", "runs/fastdepth_nyu/001", source="local")

A checkout without the compiled kernels (`pip install .`) needs MDEPTH_BACKEND=reference, which is plain PyTorch.
"""

from typing import Any as _Any

from mdepth_fast import load  # noqa: F401  (an entry point)
from mdepth_fast import models as _models

dependencies = ["torch", "numpy"]


def _entry(name: str) -> _Any:
    def create(weights: str | None = None, **options: _Any) -> _models.Model:
        return _models.create_model(name, weights=weights, **options).eval()

    create.__name__ = name
    create.__doc__ = (
        f"The network {name!r} in eval mode.\n\n"
        "weights: a file or folder that `mdepth_fast.models.load_checkpoint` reads, hub:user/repo, the name of\n"
        "published weights, or None for random weights. options: arguments of its constructor, and accept_licence."
    )
    return create


globals().update({_name: _entry(_name) for _name in _models.list_models()})

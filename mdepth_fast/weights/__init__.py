"""Weights from files, and to files.

`read` turns files into tensors by name, `match` finds a state dict among them, `encoder` fills an encoder, `converted`
is the format that says which model it is for. `registry` knows published weights by name, and `download` fetches them.
These know no model, so models may use them. `identify` says which registered model tensors belong to, and `checkpoint`
fills a model.
"""

from typing import TYPE_CHECKING, Any

from mdepth_fast.weights.converted import converted_model, write_converted
from mdepth_fast.weights.encoder import load_encoder_weights
from mdepth_fast.weights.read import read_content, read_pickled_module

if TYPE_CHECKING:
    from mdepth_fast.weights.checkpoint import convert_content, create_converted, load_checkpoint
    from mdepth_fast.weights.identify import fitting_models

__all__ = [
    "convert_content",
    "converted_model",
    "create_converted",
    "fitting_models",
    "load_checkpoint",
    "load_encoder_weights",
    "read_content",
    "read_pickled_module",
    "write_converted",
]


def __getattr__(name: str) -> Any:
    # On demand, as the models import this package and `checkpoint` imports the models.
    if name in __all__:
        from mdepth_fast.weights import checkpoint

        return getattr(checkpoint, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

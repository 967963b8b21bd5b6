"""mdepth_fast: monocular depth estimation in PyTorch on fused kernels.

`mdepth_fast.ops` holds the fused ops, `losses` the training losses, `models` the networks, `data` the data sets,
`evaluation` metrics and protocols, `training` the trainers. Importing this package compiles nothing and touches no GPU.
"""

__version__ = "0.1.0"

from mdepth_fast._dispatch import use_backend
from mdepth_fast._info import info, info_text

__all__ = ["__version__", "info", "info_text", "use_backend"]

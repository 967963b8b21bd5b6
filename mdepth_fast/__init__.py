"""mdepth_fast: monocular depth estimation in PyTorch on fused kernels."""

__version__ = "0.1.0"

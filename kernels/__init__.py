"""Triton kernels, one file per op, and the NVRTC loader. Installed as `mdepth_fast.kernels`."""

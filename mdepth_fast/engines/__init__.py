"""Engines: what a copy of a network for inference runs on.

`runtimes` says which there are and opens sessions, `onnx_file` writes what they read, `engine` replaces a method of a
network, `fastest` picks an engine. Nothing here knows a network; users call `Model.optimize_for_inference`.
"""

__all__ = ["DTYPES", "ENGINES", "OF_ONNX"]

# native: this package's own fused and folded copy; torch: PyTorch as it is; the others read ONNX.
ENGINES = ("native", "torch", "onnxruntime", "openvino")
OF_ONNX = ("onnxruntime", "openvino")
DTYPES = ("float32", "bfloat16")

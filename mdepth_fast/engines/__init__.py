"""Engines: what a copy of a network for inference runs on.

`runtimes` says which there are and opens sessions, `engine` replaces a method of a network, `onnx_file` writes its file,
`fastest` picks one. Nothing here knows a network; `Model.optimize_for_inference` is what users call.
"""

"""A module's graph, and the graph as a file of ONNX: what exports and engines share. Nothing here knows a network."""

import importlib.util
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast._dispatch import use_backend

__all__ = ["LARGEST", "PACKAGES", "capture", "missing", "quiet", "random_images", "relative_difference", "write_onnx"]

LARGEST = 2**31 - 2**24  # bytes of weights: a protobuf file ends at 2 GiB
PACKAGES = ("onnx", "onnxscript")  # that writing takes


def missing(packages: Sequence[str]) -> str | None:
    """The first of the packages that is not installed."""
    return next((name for name in packages if importlib.util.find_spec(name) is None), None)


def capture(module: nn.Module, example: tuple[Tensor, ...], shapes: Sequence[Mapping[int, str]]) -> Any:
    """The graph of a module, a `torch.export.ExportedProgram` of PyTorch's own operations alone.

    Fused ops are captured as their references. shapes: of each input, names of its open dimensions. ValueError where
    the module cannot be captured.
    """
    names = {name for shape in shapes for name in shape.values()}
    dims = {name: torch.export.Dim(name) for name in sorted(names)}
    opened = tuple({n: dims[name] for n, name in shape.items()} for shape in shapes)
    with use_backend("reference"), quiet():
        try:
            graph = torch.export.export(module, example, dynamic_shapes=opened, strict=False)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
            raise ValueError(f"net: torch.export cannot capture it: {type(error).__name__}: {reason}") from error
    for part in graph.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            space = getattr(node.target, "namespace", "aten")
            if space not in ("aten", "prims", "higher_order"):
                raise ValueError(f"net: expected PyTorch's own operations, {space}::{node.name} is left in the graph")
            node.meta.pop("stack_trace", None)  # paths of this machine
    return graph


def write_onnx(
    graph: Any,
    path: Path,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str] | None,
    shapes: Sequence[Mapping[int, str]],
    metadata: Mapping[str, str],
    opset: int,
) -> None:
    """Writes what `capture` gave. ValueError for an operation that is not ONNX's, or an opset that PyTorch lacks."""
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    with quiet():
        made: Any = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=opset,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple(dict(shape) for shape in shapes),
            verbose=False,
        )
    ClearMetadataAndDocStringPass()(made.model)  # the lines of code that each operation comes from
    made.model.metadata_props.update(metadata)
    onnx_ir.save(made.model, path)
    model = onnx.load(path, load_external_data=False)
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    if foreign := sorted({f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")}):
        raise ValueError(f"net: expected operations of ONNX alone, got {', '.join(foreign)}")
    if (written := {one.domain: one.version for one in model.opset_import}[""]) != opset:
        raise ValueError(f"opset: expected one that this version of PyTorch can write, got {opset}, it wrote {written}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' remarks on themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch._inductor", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def random_images(batch: int, height: int, width: int, draw: torch.Generator) -> Tensor:
    """Smooth random colours and a little noise, (B, 3, H, W) in [0, 1]: resized noise alone would be grey."""
    coarse = torch.rand(batch, 3, 6, 8, generator=draw)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (smooth + 0.1 * torch.randn(batch, 3, height, width, generator=draw)).clamp(0, 1)


def relative_difference(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """How far each number of `value` (B, N) lies outside [low, high], over max(|high|, mean |high| of its row)."""
    scale = high.abs().mean(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    outside = torch.maximum(low - value, value - high).clamp(min=0)  # `clamp`, `maximum` and `amax` keep NaN
    return outside / torch.maximum(high.abs(), scale)

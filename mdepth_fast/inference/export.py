"""Networks as files for other runtimes: ONNX, torch.export and AOTInductor.

A file takes images of any number and size and gives what `predict` gives: resizing, normalisation and the conversion
to depth are inside. Fused ops are written as the plain operations of their references. Before a file gets its name it
is read back and run, and its outputs are compared with PyTorch's.
"""

import importlib.util
import json
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mdepth_fast import __version__
from mdepth_fast._dispatch import use_backend
from mdepth_fast.files import replacing
from mdepth_fast.models import DORN, DepthModel, FlowModel, Model, PoseExpNet, PoseModel
from mdepth_fast.models.base import eval_mode
from mdepth_fast.models.dpt import TokenDepthModel
from mdepth_fast.models.monodepth import Monodepth

__all__ = ["TOLERANCE", "Exported", "Target", "default_size", "export", "settle"]

Target = Literal["onnx", "torch-export", "aoti"]
TOLERANCE = 1e-4  # of the largest relative difference
SUFFIXES: dict[Target, str] = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}
PACKAGES: dict[Target, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch-export": (),
    "aoti": (),
}
LEAST_OPSET = 18  # the first whose Resize has antialiasing
_LARGEST_ONNX = 2**31 - 2**24  # bytes of weights: a protobuf file ends at 2 GiB
_METADATA = "mdepth_fast.json"  # beside the program in a file of torch.export
_SHAPE = {"batch": 0, "height": 2, "width": 3}


@dataclass(frozen=True)
class Exported:
    """A file that `export` has written.

    difference: the largest relative difference from PyTorch, see `export`. spread: the least (largest - smallest) /
    mean magnitude of the outputs that were compared. metadata: what the file says about itself.
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    difference: float
    spread: float
    metadata: dict[str, str]


def export(
    net: Model,
    path: str | Path,
    target: Target = "onnx",
    *,
    size: tuple[int, int] | None = None,
    fixed_size: bool = False,
    intrinsics: bool = False,
    opset: int = LEAST_OPSET,
    weights: str = "",
) -> Exported:
    """Writes a network with its resizing and normalisation, and checks the file against PyTorch before it appears.

    Inputs and outputs, float32, batch and image size open:
        depth networks: images (B, 3, H, W) in [0, 1] to depth (B, 1, H, W), inverse_depth for kind "affine_inverse";
        optical flow: first, second (B, 3, H, W) to flow (B, 2, H, W) in pixels;
        motion: first, second to axis_angle, translation (B, 3), or frames (B, N, 3, H, W) to vectors (B, N - 1, 6).

    The file is run on batches of other sizes than those it was made with, by onnxruntime or PyTorch. The difference
    of a value from PyTorch's is |file - PyTorch| / max(|PyTorch|, mean |PyTorch|), the mean over the output for that
    image; the largest must not be above `TOLERANCE`. DORN's depth is a step function of its logits: where a pair of
    logits differs by less than `TOLERANCE` of their standard deviation, either side is right, and the difference is
    the distance from what is possible.

    Args:
        net: a network in float32. Its file runs on the kind of device that it is on, ONNX anywhere.
        path: .onnx for "onnx", .pt2 for "torch-export" and for the compiled code of "aoti" (`torch._inductor`).
        size: height and width that the file resizes images to; None: see `default_size`.
        fixed_size: images must have that size, and nothing is resized: for runtimes without antialiased resizing.
        intrinsics: K (B, 3, 3), in pixels of the images, is another input, of networks whose `predict` takes it.
        opset: of ONNX.
        weights: where they come from, for the metadata.

    Raises:
        ValueError: a bad argument, a network that has no such form, or a difference above `TOLERANCE`.
        ModuleNotFoundError: a package of the extra `export` is missing.
        OSError: the file cannot be written.
    """
    path = Path(path)
    _check_target(target, path, opset)
    program = _program(net, fixed_size, intrinsics)
    program.size = _checked_size(net, size)
    if any(parameter.dtype != torch.float32 for parameter in net.parameters()):
        raise ValueError("net: expected parameters in float32")
    stored = sum(tensor.nbytes for tensor in net.state_dict().values())
    if target == "onnx" and stored > _LARGEST_ONNX:
        raise ValueError(
            f"target: a file of ONNX holds 2 GiB, the weights are {stored / 2**30:.1f} GiB; use torch-export"
        )
    _check_writable(path)
    about = {
        "model": net.created_as[0] if net.created_as else type(net).__name__,
        **program.about(),
        "weights": weights,
    }
    about |= {"input_size": "x".join(map(str, program.size)), "fixed_size": str(fixed_size).lower()}
    about |= {"target": target, "version": __version__, "torch": torch.__version__}
    metadata = {f"mdepth_fast.{key}": value for key, value in about.items()}
    with eval_mode(net), torch.no_grad():
        batches = [(inputs, program.expected(*inputs)) for inputs in program.batches()]
        graph = _captured(program)
        with replacing(path) as temporary:
            try:
                run = _WRITERS[target](graph, program, temporary, metadata, opset)
            except (RuntimeError, OSError) as error:
                if not isinstance(error, OSError) and "PytorchStreamWriter" not in str(error):
                    raise
                reason = getattr(error, "strerror", None) or "the disk is full or cannot be written"
                raise OSError(f"{path}: cannot be written: {reason}") from error
            difference, spread = _compare(program, run, batches)
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"{path.name}: the exported network differs from PyTorch by {difference:.2g}, more than "
                    f"{TOLERANCE:g}; no file was written"
                )
    return Exported(path, program.inputs, program.outputs, difference, spread, metadata)


@torch.no_grad()
def settle(net: Model, size: tuple[int, int] | None = None) -> None:
    """Gives a network with random weights batch norms that make rounding errors die out, in place.

    Between layers whose inputs are normalised and cut by a ReLU at their mean, a difference grows with each layer
    (Yang et al., arXiv 1902.08129), to many times `TOLERANCE`. Trained networks do not have that. Here the statistics
    are those of random images, and biases of two deviations let most values pass. size: as in `export`.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d) and module.track_running_stats]
    if not norms:
        return
    program = _program(net, fixed=True, intrinsics=False)
    program.size = _checked_size(net, size)
    device = next(net.parameters()).device
    example = (tensor.to(device) for tensor in program.example(8, *program.size, torch.Generator().manual_seed(2)))
    momenta = [norm.momentum for norm in norms]
    with eval_mode(net):
        for norm in norms:
            norm.momentum, norm.training = 1.0, True
        for module in net.modules():
            # slim's batch norm has its bias behind it, in the block.
            if (module in norms or getattr(module, "norm", None) in norms) and isinstance(module.bias, nn.Parameter):
                nn.init.constant_(module.bias, 2.0)
        program(*example)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def default_size(net: Model) -> tuple[int, int] | None:
    """The size that a network was trained at, or that its paper resizes to; None if it does not say one."""
    size = getattr(net, "input_size", None)
    if size is None and isinstance(net, TokenDepthModel):
        size = net.network_size(*net.target_size)
    return None if size is None else (size[0], size[1])


def _check_target(target: Target, path: Path, opset: int) -> None:
    if target not in get_args(Target):
        raise ValueError(f"target: expected one of {', '.join(get_args(Target))}, got {target!r}")
    if path.suffix != SUFFIXES[target]:
        raise ValueError(f"path: expected a file named *{SUFFIXES[target]} for {target}, got {path}")
    if opset < LEAST_OPSET:
        raise ValueError(f"opset: expected at least {LEAST_OPSET}, the first with antialiased resizing, got {opset}")
    for package in PACKAGES[target]:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(f'target: {package} is missing: pip install "mdepth-fast[export]"', name=package)
    if target == "aoti":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise ValueError("target: aoti needs a C++ compiler, and there is none; install g++ or set CXX") from error


def _check_writable(path: Path) -> None:
    """Before minutes of work."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file, it is a folder")
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(f"{path}: cannot be written, {folder} is a file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{path}: cannot be written, no permission for the folder {folder}")


def _checked_size(net: Model, size: tuple[int, int] | None) -> tuple[int, int]:
    size = size or default_size(net)
    if size is None:
        raise ValueError("size: this network was made for no one size; give the height and width of its input")
    if min(size) < 1:
        raise ValueError(f"size: expected positive height and width, got {size[0]}x{size[1]}")
    return size


# What the files compute.

Bounds = list[tuple[Tensor, Tensor]]  # of each output: the least and the largest value that are right


class _Program(nn.Module):
    """The computation of a file."""

    inputs: tuple[str, ...] = ("first", "second")
    outputs: tuple[str, ...]
    size: tuple[int, int]

    def __init__(self, net: Any, fixed: bool) -> None:
        super().__init__()
        self.net, self.fixed = net, fixed

    def about(self) -> dict[str, str]:
        """Kind and unit, for the metadata."""
        raise NotImplementedError

    def resized(self, images: Tensor) -> Tensor:
        if self.fixed:
            return images
        return F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)

    def expected(self, *inputs: Tensor) -> Bounds:
        """What PyTorch gives: `predict` where the network has one."""
        values = self(*inputs)
        return [(value, value) for value in (values if isinstance(values, tuple) else (values,))]

    def shape(self, name: str) -> dict[int, str]:
        """The open dimensions of an input."""
        return {n: name for name, n in _SHAPE.items() if name == "batch" or not self.fixed}

    def example(self, batch: int, height: int, width: int, draw: torch.Generator) -> tuple[Tensor, ...]:
        return tuple(_images(batch, height, width, draw) for _ in self.inputs)

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Inputs to compare on: the network's size, larger and smaller ones, one image and several."""
        draw = torch.Generator().manual_seed(0)
        device = next(self.net.parameters()).device
        h, w = self.size
        sizes = (
            [(1, h, w), (2, h, w)] if self.fixed else [(1, h, w), (2, 2 * h + 1, w * 3 // 2), (1, h * 2 // 3, w - 7)]
        )
        for batch, height, width in sizes:
            example = self.example(batch, max(1, height), max(1, width), draw)
            yield tuple(tensor.to(device) for tensor in example)


class _Depth(_Program):
    def __init__(self, net: DepthModel, fixed: bool, intrinsics: bool) -> None:
        super().__init__(net, fixed)
        self.inputs = ("images", "K") if intrinsics else ("images",)
        self.outputs = ("inverse_depth" if net.kind == "affine_inverse" else "depth",)

    def about(self) -> dict[str, str]:
        return {"kind": self.net.kind, "unit": self.net.unit or ""}

    def forward(self, images: Tensor, K: Tensor | None = None) -> Tensor:
        net = self.net
        values = net.infer(images if self.fixed else net.resize(images, self.size))
        if not self.fixed or values.shape[-2:] != self.size:
            corners = net.align_corners
            values = F.interpolate(values, images.shape[-2:], mode=net.interpolation, align_corners=corners)
        depth: Tensor = net.to_depth(values)
        return depth if K is None else net.at_focal_length(depth, K, images.shape[-1])

    def expected(self, images: Tensor, K: Tensor | None = None) -> Bounds:  # type: ignore[override]
        options = {} if K is None else {"K": K}

        def predict() -> Tensor:
            depth: Tensor = self.net.predict(images, size=self.size, **options).depth
            return depth

        if isinstance(self.net, DORN):
            return [_ordinal_bounds(self.net, predict)]
        return [(predict(),) * 2]

    def shape(self, name: str) -> dict[int, str]:
        return {0: "batch"} if name == "K" else super().shape(name)

    def example(self, batch: int, height: int, width: int, draw: torch.Generator) -> tuple[Tensor, ...]:
        images = _images(batch, height, width, draw)
        if len(self.inputs) == 1:
            return (images,)
        K = torch.eye(3).repeat(batch, 1, 1)
        K[:, 0, 0] = width * (0.5 + torch.rand(batch, generator=draw))
        return images, K


class _Flow(_Program):
    outputs = ("flow",)

    def about(self) -> dict[str, str]:
        return {"kind": "flow", "unit": "px"}

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        flow: Tensor = self.net.infer(self.resized(first), self.resized(second))
        if self.fixed:
            return flow
        height, width = first.shape[-2:]
        flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
        return torch.cat([flow[:, :1] * (width / self.size[1]), flow[:, 1:] * (height / self.size[0])], 1)

    def expected(self, *inputs: Tensor) -> Bounds:
        return [(self.net.predict(*inputs, size=self.size).flow,) * 2]


class _Motion(_Program):
    outputs = ("axis_angle", "translation")

    def about(self) -> dict[str, str]:
        return {"kind": "motion", "unit": ""}

    def forward(self, first: Tensor, second: Tensor) -> Any:
        return self.net(self.resized(first), self.resized(second))


class _Motions(_Program):
    """Of networks that see all frames at once."""

    inputs = ("frames",)
    outputs = ("vectors",)

    def about(self) -> dict[str, str]:
        return {"kind": "motion", "unit": ""}

    def forward(self, frames: Tensor) -> Tensor:
        count = frames.shape[1]
        resized = [self.resized(frames[:, n]) for n in range(count)]
        vectors: Tensor = self.net(torch.stack(resized, 1))[0]
        return vectors

    def shape(self, name: str) -> dict[int, str]:
        return {n if n == 0 else n + 1: name for n, name in super().shape(name).items()}

    def example(self, batch: int, height: int, width: int, draw: torch.Generator) -> tuple[Tensor, ...]:
        return (torch.stack([_images(batch, height, width, draw) for _ in range(1 + self.net.sources)], 1),)


def _program(net: Model, fixed: bool, intrinsics: bool) -> _Program:
    name = net.created_as[0] if net.created_as else type(net).__name__
    if intrinsics and not (isinstance(net, Monodepth) and net.focal is not None):
        raise ValueError(f"intrinsics: {name} does not take K; networks of metric depth from stereo pairs do")
    if isinstance(net, DepthModel):
        return _Depth(net, fixed, intrinsics)
    if isinstance(net, FlowModel):
        return _Flow(net, fixed)
    if isinstance(net, PoseExpNet):
        return _Motions(net, fixed)
    if isinstance(net, PoseModel) and not net.reads_features:
        if getattr(net, "frames", 2) != 2:
            raise ValueError(f"net: expected a motion network of pairs, got one of {net.frames} frames")
        return _Motion(net, fixed)
    raise ValueError(f"{name} has no form of its own: it reads the features of a depth network in place of images")


def _images(batch: int, height: int, width: int, draw: torch.Generator) -> Tensor:
    """Smooth random colours and a little noise, (B, 3, H, W) in [0, 1]: resized noise alone would be grey."""
    coarse = torch.rand(batch, 3, 6, 8, generator=draw)
    smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    return (smooth + 0.1 * torch.randn(batch, 3, height, width, generator=draw)).clamp(0, 1)


def _ordinal_bounds(net: DORN, predict: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Depth if all undecided thresholds count as not passed, and as passed. More passed is farther away."""
    deviations: list[Tensor] = []
    hook = net.scene.classify.register_forward_hook(lambda module, inputs, logits: deviations.append(logits.std()))
    try:
        predict()
    finally:
        hook.remove()
    bias = net.scene.classify.bias
    assert bias is not None
    saved, bounds = bias.detach().clone(), []
    try:
        for sign in (-1, 1):
            bias[1::2] = saved[1::2] + sign * TOLERANCE * deviations[-1]
            bounds.append(predict())
            bias.copy_(saved)
    finally:
        bias.copy_(saved)
    return bounds[0], bounds[1]


# How they are captured and written.


def _captured(program: _Program) -> Any:
    """The graph, `torch.export.ExportedProgram`, made of PyTorch's own operations alone."""
    height, width = program.size if program.fixed else (program.size[0] + 5, program.size[1] + 11)
    device = next(program.parameters()).device
    example = tuple(tensor.to(device) for tensor in program.example(2, height, width, torch.Generator().manual_seed(1)))
    dims = {name: torch.export.Dim(name) for name in _SHAPE}
    shapes = tuple({n: dims[dim] for n, dim in program.shape(name).items()} for name in program.inputs)
    with use_backend("reference"), _quiet():
        try:
            graph = torch.export.export(program, example, dynamic_shapes=shapes, strict=False)
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


@contextmanager
def _quiet() -> Iterator[None]:
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


Run = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def _write_onnx(graph: Any, program: _Program, path: Path, metadata: dict[str, str], opset: int) -> Run:
    import onnx
    import onnx_ir
    import onnxruntime
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    shapes = tuple(program.shape(name) for name in program.inputs)
    with _quiet():
        made: Any = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=opset,
            input_names=program.inputs,
            output_names=program.outputs,
            dynamic_shapes=shapes,
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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        given = {name: value.cpu().numpy() for name, value in zip(program.inputs, inputs)}
        return [torch.from_numpy(value) for value in session.run(list(program.outputs), given)]

    return run


def _write_torch_export(graph: Any, program: _Program, path: Path, metadata: dict[str, str], opset: int) -> Run:
    with _quiet():
        torch.export.save(graph, path, extra_files={_METADATA: json.dumps(metadata)})
        return _listed(torch.export.load(path).module())


def _write_aoti(graph: Any, program: _Program, path: Path, metadata: dict[str, str], opset: int) -> Run:
    import torch._inductor as inductor

    with _quiet():
        inductor.aoti_compile_and_package(
            graph, package_path=str(path), inductor_configs={"aot_inductor.metadata": metadata}
        )
        return _listed(inductor.aoti_load_package(str(path)))


def _listed(function: Callable[..., Any]) -> Run:
    def run(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        outputs = function(*inputs)
        return outputs if isinstance(outputs, list | tuple) else [outputs]

    return run


_WRITERS: dict[str, Callable[[Any, _Program, Path, dict[str, str], int], Run]] = {
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
    "aoti": _write_aoti,
}


def _compare(program: _Program, run: Run, batches: Sequence[tuple[Sequence[Tensor], Bounds]]) -> tuple[float, float]:
    """The largest relative difference over all batches, and the spread of the output that has the least."""
    differences: list[float] = []
    spreads = dict.fromkeys(program.outputs, 0.0)
    for inputs, expected in batches:
        outputs = run(inputs)
        for name, value, (low, high) in zip(program.outputs, outputs, expected, strict=True):
            if value.shape != low.shape:
                got, want = tuple(value.shape), tuple(low.shape)
                raise ValueError(f"{name}: expected {want} as PyTorch's, the file gives {got}; no file was written")
            value, low, high = (one.detach().cpu().double().flatten(1) for one in (value, low, high))
            if not (low.isfinite().all() and high.isfinite().all()):
                raise ValueError(f"{name}: the network gives values that are not finite: nothing to compare")
            scale = high.abs().mean(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            spreads[name] = max(spreads[name], ((high.amax(1) - high.amin(1)) / scale[:, 0]).amax().item())
            outside = torch.maximum(low - value, value - high).clamp(min=0)
            # `clamp`, `maximum` and `amax` keep NaN.
            differences.append((outside / torch.maximum(high.abs(), scale)).amax().item())
    for name, spread in spreads.items():
        if spread < 1e-6:  # of rounding alone
            raise ValueError(
                f"{name}: the network gives one value everywhere, which any file would: nothing to compare"
            )
    return max(differences, key=lambda one: (math.isnan(one), one)), min(spreads.values())

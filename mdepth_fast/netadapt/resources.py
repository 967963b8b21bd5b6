"""What a network costs with given numbers of channels: weights, multiply-accumulates, or measured time."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from mdepth_fast.files import replacing
from mdepth_fast.netadapt.graph import ChannelGraph, Layer

__all__ = ["LatencyTable", "measure_latency", "resource"]


def resource(name: str, table: "LatencyTable | None" = None) -> Callable[[ChannelGraph, Mapping[int, int]], float]:
    """The cost of a graph with given sizes of its groups: "weights", "macs" or "latency" (seconds, from `table`)."""
    if name == "weights":
        return lambda graph, sizes: graph.weights(sizes)
    if name == "macs":
        return lambda graph, sizes: graph.macs(sizes)
    if name == "latency":
        if table is None:
            raise ValueError('table: expected a LatencyTable, as the resource is "latency", got None')
        return table.latency
    raise ValueError(f'resource: expected "weights", "macs" or "latency", got {name!r}')


def measure_latency(*models: nn.Module, example: Tensor, runs: int = 10, rounds: int = 10) -> list[float]:
    """Seconds of a forward of each model in inference, the fastest of `rounds` times `runs`.

    What else the machine does only adds to a time. The models take turns, so that a machine that becomes slower or
    faster does so for all of them: figures of one call may be compared.
    """
    training = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        with torch.inference_mode():
            times = [[_fastest(partial(m, example), example.device, runs) for m in models] for _ in range(rounds)]
            return [min(column) for column in zip(*times)]
    finally:
        for model, mode in zip(models, training):
            model.train(mode)


class LatencyTable:
    """Seconds of every layer for every number of channels that was asked for, measured on this machine when it is.

    NetAdapt (arXiv 1804.03230, section 3.3) fills a table beforehand over all combinations and adds up layers. Here an
    entry is measured at its first use and kept, and all operations count, batch norms, activations and additions too.
    What is left, the time between the layers and colder caches, is a line: the network as it is and one with half of
    its channels are measured as a whole, which gives the latency of all in between from the sum of the layers.

    Layers are recognised by operation, shapes and arguments, whatever their names. `path` holds the entries (JSON) with
    the machine they are of; another machine's file is an error, never mixed in.

    Args:
        path: file to read where it exists and to write with `save`; None: in memory alone.
        device: where layers run.
        runs: of which the fastest counts.
    """

    def __init__(self, path: str | Path | None = None, *, device: torch.device | str = "cpu", runs: int = 20) -> None:
        self.path, self.device, self.runs = Path(path) if path else None, torch.device(device), runs
        self.entries: dict[str, float] = {}
        self.line = (1.0, 0.0)  # factor of the sum of the layers, and seconds to add
        if self.path and self.path.is_file():
            try:
                content = json.loads(self.path.read_text())
                self.entries, self.line = dict(content["seconds"]), tuple(content["line"])
                machine = content["machine"]
            except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path}: not a latency table ({error})") from error
            if machine != self.machine():
                raise ValueError(f"{self.path}: expected a table of {self.machine()}, got one of {machine}")

    def machine(self) -> str:
        """What the entries hold for."""
        if self.device.type == "cuda":
            return f"{torch.cuda.get_device_name(self.device)}, torch {torch.__version__}"
        name = platform.processor() or platform.machine()
        return f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads, torch {torch.__version__}"

    def save(self) -> None:
        if self.path:
            with replacing(self.path) as temporary:
                content = {"machine": self.machine(), "line": self.line, "seconds": self.entries}
                temporary.write_text(json.dumps(content, indent=1) + "\n")

    def calibrate(self, graph: ChannelGraph, model: nn.Module, example: Tensor) -> float:
        """Fits `line` to the network as it is and to one with half of its channels; returns the former's seconds."""
        kept = {number: torch.arange((graph.groups[number].size + 1) // 2) for number in graph.prunable}
        self.line = (1.0, 0.0)
        halved = {**graph.sizes, **{number: len(indices) for number, indices in kept.items()}}
        sums = [self.latency(graph, graph.sizes), self.latency(graph, halved)]
        half = graph.shrink(model, kept)
        seconds, fewer = measure_latency(model, half, example=example)
        factor = (seconds - fewer) / (sums[0] - sums[1]) if sums[0] > sums[1] else 0.0
        offset = seconds - factor * sums[0]
        # Where noise says that work is free or that the rest takes less than no time, all of it is a factor.
        self.line = (factor, offset) if factor > 0 and offset >= 0 else (seconds / sums[0], 0.0)
        return seconds

    def latency(self, graph: ChannelGraph, sizes: Mapping[int, int]) -> float:
        """Seconds of a network whose groups have these sizes."""
        factor, offset = self.line
        return factor * sum(self._layer(layer, graph.shapes(layer, sizes)) for layer in graph.layers) + offset

    def _layer(self, layer: Layer, shapes: list[tuple[int, ...]]) -> float:
        if layer.operation in ("flatten", "view", "reshape"):
            return 0.0  # no work, and their arguments may name sizes that channels have changed
        rest = [fx.node.map_arg(argument, lambda node: None) for argument in layer.node.args]
        key = f"{layer.node.target} {shapes} {rest} {dict(layer.node.kwargs)}"
        if key not in self.entries:
            self.entries[key] = self._measure(layer, shapes)
        return self.entries[key]

    def _measure(self, layer: Layer, shapes: list[tuple[int, ...]]) -> float:
        nodes = [node for node in layer.node.all_input_nodes if isinstance(node.meta.get("val"), Tensor)]
        tensors: dict[fx.Node, Tensor] = {}
        for node, shape in zip(nodes, shapes):
            value = node.meta["val"]
            tensors[node] = torch.rand(shape, device=self.device).to(value.dtype)
            if value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last):
                tensors[node] = tensors[node].contiguous(memory_format=torch.channels_last)

        def given(argument: Any) -> Any:
            return fx.node.map_arg(argument, lambda node: tensors[node])

        args, kwargs = _regrouped(layer, given(layer.node.args)), given(layer.node.kwargs)
        with torch.inference_mode():
            return _fastest(lambda: layer.node.target(*args, **kwargs), self.device, self.runs)  # type: ignore[operator]


def _regrouped(layer: Layer, args: Any) -> Any:
    """A depthwise convolution has as many groups as channels, however many these are now."""
    if layer.operation in ("conv2d", "conv_transpose2d") and len(args) > 6 and args[6] == layer.shapes[0][1] > 1:
        return (*args[:6], args[0].shape[1], *args[7:])
    return args


def _fastest(function: Callable[[], Any], device: torch.device, runs: int) -> float:
    # glibc returns a freed block to the system, to be paged in anew by the next run, unless one as large has been freed
    # before. A process that has trained has; one that has just started has not, and would be a fifth slower.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    times = []
    for run in range(runs + 3):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if run >= 3:
            times.append(time.perf_counter() - start)
    return min(times)

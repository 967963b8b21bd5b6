"""Which channels of a network belong together, and the network with fewer of them.

The network is captured with `torch.export`: a graph of tensor operations with their shapes, whatever Python wrote them.
Channels that meet in an addition are one group, so they are always kept or dropped together; channels that reach an
operation which this module does not know, or the output, are fixed.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from mdepth_fast.models.resize import replace_tensors

__all__ = ["ChannelGraph", "Group", "Layer"]

# Operations that leave the channels of their first argument as they are.
_PASSING = {
    "relu", "relu_", "relu6", "hardtanh", "hardtanh_", "hardswish", "hardswish_", "sigmoid", "tanh", "elu", "elu_",
    "leaky_relu", "leaky_relu_", "gelu", "silu", "silu_", "dropout", "dropout_", "feature_dropout", "max_pool2d",
    "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d", "_upsample_nearest_exact2d",
    "upsample_bicubic2d", "pad", "clone", "contiguous", "alias", "detach", "detach_", "exp", "clamp", "clamp_min",
    "neg", "to", "_to_copy", "type_as",
}  # fmt: skip
_JOINING = {"add", "add_", "sub", "sub_", "mul", "mul_", "maximum", "minimum"}


@dataclass(frozen=True)
class _Segment:
    """A run of channels of a tensor: all of a group, each `repeat` times in a row (flattened pixels)."""

    group: int
    repeat: int = 1


_Channels = tuple[_Segment, ...]


@dataclass
class Group:
    """Channels that are kept or dropped together.

    `name` is that of the first layer which makes them; `makers` are (parameter, dimension) of all layers that do.
    """

    name: str
    size: int
    makers: list[tuple[str, int]] = field(default_factory=list)
    fixed: bool = False


@dataclass
class Layer:
    """One operation: its function, its arguments with tensors in the form of their shapes, and whose channels they are.

    `shapes[i]` belongs to the i-th tensor argument; `channels[i]` names the (dimension, segments) of it that follow
    groups. `name` is the layer's name in the graph.
    """

    name: str
    node: fx.Node
    shapes: list[tuple[int, ...]]
    channels: list[list[tuple[int, _Channels]]]
    output: tuple[int, ...]

    @property
    def operation(self) -> str:
        """Such as `conv2d`."""
        return _short(self.node)


class ChannelGraph:
    """The channels of a network as `example` (a batch of inputs) runs through it, in eval mode.

    Attributes: `groups`, by number; `layers`, in the order of execution; `prunable`, the numbers of the groups that may
    shrink.

    Raises ValueError where `torch.export` cannot capture the network.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                program = torch.export.export(model, (example,))
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(f"model: torch.export cannot capture {type(model).__name__} ({reason})") from error
        finally:
            model.train(training)
        signature = program.graph_signature
        self._state_of = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.groups: dict[int, Group] = {}
        self.layers: list[Layer] = []
        self._parents: list[int] = []
        self._uses: list[tuple[str, int, _Channels]] = []
        channels: dict[str, _Channels | None] = {}
        for node in program.graph.nodes:
            channels[node.name] = self._visit(node, channels)
        self._settle()

    @property
    def prunable(self) -> list[int]:
        return [number for number, group in self.groups.items() if not group.fixed]

    @property
    def sizes(self) -> dict[int, int]:
        """Channels of every group."""
        return {number: group.size for number, group in self.groups.items()}

    def number(self, name: str) -> int:
        """The group that a layer of this name makes."""
        for number, group in self.groups.items():
            if group.name == name or any(maker.rpartition(".")[0] == name for maker, _ in group.makers):
                return number
        raise ValueError(f"name: no layer makes channels under the name {name!r}")

    def shapes(self, layer: Layer, sizes: Mapping[int, int]) -> list[tuple[int, ...]]:
        """Shapes of a layer's tensors when groups have other sizes."""
        changed = []
        for shape, dimensions in zip(layer.shapes, layer.channels):
            new = list(shape)
            for dimension, segments in dimensions:
                new[dimension] = sum(sizes[segment.group] * segment.repeat for segment in segments)
            changed.append(tuple(new))
        return changed

    def weights(self, sizes: Mapping[int, int]) -> int:
        """Numbers in the filters of convolutions and linear layers."""
        return sum(math.prod(self.shapes(layer, sizes)[1]) for layer in self.layers if _is_product(layer))

    def macs(self, sizes: Mapping[int, int]) -> int:
        """Multiply-accumulate operations of convolutions and linear layers, of the whole example batch."""
        total = 0
        for layer in self.layers:
            if _is_product(layer):
                weight = self.shapes(layer, sizes)[1]
                # A transposed convolution uses every filter at every pixel of its input, the others of their output.
                pixels = layer.shapes[0] if layer.operation == "conv_transpose2d" else layer.output
                spatial = math.prod(pixels[2:]) if len(weight) == 4 else math.prod(pixels[1:-1])
                total += pixels[0] * math.prod(weight) * spatial
        return total

    def importance(self, model: nn.Module, number: int) -> Tensor:
        """Squared L2 norm of each channel's filters, summed over all layers that make it (NetAdapt, section 3.2)."""
        state = dict(model.named_parameters())
        norms = [
            state[name].detach().transpose(0, dimension).flatten(1).double().square().sum(1)
            for name, dimension in self.groups[number].makers
            if state[name].dim() > 1
        ]
        return torch.stack(norms).sum(0)

    def keep_largest(self, model: nn.Module, number: int, count: int) -> Tensor:
        """Indices, ascending, of the `count` channels of the largest importance; the first ones where equal."""
        size = self.groups[number].size
        if not 0 < count <= size:
            raise ValueError(f"count: expected 1 to {size} channels, got {count}")
        order = self.importance(model, number).argsort(descending=True, stable=True)
        return order[:count].sort().values

    def shrink(self, model: nn.Module, kept: Mapping[int, Tensor]) -> nn.Module:
        """A copy of the network with only the channels `kept` of the groups that are named (indices, ascending)."""
        for number, indices in kept.items():
            group = self.groups[number]
            if group.fixed:
                raise ValueError(f"kept: the channels of {group.name} are fixed")
            if not len(indices) or int(indices.min()) < 0 or int(indices.max()) >= group.size:
                raise ValueError(f"kept: expected indices from 0 to {group.size - 1} of {group.name}")
        smaller = copy.deepcopy(model)
        state = {**dict(smaller.named_parameters()), **dict(smaller.named_buffers())}
        changed: dict[str, Tensor] = {}
        for name, dimension, segments in self._uses:
            if not any(segment.group in kept for segment in segments):
                continue
            parts, start = [], 0
            for segment in segments:
                size = self.groups[segment.group].size
                indices = kept[segment.group] if segment.group in kept else torch.arange(size)
                indices = indices.to(state[name].device)
                spread = torch.arange(segment.repeat, device=indices.device)
                parts.append(start + (indices[:, None] * segment.repeat + spread).flatten())
                start += size * segment.repeat
            value = changed.get(name, state[name].detach())
            changed[name] = value.index_select(dimension, torch.cat(parts).to(value.device))
        replace_tensors(smaller, changed)
        return smaller

    # How the graph is read.

    def _visit(self, node: fx.Node, channels: dict[str, _Channels | None]) -> _Channels | None:
        if node.op == "placeholder":
            if node.name in self._state_of or _value(node) is None or _value(node).dim() < 2:
                return None
            return (_Segment(self._new(node.name, _value(node).shape[1], fixed=True)),)
        given = [channels.get(argument.name) for argument in node.all_input_nodes]
        if node.op != "call_function":
            return self._fix(given)
        operation = _short(node)
        tensors = [argument for argument in node.all_input_nodes if _value(argument) is not None]
        first = channels.get(tensors[0].name) if tensors else None
        result: _Channels | None
        if operation in ("conv2d", "conv_transpose2d", "linear"):
            result = self._product(node, operation, first)
            if result is None:
                return self._record(node, tensors, channels, self._fix(given))
        elif operation in ("batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"):
            result = first
            for argument in tensors[1:]:
                self._follow(argument, 0, first)
        elif operation in _PASSING:
            result = first
        elif operation in _JOINING and len(tensors) == 2:
            result = self._join(tensors, channels)
        elif operation in _JOINING and len(tensors) == 1:
            result = first
        elif operation == "cat" and (node.args[1] if len(node.args) > 1 else 0) == 1:
            parts = [channels.get(argument.name) for argument in cast(list[fx.Node], node.args[0])]
            result = None if None in parts else tuple(segment for part in parts for segment in part or ())
        elif operation == "mean" and len(node.args) > 1 and _spatial(node.args[1], tensors[0]):
            result = first
        elif operation in ("flatten", "view", "reshape") and _flattens(node, tensors[0]):
            pixels = math.prod(_value(tensors[0]).shape[2:])
            result = None if first is None else tuple(_Segment(s.group, s.repeat * pixels) for s in first)
        elif operation == "getitem":
            result = first
        else:
            result = self._fix(given)
        return self._record(node, tensors, channels, result)

    def _record(
        self, node: fx.Node, tensors: Sequence[fx.Node], channels: dict[str, _Channels | None], result: _Channels | None
    ) -> _Channels | None:
        value = _value(node)
        if value is None:
            return result
        dimensions: list[list[tuple[int, _Channels]]] = []
        for argument in tensors:
            own = channels.get(argument.name)
            name = self._state_of.get(argument.name)
            found = [(1, own)] if own else [(d, s) for used, d, s in self._uses if used == name]
            dimensions.append(found)
        shapes = [tuple(_value(argument).shape) for argument in tensors]
        self.layers.append(Layer(node.name, node, shapes, dimensions, tuple(value.shape)))
        return result

    def _product(self, node: fx.Node, operation: str, given: _Channels | None) -> _Channels | None:
        weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
        name = self._state_of.get(weight.name)  # type: ignore[union-attr]
        if name is None or any(used == name for used, _, _ in self._uses):
            return None  # a weight that is computed, or shared between layers
        shape = _value(weight).shape
        groups = 1
        if operation != "linear":
            position = 6
            groups = int(node.args[position]) if len(node.args) > position else int(node.kwargs.get("groups", 1))  # type: ignore[arg-type]
        into, out = (0, 1) if operation == "conv_transpose2d" else (1, 0)
        if groups == 1:
            if given is not None:
                self._uses.append((name, into, given))
            made = (_Segment(self._new(name.rpartition(".")[0], shape[out])),)
            self.groups[made[0].group].makers.append((name, out))
            self._uses.append((name, out, made))
            self._follow(bias, 0, made)
            return made
        if given is not None and groups == shape[0] and shape[1] == 1:  # depthwise
            self._uses.append((name, 0, given))
            self._follow(bias, 0, given)
            return given
        return None

    def _follow(self, argument: Any, dimension: int, segments: _Channels | None) -> None:
        name = self._state_of.get(getattr(argument, "name", ""))
        if name is not None and segments is not None:
            self._uses.append((name, dimension, segments))

    def _join(self, tensors: Sequence[fx.Node], channels: dict[str, _Channels | None]) -> _Channels | None:
        a, b = (channels.get(argument.name) for argument in tensors)
        shapes = [_value(argument).shape for argument in tensors]
        if (
            a is None
            or b is None
            or len(shapes[0]) != len(shapes[1])
            or shapes[0][1] != shapes[1][1]
            or len(a) != len(b)
        ):
            return self._fix([a, b])
        for one, other in zip(a, b):
            if one.repeat != other.repeat or self.groups[one.group].size != self.groups[other.group].size:
                return self._fix([a, b])
            self._parents[self._root(other.group)] = self._root(one.group)
        return a

    def _new(self, name: str, size: int, fixed: bool = False) -> int:
        number = len(self._parents)
        self._parents.append(number)
        self.groups[number] = Group(name, size, fixed=fixed)
        return number

    def _root(self, number: int) -> int:
        while self._parents[number] != number:
            number = self._parents[number]
        return number

    def _fix(self, given: Sequence[_Channels | None]) -> _Channels | None:
        """Nothing is known of what comes out, so what goes in stays as it is."""
        for segments in given:
            for segment in segments or ():
                self.groups[segment.group].fixed = True
        return None

    def _settle(self) -> None:
        """One number for each group of joined channels."""

        def settled(segments: _Channels) -> _Channels:
            return tuple(_Segment(self._root(segment.group), segment.repeat) for segment in segments)

        merged: dict[int, Group] = {}
        for number, group in self.groups.items():
            root = merged.setdefault(self._root(number), Group(group.name, group.size))
            root.makers += group.makers
            root.fixed |= group.fixed
        self.groups = merged
        self._uses = [(name, dimension, settled(segments)) for name, dimension, segments in self._uses]
        for layer in self.layers:
            layer.channels = [[(d, settled(segments)) for d, segments in one] for one in layer.channels]


def _short(node: fx.Node) -> str:
    """`conv2d` of `aten.conv2d.default`."""
    name = getattr(node.target, "_opname", None) or getattr(node.target, "__name__", str(node.target))
    return str(name)


def _value(node: Any) -> Any:
    value = getattr(node, "meta", {}).get("val")
    return value if isinstance(value, Tensor) else None


def _is_product(layer: Layer) -> bool:
    return layer.operation in ("conv2d", "conv_transpose2d", "linear")


def _spatial(dimensions: Any, argument: fx.Node) -> bool:
    rank = _value(argument).dim()
    return rank == 4 and {d % rank for d in dimensions} <= {2, 3}


def _flattens(node: fx.Node, argument: fx.Node) -> bool:
    before, after = _value(argument).shape, _value(node).shape
    return len(before) > 2 and len(after) == 2 and after == (before[0], math.prod(before[1:]))

"""Modules in the place of packages that a peer imports: inert ones, TensorFlow 1 run eagerly by PyTorch, torchvision.

They hold only what the peers of `parity_peers` call. What is missing raises AttributeError with its name.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Inert:
    """Can be called and asked for anything, and does nothing."""

    def __call__(self, *args: Any, **options: Any) -> "_Inert":
        return self

    def __getattr__(self, name: str) -> "_Inert":
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def install_inert(*names: str) -> None:
    """Modules for what a peer imports and the comparison does not need: plots, logs, data sets."""
    for name in names:
        module = ModuleType(name)
        module.__getattr__ = _Inert().__getattr__  # type: ignore[method-assign]
        module.__all__ = []  # type: ignore[attr-defined]
        module.__path__ = []
        sys.modules[name] = module


# ----------------------------------------------------------------------------------------------------- torchvision


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1, downsample: nn.Module | None = None) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """He et al., arXiv 1512.03385, with torchvision's names; the stride of a bottleneck is on its 3x3 convolution."""

    def __init__(self, block: Any, layers: Sequence[int]) -> None:
        super().__init__()
        self.inplanes = 64
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        for n, count in enumerate(layers):
            self.add_module(f"layer{n + 1}", self._make_layer(block, 64 * 2**n, count, 2 if n else 1))
        self.fc = nn.Linear(512 * block.expansion, 1000)

    def _make_layer(self, block: Any, width: int, count: int, stride: int = 1) -> nn.Sequential:
        outputs, shortcut = width * block.expansion, None
        if stride != 1 or self.inplanes != outputs:
            shortcut = nn.Sequential(nn.Conv2d(self.inplanes, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        blocks = [block(self.inplanes, width, stride, shortcut)]
        self.inplanes = outputs
        return nn.Sequential(*blocks, *(block(outputs, width) for _ in range(count - 1)))


def install_torchvision() -> bool:
    """A plain ResNet as `torchvision.models`, unless torchvision is there; whether it was needed."""
    try:
        import torchvision  # noqa: F401, TID251
    except ImportError:
        pass
    else:
        return False
    install_inert("torchvision", "torchvision.models")
    models = sys.modules["torchvision"].models = sys.modules["torchvision.models"]  # type: ignore[attr-defined]
    models.ResNet, models.resnet = ResNet, SimpleNamespace(BasicBlock=BasicBlock, Bottleneck=Bottleneck)
    for layers, block, counts in (
        (18, BasicBlock, (2, 2, 2, 2)),
        (34, BasicBlock, (3, 4, 6, 3)),
        (50, Bottleneck, (3, 4, 6, 3)),
        (101, Bottleneck, (3, 4, 23, 3)),
        (152, Bottleneck, (3, 8, 36, 3)),
    ):
        setattr(models, f"resnet{layers}", lambda pretrained=False, b=block, c=counts: ResNet(b, c))
    return True


# ---------------------------------------------------------------------------------------------------- TensorFlow 1
# A tensor is a torch.Tensor of shape (B, H, W, C), in torch's default dtype whatever float the peer asks for.


class _Dimension(int):
    @property
    def value(self) -> int:
        return int(self)


class _Shape(list):
    def as_list(self) -> list[int]:
        return [int(size) for size in self]


class _ShapeEntry(int):
    """An element of `tf.shape`. In TensorFlow 1 it is a tensor, so comparing it compares objects."""

    __hash__ = int.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other


def _dtype(dtype: Any) -> torch.dtype:
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    return torch.int64 if name.startswith(("int", "uint")) else torch.get_default_dtype()


def _sizes(shape: Any) -> list[int]:
    return [int(size) for size in shape]


def _tensor(value: Any, dtype: Any = None) -> Tensor:
    tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
    return tensor if dtype is None else tensor.to(_dtype(dtype))


def _like(value: Any, x: Tensor) -> Tensor:
    return _tensor(value).to(x.dtype)


def _planes(x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function` of (B, C, H, W), applied to (B, H, W, C)."""
    return function(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _pad_same(x: Tensor, kernel: Sequence[int], stride: int) -> Tensor:
    """TensorFlow's SAME padding of (B, C, H, W): to ceil(n / stride) outputs, the odd one behind."""
    pads: list[int] = []
    for size, k in zip(reversed(x.shape[2:]), reversed(kernel)):
        total = max((math.ceil(size / stride) - 1) * stride + k - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads)


def _conv(x: Tensor, kernel: Tensor, stride: int, padding: str) -> Tensor:
    """Convolution of (B, C, H, W) with a kernel (H, W, I, O)."""
    x = _pad_same(x, kernel.shape[:2], stride) if padding == "SAME" else x
    return F.conv2d(x, kernel.permute(3, 2, 0, 1).contiguous(), stride=stride)


def _conv_transpose(x: Tensor, kernel: Tensor, stride: int, padding: str) -> Tensor:
    """The adjoint of a SAME convolution, kernel (H, W, O, I): (n - 1) stride + k outputs, cut as that one pads them."""
    if padding != "SAME":
        raise NotImplementedError(padding)
    sizes = [size * stride for size in x.shape[2:]]
    x = F.conv_transpose2d(x, kernel.permute(3, 2, 0, 1).contiguous(), stride=stride)
    (top, height), (left, width) = (((k - stride) // 2, size) for k, size in zip(kernel.shape, sizes))
    return x[:, :, top : top + height, left : left + width]


class TensorFlow:
    """The module `tensorflow`. `variables` holds what layers create, by name; a name that exists is used again."""

    def __init__(self) -> None:
        self.variables: dict[str, Tensor] = {}
        self._scope: list[str] = []
        self._used: dict[str, int] = {}
        self._defaults: list[tuple[tuple[str, ...], dict[str, Any]]] = []

    def variable(self, name: str, shape: Sequence[int], scale: float, shift: float = 0.0) -> Tensor:
        name = "/".join([*self._scope, name])
        if name not in self.variables:
            self.variables[name] = (shift + scale * torch.randn(*shape)).requires_grad_()
        return self.variables[name]

    @contextmanager
    def variable_scope(self, name: str | None, default_name: str = "", reuse: Any = None) -> Iterator[Any]:
        if not self._scope:
            self._used.clear()  # a graph that is built again uses the variables of the first
        self._scope.append(name or self._unique(default_name))
        try:
            yield SimpleNamespace(original_name_scope="/".join(self._scope) + "/")
        finally:
            self._scope.pop()

    @contextmanager
    def arg_scope(self, functions: Sequence[Any], **options: Any) -> Iterator[None]:
        self._defaults.append((tuple(function.__name__ for function in functions), options))
        try:
            yield
        finally:
            self._defaults.pop()

    def _options(self, layer: str, given: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {"activation_fn": F.relu, "normalizer_fn": None, "normalizer_params": None}
        for names, defaults in self._defaults:
            options |= defaults if layer in names else {}
        return options | given

    def _unique(self, name: str) -> str:
        key = "/".join([*self._scope, name])
        number = self._used[key] = self._used.get(key, -1) + 1
        return f"{name}_{number}" if number else name

    @contextmanager
    def _layer(self, scope: str | None, name: str) -> Iterator[None]:
        self._scope.append(scope or self._unique(name))
        try:
            yield
        finally:
            self._scope.pop()

    def _finish(self, x: Tensor, outputs: int, options: dict[str, Any]) -> Tensor:
        if options["normalizer_fn"] is not None:
            x = options["normalizer_fn"](x, **(options["normalizer_params"] or {}))
        else:
            x = x + self.variable("biases", (outputs,), 0.1)
        return x if options["activation_fn"] is None else options["activation_fn"](x)

    def conv2d(
        self,
        inputs: Tensor,
        num_outputs: int,
        kernel_size: Any,
        stride: int = 1,
        padding: str = "SAME",
        scope: str | None = None,
        **given: Any,
    ) -> Tensor:
        options = self._options("conv2d", given)
        kernel = kernel_size if isinstance(kernel_size, (list, tuple)) else [kernel_size, kernel_size]
        with self._layer(scope, "Conv"):
            shape = (*kernel, inputs.shape[3], num_outputs)
            weights = self.variable("weights", shape, (2 / math.prod(shape[:3])) ** 0.5)
            x = _planes(inputs, lambda planes: _conv(planes, weights, stride, padding))
            return self._finish(x, num_outputs, options)

    def conv2d_transpose(
        self,
        inputs: Tensor,
        num_outputs: int,
        kernel_size: Any,
        stride: int = 1,
        padding: str = "SAME",
        scope: str | None = None,
        **given: Any,
    ) -> Tensor:
        options = self._options("conv2d_transpose", given)
        kernel = kernel_size if isinstance(kernel_size, (list, tuple)) else [kernel_size, kernel_size]
        with self._layer(scope, "Conv2d_transpose"):
            shape = (*kernel, num_outputs, inputs.shape[3])
            scale = stride * (2 / (kernel[0] * kernel[1] * inputs.shape[3])) ** 0.5
            weights = self.variable("weights", shape, scale)
            x = _planes(inputs, lambda planes: _conv_transpose(planes, weights, stride, padding))
            return self._finish(x, num_outputs, options)

    def batch_norm(self, inputs: Tensor, is_training: bool = True) -> Tensor:
        """slim's defaults: a shift, no factor, epsilon 0.001."""
        with self._layer(None, "BatchNorm"):
            outputs = inputs.shape[3]
            shift = self.variable("beta", (outputs,), 0.1)
            mean = self.variable("moving_mean", (outputs,), 0.1)
            variance = self.variable("moving_variance", (outputs,), 0.1, 1.0)
            if is_training:
                mean = inputs.mean((0, 1, 2))
                variance = (inputs - mean).square().mean((0, 1, 2))
            return (inputs - mean) / (variance + 0.001).sqrt() + shift


def _resize(x: Tensor, size: Any, interpolate: Callable[[Tensor, int, int], Tensor]) -> Tensor:
    """`interpolate` along the rows and along the columns of (B, H, W, C)."""
    for axis, length in zip((1, 2), _sizes(size)):
        x = interpolate(x, axis, length)
    return x


def _bilinear(x: Tensor, axis: int, length: int) -> Tensor:
    """TensorFlow 1: output i reads i * in / out, without half pixels."""
    position = torch.arange(length) * x.shape[axis] / length
    low = position.floor().long()
    part = (position - low).view([-1 if n == axis else 1 for n in range(4)])
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    return x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part


def _nearest(x: Tensor, axis: int, length: int) -> Tensor:
    return x.index_select(axis, torch.arange(length) * x.shape[axis] // length)


def install_tensorflow() -> TensorFlow:
    """`tensorflow` and the `tf.contrib` modules that the peers import; also NumPy's `np.int`, which is gone."""
    import numpy as np

    tf = TensorFlow()
    np.int = int  # type: ignore[attr-defined] # noqa: NPY001
    Tensor.get_shape = lambda self: _Shape(map(_Dimension, self.shape))  # type: ignore[attr-defined]

    def clip(x: Tensor, low: Any, high: Any) -> Tensor:
        return torch.minimum(torch.maximum(x, _like(low, x)), _like(high, x))

    def reduce_mean(
        x: Tensor, axis: Any = None, keepdims: bool = False, keep_dims: bool = False
    ) -> Tensor:  # both names were TensorFlow's
        return x.mean() if axis is None else x.mean(axis, keepdim=keepdims or keep_dims)

    def reduce_sum(x: Tensor, axis: Any = None, reduction_indices: Any = None, keep_dims: bool = False) -> Tensor:
        return x.sum(axis if reduction_indices is None else reduction_indices, keepdim=keep_dims)

    def resampler(x: Tensor, position: Tensor) -> Tensor:
        """Bilinear, 0 outside; positions (B, H, W, 2) in pixels."""
        last = position.new_tensor([x.shape[2] - 1, x.shape[1] - 1])
        return _planes(x, lambda planes: F.grid_sample(planes, 2 * position / last - 1, align_corners=True))

    def conv2d(x: Tensor, kernel: Tensor, strides: Sequence[int], padding: str, name: str = "") -> Tensor:
        return _planes(x, lambda planes: _conv(planes, kernel, strides[1], padding))

    def conv2d_transpose(x: Tensor, kernel: Tensor, size: Any, strides: Sequence[int], padding: str) -> Tensor:
        return _planes(x, lambda planes: _conv_transpose(planes, kernel, strides[1], padding))

    def get_variable(name: str, shape: Sequence[int], initializer: Any) -> Tensor:
        weights = len(shape) == 4
        return tf.variable(name, _sizes(shape), (2 / math.prod(shape[:3])) ** 0.5 if weights else 0.1)

    def meshgrid(x: Any, y: Any) -> tuple[Tensor, ...]:
        return torch.meshgrid(*(one if isinstance(one, Tensor) else torch.tensor(one) for one in (x, y)), indexing="xy")

    def transpose(x: Tensor, perm: Sequence[int]) -> Tensor:
        return x.permute(*perm)

    def squeeze(x: Tensor, axis: Any = None, squeeze_dims: Any = None) -> Tensor:
        dims = axis if squeeze_dims is None else squeeze_dims
        return x.squeeze(dims if isinstance(dims, int) else tuple(dims))

    def part(x: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
        return x[tuple(slice(b, None if n == -1 else b + n) for b, n in zip(begin, size))]

    def constant(value: Any, dtype: Any = None, shape: Any = None) -> Tensor:
        tensor = _tensor(value, dtype)
        return tensor if shape is None else tensor.reshape(_sizes(shape))

    def pad(x: Tensor, paddings: Any, mode: str = "CONSTANT") -> Tensor:
        return F.pad(x, [int(n) for pair in reversed(list(paddings)) for n in pair], mode=mode.lower())

    def window(pool: Any, x: Tensor, size: int, stride: int, padding: str) -> Tensor:
        if padding != "VALID":
            raise NotImplementedError(padding)
        return _planes(x, lambda planes: pool(planes, size, stride))

    def cross_entropy(labels: Tensor, logits: Tensor) -> Tensor:
        return -(labels * logits.log_softmax(-1)).sum(-1)

    slim = ModuleType("tensorflow.contrib.slim")
    slim.__dict__.update(
        conv2d=tf.conv2d,
        conv2d_transpose=tf.conv2d_transpose,
        batch_norm=tf.batch_norm,
        arg_scope=tf.arg_scope,
        avg_pool2d=lambda x, size, stride=2, padding="VALID": window(F.avg_pool2d, x, size, stride, padding),
        max_pool2d=lambda x, size, stride=2, padding="VALID": window(F.max_pool2d, x, size, stride, padding),
        l2_regularizer=lambda scale: None,
        utils=SimpleNamespace(convert_collection_to_dict=lambda name: {}),
        learning=SimpleNamespace(create_train_op=lambda loss, optimizer: None),
    )
    image = SimpleNamespace(
        resize_bilinear=lambda x, size: _resize(x, size, _bilinear),
        resize_nearest_neighbor=lambda x, size: _resize(x, size, _nearest),
        resize_area=lambda x, size: _planes(x, lambda planes: F.interpolate(planes, _sizes(size), mode="area")),
        convert_image_dtype=lambda x, dtype: x,
    )
    layers = {
        "relu": F.relu,
        "elu": F.elu,
        "sigmoid": torch.sigmoid,
        "softmax": lambda x: x.softmax(-1),
        "softmax_cross_entropy_with_logits": cross_entropy,
        "conv2d": conv2d,
        "conv2d_transpose": conv2d_transpose,
    }
    module = ModuleType("tensorflow")
    module.__dict__.update(
        contrib=SimpleNamespace(slim=slim, resampler=SimpleNamespace(resampler=resampler)),
        summary=_Inert(),
        image=image,
        nn=SimpleNamespace(**layers),
        train=SimpleNamespace(AdamOptimizer=lambda *args: None),
        gfile=None,
        float32="float32",
        int32="int32",
        uint8="uint8",
        variable_scope=tf.variable_scope,
        name_scope=lambda name: tf.variable_scope(name),
        get_variable=get_variable,
        uniform_unit_scaling_initializer=_Inert(),
        constant_initializer=_Inert(),
        add_to_collection=_Inert(),
        trainable_variables=lambda: list(tf.variables.values()),
        Variable=lambda value, **options: value,
        assign=lambda variable, value: value,
        # shapes
        shape=lambda x: _Shape(map(_ShapeEntry, x.shape)),
        concat=lambda values, axis: torch.cat(values, axis),
        stack=lambda values, axis=0, name="": torch.stack([_tensor(value) for value in values], axis),
        split=lambda x, sizes, axis: x.split(sizes, axis),
        slice=part,
        reshape=lambda x, shape: x.reshape(_sizes(shape)),
        tile=lambda x, multiples: x.repeat(*_sizes(multiples)),
        expand_dims=lambda x, axis: x.unsqueeze(axis),
        squeeze=squeeze,
        transpose=transpose,
        pad=pad,
        gather=lambda x, index: x[index],
        # new tensors
        ones=lambda shape, dtype=None: torch.ones(_sizes(shape)),
        zeros=lambda shape, dtype=None: torch.zeros(_sizes(shape)),
        ones_like=torch.ones_like,
        constant=constant,
        linspace=lambda start, stop, count: torch.linspace(float(start), float(stop), int(count)),
        range=lambda stop: torch.arange(int(stop)),
        meshgrid=meshgrid,
        # arithmetic
        cast=_tensor,
        to_float=lambda x: _tensor(x, "float32"),
        matmul=torch.matmul,
        matrix_inverse=torch.linalg.inv,
        floor=torch.floor,
        clip_by_value=clip,
        minimum=lambda x, y: torch.minimum(x, _like(y, x)),
        maximum=torch.maximum,
        logical_and=torch.logical_and,
        greater=torch.greater,
        greater_equal=torch.greater_equal,
        less=torch.less,
        pow=torch.pow,
        sqrt=torch.sqrt,
        stop_gradient=torch.detach,
        reduce_sum=reduce_sum,
        add_n=sum,
        abs=torch.abs,
        exp=torch.exp,
        cos=torch.cos,
        sin=torch.sin,
        sigmoid=torch.sigmoid,
        reduce_mean=reduce_mean,
    )
    utils = ModuleType("tensorflow.contrib.layers.python.layers")
    utils.utils = slim.utils  # type: ignore[attr-defined]
    install_inert("tensorflow.contrib", "tensorflow.contrib.layers", "tensorflow.contrib.layers.python")
    sys.modules["tensorflow.contrib"].slim = slim  # type: ignore[attr-defined]
    sys.modules |= {"tensorflow": module, slim.__name__: slim, utils.__name__: utils}
    return tf

"""Copies of networks for inference: on an engine, or with batch norms folded into the convolutions before them."""

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..engines import DTYPES, ENGINES, OF_ONNX
from ..engines.engine import Autocast, Engine
from ..engines.fastest import fastest
from ..engines.runtimes import machine_kind, why_not

if TYPE_CHECKING:
    from .base import Model

__all__ = ["fold_batch_norms", "optimized"]

M = TypeVar("M", bound=nn.Module)


@torch.inference_mode(False)
def optimized(model: "Model", engine: str, dtype: str) -> Any:
    """What `Model.optimize_for_inference` gives."""
    for name, value, known in (("engine", engine, ("auto", *ENGINES)), ("dtype", dtype, ("auto", *DTYPES))):
        if value not in known:
            raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    one = next(model.parameters())
    own, kind = str(one.dtype).removeprefix("torch."), type(model).__name__
    name = model.created_as[0] if model.created_as else kind
    if own != "float32" and (dtype != "auto" or engine in OF_ONNX):
        raise ValueError(f"dtype: expected a network in float32, got {kind} in {own}; `.float()` converts it")
    wanted = "float32" if dtype == "auto" else dtype
    if auto := engine == "auto":
        engine = "native"
        if own == "float32" and one.device.type == "cpu" and not getattr(model, "reads_features", False):
            possible = {other: why_not(other, wanted) is None for other in ENGINES}
            engine = fastest(machine_kind(), name, wanted, possible)
    if reason := why_not(engine, wanted, one.device):
        raise ValueError(f"engine: {reason}" if engine in OF_ONNX else f"dtype: {reason}")
    if engine in OF_ONNX and getattr(model, "reads_features", False):
        raise ValueError(f"engine: {engine} cannot take {name}, which reads the features of a depth net; take native")
    made = model._native_copy() if engine == "native" else _copy(model)
    if wanted == "bfloat16" and made.float32_only and auto:
        engine, made = "torch", _copy(model)
    if wanted == "bfloat16" and made.float32_only:
        raise ValueError(f"dtype: the native kernels of {name} compute in float32; take openvino or torch for bfloat16")
    if engine in OF_ONNX:
        setattr(made, made.engine_method, Engine(made, made.engine_method, engine, wanted))
    elif wanted == "bfloat16":
        setattr(made, made.engine_method, Autocast(made, made.engine_method))
    made.runs_on = (engine, wanted if own == "float32" else own)
    return made


def _copy(model: M) -> M:
    return copy.deepcopy(model).eval().requires_grad_(False)


class _Uses(TorchDispatchMode):
    """Counts how many operators take each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[int] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def fold_batch_norms(model: M, size: tuple[int, int], images: int = 1) -> M:
    """A copy of `model` in eval mode, its parameters without gradient, batch norms folded into their convolutions.

    A batch norm is folded if its input is the output of a convolution that nothing else uses, and if `model(images)`
    calls both once. A forward pass with images of `size` on the meta device finds this; it computes nothing. images:
    how many the model takes at once.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    uses, calls = _Uses(), Counter[nn.Module]()
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are kept, so that no id comes twice
    pairs: dict[nn.BatchNorm2d, tuple[nn.Conv2d, Tensor]] = {}

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[module] += 1
        if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            pairs[module] = made[id(inputs[0])]

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)
            uses.count[id(output)] = 0  # the id may have been that of a tensor that is gone

    handles = [module.register_forward_pre_hook(before) for module in model.modules()]
    handles += [module.register_forward_hook(after) for module in model.modules()]
    state = {name: tensor.to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    try:
        with uses:
            empty = torch.empty(1, 3, *size, device="meta", dtype=next(iter(state.values())).dtype)
            torch.func.functional_call(model, state, (empty,) * images)
    finally:
        for handle in handles:
            handle.remove()

    names = {module: name for name, module in model.named_modules()}
    for norm, (conv, output) in pairs.items():
        if calls[norm] == calls[conv] == 1 and uses.count[id(output)] == 1 and norm.running_mean is not None:
            _replace(model, names[conv], fuse_conv_bn_eval(conv, norm))
            _replace(model, names[norm], nn.Identity().eval())
    return model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
